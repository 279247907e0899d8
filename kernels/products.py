"""Products of float32 matrices by MLX, in full: a GPU's are of tf32, which has 11 bits of each factor."""

from __future__ import annotations

import mlx.core as mx

_HIGH = -(1 << 13)  # the bits of a float32 that tf32 has


def factors(x: mx.array) -> list[mx.array]:
    """float32 -> the summands of it that products take as they are. What is not finite is whole in the first."""
    if mx.default_device().type != mx.DeviceType.gpu:
        return [x]
    finite = mx.abs(x) < mx.inf
    high = mx.where(finite, (x.view(mx.int32) & _HIGH).view(mx.float32), x)
    return [high, mx.where(finite, x - high, 0.0)]


def product(a: mx.array, b: mx.array) -> mx.array:
    """a @ b, both float32; the product of both small parts is below what float32 keeps."""
    left, right = factors(a), factors(b)
    total = left[0] @ right[0]
    if len(left) == 1:
        return total
    return total + (left[1] @ _finite(right[0]) + _finite(left[0]) @ right[1])


def _finite(x: mx.array) -> mx.array:
    return mx.where(mx.abs(x) < mx.inf, x, 0.0)
