"""Kernels + call -> result: the two launches of a call of few query rows, as nodes of MLX's lazy graph."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from ...call import AttentionCall, Result
from ...gpu.arguments import bits, captured_arrays, words_of_captures
from ...gpu.extremes import extremes_of_blocks
from ...gpu.tile_lists import PARAMS as MASK_PARAMS
from ...gpu.tile_lists import Tiles, tiles_for
from ..device import multiprocessors
from ..launch import Launch, neighbours
from .plan import BK, DecodePlan, are_few, decode_plan, splits_for

MERGE_THREADS, MERGED_COLUMNS = 128, 128  # of a block of merge.cu


class Cut(NamedTuple):
    """All rows of a query head are one tile."""

    bq: int
    bk: int = BK


def plan_of(call: AttentionCall) -> DecodePlan | None:
    """The plan for a call of few query rows; None for others, and where a row is too long.

    Keys that are not in int8 already are multiplied as they are, exactly: to smooth and to round them takes a pass over
    all of them.
    """
    _, query_heads, q_len, head_dim = call.q.shape
    kv_heads, value_dim = call.v.shape[1], call.v.shape[3]
    rounds = call.quant is not None and call.k_scales is None
    if call.q.size * call.k.size * value_dim == 0 or not are_few(q_len, query_heads // kv_heads, rounds):
        return None
    means = call.k_scales is not None and call.smoothing is not None
    return decode_plan(
        head_dim,
        value_dim,
        *(_name(call.q.dtype), query_heads // kv_heads * q_len),
        *(_name(call.k.dtype), _name(call.v.dtype)),
        means,
        means and call.smoothing is not None and call.smoothing.add_back,
    )


def decode_tiles(call: AttentionCall) -> Tiles:
    """The tiles of keys that the BlockMask leaves each head of keys."""
    q_len, kv_len = call.q.shape[2], call.k.shape[2]
    return tiles_for(call.blocks, Cut(q_len), q_len, kv_len, call.q.shape[1] // call.k.shape[1])


def run_decode(
    decode: Launch, merge: Launch, plan: DecodePlan, extremes: tuple[int, ...], call: AttentionCall
) -> Result:
    """out, lse and max_scores of one call; nothing is evaluated.

    How many blocks share the keys of a head follows from the shapes, the BlockMask and the GPU alone, and which keys
    each of them takes from what is live: never from the load. Lengths and strides are no part of the kernel.
    """
    batch, query_heads, q_len, _ = call.q.shape
    kv_batches, kv_heads, kv_len, value_dim = call.v.shape
    kv_batches = max(kv_batches, call.k.shape[0])
    group = query_heads // kv_heads
    rows = group * q_len
    tiles = decode_tiles(call)
    blocks = -(-rows // plan.rows) * plan.slices  # for a head of keys without any split
    live = kv_len if call.blocks is None else tiles.most * BK
    splits = splits_for(plan, batch * kv_heads * blocks, live, multiprocessors())
    sizes = (kv_heads, group, kv_batches, q_len, kv_len, bits(call.scale), splits)
    arrays = captured_arrays(call.mods, True)
    read_in_place = [x for x in (call.k, call.v, call.k_scales, call.v_scales) if x is not None]
    partial, statistics = decode(
        inputs=[
            mx.contiguous(call.q),
            *(pointer for x in read_in_place for pointer in neighbours(x)),
            *([_of_batches(call.smoothing.means, kv_batches)] if plan.means and call.smoothing is not None else []),
            tiles.lists,
            *arrays,
            *(extremes_of_blocks(arrays[slot]) for slot in extremes),
        ],
        output_shapes=[(batch, kv_heads, splits, rows, value_dim), (batch, kv_heads, splits, rows, 4)],
        output_dtypes=[mx.float32, mx.float32],
        scalars=[*sizes, *(tiles.params[name] for name in MASK_PARAMS), *words_of_captures(call.mods)],
        grid=(splits * blocks * plan.threads, kv_heads, batch),
        threadgroup=(plan.threads, 1, 1),
        ensure_row_contiguous=False,
    )
    means = call.v_means
    out, lse, max_scores = merge(
        inputs=[partial, statistics, *([] if means is None else [mx.contiguous(means)])],
        output_shapes=[(*call.q.shape[:3], value_dim), call.q.shape[:3], call.q.shape[:3]],
        output_dtypes=[call.q.dtype, mx.float32, mx.float32],
        scalars=[kv_heads, 1 if means is None else means.shape[0], rows, splits, value_dim],
        grid=(batch * kv_heads * rows * MERGE_THREADS, -(-value_dim // MERGED_COLUMNS), 1),
        threadgroup=(MERGE_THREADS, 1, 1),
        ensure_row_contiguous=False,
    )
    return Result(out, lse if call.want_lse else None, max_scores if call.want_max else None)


def _of_batches(x: mx.array, batches: int) -> mx.array:
    return mx.contiguous(mx.broadcast_to(x, (batches, *x.shape[1:])))


def _name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")
