"""Paths -> this call's inputs: reading the captures afresh and checking that a trace still describes the mod."""

from __future__ import annotations

import builtins
import types
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ..expr.node import DType
from .paths import Check


@dataclass(frozen=True)
class ArrayCapture:
    """An array that a kernel reads: its name, element type ("float16", ...) and number of dimensions."""

    name: str
    element: str
    ndim: int


@dataclass(frozen=True)
class NumberCapture:
    """A Python number that a kernel reads at run time, as bool, int (int32) or float (float32).

    is_start: whether it says from which position on an index is counted.
    """

    name: str
    dtype: DType
    is_start: bool = False


class Start(int):
    """A captured int that an index is counted from: `index + start` is an index as `index` itself is."""


@dataclass(frozen=True)
class Reads:
    """How a trace reads its captures.

    steps: (which object read before it to start from, how to get the next, its check); a number computed from
        others starts from all of them (None).
    """

    steps: tuple[tuple[int | None, Callable[[Any], Any], Check | None], ...]
    root: Check | None
    same: tuple[tuple[int, int], ...]
    array_steps: tuple[int, ...]
    number_steps: tuple[tuple[NumberCapture, int], ...]
    divisors: tuple[int, ...]  # slots of numbers that an int is divided by
    counts: tuple[int, ...]  # slots of numbers that an int is shifted by

    def objects(self, function: Any) -> list[Any] | None:
        """The captured objects as they are now, step by step; None where the trace no longer holds.

        Raises:
            ArithmeticError: what Python raises where the mod computes with captured numbers.
        """
        if self.root is not None and not self.root(function):
            return None
        objects = [function]
        try:
            for base, get, check in self.steps:
                value = get(objects if base is None else objects[base])
                if check is not None and not check(value):
                    return None
                objects.append(value)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError):
            return None  # a path that led to a capture is gone
        for a, b in self.same:
            if objects[a] is not objects[b]:
                return None
        return objects

    def captured(self, function: Any, name: str) -> tuple[list[Any], list[bool | int | float]] | None:
        """The captured arrays and numbers as they are now, by slot; None where the trace no longer holds.

        Raises:
            OverflowError, ZeroDivisionError, ValueError: as `numbers`.
        """
        objects = self.objects(function)
        return None if objects is None else (self.arrays(objects), self.numbers(objects, name))

    def arrays(self, objects: list[Any]) -> list[Any]:
        return [objects[step] for step in self.array_steps]

    def numbers(self, objects: list[Any], name: str) -> list[bool | int | float]:
        """The numbers by slot.

        Raises:
            OverflowError: an integer does not fit int32.
            ZeroDivisionError: a number that the mod divides by with // or % is 0.
            ValueError: a number that the mod shifts by is negative.
        """
        values: list[bool | int | float] = []
        for capture, step in self.number_steps:
            value = objects[step]
            convert = _PYTHON_TYPES[capture.dtype]
            if type(value) is not convert:
                value = convert(value)
            if convert is int and not -2147483648 <= value <= 2147483647:
                raise OverflowError(f"{name}: {capture.name} = {value} does not fit int32; make it a float")
            values.append(value)
        for slot in self.divisors:
            if values[slot] == 0:
                divisor = self.number_steps[slot][0].name
                raise ZeroDivisionError(f"{name}: integer division or modulo by {divisor} = 0")
        for slot in self.counts:
            if values[slot] < 0:
                raise ValueError(f"{name}: negative shift count {self.number_steps[slot][0].name} = {values[slot]}")
        return values


# ---- checks --------------------------------------------------------------------------------------------------

_PYTHON_TYPES: dict[DType, type] = {"bool": bool, "int": int, "float": float}


def _is_bool(value: Any) -> bool:
    return isinstance(value, (bool, np.bool_))


def _is_int(value: Any) -> bool:
    return type(value) is int or (isinstance(value, (int, np.integer)) and not isinstance(value, bool))


def _is_float(value: Any) -> bool:
    return type(value) is float or isinstance(value, (float, np.floating))


NUMBER_CHECKS: dict[DType, Check] = {"bool": _is_bool, "int": _is_int, "float": _is_float}


def every(checks: Iterable[Check]) -> Check | None:
    """One check for all of them; None for none."""
    several = tuple(checks)
    if len(several) > 1:
        return lambda value: all(check(value) for check in several)
    return several[0] if several else None


def has_int32_axes(value: Any) -> bool:
    """Whether an int32 can say every place of an array."""
    return bool(value.size < 2**31 or max(value.shape) < 2**31)


def is_array(element: str, ndim: int) -> Check:
    """Checks the element type and the rank, that there is an element, and that int32 can index every one."""
    dtype = getattr(mx, "bool_" if element == "bool" else element)
    numpy_dtype = None if element == "bfloat16" else np.dtype(element)

    def holds(value: Any) -> bool:
        if isinstance(value, mx.array):
            same = bool(value.dtype == dtype)
        else:
            same = isinstance(value, np.ndarray) and value.dtype == numpy_dtype
        return same and value.ndim == ndim and value.size > 0 and has_int32_axes(value)

    return holds


def is_same(expected: Any, answer: bool = True) -> Check:
    """Checks that it is this very object, which the check does not keep alive."""
    try:
        ref = weakref.ref(expected)
    except TypeError:  # None, and other values that nothing refers to weakly
        return lambda now: (now is expected) is answer

    def holds(now: Any) -> bool:
        alive = ref()
        return (alive is not None and now is alive) is answer

    return holds


def equals(expected: bool | int | float) -> Check:
    """Checks that a number is equal and has the same sign; nan is equal to nan."""
    if not isinstance(expected, float):
        return lambda value: bool(value == expected)
    text = repr(expected)
    return lambda value: repr(float(value)) == text


def has_code(code: types.CodeType) -> Check:
    """Checks that it is a function of this code, which the check does not keep alive."""
    ref = weakref.ref(code)
    return lambda now: getattr(now, "__code__", "none") is ref()


def is_method_of(function: Any) -> Check:
    """Checks that it is a method of this very function."""
    same = is_same(function)
    return lambda now: same(getattr(now, "__func__", None))


def has_type(kind: type) -> Check:
    """Checks that it is of this very type, which the check does not keep alive."""
    ref = weakref.ref(kind)
    return lambda now: type(now) is ref()


def is_builtin(name: str, value: Any) -> Check:
    """Checks that a function means Python's own object by this name."""
    return lambda now: name not in now.__globals__ and getattr(builtins, name, None) is value
