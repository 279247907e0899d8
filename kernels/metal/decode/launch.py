"""Kernels + call -> result: the two launches of a call of few query rows, as nodes of MLX's lazy graph."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from ...call import AttentionCall, Result
from ...gpu.arguments import SMALLEST, bits, captured_arrays, flat, in_device_memory, words_of_captures
from ...gpu.extremes import extremes_of_blocks
from ...gpu.tile_lists import PARAMS, tiles_for
from ..device import LANES
from ..int8.quantise import Operands
from ..kernel import Launch
from ..launch import factors, finished, of_batches
from ..params import paired
from ..scoring import scoring_of
from ..text import KernelText
from .plan import FEW_ROWS, DecodePlan, decode_plan, splits_for

COLUMNS = 4  # of a lane of merge.metal


def keys_in_place(call: AttentionCall) -> AttentionCall:
    """The call with keys that are read as they are, unless they are in int8 already.

    Rounding keys, or taking their mean from them, would be a pass over all of them at every step, where reading them as
    they are is the result, and exact.
    """
    return call if call.k_scales is not None else call._replace(quant=None, smoothing=None)


def plan_of(call: AttentionCall) -> DecodePlan | None:
    """The plan for a call of few query rows, its keys in place; None for others, and where a row is too wide."""
    _, query_heads, q_len, head_dim = call.q.shape
    kv_heads, value_dim = call.v.shape[1], call.v.shape[3]
    if not 0 < q_len <= FEW_ROWS or call.q.size * call.k.size * value_dim == 0:
        return None
    dtype = str(call.q.dtype).removeprefix("mlx.core.")
    scoring = scoring_of(keys_in_place(call))
    return decode_plan(head_dim, value_dim, dtype, query_heads // kv_heads * q_len, scoring)


def run_decode(decode: Launch, merge: Launch, call: AttentionCall, made: Operands, text: KernelText) -> Result:
    """out, lse and max_scores of one call; nothing is evaluated.

    How many threadgroups share the keys of a head follows from the shapes and the BlockMask alone, and which keys each
    of them takes from what is live: never from the load. Lengths are no part of the kernel.
    """
    plan = plan_of(call)
    if plan is None:
        raise ValueError("the kernel for few query rows was chosen for a call that it has no plan for")
    batch, query_heads, q_len, _ = call.q.shape
    _, kv_heads, kv_len, value_dim = call.v.shape
    kv_batches = made.k.shape[0]
    group = query_heads // kv_heads
    rows = group * q_len
    tiles = tiles_for(call.blocks, _Cut(q_len, plan.bk), q_len, kv_len, group)
    row_tiles = -(-rows // plan.rows)
    live = kv_len if call.blocks is None else tiles.most * plan.bk
    splits = splits_for(batch * kv_heads * row_tiles, live)
    sizes = [kv_heads, group, kv_batches, q_len, kv_len, bits(call.scale), splits]  # of sizes.h
    arrays = captured_arrays(call.mods, text.packed)
    words = mx.array(np.array(words_of_captures(call.mods) or [0], np.int32))
    partial, statistics = decode(
        inputs=[
            *(in_device_memory(x) for x in (made.q, made.k, of_batches(call.v, kv_batches))),
            paired([*sizes, *(tiles.params[name] for name in PARAMS), 0]),
            *(words if text.few_words else flat(words), tiles.lists),
            *arrays,
            *(extremes_of_blocks(arrays[slot]) for slot in text.extremes),
            *factors(call, made, text.scoring),
        ],
        template=[("T", call.q.dtype), *plan.template(), ("BLOCKS", tiles.mode)],
        grid=(splits * row_tiles * plan.threads, kv_heads, batch),
        threadgroup=(plan.threads, 1, 1),
        output_shapes=[(batch, kv_heads, splits, rows, value_dim), (batch, kv_heads, splits, rows, 2)],
        output_dtypes=[mx.float32, mx.float32],
    )
    means = call.v_means
    out, lse, max_scores = merge(
        inputs=[
            *(flat(partial), flat(statistics)),
            paired([kv_heads, rows, splits, value_dim, kv_batches, 0]),
            mx.zeros(SMALLEST) if means is None else flat(of_batches(means, kv_batches)),
        ],
        template=[("T", call.q.dtype), ("MEANS", means is not None)],
        grid=(-(-value_dim // (COLUMNS * LANES)) * LANES, rows, batch * kv_heads),
        threadgroup=(LANES, 1, 1),
        output_shapes=[(*call.q.shape[:3], value_dim), call.q.shape[:3], call.q.shape[:3]],
        output_dtypes=[call.q.dtype, mx.float32, mx.float32],
    )
    return finished(call, made, text.scoring, out, lse, max_scores)


class _Cut:
    """All rows of a head are one tile."""

    def __init__(self, bq: int, bk: int) -> None:
        self.bq, self.bk = bq, bk
