"""metal_kernel -> why simdgroup_async_copy cannot be used with it: a tiny kernel is compiled, run and compared."""

from __future__ import annotations

import mlx.core as mx

from ..kernel import Factory, launchable
from ..text import KernelText, texts_of

NAME = "async_probe"
ROWS, COLUMNS = 6, 8  # copied into a tile of 8 rows


def why_no_async_copy(metal_kernel: Factory) -> str | None:
    """None where the copy works. Evaluates arrays of its own, which MLX allows inside its transformations too."""
    text = KernelText(NAME, *texts_of("async_copy/probe.metal"), inputs=("from",), outputs=("out",))
    given = [float(i) for i in range(ROWS * COLUMNS)]
    try:
        (out,) = launchable(metal_kernel, text, kinds="")(
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
