"""Writes the codebooks of the IQ types, cuda/common/types/NAME.inc, which both languages read: needs the packages gguf and numpy.

    python3 codebooks.py

Of each entry the numbers of its values among those that the type has, a hexadecimal digit each, the first one lowest."""

import pathlib

import numpy as np
from gguf import quants

HERE = pathlib.Path(__file__).parent
for name in ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S"]:
    kind = getattr(quants, name)
    kind.init_grid()
    grid = np.asarray(kind.grid).reshape(kind.grid_shape)
    entries = [sum(kind.grid_map.index(int(value)) << 4 * i for i, value in enumerate(entry)) for entry in grid]
    digits = kind.grid_shape[1]
    words = [f"0x{entry:0{digits}x}," for entry in entries]
    each = 128 // (len(words[0]) + 1)
    lines = [" ".join(words[i : i + each]) for i in range(0, len(words), each)]
    path = HERE / "../../cuda/common/types" / f"{name.lower()}.inc"
    path.write_text(f"// Codebook of {name}: tests/data/codebooks.py.\n" + "\n".join(lines) + "\n")
    print(name, kind.grid_shape, kind.grid_map)
