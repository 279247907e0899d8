"""What the driver says of the GPU that MLX uses; or which GPU kernels are made for ahead, on a machine without it."""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

LEAST = 80  # compute capability times 10
HOPPER = 90
PLAIN_MULTIPROCESSORS = 132  # of an H100 or H200, where there is no GPU
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
_MULTIPROCESSORS = 16  # CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT

_made_for: ContextVar[int | None] = ContextVar("_made_for", default=None)


@functools.cache
def driver() -> ctypes.CDLL | None:
    """libcuda, ready for calls; None without a driver or a GPU."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return None if library.cuInit(0) else library


def capability() -> int | None:
    """The compute capability of the first GPU, or of the one that kernels are made for, times 10: 90 for an H200; None
    without a driver or a GPU."""
    return _made_for.get() or _capability_here()


def capability_of(architecture: str) -> int:
    """The compute capability, times 10, that "sm_90a" or "sm_80" names.

    >>> capability_of("sm_90a"), capability_of("sm_120")
    (90, 120)

    Raises:
        ValueError: it is no architecture, or one that the kernels do not run on.
    """
    matched = re.fullmatch(r"sm_(\d{2,3})[af]?", architecture)
    if matched is None:
        raise ValueError(f"{architecture!r} names no architecture; write it as sm_90a (H100, H200) or sm_80 (A100)")
    found = int(matched[1])
    if found < LEAST:
        raise ValueError(
            f"{architecture} is too old: the cuda backend needs sm_80 or later; choose the ops backend there"
        )
    return found


@contextmanager
def made_for(found: int) -> Iterator[None]:
    """Inside, kernels are those of a GPU of that compute capability."""
    token = _made_for.set(found)
    try:
        yield
    finally:
        _made_for.reset(token)


@functools.cache
def _capability_here() -> int | None:
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
