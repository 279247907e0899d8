"""Captured objects -> kernel inputs and guards: what a mod reads from outside, and how to read it again.

A trace remembers every outside value by its path (closure cell, global, attribute, item, default), not by
value. Before a later call the paths are read afresh: arrays and numbers become that call's inputs, and guards
tell whether the trace still describes the function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from .errors import Untraceable
from .expr import DType, element_dtype

Reader = Callable[[Any], Any]
ARRAY_TYPES = (mx.array, np.ndarray)


@dataclass(eq=False)
class Held:
    """A value that has no path: the result of running the mod's own Python during the trace."""

    value: Any


@dataclass(frozen=True)
class Path:
    """How to reach a captured object from the mod's function. kind: root, global, cell, attr, item, opaque."""

    kind: str
    base: Path | None = None
    key: Any = None

    def __str__(self) -> str:
        if self.base is None or self.kind in ("global", "cell"):
            return "mod" if self.kind == "root" else "computed" if self.kind == "opaque" else str(self.key)
        if self.kind == "attr":
            return f"{self.base}.{self.key}"
        return f"{self.base}[{self.key!r}]"

    def reader(self) -> Reader:
        """A function from the mod's function to the object at this path."""
        key = self.key
        if self.kind == "opaque":
            return lambda fn: key.value
        if self.base is None:
            return lambda fn: fn
        base = self.base.reader()
        if self.kind == "global":
            return lambda fn: _global(base(fn), key)
        if self.kind == "cell":
            return lambda fn: _cell(base(fn), key)
        if self.kind == "attr":
            return lambda fn: getattr(base(fn), key)
        return lambda fn: base(fn)[key]


ROOT = Path("root")


def _global(fn: Any, name: str) -> Any:
    return fn.__globals__[name]


def _cell(fn: Any, name: str) -> Any:
    return fn.__closure__[fn.__code__.co_freevars.index(name)].cell_contents


@dataclass(frozen=True)
class ArrayCapture:
    """An array that a kernel reads: its name, element type ("float16", ...) and number of dimensions."""

    name: str
    element: str
    ndim: int
    read: Reader


@dataclass(frozen=True)
class NumberCapture:
    """A Python number that a kernel reads at run time, as bool, int (int32) or float (float32)."""

    name: str
    dtype: DType
    read: Reader


@dataclass(frozen=True)
class Guard:
    """A fact about a captured object that the trace relied on."""

    name: str
    read: Reader
    holds: Callable[[Any], bool]


@dataclass
class Recorder:
    """Collects what one trace reads from outside."""

    arrays: list[ArrayCapture] = field(default_factory=list)
    numbers: list[NumberCapture] = field(default_factory=list)
    number_values: list[bool | int | float] = field(default_factory=list)
    guards: list[Guard] = field(default_factory=list)
    volatile: bool = False
    origins: dict[int, tuple[Any, Path]] = field(default_factory=dict)
    slots: dict[Any, int] = field(default_factory=dict)
    specialised: set[int] = field(default_factory=set)

    def guard(self, path: Path, holds: Callable[[Any], bool]) -> None:
        if path.kind != "opaque":
            self.guards.append(Guard(str(path), path.reader(), holds))

    def origin(self, value: Any) -> Path:
        """The path of a captured container, object or function; an opaque one where it has none."""
        known = self.origins.get(id(value))
        return known[1] if known is not None else self.opaque_path(value)

    def opaque_path(self, value: Any) -> Path:
        """A path for a value that only running the mod's own Python again can give: such a trace is made anew
        at every call, and its values are those that the trace saw."""
        self.volatile = True
        path = Path("opaque", None, Held(value))
        self.origins[id(value)] = (value, path)
        return path

    def number_slot(self, value: bool | int | float, path: Path) -> tuple[int, DType]:
        dtype: DType = "bool" if isinstance(value, bool) else "int" if isinstance(value, int) else "float"
        slot = self.slots.get(("number", path))
        if slot is None:
            slot = self.slots["number", path] = len(self.numbers)
            self.numbers.append(NumberCapture(str(path), dtype, path.reader()))
            self.number_values.append(value)
            self.guard(path, _is_number(dtype))
        return slot, dtype

    def array_slot(self, value: Any, path: Path, read: Reader | None = None) -> int:
        """The kernel input for an array (or, with `read`, for a list of numbers read as one)."""
        slot = self.slots.get(("array", path))
        if slot is None:
            slot = self.slots["array", path] = len(self.arrays)
            element = element_of(value)
            reader = read or path.reader()
            self.arrays.append(ArrayCapture(str(path), element, value.ndim, reader))
            if path.kind != "opaque":
                self.guards.append(Guard(str(path), reader, _is_array(element, value.ndim)))
        return slot

    def specialise(self, slot: int) -> bool | int | float:
        """The value of a number that decides the shape of the trace; another value makes another trace."""
        value = self.number_values[slot]
        if slot not in self.specialised:
            self.specialised.add(slot)
            capture = self.numbers[slot]
            self.guards.append(Guard(capture.name, capture.read, _equals(value)))
        return value


def _is_number(dtype: DType) -> Callable[[Any], bool]:
    if dtype == "bool":
        return lambda value: isinstance(value, (bool, np.bool_))
    if dtype == "int":
        return lambda value: isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return lambda value: isinstance(value, (float, np.floating))


def _is_array(element: str, ndim: int) -> Callable[[Any], bool]:
    dtype = getattr(mx, "bool_" if element == "bool" else element)
    numpy_dtype = None if element == "bfloat16" else np.dtype(element)

    def holds(value: Any) -> bool:
        if isinstance(value, mx.array):
            return bool(value.dtype == dtype) and value.ndim == ndim
        return isinstance(value, np.ndarray) and value.dtype == numpy_dtype and value.ndim == ndim

    return holds


def _equals(expected: Any) -> Callable[[Any], bool]:
    return lambda value: bool(value == expected)


def element_of(value: Any) -> str:
    """The element type of an mlx or numpy array as mlx names it."""
    name = str(value.dtype).removeprefix("mlx.core.")
    name = "bool" if name == "bool_" else name
    if name.startswith("complex") or not hasattr(mx, "bool_" if name == "bool" else name):
        raise Untraceable(
            f"a captured array of {name} cannot be read by a kernel",
            "capture real parts, or convert it to a bool, integer or float array",
        )
    element_dtype(name)
    return name


def as_number_array(values: Any) -> Any:
    """A list or tuple of Python numbers as the numpy array that a kernel indexes."""
    array = np.asarray(values)
    if array.dtype == np.float64:
        return array.astype(np.float32)
    return array
