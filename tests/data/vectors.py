"""Writes blocks.bin, with which tests/types.rs checks the decoding of blocks: needs the packages gguf and numpy.

    python3 vectors.py Q4_K Q5_K Q6_K

For each type, in the order given, which is that of GGML's numbers: number and count of blocks (u32), random blocks with
finite factors, and their weights as f32 as gguf.quants decodes them. An entry of no blocks ends the file. Little-endian."""

import pathlib
import sys

import numpy as np
from gguf import GGMLQuantizationType
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize

BLOCKS = 3
# Byte offsets of the f16 factors of a block.
FACTORS = {"Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}

random = np.random.default_rng(1)
out = b""
for name in sys.argv[1:]:
    kind = GGMLQuantizationType[name]
    blocks = random.integers(0, 256, (BLOCKS, GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
    for at in FACTORS[name]:
        blocks[:, at : at + 2] = random.normal(0, 0.01, (BLOCKS, 1)).astype("<f2").view(np.uint8)
    weights = dequantize(blocks, kind).astype("<f4")
    out += np.array([kind, BLOCKS], "<u4").tobytes() + blocks.tobytes() + weights.tobytes()
out += np.zeros(2, "<u4").tobytes()
pathlib.Path(__file__).with_name("blocks.bin").write_bytes(out)
