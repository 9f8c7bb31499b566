"""Writes blocks.bin, with which tests/types.rs checks the decoding of blocks: needs the packages gguf and numpy.

    python3 vectors.py

For each type, in the order of GGML's numbers: number and count of blocks (u32), random blocks with
finite factors, and their weights as f32 as gguf.quants decodes them. An entry of no blocks ends the file. Little-endian."""

import pathlib

import numpy as np
from gguf import GGMLQuantizationType
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize

WEIGHTS = 768
# Byte offsets of the f16 factors of a block.
FACTORS = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ2_XXS": [0],
    "IQ2_XS": [0],
    "IQ3_XXS": [0],
    "IQ1_S": [0],
    "IQ4_NL": [0],
    "IQ3_S": [0],
    "IQ2_S": [0],
    "IQ4_XS": [0],
    "IQ1_M": [],
    "TQ1_0": [52],
    "TQ2_0": [64],
    "MXFP4": [],
}

out = b""
for kind in sorted(GGMLQuantizationType[name] for name in FACTORS):
    name = kind.name
    random = np.random.default_rng(kind)
    blocks = random.integers(0, 256, (WEIGHTS // GGML_QUANT_SIZES[kind][0], GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
    for at in FACTORS[name]:
        blocks[:, at : at + 2] = random.normal(0, 0.01, (len(blocks), 1)).astype("<f2").view(np.uint8)
    if name == "IQ1_M":
        # The factor's sixteen bits are the top four of four integers.
        blocks[:, 55] &= 0xBF
    weights = dequantize(blocks, kind).astype("<f4")
    out += np.array([kind, len(blocks)], "<u4").tobytes() + blocks.tobytes() + weights.tobytes()
out += np.zeros(2, "<u4").tobytes()
pathlib.Path(__file__).with_name("blocks.bin").write_bytes(out)
