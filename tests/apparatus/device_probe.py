"""What the Metal device is, and whether it multiplies two simdgroup matrices: run before the tests on a hosted Mac.

Hosted Macs have a paravirtual GPU. Where its matrices are wrong no kernel of flextrace can be right, and the failures
of the tests say nothing about flextrace.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

PRODUCT = """
    simdgroup_matrix<float, 8, 8> left, right, product = simdgroup_matrix<float, 8, 8>(0.0f);
    simdgroup_load(left, a, 8);
    simdgroup_load(right, b, 8);
    simdgroup_multiply_accumulate(product, left, right, product);
    simdgroup_store(product, out, 8);
"""


def product_is_right(metal_kernel: Callable[..., Any]) -> bool:
    """Whether one simdgroup multiplies two 8 by 8 matrices of small whole numbers, which float32 holds exactly."""
    a, b = (np.random.default_rng(seed).integers(-8, 9, (8, 8)).astype(np.float32) for seed in (1, 2))
    kernel = metal_kernel(
        name="flextrace_probe",
        input_names=["a", "b"],
        output_names=["out"],
        source=PRODUCT,
        header="#include <metal_simdgroup_matrix>\n",
    )
    (out,) = kernel(
        inputs=[mx.array(a), mx.array(b)],
        grid=(32, 1, 1),
        threadgroup=(32, 1, 1),
        output_shapes=[(8, 8)],
        output_dtypes=[mx.float32],
    )
    return np.array_equal(np.array(out), a @ b)


if __name__ == "__main__":
    if not mx.metal.is_available():
        sys.exit("MLX finds no Metal device")
    information = mx.device_info() if hasattr(mx, "device_info") else mx.metal.device_info()
    print(*(f"{name}: {value}" for name, value in information.items()), sep="\n")
    if not product_is_right(mx.fast.metal_kernel):
        sys.exit("this device multiplies simdgroup matrices wrongly: its other results say nothing")
    print("simdgroup matrices multiply exactly")
