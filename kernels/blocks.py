"""Which blocks of the score matrix to visit, as runs of neighbouring blocks: what kernels read of a BlockMask."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
EMPTY, PARTIAL, FULL = 0, 1, 2  # states of a block: nothing to attend to, ask mask_mod, attend to all
ENTRIES_AT_ONCE = 2**20  # of the lists of blocks: what is needed beside them is as much as for these


@dataclass(frozen=True, eq=False)
class Blocks:
    """Runs of blocks in the same state, row of blocks by row of blocks; blocks in no run are empty.

    A mask of long runs (causal, windows, documents) takes a few bytes per row, whatever its length.

    shape: (mask_batch, mask_heads, q_blocks, kv_blocks); the first three make up the rows, in that order.
    offsets: int64 [rows + 1]; the runs of row r are offsets[r] to offsets[r + 1] - 1, in ascending order.
    first, end: int32 [runs]; a run holds the kv blocks first to end - 1. Two runs of one state never touch.
    state: uint8 [runs], PARTIAL or FULL.

    Several BlockMasks may share one, so nobody writes to its arrays.
    """

    shape: tuple[int, int, int, int]
    offsets: Array
    first: Array
    end: Array
    state: Array
    q_block: int
    kv_block: int

    def __post_init__(self) -> None:
        for array in (self.offsets, self.first, self.end, self.state):
            array.setflags(write=False)

    def __reduce__(self) -> tuple[Any, ...]:
        runs = (self.offsets, self.first, self.end, self.state)
        return Blocks, (self.shape, *runs, self.q_block, self.kv_block)  # numpy forgets that nobody may write

    @classmethod
    def from_states(cls, states: Array, q_block: int, kv_block: int) -> Blocks:
        """states: integers [mask_batch, mask_heads, q_blocks, kv_blocks] of EMPTY, PARTIAL and FULL."""
        b, h, q_blocks, kv_blocks = states.shape
        rows = states.reshape(b * h * q_blocks, kv_blocks)
        framed = np.pad(rows, ((0, 0), (1, 1)))  # every row begins and ends empty
        row, at = np.nonzero(framed[:, 1:] != framed[:, :-1])
        state = framed[row, at + 1]
        begins = np.flatnonzero(state)  # each boundary where a run begins; the next boundary ends it
        return cls.from_runs(states.shape, row[begins], at[begins], at[begins + 1], state[begins], q_block, kv_block)

    @classmethod
    def from_runs(
        cls, shape: Sequence[int], row: Array, first: Array, end: Array, state: Array, q_block: int, kv_block: int
    ) -> Blocks:
        """Disjoint runs in any order, of each the row; neighbours of one state become one run."""
        order = np.lexsort((first, row))
        row, first, end, state = row[order], first[order], end[order], state[order]
        joined = np.zeros(len(row), bool)
        joined[1:] = (row[1:] == row[:-1]) & (first[1:] == end[:-1]) & (state[1:] == state[:-1])
        begins = np.flatnonzero(~joined)
        last = np.append(begins[1:], len(row))[: len(begins)] - 1
        b, h, q_blocks, kv_blocks = shape
        counts = np.bincount(row[begins], minlength=b * h * q_blocks)
        offsets = np.zeros(b * h * q_blocks + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        runs = (first[begins].astype(np.int32), end[last].astype(np.int32), state[begins].astype(np.uint8))
        return cls((b, h, q_blocks, kv_blocks), offsets, *runs, q_block, kv_block)

    @classmethod
    def from_lists(
        cls,
        kv_num_blocks: Array,
        kv_indices: Array,
        full_kv_num_blocks: Array | None,
        full_kv_indices: Array | None,
        q_block: int,
        kv_block: int,
        kv_blocks: int | None = None,
    ) -> Blocks:
        """The lists of torch's BlockMask: counts [.., q_blocks], indices [.., q_blocks, columns], in any order.

        A block listed as partial and as full is full. `kv_blocks` is how many there are, `columns` without it.
        """
        width = kv_indices.shape[-1] if kv_blocks is None else kv_blocks
        states = np.zeros((*kv_num_blocks.shape, width + 1), np.int8)  # one more column takes unused entries
        for counts, indices, state in (
            (kv_num_blocks, kv_indices, PARTIAL),
            (full_kv_num_blocks, full_kv_indices, FULL),
        ):
            if counts is not None and indices is not None:
                used = np.arange(indices.shape[-1]) < counts[..., None]
                np.put_along_axis(states, np.where(used, indices, width), np.int8(state), axis=-1)
        return cls.from_states(states[..., :width], q_block, kv_block)

    @property
    def rows(self) -> Array:
        """int64 [runs]: the row of each run."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    @property
    def nbytes(self) -> int:
        """Bytes of the runs."""
        return sum(array.nbytes for array in (self.offsets, self.first, self.end, self.state))

    def states(self) -> Array:
        """int8 [mask_batch, mask_heads, q_blocks, kv_blocks]: the state of each block."""
        steps = np.zeros((len(self.offsets) - 1, self.shape[3] + 1), np.int8)
        row, state = self.rows, self.state.astype(np.int8)
        np.add.at(steps, (row, self.first), state)
        np.subtract.at(steps, (row, self.end), state)
        return np.cumsum(steps[:, :-1], axis=1, dtype=np.int8).reshape(self.shape)

    @functools.cached_property
    def transposed(self) -> Blocks:
        """Rows and columns of blocks exchanged; kept, as gradients ask for it at every step.

        In time and memory proportional to the runs of both.
        """
        b, h, q_blocks, kv_blocks = self.shape
        # Each run begins and ends in its own row; what was before, in the next one.
        line = self.rows + self.rows // max(1, q_blocks)  # a head has one more line than rows: its last run ends there
        lines, place = (
            np.concatenate([line, line, line + 1, line + 1]),
            np.tile(np.concatenate([self.first, self.end]), 2),
        )
        new, old = np.zeros((2, 4, len(line)), np.int64)
        new[0], old[2] = self.state, self.state
        new[1], old[3] = -new[0], -old[2]
        order = np.lexsort((place, lines))
        lines, place = lines[order], place[order].astype(np.int64)
        new, old = (np.cumsum(change.reshape(-1)[order]) for change in (new, old))
        # Up to the next place of the line the columns are in one state; where it is not that of the line before, runs
        # of columns begin or end. Behind the last place of a line both are empty.
        changed = np.flatnonzero(new != old)
        width = place[changed + 1] - place[changed] if len(changed) else place[:0]
        column = np.arange(int(width.sum())) - np.repeat(np.cumsum(width) - width - place[changed], width)
        line, state = np.repeat(lines[changed], width), np.repeat(new[changed], width)
        head, row = np.divmod(line, q_blocks + 1)
        order = np.lexsort((row, column, head))
        head, column, row, state = (x[order] for x in (head, column, row, state))
        begins = np.flatnonzero(state)  # the next change of the column ends the run
        line = head[begins] * kv_blocks + column[begins]
        ends = row[np.minimum(begins + 1, len(row) - 1)]
        shape = (b, h, kv_blocks, q_blocks)
        return Blocks.from_runs(shape, line, row[begins], ends, state[begins], self.kv_block, self.q_block)

    @property
    def inverted(self) -> Blocks:
        """Empty and full change places, partial stays; in time and memory proportional to rows and runs."""
        begins, ends = self.offsets[:-1], self.offsets[1:]
        # What lies before, between and behind the runs of each row: one gap more than it has runs, some of no width.
        row = np.repeat(np.arange(len(begins)), ends - begins + 1)
        first = np.insert(self.end, begins, 0)
        end = np.insert(self.first, ends, self.shape[3])
        wide, partial = first < end, self.state == PARTIAL
        kept = ((self.rows[partial], row[wide]), (self.first[partial], first[wide]), (self.end[partial], end[wide]))
        row, first, end = (np.concatenate(parts) for parts in kept)
        state = np.repeat([PARTIAL, FULL], [partial.sum(), wide.sum()])
        return Blocks.from_runs(self.shape, row, first, end, state, self.q_block, self.kv_block)

    def counts(self, state: int) -> Array:
        """int32 [mask_batch, mask_heads, q_blocks]: how many blocks of each row are in a state.

        In time and memory proportional to rows and runs.
        """
        lengths = np.where(self.state == state, self.end - self.first, 0)
        before = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=before[1:])
        return np.diff(before[self.offsets]).astype(np.int32).reshape(self.shape[:3])

    def indices(self, state: int) -> Array:
        """int32 [mask_batch, mask_heads, q_blocks, kv_blocks]: the blocks in a state, ascending; 0 beyond a count.

        Dense, as torch's BlockMask has it: 4 bytes for every block of the plane, and little else beside them.
        """
        counts, columns = self.counts(state).reshape(-1), self.shape[3]
        indices = np.zeros((len(counts), columns), np.int32)
        rows = max(1, ENTRIES_AT_ONCE // max(1, columns))
        for top in range(0, len(counts), rows):
            here = slice(*self.offsets[[top, min(top + rows, len(counts))]])
            chosen = self.state[here] == state
            first, lengths = self.first[here][chosen], (self.end - self.first)[here][chosen]
            before = np.cumsum(lengths) - lengths  # blocks of all runs before
            listed = np.arange(int(lengths.sum())) + np.repeat(first - before, lengths)
            indices[top : top + rows][np.arange(columns) < counts[top : top + rows, None]] = listed
        return indices.reshape(self.shape)

    def select(self, batch: Array, heads: Array, q_blocks: Array) -> Blocks:
        """The mask of some batches, heads and rows of blocks only, by their numbers."""
        _, h, rows_per_head, kv_blocks = self.shape
        wanted = ((batch[:, None, None] * h + heads[:, None]) * rows_per_head + q_blocks).reshape(-1)
        counts = np.diff(self.offsets)[wanted]
        offsets = np.zeros(len(wanted) + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        at = np.arange(int(offsets[-1])) + np.repeat(self.offsets[wanted] - offsets[:-1], counts)
        shape = (len(batch), len(heads), len(q_blocks), kv_blocks)
        return Blocks(shape, offsets, self.first[at], self.end[at], self.state[at], self.q_block, self.kv_block)

    def same_as(self, other: Blocks) -> bool:
        """Whether both list the same blocks in the same states."""
        mine, its = (
            (x.shape, x.q_block, x.kv_block, *(a.tobytes() for a in (x.offsets, x.first, x.end, x.state)))
            for x in (self, other)
        )
        return mine == its
