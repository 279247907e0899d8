"""mask_mod, lengths -> Blocks: large squares first, split only where the mask's bounds leave them undecided.

Bounds (flextrace.tracer.bounds) decide most of the plane in a few large squares, without looking at a position. What
they leave undecided down to single blocks is decided by looking: at a few positions of each block, and at all of them
only where these agree. So the blocks always equal the dense definition, and the dense mask never exists.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections import OrderedDict
from typing import Any

import mlx.core as mx
import numpy as np

from flextrace.kernels import Blocks
from flextrace.kernels.blocks import FULL, PARTIAL, Array
from flextrace.tracer import Bound, evaluate
from flextrace.tracer.bounds.extremes import Extremes
from flextrace.tracer.bounds.tiles import bounds_of
from flextrace.tracer.expr.node import leaves

from .kept_values import hidden

SPLIT = 4  # a square's side over that of the squares that it is split into
FIRST_SQUARES = 64  # at least so many to begin with, of single blocks where there are fewer
LOOKS = (3, 12)  # rows and columns of a block that are looked at before all of them
POSITIONS_AT_ONCE = 2**20
REMEMBERED = 64  # block masks

Shape = tuple[int, int, int, int]
_known: OrderedDict[Any, Blocks] = OrderedDict()
_lock = threading.Lock()


def refine(bound: Bound, shape: Shape, block: tuple[int, int]) -> Blocks:
    """The blocks of a mask over (B, H, q_len, kv_len); remembered by expression, captured values, lengths.

    Raises:
        ValueError: a captured array is too short for this shape.
    """
    bound.check_sizes(shape)
    arrays = captured_arrays(bound)
    if any(_is_dense(array, shape) for array in arrays):
        return _refined(bound, arrays, shape, block)
    contents = tuple((a.shape, a.dtype.str, hashlib.sha1(np.ascontiguousarray(a).data).digest()) for a in arrays)
    key = (bound.trace.expr, repr(bound.numbers), contents, shape, block)  # repr: -0.0 is not 0.0, and nan is nan
    with _lock:
        known = _known.get(key)
        if known is not None:
            _known.move_to_end(key)
            return known
    blocks = _refined(bound, arrays, shape, block)
    with _lock:
        _known[key] = blocks
        while len(_known) > REMEMBERED:
            _known.popitem(last=False)
    return blocks


def forget() -> None:
    """Forget all block masks, so that the next one is made anew."""
    with _lock:
        _known.clear()


def _is_dense(array: Array, shape: Shape) -> bool:
    """Whether a table is of the order of the dense mask: summing it up costs as much as looking at the mask."""
    return array.ndim >= 2 and 8 * array.size > math.prod(shape)


def _refined(bound: Bound, arrays: list[Array], shape: Shape, block: tuple[int, int]) -> Blocks:
    used = {leaf.value for leaf in leaves(bound.trace.expr, ("index",))}
    distinct = (shape[0] if "b" in used else 1, shape[1] if "h" in used else 1)
    blocks = _Refinement(bound, arrays, (*distinct, *shape[2:]), block).blocks()
    if distinct != shape[:2]:
        batch, heads = (np.arange(n) % d for n, d in zip(shape[:2], distinct, strict=True))
        blocks = blocks.select(batch, heads, np.arange(blocks.shape[2]))
    return blocks


def captured_arrays(bound: Bound) -> list[Array]:
    """The captured arrays for numpy, which has no bfloat16."""
    found = []
    for capture, array in zip(bound.trace.arrays, bound.arrays, strict=True):
        bfloat16 = isinstance(array, mx.array) and array.dtype == mx.bfloat16
        try:
            found.append(np.asarray(array.astype(mx.float32) if bfloat16 else array))
        except ValueError as error:
            raise hidden(error, capture) from None
    return found


class _Refinement:
    """One mask over one plane. Squares are named by head (b * H + h) and first row and column of blocks."""

    def __init__(self, bound: Bound, arrays: list[Array], shape: Shape, block: tuple[int, int]) -> None:
        self.bound, self.arrays, self.shape, self.block = bound, arrays, shape, block
        self.rows, self.columns = (-(-n // size) for n, size in zip(shape[2:], block, strict=True))
        self.bounds = bounds_of(bound.trace.expr)
        self.extremes = [Extremes(array) for array in arrays]
        self.runs: list[tuple[Array, Array, Array, Array]] = []  # row, first, end, state

    def blocks(self) -> Blocks:
        heads = self.shape[0] * self.shape[1]
        if heads * self.rows * self.columns:
            side = 1
            by_looks = any(_is_dense(array, self.shape) for array in self.arrays)
            while not by_looks and heads * -(-self.rows // side) * -(-self.columns // side) > SPLIT**2 * FIRST_SQUARES:
                side *= SPLIT
            head, row, column = (
                axis.reshape(-1)
                for axis in np.meshgrid(
                    np.arange(heads), np.arange(0, self.rows, side), np.arange(0, self.columns, side), indexing="ij"
                )
            )
            while not by_looks:
                head, row, column = self._undecided(head, row, column, side)
                if side == 1 or not len(head):
                    break
                side //= SPLIT
                head, row, column = self._split(head, row, column, side)
            if len(head):
                self._look(head, row, column)
        shape = (*self.shape[:2], self.rows, self.columns)
        if not self.runs:
            return Blocks.from_states(np.zeros(shape, np.int8), *self.block)
        line, first, end, state = (np.concatenate(part) for part in zip(*self.runs, strict=True))
        return Blocks.from_runs(shape, line, first, end, state, *self.block)

    def _undecided(self, head: Array, row: Array, column: Array, side: int) -> tuple[Array, Array, Array]:
        """Keeps the squares that are full; gives those that are neither full nor empty."""
        (q_block, kv_block), (_, h, q_len, kv_len) = self.block, self.shape
        batch, head_in_batch = np.divmod(head, h)
        q_first, kv_first = row * q_block, column * kv_block
        ranges = {
            "b": (batch, batch),
            "h": (head_in_batch, head_in_batch),
            "q_idx": (q_first, np.minimum(q_first + side * q_block, q_len) - 1),
            "kv_idx": (kv_first, np.minimum(kv_first + side * kv_block, kv_len) - 1),
        }
        full, live = self.bounds(ranges, self.bound.numbers, self.extremes)
        full, live = np.broadcast_to(full, head.shape), np.broadcast_to(live, head.shape)
        self._keep(head[full], row[full], column[full], side, FULL)
        rest = live & ~full
        return head[rest], row[rest], column[rest]

    def _split(self, head: Array, row: Array, column: Array, side: int) -> tuple[Array, Array, Array]:
        """SPLIT x SPLIT squares of that side out of each, as far as they exist."""
        down, right = (axis.reshape(-1) * side for axis in np.mgrid[:SPLIT, :SPLIT])
        row, column = (row[:, None] + down).reshape(-1), (column[:, None] + right).reshape(-1)
        exist = (row < self.rows) & (column < self.columns)
        return np.repeat(head, SPLIT**2)[exist], row[exist], column[exist]

    def _keep(self, head: Array, row: Array, column: Array, side: int, state: int) -> None:
        """Each square as a run in every row that it has."""
        if len(head):
            heights = np.minimum(side, self.rows - row)
            below = np.arange(int(heights.sum())) - np.repeat(np.cumsum(heights) - heights, heights)
            line = np.repeat(head * self.rows + row, heights) + below
            end = np.minimum(column + side, self.columns)
            runs = (np.repeat(column, heights), np.repeat(end, heights), np.full(len(line), state, np.uint8))
            self.runs.append((line, *runs))

    def _look(self, head: Array, row: Array, column: Array) -> None:
        """Decides single blocks by positions: a kept one and one that is not make it partial."""
        for looks in (*LOOKS, None):
            some, every = self._seen(head, row, column, looks)
            if looks is None:
                self._keep(head[every], row[every], column[every], 1, FULL)
            partial = some & ~every
            self._keep(head[partial], row[partial], column[partial], 1, PARTIAL)
            head, row, column = head[~partial], row[~partial], column[~partial]
            if not len(head):
                return

    def _seen(self, head: Array, row: Array, column: Array, looks: int | None) -> tuple[Array, Array]:
        """Whether any, and whether all, of looks x looks positions of each block (all positions: None) are kept."""
        (q_block, kv_block), (_, h, q_len, kv_len) = self.block, self.shape
        places = []
        for size in self.block:
            n = size if looks is None else min(looks, size)
            places.append(np.linspace(0, size - 1, n).astype(np.int64) if n > 1 else np.zeros(1, np.int64))
        step = max(1, POSITIONS_AT_ONCE // (len(places[0]) * len(places[1])))
        some, every = np.empty(len(head), bool), np.empty(len(head), bool)
        for first in range(0, len(head), step):
            part = slice(first, first + step)
            batch, head_in_batch = np.divmod(head[part], h)
            # Positions beyond the last row or column see the last one again, which changes nothing.
            q_idx = np.minimum(row[part, None] * q_block + places[0], q_len - 1)
            kv_idx = np.minimum(column[part, None] * kv_block + places[1], kv_len - 1)
            values = {"b": batch[:, None, None], "h": head_in_batch[:, None, None]}
            values |= {"q_idx": q_idx[:, :, None], "kv_idx": kv_idx[:, None, :]}
            kept = evaluate(self.bound.trace.expr, values, numbers=self.bound.numbers, arrays=self.arrays)
            kept = np.broadcast_to(kept, (len(batch), len(places[0]), len(places[1])))
            some[part], every[part] = kept.any(axis=(1, 2)), kept.all(axis=(1, 2))
        return some, every
