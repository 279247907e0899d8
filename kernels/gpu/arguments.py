"""Arrays and captured values -> what a kernel of a GPU is given: buffers in device memory, 32-bit words."""

from __future__ import annotations

import ctypes

import mlx.core as mx

from ..call import Mods
from ..spec import Formulas

SMALLEST = 8  # MLX passes smaller arrays in Metal's constant address space, where the kernels do not expect theirs


def in_device_memory(x: mx.array) -> mx.array:
    """The array with so many columns that MLX does not pass it in the constant address space."""
    return x if x.size >= SMALLEST else mx.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, SMALLEST)])


def flat(x: mx.array) -> mx.array:
    """All elements, one after the other, in device memory."""
    return in_device_memory(mx.contiguous(x.reshape(-1)))


def captured_arrays(mods: Mods, packed: bool) -> list[mx.array]:
    """Captured arrays as the kernel reads them: no float64, and packed ones lie row after row."""
    given = [x.astype(mx.float32, stream=mx.cpu) if x.dtype == mx.float64 else x for x in mods.readable()]
    return [mx.contiguous(x) for x in given] if packed else given


def words_of_captures(mods: Mods) -> list[int]:
    """Captured numbers as 32-bit words, then the shapes of captured arrays."""
    numbers = [bits(float(number)) if dtype == "float" else int(number) for dtype, number in mods.typed_numbers()]
    return [*numbers, *(size for array in mods.arrays for size in array.shape)]


def words_for(mods: Formulas) -> int:
    """How many words these are."""
    return len(mods.numbers) + sum(array.ndim for array in mods.arrays)


def bits(number: float) -> int:
    """The bits of a float32, as an int32; of one beyond float32 those of infinity."""
    return ctypes.c_int32.from_buffer(ctypes.c_float(number)).value
