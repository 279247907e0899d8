"""Expr -> bounds over tiles: what a bool or int expression can be, given ranges of its indices.

Abstract interpretation with intervals, vectorised over tiles: a mask whose lower bound is true keeps a whole tile, one
whose upper bound is false keeps nothing of it, and only what lies between has to be looked at. Never wrong: a bound
may be coarse, but every value lies within.

    expr --relations.py--> expr in which shared terms cancel --range_rules.py--------> (lo, hi) of every tile
                                                             --range_spellings.py---> tile_state of the kernels
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..expr.node import Expr, round_to_float32, walk
from .extremes import Extremes, inside
from .ints import Range, between, exactly
from .relations import relate
from .rules import FALSE, NOT_KNOWN, TRUE, rule

Array = np.ndarray[Any, Any]
IndexRanges = Mapping[str, tuple[Any, Any]]
Numbers = Sequence[bool | int | float]


def tile_bounds(expr: Expr, ranges: IndexRanges, numbers: Numbers = (), arrays: Sequence[Any] = ()) -> Any:
    """The least and the largest value of a bool or int expression in each tile.

    Args:
        expr: the expression, such as that of a mask_mod.
        ranges: "b", "h", "q_idx", "kv_idx", as far as the expression has them, each as (lo, hi), inclusive: ints or
            integer arrays that broadcast. Where lo is hi (one object, or equal ones), the index is known exactly.
        numbers: the captured numbers by slot.
        arrays: the captured arrays by slot: numpy arrays (bfloat16 as float32), or `Extremes` of them, which keep
            what they have computed from one call to the next.

    Returns:
        (lo, hi), arrays that broadcast over the axes on which the expression depends, so that lo <= value <= hi
        everywhere in the tile: int64, or bool for a bool expression. For a mask, `lo` says which tiles are full,
        `~hi` which are empty. Index ranges must not be empty.

    Example:
        >>> import numpy as np
        >>> from flextrace.tracer.expr.node import Q_IDX, KV_IDX, apply
        >>> causal = apply("le", KV_IDX, Q_IDX)
        >>> first = np.arange(0, 384, 128)
        >>> full, live = tile_bounds(causal, {"q_idx": (first[:, None], first[:, None] + 127),
        ...                                   "kv_idx": (first, first + 127)})
        >>> full + live.astype(int)
        array([[1, 0, 0],
               [2, 1, 0],
               [2, 2, 1]])
    """
    return bounds_of(expr)(ranges, numbers, arrays)


class _Step(NamedTuple):
    """One node: what computes it from which earlier steps, and which of these nothing needs afterwards."""

    node: Expr
    run: Callable[..., Any]
    args: tuple[int, ...]
    done_with: tuple[int, ...]


class Bounds:
    """A bool or int expression, made ready for `tile_bounds`.

    Attributes:
        expr: the expression.
        related: the same with what its operands share, which `rules.py` and the kernels' `bounds.h` work on.
    """

    def __init__(self, expr: Expr) -> None:
        if expr.dtype == "float":
            raise TypeError(f"bounds are of bool and int expressions; this one is a float: {expr!r}")
        self.expr: Expr = expr
        self.related: Expr = relate(expr)
        order = list(walk(self.related))
        place = {node: i for i, node in enumerate(order)}
        last_use = {arg: node for node in order for arg in node.args}
        self._steps = [
            _Step(
                node,
                _load if node.op == "load" else rule(node) if node.args else _leaf,
                tuple(place[arg] for arg in node.args),
                tuple(place[arg] for arg in set(node.args) if last_use[arg] is node),
            )
            for node in order
        ]

    def __call__(self, ranges: IndexRanges, numbers: Numbers = (), arrays: Sequence[Any] = ()) -> tuple[Array, Array]:
        """As `tile_bounds`."""
        values: list[Any] = []
        with np.errstate(all="ignore"):
            for node, run, args, done_with in self._steps:
                if run is _leaf:
                    value = _leaf(node, ranges, numbers)
                elif run is _load:
                    value = _load(node, arrays, [values[i] for i in args])
                else:
                    value = run(*[values[i] for i in args])
                values.append(value)
                for i in done_with:
                    values[i] = None
        if self.expr.dtype == "bool":
            return np.asarray(value[0], np.bool_), np.asarray(value[1], np.bool_)
        return np.asarray(value.lo, np.int64), np.asarray(value.hi, np.int64)

    def __repr__(self) -> str:
        return f"bounds of {self.expr!r}"


@functools.lru_cache(maxsize=256)
def bounds_of(expr: Expr) -> Bounds:
    """The `Bounds` of an expression, made once."""
    return Bounds(expr)


def _leaf(node: Expr, ranges: IndexRanges, numbers: Numbers) -> Any:
    if node.op == "index":
        return between(*ranges[node.value])
    if node.op == "score":
        return NOT_KNOWN
    value = numbers[node.value] if node.op == "param" else node.value
    if node.dtype == "bool":
        return TRUE if value else FALSE
    if node.dtype == "int":
        return exactly(int(value))
    rounded = np.float32(round_to_float32(float(value)))
    return rounded, rounded


def _load(node: Expr, arrays: Sequence[Any], indices: Sequence[Range]) -> Any:
    """The extremes of a captured array over the ranges of its indices."""
    array = arrays[node.value[0]]
    extremes = array if isinstance(array, Extremes) else Extremes(array)
    box = []
    for index, size in zip(indices, extremes.array.shape, strict=True):
        within = index.least >= 0 and index.most < size
        box.append((index.lo, index.hi) if within else inside(index.lo, index.hi, size))
    least, most = extremes.over(box)
    return between(least, most) if node.dtype == "int" else (least, most)
