"""Captured array -> its least and largest elements over any box of indices, in constant time per box.

A sparse table: for each axis along which boxes extend, extremes of runs of 1, 2, 4, ... neighbours; two overlapping
runs cover any range (Bender and Farach-Colton, "The LCA problem revisited", 2000). Long axes are cut into blocks
first, so that the table stays small: the result is exact where a range is whole blocks, and otherwise that of the
blocks it touches.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
BLOCK = 32
UNBLOCKED_ENTRIES = 2**18  # a table with at most so many entries has every element by itself
MAX_ENTRIES = 2**22
_READ_AS = {"b": np.bool_, "f": np.float32}


class _Table(NamedTuple):
    """least, most: [levels of each ranged axis..., the axes of the array, in blocks]."""

    least: Array
    most: Array
    blocks: tuple[int, ...]  # the block size of each ranged axis


class Extremes:
    """The extremes of one captured array (numpy). Tables are made when a box first needs them.

    Example:
        >>> import numpy as np
        >>> least, most = Extremes(np.array([3, 1, 4, 1, 5])).over([(np.array([0, 2]), np.array([1, 4]))])
        >>> least.tolist(), most.tolist()
        ([1, 1], [3, 5])
    """

    def __init__(self, array: Any) -> None:
        given = np.asarray(array)
        self.array: Array = given.astype(_READ_AS.get(given.dtype.kind, np.int32), copy=False)
        self._tables: dict[tuple[str, ...], _Table] = {}

    def over(self, box: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
        """The least and the largest element of array[lo..hi, ...], for (lo, hi) inclusive and inside the array.

        lo and hi are integer arrays that broadcast. A nan in a float array makes both nan.
        """
        extends = [lo is not hi and not np.array_equal(lo, hi) for lo, hi in box]
        ranged = [axis for axis, extended in enumerate(extends) if extended]
        if not ranged:
            value = self.array[tuple(lo for lo, _ in box)]
            return value, value
        kept = ranged[-2:]  # longer boxes are rare: the axes before take all their elements
        kinds = ["exact" if not extended else "ranged" for extended in extends]
        for axis in ranged[:-2]:
            kinds[axis] = "whole"
        table = self._table(tuple(kinds))
        levels, choices = [], []
        for axis, block in zip(kept, table.blocks, strict=True):
            first, last = np.floor_divide(box[axis][0], block), np.floor_divide(box[axis][1], block)
            level = np.frexp(last - first + 1)[1] - 1
            levels.append(level)
            choices.append((first, last + 1 - np.left_shift(1, level)))
        least: Any = None
        most: Any = None
        for starts in itertools.product(*choices):
            places = [lo if kind == "exact" else 0 for (lo, _), kind in zip(box, kinds, strict=True)]
            for axis, start in zip(kept, starts, strict=True):
                places[axis] = start
            at = (*levels, *places)
            low, high = table.least[at], table.most[at]
            least = low if least is None else np.minimum(least, low)
            most = high if most is None else np.maximum(most, high)
        return least, most

    def _table(self, kinds: tuple[str, ...]) -> _Table:
        table = self._tables.get(kinds)
        if table is None:
            table = self._tables[kinds] = self._make(kinds)
        return table

    def _make(self, kinds: tuple[str, ...]) -> _Table:
        ranged = [axis for axis, kind in enumerate(kinds) if kind == "ranged"]
        whole = tuple(axis for axis, kind in enumerate(kinds) if kind == "whole")
        blocks = self._blocks(ranged, whole)
        pair = []
        for extreme in (np.minimum, np.maximum):
            table = extreme.reduce(self.array, axis=whole, keepdims=True) if whole else self.array
            for axis, block in zip(ranged, blocks, strict=True):
                if block > 1:
                    table = extreme.reduceat(table, np.arange(0, table.shape[axis], block), axis=axis)
            for axis in reversed(ranged):  # the levels of the first one end up in front
                table = _runs(table, table.ndim - self.array.ndim + axis, extreme)
            pair.append(table)
        return _Table(pair[0], pair[1], blocks)

    def _blocks(self, ranged: Sequence[int], whole: Sequence[int]) -> tuple[int, ...]:
        def entries(block: int) -> int:
            count = 1
            for axis, size in enumerate(self.array.shape):
                runs = -(-size // block)
                count *= runs * runs.bit_length() if axis in ranged else 1 if axis in whole else size
            return count

        block = 1 if entries(1) <= UNBLOCKED_ENTRIES else BLOCK
        longest = max(self.array.shape[axis] for axis in ranged)
        while entries(block) > MAX_ENTRIES and block < longest:
            block *= 2
        return (block,) * len(ranged)


def _runs(table: Array, axis: int, extreme: Any) -> Array:
    """[levels, ...]: entry [k, ..., i, ...] covers i to i + 2**k - 1; where that leaves the table it means nothing."""
    size = table.shape[axis]
    levels = [table]
    for k in range(1, size.bit_length()):
        half, below = 1 << (k - 1), levels[-1]
        level = below.copy()
        count = size - 2 * half + 1
        head = (slice(None),) * axis
        extreme(
            below[(*head, slice(0, count))],
            below[(*head, slice(half, half + count))],
            out=level[(*head, slice(0, count))],
        )
        levels.append(level)
    return np.stack(levels)


def inside(lo: Any, hi: Any, size: int) -> tuple[Any, Any]:
    """Where index ranges lead: a negative index counts from the end, once, and is then clamped into the array."""
    crosses = (lo < 0) & (hi >= 0)  # both ends of the array, and with them all of it
    shift = np.where(hi < 0, size, 0)
    first, last = np.clip(lo + shift, 0, size - 1), np.clip(hi + shift, 0, size - 1)
    return np.where(crosses, 0, first), np.where(crosses, size - 1, last)
