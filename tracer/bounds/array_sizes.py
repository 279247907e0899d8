"""Trace, sizes of a call -> an error where a captured array is too short for it.

An index that a mod computes may point past the end of an array: kernels clamp it, which serves neighbours at an edge.
One that is exactly b, h, q_idx or kv_idx has no such excuse, nor one that lies outside at every position. What counts
is a position where the mod uses what it reads: `where(q_idx < n, a[q_idx], 0.0)`, `kv_idx < n and a[kv_idx]` and an
early return use n elements. What the contents of arrays or the score decide is not looked into: it may excuse all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..captures.guards import ArrayCapture
from ..expr.evaluate import evaluate
from ..expr.node import FALSE, INDICES, TRUE, Expr, apply, const, rebuild, walk
from ..expr.simplify import simplify
from .tiles import tile_bounds

NOUNS = {"b": "batches", "h": "query heads", "q_idx": "queries", "kv_idx": "keys"}
Sizes = tuple[int, int, int, int]  # batch, query heads, q_len, kv_len
Shapes = tuple[tuple[int, ...], ...]
Numbers = Sequence[bool | int | float]
Guards = frozenset[Expr]  # conditions over indices and numbers, all of which hold
FREE: Guards = frozenset()
MOST_WAYS, MOST_GUARDS = 8, 64  # the ways to one node that are told apart, and the conditions on one way
LOOKS = 12  # positions of a long axis that are looked at
MOST_KNOWN = 256


class Gather(NamedTuple):
    """One axis of an array, and the place that is read along it.

    counted: the index that it is exactly, from position `start` (a number of the call) on; None for a computed one.
    ways: the conditions under which it is read, one set per way to it.
    """

    slot: int
    axis: int
    place: Expr
    counted: str | None
    start: Expr | None
    ways: tuple[Guards, ...]


class ArraySizes:
    """Which sizes of a call the captured arrays of one expression are long enough for."""

    def __init__(self, name: str, expr: Expr, arrays: Sequence[ArrayCapture], starts: Sequence[int]) -> None:
        """starts: slots of the numbers that say where an index is counted from, so that index + number is one too."""
        self._name, self._arrays = name, arrays
        self.check: Callable[[Shapes, Numbers, Sizes], None] = functools.lru_cache(MOST_KNOWN)(self._check)
        gathers = list(_gathers(expr, frozenset(starts)))
        self._direct = [(g.slot, g.axis, INDICES.index(g.counted), g) for g in gathers if g.counted and g.start is None]
        self._others = [g for g in gathers if g.counted is None or g.start is not None]

    def _check(self, shapes: Shapes, numbers: Numbers, sizes: Sizes) -> None:
        """Raises ValueError where an array, of shapes by slot, is too short for a call of these sizes."""
        for slot, axis, index, gather in self._direct:
            if shapes[slot][axis] < sizes[index]:
                self._look(gather, shapes[slot][axis], numbers, sizes)
        for gather in self._others:
            self._look(gather, shapes[gather.slot][gather.axis], numbers, sizes)

    def fitting(self, arrays: Sequence[Any], numbers: Numbers, length: int) -> int:
        """How many of the first `length` rows and keys of one batch and head the arrays are long enough for."""
        try:
            self.check(shapes_of(arrays), tuple(numbers), (1, 1, length, length))
        except ValueError:
            return min(
                [length, *(int(arrays[slot].shape[axis]) for slot, axis, index, _ in self._direct if index >= 2)]
            )
        return length

    def _look(self, gather: Gather, size: int, numbers: Numbers, sizes: Sizes) -> None:
        if 0 not in sizes and _is_outside(gather, size, numbers, sizes):
            raise ValueError(self._message(gather, size, numbers, sizes))

    def _message(self, gather: Gather, size: int, numbers: Numbers, sizes: Sizes) -> str:
        name = self._arrays[gather.slot].name
        entries = f"{self._name}: {name} has {size} {'entry' if size == 1 else 'entries'} along axis {gather.axis}"
        if gather.counted is None:
            low, high = (int(bound) for bound in tile_bounds(gather.place, _ranges(sizes), numbers))
            return f"{entries} and is read at {f'{low} to {high}' if low < high else low}, which is outside of it"
        count = sizes[INDICES.index(gather.counted)]
        start = 0 if gather.start is None else int(numbers[gather.start.value])
        return (
            f"{entries}; {gather.counted} indexes it, for {count} {NOUNS[gather.counted]}"
            f"{f' from position {start} on' if start else ''}, so it needs {count + start}: make it longer, or read it "
            f"under a condition, as in `x if {gather.counted} < {size} else y`"
        )


def shapes_of(arrays: Sequence[Any]) -> Shapes:
    """The shapes of arrays, as `check` takes them."""
    return tuple([tuple(array.shape) for array in arrays])


def _ranges(sizes: Sizes) -> Mapping[str, tuple[int, int]]:
    return {name: (0, size - 1) for name, size in zip(INDICES, sizes, strict=True)}


# ---- what may be too short --------------------------------------------------------------------------------------

_ZERO = const(0)


def _gathers(expr: Expr, starts: frozenset[int]) -> Iterator[Gather]:
    """The axes that may be too short, each once: those that are read whatever arrays and the score hold."""
    uses = _Uses(expr)
    merged: dict[tuple[int, int, Expr], list[Guards]] = {}
    for node, ways in uses.ways().items():
        if node.op == "load":
            for axis, index in enumerate(node.args):
                if index not in uses.open:
                    merged.setdefault((node.value[0], axis, index), []).extend(ways)
    for (slot, axis, index), ways in merged.items():
        counted, start = _counted(index, starts)
        if counted is None and _at_origin(index) is _ZERO:
            continue  # element 0, which every array has, at a position that every call has
        yield Gather(slot, axis, index, counted, start, (FREE,) if FREE in ways else tuple(dict.fromkeys(ways)))


def _counted(index: Expr, starts: frozenset[int]) -> tuple[str | None, Expr | None]:
    if index.op == "index":
        return index.value, None
    if index.op == "add":
        for one, other in (index.args, index.args[::-1]):
            if one.op == "index" and other.op == "param" and other.value in starts:
                return one.value, other
    return None, None


def _at_origin(expr: Expr) -> Expr:
    """The expression where all indices are 0."""

    def placed(node: Expr, args: tuple[Expr, ...]) -> Expr:
        return _ZERO if node.op == "index" else Expr(node.op, node.dtype, args, node.value)

    return simplify(rebuild(expr, placed))


class _Uses:
    """How the value of an expression hangs on what is below it.

    open: the nodes that contents of arrays, or the score, have a part in.
    """

    def __init__(self, root: Expr) -> None:
        self.root = root
        self.order = list(walk(root))
        self.open: set[Expr] = set()
        self._loads: set[Expr] = set()  # nodes that read something, themselves or below
        self._sure: dict[tuple[Expr, bool], Expr] = {}
        for node in self.order:
            if node.op == "load" or not self._loads.isdisjoint(node.args):
                self._loads.add(node)
            if node.op in ("load", "score") or not self.open.isdisjoint(node.args):
                self.open.add(node)

    def ways(self) -> dict[Expr, list[Guards]]:
        """The ways to each node that reads: under which conditions its value is used."""
        ways: dict[Expr, list[Guards]] = {self.root: [FREE]} if self.root in self._loads else {}
        for node in reversed(self.order):
            for way in ways.get(node, ()):
                for arg, condition in self._uses(node):
                    if arg in self._loads and condition is not FALSE:
                        _add(ways.setdefault(arg, []), way if condition is TRUE else way | {condition})
        return ways

    def _uses(self, node: Expr) -> Iterator[tuple[Expr, Expr]]:
        """The arguments of a node, each with a condition under which the result hangs on it."""
        if node.op == "where":
            condition, yes, no = node.args
            yield condition, TRUE
            yield yes, self._surely(condition, True)
            yield no, self._surely(condition, False)
        elif node.op in ("and", "or"):
            first, second = node.args
            # `&` has no order: what the second says of indices alone holds for the first too.
            yield first, TRUE if second in self.open else self._surely(second, node.op == "and")
            yield second, self._surely(first, node.op == "and")
        else:
            for arg in node.args:
                yield arg, TRUE

    def _surely(self, condition: Expr, wanted: bool) -> Expr:
        """A condition over indices and numbers alone that makes `condition` what is wanted."""
        key = condition, wanted
        if key not in self._sure:
            self._sure[key] = simplify(self._sufficient(condition, wanted))
        return self._sure[key]

    def _sufficient(self, condition: Expr, wanted: bool) -> Expr:
        if condition not in self.open:
            return condition if wanted else apply("not", condition)
        if condition.op == "not":
            return self._surely(condition.args[0], not wanted)
        if condition.op in ("and", "or"):
            op = condition.op if wanted else {"and": "or", "or": "and"}[condition.op]
            return apply(op, *(self._surely(part, wanted) for part in condition.args))
        return FALSE


def _add(ways: list[Guards], way: Guards) -> None:
    """Add a way to those of a node; ways beyond MOST_WAYS, or with too many conditions, count as excused."""
    if len(ways) >= MOST_WAYS or len(way) > MOST_GUARDS or any(known <= way for known in ways):
        return
    ways[:] = [known for known in ways if not way <= known]
    ways.append(way)


# ---- whether it is ----------------------------------------------------------------------------------------------


def _is_outside(gather: Gather, size: int, numbers: Numbers, sizes: Sizes) -> bool:
    if gather.counted is None:
        low, high = tile_bounds(gather.place, _ranges(sizes), numbers)
        if high >= -size and low < size:
            return False
    start = 0 if gather.start is None else int(numbers[gather.start.value])
    return any(_is_reached(gather, way, size - start, size, numbers, sizes) for way in gather.ways)


def _is_reached(gather: Gather, way: Guards, edge: int, size: int, numbers: Numbers, sizes: Sizes) -> bool:
    """Whether a position is found where the index lies outside and all conditions hold."""
    values = {}
    for axis, (name, length) in enumerate(zip(INDICES, sizes, strict=True)):
        places = np.linspace(0, length - 1, min(length, LOOKS)).astype(np.int64)
        places = np.unique(np.clip([*places, 1, length - 2, edge - 1, edge, edge + 1], 0, length - 1))
        values[name] = places.reshape([-1 if i == axis else 1 for i in range(4)])
    index = evaluate(gather.place, values, numbers=numbers)
    outside = (index >= size) | (index < -size)
    for condition in way:
        outside = outside & evaluate(condition, values, numbers=numbers)
    return bool(outside.any())
