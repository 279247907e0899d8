"""Arrays and captured values -> what a Metal kernel is given: buffers in the device address space, 32-bit words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from flextrace.tracer import Bound

from ..mods import readable
from .tiles import SMALLEST


def in_device_memory(x: mx.array) -> mx.array:
    """The array with so many columns that MLX does not pass it in the constant address space."""
    return x if x.size >= SMALLEST else mx.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, SMALLEST)])


def flat(x: mx.array) -> mx.array:
    """All elements, one after the other, in device memory."""
    return in_device_memory(mx.contiguous(x.reshape(-1)))


def as_input(mod: Bound, array: mx.array | np.ndarray[Any, Any]) -> mx.array:
    """A captured array as the kernel reads it: Metal has no float64."""
    given = readable(mod, array)
    return given.astype(mx.float32, stream=mx.cpu) if given.dtype == mx.float64 else given


def words_of_numbers(mods: Sequence[Bound]) -> list[int]:
    """Captured numbers as 32-bit words."""
    return [
        bits(float(number)) if capture.dtype == "float" else int(number)
        for mod in mods
        for capture, number in zip(mod.trace.numbers, mod.numbers, strict=True)
    ]


def bits(number: float) -> int:
    """Of a float32, as an int32."""
    with np.errstate(over="ignore"):  # beyond float32: infinite
        return int(np.float32(number).view(np.int32))
