"""Where MLX's own Metal headers lie in the installed package, and what stands in for the few that C++ cannot read."""

from __future__ import annotations

import functools
from pathlib import Path

import mlx.core

STDLIB = Path(__file__).parents[1] / "stdlib"
KERNELS = "mlx/backend/metal/kernels/"


@functools.cache
def include_folder() -> Path:
    """The folder of MLX's headers. Raises FileNotFoundError where the installed mlx has none."""
    folder = Path(mlx.core.__file__).parent / "include"
    if not (folder / KERNELS / "utils.h").is_file():
        raise FileNotFoundError(
            f"the installed mlx has no Metal headers at {folder}; install MLX's wheel, which carries them"
        )
    return folder


@functools.cache
def replacements() -> dict[str, str]:
    """Include name -> text, for headers whose overloads by address space are one in C++."""
    return {
        KERNELS + "bf16_math.h": "",  # metal_math.h has bfloat
        **_bfloat16(),
        KERNELS + "logging.h": "",
        KERNELS + "complex.h": (STDLIB / "mlx_complex.h").read_text(encoding="ascii"),
        KERNELS + "steel/utils/type_traits.h": (STDLIB / "mlx_type_traits.h").read_text(encoding="ascii"),
    }


def _bfloat16() -> dict[str, str]:
    """The header that MLX before 0.29.3 includes by a path given to the compiler, here that of Metal 3.1."""
    header = include_folder() / KERNELS / "metal_3_1" / "bf16.h"
    return {"bf16.h": header.read_text(encoding="utf-8")} if header.is_file() else {}
