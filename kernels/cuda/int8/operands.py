"""AttentionCall -> Operands: rounded q and k, with their scales and row terms, as nodes of MLX's graph.

As the CPU backend rounds, with one difference: a row or key that holds an infinity or a nan has scores nan. Means of
keys are subtracted where keys are rounded alone: other keys are multiplied exactly, in sums of float32.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import numpy as np

from ...call import AttentionCall
from ...int8_types import LEVELS, SMALLEST, Smoothing
from ...products import product
from ..attention.plan import Scoring


class Operands(NamedTuple):
    """What the kernel multiplies. The scores before score_mod are
    (q . k * row_scales * key_scales + mean_scores[mean_rows]) * scale + row_terms.

    q, k: int8; v: of the dtype of the result. row_scales, row_terms: float32 [batch, query_heads, q_len]; key_scales:
    float32 [kv_batches, kv_heads, kv_len]; mean_rows: int32, as row_scales, the number of a row's mean among those of
    all batches and heads; mean_scores: float32 [batch, query_heads, means, kv_len].
    """

    q: mx.array
    k: mx.array
    v: mx.array
    row_scales: mx.array
    key_scales: mx.array
    row_terms: mx.array | None = None
    mean_rows: mx.array | None = None
    mean_scores: mx.array | None = None


def scoring_of(call: AttentionCall) -> Scoring | None:
    """How the kernel gets scores of q and k in int8; None where it does not."""
    quant, smoothing = call.quant, call.smoothing
    if quant is None or call.q.size * call.k.size == 0:
        return None
    return Scoring(quant.smooth_q, smoothing is not None and smoothing.add_back)


def operands(call: AttentionCall) -> Operands:
    """Nothing of them is evaluated; where documents have means of their own, or q is smoothed, the ids of documents
    are looked at."""
    quant, smoothing = call.quant, call.smoothing
    if quant is None:
        raise ValueError("the call asks for no rounding")
    blocks = quant.granularity == "block"
    k, key_scales, small = call.k, call.k_scales, None
    if key_scales is None:
        key_groups = None if smoothing is None else smoothing.key_groups
        small = _without_means(call.k, smoothing)
        k, key_scales = _rounded(small, _runs(k.shape[2], quant.k_block, key_groups) if blocks else None)
    q = call.q.astype(mx.float32)
    terms = None if smoothing is None else _row_terms(q, smoothing, call.scale)
    row_groups = None if smoothing is None else smoothing.row_groups
    runs = _runs(q.shape[2], quant.q_block, row_groups) if blocks or quant.smooth_q else None
    mean_rows = mean_scores = None
    if quant.smooth_q and runs is not None and small is not None:
        means = _means_of_runs(q, runs)
        mean_rows, mean_scores = _numbers(runs, *q.shape[:2]), _mean_scores(means, small)
        q = mx.where(_finite(q), q - _of_runs(means, runs), q)
    q, row_scales = _rounded(q, runs if blocks else None)
    v = values(call)
    batches = max(k.shape[0], v.shape[0])
    k, v, key_scales = (mx.broadcast_to(x, (batches, *x.shape[1:])) for x in (k, v, key_scales))
    return Operands(q, k, v, row_scales, key_scales, terms, mean_rows, mean_scores)


def values(call: AttentionCall) -> mx.array:
    """The values of a call in the dtype of its result, whether they are int8 or not."""
    if call.v_scales is None:
        return call.v
    v = call.v.astype(mx.float32) * call.v_scales[..., None]
    return (v if call.v_means is None else v + call.v_means).astype(call.q.dtype)


class Runs(NamedTuple):
    """Neighbouring rows of one group in blocks of rows. of_row: int32 [1 or batch, rows], their number in their batch;
    most: how many a batch has at most."""

    of_row: mx.array
    most: int


def _runs(rows: int, block: int, groups: mx.array | None) -> Runs:
    ids = np.zeros((1, rows), np.int32) if groups is None else np.asarray(groups)
    first = np.arange(rows) % block == 0
    first = first | np.concatenate([np.zeros((len(ids), 1), bool), ids[:, 1:] != ids[:, :-1]], axis=1)
    numbers = np.cumsum(first, axis=1, dtype=np.int32) - 1
    return Runs(mx.array(numbers), int(numbers.max()) + 1)


def _finite(x: mx.array) -> mx.array:
    return mx.abs(x) < mx.inf


def _rounded(x: mx.array, runs: Runs | None) -> tuple[mx.array, mx.array]:
    """(int8, scales) of float32 rows; nan is the scale of a row that is not finite. runs: rows that share a scale."""
    finite = _finite(x)
    largest = mx.where(finite, mx.abs(x), 0.0).max(axis=-1)
    if runs is not None:
        member = runs.of_row[:, None] == mx.arange(runs.most)[:, None]  # [1 or batch, runs, rows]
        of_runs = mx.where(member[:, None], largest[:, :, None], 0.0).max(axis=-1)
        largest = _of_runs(of_runs[..., None], runs)[..., 0]
    unit = mx.where(largest < SMALLEST, 0.0, largest / LEVELS)
    inverse = mx.where(unit > 0, 1 / unit, 0.0)
    whole = mx.where(finite, mx.round(x * inverse[..., None]), 0.0).astype(mx.int8)
    return whole, mx.where(finite.all(axis=-1), unit, mx.nan)


def _of_runs(x: mx.array, runs: Runs) -> mx.array:
    """[batch, heads, runs, columns] -> what belongs to each row: [batch, heads, rows, columns]."""
    return _of_groups(x, runs.of_row)


def _of_groups(x: mx.array, groups: mx.array) -> mx.array:
    """[batches, heads, groups, columns], int32 [1 or batch, rows] -> [batch, heads, rows, columns]."""
    if groups.shape[0] == 1:
        return mx.take(x, groups[0], axis=2)
    batch, rows = groups.shape
    index = mx.broadcast_to(groups[:, None, :, None], (batch, x.shape[1], rows, x.shape[3]))
    return mx.take_along_axis(mx.broadcast_to(x, (batch, *x.shape[1:])), index, axis=2)


def _means(smoothing: Smoothing) -> mx.array:
    return mx.where(_finite(smoothing.means), smoothing.means, 0.0)  # any mean is exact


def _without_means(k: mx.array, smoothing: Smoothing | None) -> mx.array:
    """Each key less the mean of its group, in float32; what is not finite stays as it is."""
    x = k.astype(mx.float32)
    if smoothing is None:
        return x
    means = _means(smoothing)
    groups = smoothing.key_groups
    less = x - (means[:, :, :1] if groups is None else _of_groups(means, groups))
    return mx.where(_finite(x), less, x)


def _row_terms(q: mx.array, smoothing: Smoothing, scale: float) -> mx.array:
    """scale * row . mean of its group, 0 where that is not finite."""
    means = mx.repeat(_means(smoothing), q.shape[1] // smoothing.means.shape[1], axis=1)
    groups = smoothing.row_groups
    of_rows = means[:, :, :1] if groups is None else _of_groups(means, groups)
    terms = scale * (q * of_rows).sum(axis=-1)
    return mx.where(_finite(terms), terms, 0.0)


def _means_of_runs(q: mx.array, runs: Runs) -> mx.array:
    """[batch, heads, runs, columns]; rows that are not finite do not count."""
    finite = _finite(q).all(axis=-1, keepdims=True)
    member = (runs.of_row[:, None] == mx.arange(runs.most)[:, None]).astype(mx.float32)[:, None]  # [.., 1, runs, rows]
    sums = product(member, mx.where(finite, q, 0.0))
    return sums / mx.maximum(member @ finite.astype(mx.float32), 1.0)


def _numbers(runs: Runs, batch: int, heads: int) -> mx.array:
    """The number of each row's run among those of all batches and heads: int32 [batch, heads, rows]."""
    first = mx.arange(batch * heads, dtype=mx.int32).reshape(batch, heads, 1) * runs.most
    return first + runs.of_row[:, None]


def _mean_scores(means: mx.array, small: mx.array) -> mx.array:
    """mean . key: [batch, query_heads, runs, kv_len]. small: the keys less their means."""
    batch, heads, runs, columns = means.shape
    kv_heads = small.shape[1]
    grouped = means.reshape(batch, kv_heads, heads // kv_heads * runs, columns)
    return product(grouped, small.swapaxes(2, 3)).reshape(batch, heads, runs, small.shape[2])
