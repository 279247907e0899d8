"""Where MLX's own Metal headers lie in the installed package, and what stands in for the few that C++ cannot read."""

from __future__ import annotations

import functools
from pathlib import Path

import mlx.core

HERE = Path(__file__).parent
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
        KERNELS + "logging.h": "",
        KERNELS + "complex.h": (HERE / "mlx_complex.h").read_text(encoding="ascii"),
        KERNELS + "steel/utils/type_traits.h": (HERE / "mlx_type_traits.h").read_text(encoding="ascii"),
    }
