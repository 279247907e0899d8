"""What the driver says of the GPU that MLX uses."""

from __future__ import annotations

import ctypes
import functools

LEAST = 80  # compute capability times 10
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


@functools.cache
def capability() -> int | None:
    """The compute capability of the first GPU, times 10: 90 for an H200; None without a driver or a GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, numbers = ctypes.c_int(), [ctypes.c_int(), ctypes.c_int()]
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    for number, attribute in zip(numbers, (_MAJOR, _MINOR), strict=True):
        if driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device):
            return None
    return 10 * numbers[0].value + numbers[1].value
