"""Mask, captured arrays -> the extremes of their blocks, by which tile_state decides tiles (captured_extremes.h)."""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import replace

import mlx.core as mx

from flextrace.tracer import Expr
from flextrace.tracer.bounds.tiles import bounds_of
from flextrace.tracer.emit.tile_state import METAL_RANGES, tile_state_body
from flextrace.tracer.expr.node import leaves

from ..call import AttentionCall
from ..spec import Formulas
from .arguments import flat

BLOCK = 32  # of captured_extremes.h
SHORT = 2 * BLOCK  # an axis up to here is read as it is


def looked_up(mods: Formulas) -> tuple[int, ...]:
    """The slots of captured arrays that the mask looks up by row or key, in their last index."""
    first = 0 if mods.score is None else len(mods.score.arrays)
    return () if mods.mask is None else tuple(first + slot for slot in _looked_up(mods.mask.expr))


@functools.lru_cache(maxsize=256)
def _looked_up(mask: Expr) -> list[int]:
    loads = leaves(bounds_of(mask).related, ("load",))
    return sorted({load.value[0] for load in loads if load.args and load.args[-1].varies & {"q_idx", "kv_idx"}})


def extremes_type(element: str) -> str:
    """How the kernels' text writes the type of the extremes of an array's blocks."""
    return "float" if element in ("float16", "bfloat16", "float32", "float64") else "int"


def tile_body(mask: Expr, slots: Collection[int]) -> str:
    """The body of tile_state; `slots` are those of arrays whose blocks it reads. CUDA writes it as Metal does."""

    def load(node: Expr, indices: list[str]) -> str:
        text, slot = METAL_RANGES.load(node, indices), node.value[0]
        if slot not in slots:
            return text
        function, _, arguments = text.partition("(")
        return f"{function}_by_blocks(extremes{slot}, {arguments}"

    return tile_state_body(mask, replace(METAL_RANGES, load=load))


def slots_by_blocks(call: AttentionCall) -> tuple[int, ...]:
    """The captured arrays of which tile_state reads the extremes of blocks: those with a long last axis, but none so
    large that going through it once would take longer than the attention does."""
    arrays = call.mods.arrays
    batch, heads, q_len, _ = call.q.shape
    most = 4 * batch * heads * q_len * call.k.shape[2]
    return tuple(
        slot for slot in looked_up(call.mods.formulas) if arrays[slot].shape[-1] > SHORT and arrays[slot].size <= most
    )


def extremes_of_blocks(array: mx.array) -> mx.array:
    """int32 or float32, flat [.., blocks of the last axis, 2]: what extremes.h reads. Both are infinite where a block
    has a number that is not finite."""
    *others, size = array.shape
    blocks = -(-size // BLOCK)
    low = high = array.astype(mx.float32 if mx.issubdtype(array.dtype, mx.floating) else mx.int32)
    if low.dtype == mx.float32:
        known = mx.isfinite(low)
        low, high = mx.where(known, low, -mx.inf), mx.where(known, low, mx.inf)
    pairs = []
    for extreme, x in ((mx.min, low), (mx.max, high)):
        tail = mx.broadcast_to(x[..., -1:], (*others, blocks * BLOCK - size))
        pairs.append(extreme(mx.concatenate([x, tail], axis=-1).reshape(*others, blocks, BLOCK), axis=-1))
    return flat(mx.stack(pairs, axis=-1))
