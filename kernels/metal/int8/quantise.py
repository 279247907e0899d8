"""AttentionCall -> Operands: smoothed and rounded q and k, with their scales and row terms, as nodes of MLX's graph.

As the CPU backend rounds, with one difference: a row or key that holds an infinity or a nan has scores nan.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import mlx.core as mx

from ...call import AttentionCall
from ...int8_types import Smoothing
from ...stages.protocol import Stages
from .rounding import Rounding, Runs


class Operands(NamedTuple):
    """What the kernel multiplies. The scores before score_mod are
    (q . k * row_scales * key_scales + mean_scores[mean_rows]) * scale + row_terms.

    q: of the call's dtype; k: the same or int8. row_scales, row_terms: float32 [batch, query_heads, q_len];
    key_scales: float32 [kv_batches, kv_heads, kv_len]; mean_rows: int32, as row_scales, the number of a row's mean
    among those of all batches and heads; mean_scores: float32 [batch, query_heads, means, kv_len].
    """

    q: mx.array
    k: mx.array
    row_scales: mx.array | None = None
    key_scales: mx.array | None = None
    row_terms: mx.array | None = None
    mean_rows: mx.array | None = None
    mean_scores: mx.array | None = None


def operands(call: AttentionCall, rounding: Rounding, stages: Stages) -> Operands:
    """A launch for k, unless it is int8 already, and one for q. Nothing of them is evaluated; where q is smoothed, the
    documents of its rows are looked at."""
    quant, smoothing = call.quant, call.smoothing
    if call.q.size * call.k.size == 0:
        return Operands(call.q, call.k.astype(call.q.dtype))
    if quant is None:
        if smoothing is None:
            return Operands(call.q, call.k)
        smoothing = _within_range(smoothing, call.k)
        terms = rounding.row_terms(call.q, smoothing, call.scale)
        return Operands(call.q, rounding.smoothed_keys(call.k, smoothing), row_terms=terms)
    q_block, k_block = (quant.q_block, quant.k_block) if quant.granularity == "block" else (None, None)
    k, key_scales = call.k, call.k_scales
    if key_scales is None:
        k, key_scales = rounding.keys(k, k_block, smoothing)
    row_groups = None if smoothing is None else smoothing.row_groups
    own = Runs.of(call.q.shape[2], quant.q_block, row_groups) if quant.smooth_q else None
    q = rounding.queries(call.q, q_block, smoothing, call.scale, own)
    whole = Operands(q.out, k, q.scales, key_scales, None if smoothing is None else q.terms)
    if own is None:
        return whole
    return whole._replace(
        mean_rows=_numbers(own, *call.q.shape[:2]), mean_scores=_mean_scores(q.own_means, call.k, smoothing, stages)
    )


def _within_range(smoothing: Smoothing, k: mx.array) -> Smoothing:
    """Other means, any being exact, less which no finite float16 key becomes infinite."""
    if k.dtype != mx.float16:
        return smoothing
    magnitude = mx.abs(k)
    largest = mx.where(magnitude < mx.inf, magnitude, 0.0).max(axis=2, keepdims=True)
    room = mx.finfo(mx.float16).max - largest.astype(mx.float32)
    return replace(smoothing, means=mx.clip(smoothing.means, -room, room))


def _numbers(runs: Runs, batch: int, heads: int) -> mx.array:
    """The number of each row's run among those of all batches and heads: int32 [batch, heads, rows]."""
    first = mx.arange(batch * heads, dtype=mx.int32).reshape(batch, heads, 1) * runs.most
    return first + runs.of_row[:, None]


def _mean_scores(means: mx.array, k: mx.array, smoothing: Smoothing | None, stages: Stages) -> mx.array:
    """mean . (k - mean of its group), as mean . k - mean . mean: [batch, query_heads, runs, kv_len]."""
    scores = _product(means, k, stages)
    if smoothing is None:
        return scores
    of_groups = _product(means, mx.where(mx.isfinite(smoothing.means), smoothing.means, 0.0), stages)
    groups = smoothing.key_groups
    if groups is None:
        return scores - of_groups[..., :1]
    index = mx.broadcast_to(groups[:, None, None], (*scores.shape[:3], groups.shape[1]))
    return scores - mx.take_along_axis(of_groups, index, axis=3)


def _product(a: mx.array, b: mx.array, stages: Stages) -> mx.array:
    """a @ b^T, b in the dtype that it has; in float32 on every device, so that the difference above is exact enough."""
    return stages.matmul(a, b, transpose_a=False, transpose_b=True, tiles=None, dtype=mx.float32)
