"""mask_mod -> mask_mod: seen from other rows and heads, or through blocks that leave pairs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from flextrace.decorators import MaskMod
from flextrace.kernels import Blocks
from flextrace.kernels.blocks import FULL, PARTIAL, Array
from flextrace.tracer import Start


def noop_mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> bool:
    """The mask that keeps every pair.

    Example:
        >>> import flextrace as flex
        >>> flex.create_block_mask(flex.noop_mask, None, None, 256, 256).sparsity()
        0.0
    """
    return True


def shift_mask(mask: MaskMod, q_from: int) -> MaskMod:
    """The mask whose row 0 is row q_from of `mask`; shifts of shifts are one shift."""
    origin, before = mask.shifted_from or (mask, 0)
    start = Start(before + q_from)
    if start == 0:
        return origin

    def shifted(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return origin(b, h, q_idx + start, kv_idx)

    later = MaskMod(shifted)
    later.shifted_from = origin, start
    return later


def pick_mask(mask: MaskMod, shape: tuple[int, ...], batch: Array, heads: Array, rows: Array, q_block: int) -> MaskMod:
    """The mask over some batches, heads and rows of blocks, by their numbers in a mask of that shape in blocks."""
    follow = bool((np.diff(rows) == 1).all())
    if follow:
        mask = shift_mask(mask, int(rows[0]) * q_block if len(rows) else 0)
    if follow and all(np.array_equal(chosen, np.arange(n)) for chosen, n in zip((batch, heads), shape, strict=False)):
        return mask
    pick_b, pick_h = _picker(batch, shape[0]), _picker(heads, shape[1])

    def picked_heads(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return mask(pick_b(b), pick_h(h), q_idx, kv_idx)

    if follow:
        return MaskMod(picked_heads)
    pick_row = _picker(rows, shape[2])

    def picked(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return picked_heads(b, h, pick_row(q_idx // q_block) * q_block + q_idx % q_block, kv_idx)

    return MaskMod(picked)


def _picker(chosen: Array, size: int) -> Callable[[Any], Any]:
    """Position in the part -> position in the whole."""
    first = int(chosen[0]) if len(chosen) else 0
    if np.array_equal(chosen, np.arange(size)):
        return lambda index: index
    if len(chosen) == 1:  # broadcasts, as an axis of one does
        return lambda index: first
    if (np.diff(chosen) == 1).all():
        return lambda index: index + first
    numbers = mx.array(chosen.astype(np.int32))
    return lambda index: numbers[index]


def lookup_mask(blocks: Blocks, mask: MaskMod) -> MaskMod:
    """The mask that blocks and what decides inside partial ones stand for together."""
    states = mx.array(blocks.states().astype(np.uint8))
    partial, full = PARTIAL, FULL
    b_step, h_step = (int(size > 1) for size in blocks.shape[:2])
    q_block, kv_block = blocks.q_block, blocks.kv_block

    def looked_up(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        state = states[b * b_step, h * h_step, q_idx // q_block, kv_idx // kv_block]
        return state == full or (state == partial and mask(b, h, q_idx, kv_idx))

    return MaskMod(looked_up)
