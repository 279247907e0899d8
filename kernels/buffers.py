"""mlx and numpy arrays -> addresses and strides, without copies, and new mlx arrays that a kernel may fill."""

from __future__ import annotations

import ctypes
import functools
import threading
from typing import Any

import mlx.core as mx
import numpy as np

_RECORDS_RO = 0x1C  # PyBUF_STRIDES | PyBUF_FORMAT: strides wanted, the buffer may be read-only
_NUMPY = {mx.float32: np.float32, mx.float16: np.float16, mx.bfloat16: np.uint16, mx.int32: np.int32}


class _PyBuffer(ctypes.Structure):
    """CPython's Py_buffer."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.POINTER(ctypes.c_ssize_t)),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_get = ctypes.pythonapi.PyObject_GetBuffer
_get.argtypes = [ctypes.py_object, ctypes.POINTER(_PyBuffer), ctypes.c_int]
_get.restype = ctypes.c_int
_release = ctypes.pythonapi.PyBuffer_Release
_release.argtypes = [ctypes.POINTER(_PyBuffer)]
_release.restype = None


class _Scratch(threading.local):
    def __init__(self) -> None:
        self.buffer = _PyBuffer()
        self.reference = ctypes.byref(self.buffer)


_scratch = _Scratch()


def locate(array: Any) -> tuple[int, tuple[int, ...]]:
    """The address of an evaluated array's first element, and its strides in elements."""
    scratch = _scratch
    buffer, reference = scratch.buffer, scratch.reference
    _get(array, reference, _RECORDS_RO)
    address, size, ndim = buffer.buf or 0, buffer.itemsize, buffer.ndim
    strides = tuple([stride // size for stride in buffer.strides[:ndim]]) if ndim else ()
    _release(reference)
    return address, strides


def locate_aligned(array: Any) -> tuple[Any, int, tuple[int, ...]]:
    """The array, or a copy where its address or strides are no multiples of its element (a field of a packed record,
    bytes viewed as another type); the address and strides of that."""
    if isinstance(array, np.ndarray) and not array.flags.aligned:
        array = array.copy()
    address, strides = locate(array)
    return (array, address, strides) if address % array.itemsize == 0 else locate_aligned(copied(array))


def copied(array: mx.array) -> mx.array:
    """An evaluated mlx array with memory of its own."""
    copy = mx.where(True, array, array)
    mx.eval(copy)
    return copy


def empty_array(shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    """An evaluated mlx array of any content.

    Making one of a numpy array is immediate, which `mx.zeros` (a task for the stream's thread, which a forked
    process lacks) is not. numpy has no bfloat16: that one is made as unpickling makes it, of its bits.
    """
    content = np.empty(shape, _NUMPY[dtype])
    return _unpickled(content, _bfloat16()) if dtype == mx.bfloat16 else mx.array(content)


def new_array(shape: tuple[int, ...], dtype: mx.Dtype) -> tuple[mx.array, int]:
    """An empty_array and its address."""
    made = empty_array(shape, dtype)
    return made, locate(made)[0] if made.size else 0


def _unpickled(content: np.ndarray[Any, Any], dtype: int) -> mx.array:
    """What unpickling makes of a numpy array and MLX's number for a dtype."""
    made = mx.array.__new__(mx.array)
    made.__setstate__((content, dtype))
    return made


@functools.cache
def _bfloat16() -> int:
    """MLX's number for the dtype, found by trial: pickling an array to see it would evaluate one."""
    bits = np.zeros(1, np.uint16)
    return next(number for number in range(64) if _unpickled(bits, number).dtype == mx.bfloat16)
