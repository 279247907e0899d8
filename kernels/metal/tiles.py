"""BlockMask, plan -> the tiles of keys that each tile of query rows visits, as the kernel's walk.h reads them."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ..blocks import Blocks
from .plan import Plan

NO_BLOCKS, WHOLE_TILES, CUT_TILES = 0, 1, 2  # enum Blocks of walk.h
NO_MASK, ASK, LOOK_UP = 0, 1, 2  # enum TileState of walk.h
EMPTY, PARTIAL, FULL = 0, 1, 2  # Blocks.states
SMALLEST = 8  # MLX passes smaller arrays in the constant address space, where the kernel does not expect these


@dataclass(frozen=True)
class Tiles:
    """The kernel's two inputs, and what it must know of them.

    lists: int32, flat [mask_batches, mask_heads, q_tiles, list_length], a count and then 4 * tile + state.
    states: uint8, flat [mask_batches, mask_heads, q_blocks, kv_blocks]; read only where blocks cut tiles.
    words: the last fields of AttentionParams.
    """

    mode: int
    lists: mx.array
    states: mx.array
    words: tuple[int, ...]


_known: weakref.WeakKeyDictionary[Blocks, dict[tuple[int, ...], Tiles]] = weakref.WeakKeyDictionary()


def tiles_for(blocks: Blocks | None, plan: Plan, q_len: int, kv_len: int) -> Tiles:
    """Remembered as long as the BlockMask lives."""
    if blocks is None:
        return Tiles(NO_BLOCKS, mx.zeros(SMALLEST, mx.int32), mx.zeros(SMALLEST, mx.uint8), (1, 1, 0, 0, 0, 1, 1))
    key = (plan.bq, plan.bk, q_len, kv_len)
    known = _known.setdefault(blocks, {})
    if key not in known:
        known[key] = _cut(blocks, *key)
    return known[key]


def _cut(blocks: Blocks, bq: int, bk: int, q_len: int, kv_len: int) -> Tiles:
    states = blocks.states()
    low, high = states, states
    for axis, length, tile, block in ((2, q_len, bq, blocks.q_block), (3, kv_len, bk, blocks.kv_block)):
        low, high = _extremes(low, high, axis, length, tile, block)
    entries = 4 * np.arange(low.shape[-1], dtype=np.int32) + np.select(
        [low != high, low == PARTIAL], [LOOK_UP, ASK], NO_MASK
    )
    lists = np.zeros((*high.shape[:3], 1 + high.shape[3]), np.int32)
    lists[..., 0] = (high != EMPTY).sum(axis=-1)
    order = np.argsort(high == EMPTY, axis=-1, kind="stable")
    lists[..., 1:] = np.take_along_axis(entries, order, axis=-1)
    mode = CUT_TILES if bool((low != high).any()) else WHOLE_TILES
    words = (*states.shape[:2], lists.shape[-1], *states.shape[2:], blocks.q_block, blocks.kv_block)
    return Tiles(mode, _flat(lists), _flat(states.astype(np.uint8)), words)


Array = np.ndarray[Any, Any]


def _extremes(low: Array, high: Array, axis: int, length: int, tile: int, block: int) -> tuple[Array, Array]:
    """The smallest and largest value among the blocks that each tile touches, along one axis."""
    starts = np.arange(0, length, tile)
    first, last = starts // block, (np.minimum(starts + tile, length) - 1) // block
    smallest, largest = low.take(first, axis), high.take(first, axis)
    for step in range(1, int((last - first).max()) + 1):
        at = np.minimum(first + step, last)
        smallest = np.minimum(smallest, low.take(at, axis))
        largest = np.maximum(largest, high.take(at, axis))
    return smallest, largest


def _flat(values: Array) -> mx.array:
    flat = values.reshape(-1)
    return mx.array(np.pad(flat, (0, max(0, SMALLEST - flat.size))))
