"""BlockMask, plan -> the tiles of keys that each tile of query rows visits, as the kernel's walk.h reads them."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import numpy as np

from ..blocks import FULL, PARTIAL, Blocks
from .arguments import SMALLEST

NO_BLOCKS, WHOLE_TILES, CUT_TILES = 0, 1, 2  # enum Blocks of walk.h
NO_MASK, ASK, LOOK_UP = 0, 1, 2  # enum TileState of walk.h
PARAMS = ("mask_batches", "mask_heads", "q_blocks", "kv_blocks", "q_block", "kv_block")
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Tiles:
    """The kernel's input, and what it must know of it.

    lists: int32, flat. A line of runs for each [mask_batches, mask_heads, q_tiles]: where each line begins, and the
        last one ends (lines + 1); then, per run, the number of tiles in it and the runs before it of its line; then,
        per run, 4 * (its first tile - the number of tiles in the runs before) + state. Then, where blocks cut tiles,
        [mask_batches, mask_heads, q_blocks, kv_blocks] states, four bytes a word.
    params: those of AttentionParams that say what `lists` is of, by their names.
    most: the tiles of the longest line.
    """

    mode: int
    lists: mx.array
    params: dict[str, int]
    most: int = 0


_known: weakref.WeakKeyDictionary[Blocks, dict[tuple[int, ...], Tiles]] = weakref.WeakKeyDictionary()


class Cut(Protocol):
    """What it takes of a plan: the rows and columns of a tile."""

    @property
    def bq(self) -> int: ...

    @property
    def bk(self) -> int: ...


def tiles_for(blocks: Blocks | None, plan: Cut, q_len: int, kv_len: int, group: int = 1) -> Tiles:
    """Remembered as long as the BlockMask lives. group: neighbouring heads of the mask, if it has several, that visit
    tiles together: their lines become one."""
    if blocks is None:
        return Tiles(NO_BLOCKS, mx.zeros(SMALLEST, mx.int32), dict(zip(PARAMS, (1, 1, 0, 0, 1, 1), strict=True)))
    key = (plan.bq, plan.bk, q_len, kv_len, 1 if blocks.shape[1] == 1 else group)
    known = _known.setdefault(blocks, {})
    if key not in known:
        known[key] = _cut(blocks, *key)
    return known[key]


class _Runs(NamedTuple):
    """Runs of tiles, `first` to `end` - 1, of one line each, in ascending order."""

    line: Array
    first: Array
    end: Array
    state: Array


def _cut(blocks: Blocks, bq: int, bk: int, q_len: int, kv_len: int, group: int) -> Tiles:
    """In time and memory proportional to the runs of the BlockMask."""
    lines = blocks.shape[0] * blocks.shape[1] // group * -(-q_len // bq)
    runs = _runs_of_tiles(blocks, bq, bk, q_len, kv_len, group)
    offsets = np.searchsorted(runs.line, np.arange(lines + 1))
    ends = np.cumsum(runs.end - runs.first)  # of all lines; each line counts from 0
    before = np.concatenate([[0], ends])
    start = before[offsets[runs.line]]
    entries = 4 * (runs.first - (before[:-1] - start)) + runs.state
    lists = np.concatenate([offsets, ends - start, entries]).astype(np.int32)
    mode = CUT_TILES if bool((runs.state == LOOK_UP).any()) else WHOLE_TILES
    if mode == CUT_TILES:
        states = blocks.states().astype(np.uint8).reshape(-1)
        lists = np.concatenate([lists, np.pad(states, (0, -states.size % 4)).view(np.int32)])
    sizes = (*blocks.shape, blocks.q_block, blocks.kv_block)
    most = int((ends - start).max(initial=0))
    return Tiles(mode, _flat(lists), dict(zip(PARAMS, sizes, strict=True)), most)


def _runs_of_tiles(blocks: Blocks, bq: int, bk: int, q_len: int, kv_len: int, group: int) -> _Runs:
    """A tile is asked about where all its blocks are partial, whole where all are full, and looked up where some of
    its blocks, but not all, are in one of these states."""
    line, rows_of_line, row = _touched(blocks, bq, q_len, group)
    counts = np.diff(blocks.offsets)[row]
    at = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts - blocks.offsets[row], counts)
    line, state = np.repeat(line, counts), blocks.state[at]
    first_key = blocks.first[at].astype(np.int64) * blocks.kv_block
    end_key = np.minimum(blocks.end[at].astype(np.int64) * blocks.kv_block, kv_len)
    # The tiles that a run touches, and among them those that it covers.
    first, end = first_key // bk, -(-end_key // bk)
    covered, covered_end = -(-first_key // bk), np.where(end_key == kv_len, end, end_key // bk)
    covered_end = np.maximum(covered, covered_end)
    # Where a tile's counts of covering rows change: +1 at the first tile, -1 behind the last one.
    place = np.concatenate([first, end, covered, covered_end])
    touching, partial, full = np.zeros((3, 4, len(line)), np.int64)
    touching[0], touching[1] = 1, -1
    for change, wanted in ((partial, PARTIAL), (full, FULL)):
        change[2] = state == wanted
        change[3] = -change[2]
    order = np.lexsort((place, np.tile(line, 4)))
    line, place = np.tile(line, 4)[order], place[order]
    touching, partial, full = (np.cumsum(change.reshape(-1)[order]) for change in (touching, partial, full))
    last = np.append((line[1:] != line[:-1]) | (place[1:] != place[:-1]), np.ones(min(1, len(line)), bool))
    line, place, touching, partial, full = (x[last] for x in (line, place, touching, partial, full))
    # Between one change and the next of the line, all tiles are in one state.
    rows = rows_of_line[line]
    kind = np.select([touching == 0, full == rows, partial == rows], [-1, NO_MASK, ASK], LOOK_UP)
    begins = np.ones(len(line), bool)
    begins[1:] = (kind[1:] != kind[:-1]) | (line[1:] != line[:-1])
    line, place, kind = line[begins], place[begins], kind[begins]
    live = np.flatnonzero(kind >= 0)  # the last change of a line leaves nothing
    return _Runs(line[live], place[live], place[live + 1], kind[live])


def _touched(blocks: Blocks, bq: int, q_len: int, group: int) -> tuple[Array, Array, Array]:
    """(line, rows_of_line, row): which rows of blocks each tile of query rows touches, and how many."""
    batch, heads, q_blocks, _ = blocks.shape
    starts = np.arange(0, q_len, bq)
    first, last = starts // blocks.q_block, (np.minimum(starts + bq, q_len) - 1) // blocks.q_block
    count = np.tile(last - first + 1, batch * heads)
    line = np.repeat(np.arange(len(count)), count)
    first_row = (np.arange(batch * heads)[:, None] * q_blocks + first).reshape(-1)
    row = np.arange(len(line)) - np.repeat(np.cumsum(count) - count - first_row, count)
    together = count.reshape(-1, group, len(starts)).sum(axis=1).reshape(-1)
    return line // (group * len(starts)) * len(starts) + line % len(starts), together, row


def _flat(values: Array) -> mx.array:
    flat = values.reshape(-1)
    return mx.array(np.pad(flat, (0, max(0, SMALLEST - flat.size))))
