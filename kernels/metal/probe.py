"""metal_kernel -> why simdgroup_async_copy cannot be used with it: a tiny kernel is compiled, run and compared."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..assemble import assemble, header_and_body

FOLDER = Path(__file__).parent
KERNEL = "async_copy/probe.metal"
NAME = "flextrace_async_probe"
ROWS, COLUMNS = 6, 8  # copied into a tile of 8 rows


def why_no_async_copy(metal_kernel: Callable[..., Any]) -> str | None:
    """None where the copy works. Evaluates arrays of its own, which MLX allows inside its transformations too."""
    header, source = header_and_body(assemble(FOLDER, KERNEL, {}))
    given = [float(i) for i in range(ROWS * COLUMNS)]
    try:
        kernel = metal_kernel(
            name=f"{NAME}_{hashlib.sha256((header + source).encode()).hexdigest()[:16]}",
            input_names=["from"],
            output_names=["out"],
            source=source,
            header=header,
        )
        (out,) = kernel(
            inputs=[mx.array(given)],
            grid=(32, 1, 1),
            threadgroup=(32, 1, 1),
            output_shapes=[(64,)],
            output_dtypes=[mx.float32],
        )
        copied = out.tolist()
    except RuntimeError as error:  # what MLX makes of a compiler's refusal
        return next((line for line in str(error).splitlines() if "error" in line), str(error)).strip()
    return None if copied == given + [0.0] * (64 - len(given)) else "it copied wrong values"
