"""Captured objects -> kernel inputs and checks: what a mod reads from outside.

A trace remembers every outside value by its path (closure cell, global, attribute, item, default), not by
value. Before a later call the paths are read afresh (`guards`): arrays and numbers become that call's inputs, and
the checks on each path tell whether the trace still describes the function.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import Untraceable
from ..expr.build import INT32
from ..expr.node import DType
from .guards import NUMBER_CHECKS, ArrayCapture, NumberCapture, Reads, Start, equals, every, has_int32_axes, is_array
from .paths import Check, Getter, Held, Path

ARRAY_TYPES = (mx.array, np.ndarray)


class Recorder:
    """Collects what one trace reads from outside."""

    def __init__(self) -> None:
        self.root: Path = Path("root")
        self.arrays: list[tuple[ArrayCapture, Path]] = []
        self.numbers: list[tuple[NumberCapture, Path]] = []
        self.number_values: list[bool | int | float] = []
        self._number_kinds: list[type] = []
        self.specialised: dict[int, bool | int | float] = {}
        self.same: list[tuple[Path, Path]] = []  # paths that must go on leading to one object
        self.volatile: bool = False
        self._origins: dict[int, tuple[Any, Path]] = {}

    # ---- containers, objects and functions: known by identity ----------------------------------------------

    def is_captured(self, value: Any) -> bool:
        return id(value) in self._origins

    def origin(self, value: Any) -> Path:
        """The path of a captured container, object or function; a held one where it has none."""
        known = self._origins.get(id(value))
        return known[1] if known is not None else self.held(value)

    def remember(self, value: Any, path: Path, fixed: bool = False) -> None:
        """`value` was reached by `path`; unless it is `fixed` there, two paths to it must stay two paths to it."""
        _, first = self._origins.setdefault(id(value), (value, path))
        if first is not path and not fixed and "held" not in (first.kind, path.kind):
            self.same.append((first, path))

    def held(self, value: Any) -> Path:
        """A path for a value that only running the mod's own Python again can give: such a trace is made anew
        at every call, and its values are those that the trace saw."""
        self.volatile = True
        path = self.root.step("held", Held(value))
        self._origins[id(value)] = (value, path)
        return path

    # ---- numbers and arrays: known by path -----------------------------------------------------------------

    def number_slot(self, value: bool | int | float, path: Path, kind: type) -> tuple[int, DType]:
        """The kernel parameter for a number that is a `kind` in Python: one of its own numbers, or one of numpy's."""
        dtype: DType = "bool" if isinstance(value, bool) else "int" if isinstance(value, int) else "float"
        if dtype == "int" and int(value) not in INT32 and path.kind != "result":
            raise Untraceable(
                f"the captured integer {path} = {value} does not fit int32, the integer type of kernels",
                f"make it a float ({value}.0) or keep it within [-2**31, 2**31)",
            )
        self.numbers.append((NumberCapture(str(path), dtype, isinstance(value, Start)), path))
        self.number_values.append(value)
        self._number_kinds.append(kind)
        path.check("type", NUMBER_CHECKS[dtype])
        return len(self.numbers) - 1, dtype

    def kind_of(self, slot: int) -> type:
        """The Python type of a captured number; the trace is then bound to it."""
        kind = self._number_kinds[slot]
        self.numbers[slot][1].check("exact type", lambda now: type(now) is kind)
        return kind

    def array_slot(self, value: Any, path: Path) -> int:
        """The kernel input for an array."""
        element = element_of(value, path)
        self.arrays.append((ArrayCapture(str(path), element, value.ndim), path))
        path.check("type", is_array(element, value.ndim))
        return len(self.arrays) - 1

    def specialise(self, slot: int) -> bool | int | float:
        """The value of a number that decides the shape of the trace; another value makes another trace."""
        value = self.number_values[slot]
        if slot not in self.specialised:
            self.specialised[slot] = value
            self.numbers[slot][1].check("value", equals(value))
        return value

    def reads(
        self, arrays: Sequence[int], numbers: Sequence[int], divisors: Sequence[int], counts: Sequence[int]
    ) -> Reads:
        """The way to read again the inputs in these slots and all that was checked.

        divisors, counts: the places in `numbers` of those that must not be 0, and not be negative.
        """
        order: list[Path] = [self.root]
        wanted = {self.arrays[slot][1] for slot in arrays} | {self.numbers[slot][1] for slot in numbers}
        wanted |= {path for pair in self.same for path in pair}
        for path in self.root.steps.values():
            if path.kind == "result":
                wanted |= {operand for operand in path.key.operands if isinstance(operand, Path)}

        def add(path: Path) -> bool:
            """Append `path` and the needed paths below it; whether any is needed."""
            start = len(order)
            order.append(path)
            below = [add(step) for step in list(path.steps.values())]
            if not (any(below) or path.checks or path in wanted):
                del order[start:]
                return False
            return True

        for step in self.root.steps.values():
            add(step)
        index = {self.root: 0}  # where each path is among the objects read
        between: dict[tuple[int, Getter], int] = {}  # the same for what is read on the way to several of them
        steps: list[tuple[int | None, Getter, Check | None]] = []
        for path in order[1:]:
            check = every(path.checks.values())
            if path.kind == "result":
                steps.append((None, path.key.computer(dict(index)), check))
            else:
                assert path.base is not None
                at, (*way, last) = index[path.base], path.getters()
                for get in way:
                    if (at, get) not in between:
                        steps.append((at, get, None))
                        between[at, get] = len(steps)
                    at = between[at, get]
                steps.append((at, last, check))
            index[path] = len(steps)
        return Reads(
            tuple(steps),
            every(self.root.checks.values()),
            tuple((index[a], index[b]) for a, b in self.same),
            tuple(index[self.arrays[slot][1]] for slot in arrays),
            tuple((self.numbers[slot][0], index[self.numbers[slot][1]]) for slot in numbers),
            tuple(divisors),
            tuple(counts),
        )


def element_of(value: Any, path: Path) -> str:
    """The element type of an mlx or numpy array as mlx names it."""
    name = str(value.dtype).removeprefix("mlx.core.")
    name = "bool" if name == "bool_" else name
    if isinstance(value, np.ndarray) and not value.dtype.isnative:
        raise Untraceable(
            f"{path} is an array of {name}, whose bytes lie in the order of other machines",
            f"turn them outside the mod, {path} = {path}.astype({path}.dtype.newbyteorder('=')), and capture that",
        )
    if name.startswith("complex") or not hasattr(mx, "bool_" if name == "bool" else name):
        raise Untraceable(
            f"{path} is an array of {name}, which a kernel cannot read",
            "capture real parts, or convert it to a bool, integer or float array",
        )
    if value.size == 0:
        raise Untraceable(f"{path} is an empty array, of shape {tuple(value.shape)}", "capture at least one element")
    if not has_int32_axes(value):
        raise Untraceable(
            f"{path} has an axis of {max(value.shape)} elements, but the indices of kernels are int32: "
            f"{2**31 - 1} is the most",
            "capture the part that the mod reads, or reshape it to more axes",
        )
    return name
