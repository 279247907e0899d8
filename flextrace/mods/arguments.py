"""What a user passes to a factory -> numbers and arrays that a mod may capture, or an error that says what to pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from flextrace.kernels.scalars import as_float, as_int, shown

Array = np.ndarray[Any, Any]
INT32 = np.iinfo(np.int32)


def whole(name: str, value: Any, at_least: int = 1) -> int:
    """A Python int in [at_least, 2**31)."""
    number = as_int(value, name)
    if number is None or not at_least <= number <= INT32.max:
        raise ValueError(f"{name} is {shown(value)}; expected a whole number of at least {at_least} that fits int32")
    return number


def real(name: str, value: Any) -> Any:
    """A Python float, or an int that fits int32 as it is; a floating mx.array without axes stays the same object, so
    that it is a kernel input and gradients reach it."""
    if isinstance(value, mx.array) and not value.ndim and mx.issubdtype(value.dtype, mx.floating):
        return value
    if type(value) is int and INT32.min <= value <= INT32.max:
        return value
    number = as_float(value, name)
    if number is None:
        raise ValueError(f"{name} is {shown(value)}; expected a number, or a floating mx.array without axes")
    return number


def sizes(name: str, value: Any, dims: Sequence[int], example: str) -> tuple[int, ...]:
    """A tuple of positive ints, as many as one of `dims`."""
    is_list = (isinstance(value, Sequence) and not isinstance(value, str)) or getattr(value, "ndim", 0) == 1
    if not is_list or len(value) not in dims:
        raise ValueError(f"{name} is {shown(value)}; expected {' or '.join(map(str, dims))} sizes, such as {example}")
    return tuple(whole(f"{name}[{i}]", size) for i, size in enumerate(value))


def integers(name: str, values: Any, ndims: Sequence[int], shape: str) -> mx.array:
    """int32 mx.array; `shape` says in words what is expected. An mx.array is not evaluated."""
    array = values if isinstance(values, mx.array) else np.asarray(values)
    whole_numbers = mx.issubdtype(array.dtype, mx.integer) if isinstance(array, mx.array) else array.dtype.kind in "iu"
    if not whole_numbers or array.ndim not in ndims or 0 in array.shape:
        raise ValueError(f"{name} is {array.dtype} of shape {tuple(array.shape)}; expected integers of shape {shape}")
    if isinstance(array, mx.array):
        return array.astype(mx.int32)
    if array.min() < INT32.min or array.max() > INT32.max:
        raise ValueError(f"{name} holds {array.min()} to {array.max()}; expected numbers that fit int32")
    return mx.array(array.astype(np.int32))


def known_integers(name: str, values: Any, ndim: int, shape: str) -> Array:
    """numpy int64 array of integers that the factory itself computes with (an mx.array is evaluated)."""
    return np.array(integers(name, values, (ndim,), shape)).astype(np.int64)


def flags(name: str, values: Any, ndims: Sequence[int], shape: str) -> mx.array:
    """bool mx.array."""
    array = values if isinstance(values, mx.array) else mx.array(np.asarray(values))
    if array.dtype != mx.bool_ or array.ndim not in ndims or 0 in array.shape:
        raise ValueError(f"{name} is {array.dtype} of shape {tuple(array.shape)}; expected bools of shape {shape}")
    return array


def reals(name: str, values: Any, ndims: Sequence[int], shape: str) -> mx.array:
    """Floating-point mx.array; one of the caller's stays the same object, so that gradients reach it."""
    array = values if isinstance(values, mx.array) else mx.array(np.asarray(values, np.float32))
    if not mx.issubdtype(array.dtype, mx.floating) or array.ndim not in ndims or 0 in array.shape:
        raise ValueError(f"{name} is {array.dtype} of shape {tuple(array.shape)}; expected floats of shape {shape}")
    return array


def known_offsets(values: Any) -> Array:
    """Offsets of packed documents: int64 [documents + 1], from 0 on, never falling."""
    offsets = known_integers("offsets", values, 1, "[documents + 1]")
    if len(offsets) < 2 or offsets[0] != 0 or (np.diff(offsets) < 0).any() or offsets[-1] == 0:
        raise ValueError(
            f"offsets is {offsets.tolist()}; expected running totals of the documents' lengths that start at 0, "
            "such as [0, 3, 7] for documents of 3 and 4 tokens"
        )
    return offsets
