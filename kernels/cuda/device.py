"""What the driver says of the GPU that MLX uses."""

from __future__ import annotations

import ctypes
import functools

LEAST = 80  # compute capability times 10
PLAIN_MULTIPROCESSORS = 132  # of an H100 or H200, where there is no GPU
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
_MULTIPROCESSORS = 16  # CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT


@functools.cache
def driver() -> ctypes.CDLL | None:
    """libcuda, ready for calls; None without a driver or a GPU."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return None if library.cuInit(0) else library


@functools.cache
def capability() -> int | None:
    """The compute capability of the first GPU, times 10: 90 for an H200; None without a driver or a GPU."""
    found = _attributes(_MAJOR, _MINOR)
    return None if found is None else 10 * found[0] + found[1]


@functools.cache
def multiprocessors() -> int:
    """How many the first GPU has."""
    found = _attributes(_MULTIPROCESSORS)
    return PLAIN_MULTIPROCESSORS if found is None else found[0]


def _attributes(*wanted: int) -> list[int] | None:
    library = driver()
    device, numbers = ctypes.c_int(), [ctypes.c_int() for _ in wanted]
    if library is None or library.cuDeviceGet(ctypes.byref(device), 0):
        return None
    for number, attribute in zip(numbers, wanted, strict=True):
        if library.cuDeviceGetAttribute(ctypes.byref(number), attribute, device):
            return None
    return [number.value for number in numbers]
