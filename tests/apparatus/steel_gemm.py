"""MLX's own matrix product, read from the installed package and run in the simulator: the yardstick of matmul's counts.

Nothing of MLX's text is kept here. Tiles of 64 x 64 x 16 by four simdgroups are what MLX's host code launches for large
matrices.
"""

from __future__ import annotations

import struct

import mlx.core as mx
import numpy as np

from flextrace.kernels.simulator.build import build
from flextrace.kernels.simulator.kernel import record
from flextrace.kernels.simulator.launch import Argument, launch
from flextrace.kernels.simulator.report import Report
from flextrace.kernels.simulator.translate.mlx_text import KERNELS
from flextrace.kernels.simulator.translate.signature import type_name
from flextrace.kernels.simulator.translate.translate import translate

TEXT = f'#include "{KERNELS}steel/gemm/gemm.h"\n#include "{KERNELS}steel/gemm/kernels/steel_gemm_fused.h"\n'
TILES = (64, 64, 16)


def steel_gemm(a: mx.array, b: mx.array, transpose_b: bool = False) -> tuple[mx.array, Report]:
    """a: [M, K]; b: [K, N], or [N, K] if transpose_b; contiguous, of one dtype, float32 or float16; M, N and K are
    multiples of the tile's sides."""
    (m, k), n = a.shape, b.shape[0 if transpose_b else 1]
    bm, bn, bk = TILES
    across, down = n // bn, m // bm
    constants = {"has_batch": False, "use_out_source": False, "do_axpby": False}
    constants |= {"align_M": True, "align_N": True, "align_K": True}
    arguments = f"{type_name(a.dtype)}, {bm}, {bn}, {bk}, 2, 2, false, {str(transpose_b).lower()}, float"
    text, _ = translate(TEXT, "gemm", arguments, constants)
    sizes = (m, n, k, k, b.shape[1], n, across, down)
    params = np.frombuffer(struct.pack("=8i3q3i4x", *sizes, 0, 0, 0, 0, k // bk, 0), np.uint8).copy()
    addmm_params = np.zeros(24, np.uint8)  # read, and unused
    out = np.empty((m, n), np.array(a).dtype)
    named = [("a", np.array(a)), ("b", np.array(b)), ("", np.empty(0)), ("out", out), ("params", params)]
    buffers = [
        Argument(name, x.ctypes.data, x.nbytes, x.itemsize, 0, name == "out", name != "out", x.itemsize == 1)
        for name, x in [*named, ("addmm_params", addmm_params), ("", np.empty(0)), ("", np.empty(0))]
    ]
    library = build(text, True, "steel_gemm")
    grid = (32 * across, 2 * down, 2)
    report = record(launch(library, "steel_gemm", buffers, grid, (32, 2, 2), "forward", True))
    return mx.array(out), report
