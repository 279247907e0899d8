"""What the driver says of the GPU that MLX uses."""

from __future__ import annotations

import ctypes
import functools

LEAST = 80  # compute capability times 10
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


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
    library = driver()
    device, numbers = ctypes.c_int(), [ctypes.c_int(), ctypes.c_int()]
    if library is None or library.cuDeviceGet(ctypes.byref(device), 0):
        return None
    for number, attribute in zip(numbers, (_MAJOR, _MINOR), strict=True):
        if library.cuDeviceGetAttribute(ctypes.byref(number), attribute, device):
            return None
    return 10 * numbers[0].value + numbers[1].value
