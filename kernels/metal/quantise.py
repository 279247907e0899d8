"""AttentionCall -> Operands: smoothed and rounded q and k, with their scales and row terms, as nodes of MLX's graph.

As the CPU backend rounds, with one difference: a row or key that holds an infinity or a nan has scores nan.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import numpy as np

from ..call import AttentionCall
from ..quant_types import LEVELS, SMALLEST, Smoothing


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


def operands(call: AttentionCall) -> Operands:
    """Nothing of q and k is evaluated; where q is smoothed, the documents of its rows are looked at."""
    quant, smoothing = call.quant, call.smoothing
    q, k, term = call.q, call.k, None
    if smoothing is not None:
        k = k.astype(mx.float32) - _means_of(smoothing, smoothing.key_groups)
        term = row_term(call.q, smoothing, call.scale)
    if quant is None:
        return Operands(q, k.astype(q.dtype), row_terms=term)
    q_block, k_block = (quant.q_block, quant.k_block) if quant.granularity == "block" else (1, 1)
    row_groups, key_groups = (None, None) if smoothing is None else (smoothing.row_groups, smoothing.key_groups)
    mean_rows = mean_scores = None
    if quant.smooth_q:
        means = QueryMeans.of(q, quant.q_block, row_groups)
        q = q.astype(mx.float32) - means.of_rows()
        mean_rows, mean_scores = means.numbers(), means.scores(k.astype(mx.float32))
    rounded_q, row_scales = quantise(q, q_block, row_groups)
    rounded_k, key_scales = quantise(k, k_block, key_groups)
    whole_q, whole_k = rounded_q.astype(call.q.dtype), rounded_k.astype(mx.int8)
    return Operands(whole_q, whole_k, row_scales, key_scales, term, mean_rows, mean_scores)


def row_term(q: mx.array, smoothing: Smoothing, scale: float) -> mx.array:
    """scale * q . means[group of the row], 0 where that is not finite: [batch, query_heads, q_len]."""
    batch, heads, q_len, head_dim = q.shape
    means = _means_of(smoothing, smoothing.row_groups)
    grouped = q.astype(mx.float32).reshape(batch, means.shape[1], -1, q_len, head_dim)
    term = scale * (grouped * means[:, :, None]).sum(axis=-1)
    return mx.where(mx.isfinite(term), term, 0.0).reshape(batch, heads, q_len)


def quantise(x: mx.array, block: int, groups: mx.array | None) -> tuple[mx.array, mx.array]:
    """Whole numbers -127 to 127 as float32, and the scale of each row: nan for a row that is not finite.

    x: [batch, heads, rows, columns]; groups: int32 [1 or batch, rows]. Rows of a block share a scale, as far as they
    are neighbours of one group; it is that of the largest finite magnitude.
    """
    x = x.astype(mx.float32)
    finite = mx.isfinite(x)
    x = mx.where(finite, x, 0.0)
    largest = _largest_of_run(mx.abs(x).max(axis=-1), block, groups)
    unit = mx.where(largest < SMALLEST, 0.0, largest / LEVELS)
    inverse = mx.where(unit > 0, 1 / unit, 0.0)
    return mx.round(x * inverse[..., None]), mx.where(finite.all(axis=-1), unit, mx.nan)


class QueryMeans(NamedTuple):
    """means: float32 [batch, query_heads, runs, head_dim]; runs: int32 [batch, q_len], the run of each row."""

    means: mx.array
    runs: mx.array

    @staticmethod
    def of(q: mx.array, block: int, groups: mx.array | None) -> QueryMeans:
        """Of the rows of each block that are neighbours of one group; rows that are not finite do not count."""
        batch, heads, rows, head_dim = q.shape
        ids = np.zeros((1, rows), np.int32) if groups is None else np.asarray(groups)
        first = np.arange(rows) % block == 0
        first = first | np.concatenate([np.zeros((len(ids), 1), bool), ids[:, 1:] != ids[:, :-1]], axis=1)
        runs = np.cumsum(first, axis=1, dtype=np.int32) - 1
        number = int(runs.max()) + 1
        x = q.astype(mx.float32)
        finite = mx.isfinite(x).all(axis=-1, keepdims=True)
        counted = mx.concatenate([mx.where(finite, x, 0.0), finite.astype(mx.float32)], axis=-1)
        sums = []
        for b in range(batch):
            begin = np.full(number + 1, rows)
            found = np.flatnonzero(first[b % len(first)])
            begin[: len(found)] = found
            ranges = mx.array(np.stack([begin[:-1], begin[1:]], axis=1).astype(np.uint32))
            lines = counted[b].swapaxes(0, 1).reshape(rows, heads * (head_dim + 1))
            of_batch = mx.segmented_mm(mx.ones((1, rows)), lines, ranges)
            sums.append(of_batch.reshape(number, heads, head_dim + 1).swapaxes(0, 1))
        total = mx.stack(sums)
        means = total[..., :head_dim] / mx.maximum(total[..., head_dim:], 1.0)
        return QueryMeans(means, mx.array(np.broadcast_to(runs, (batch, rows))))

    def of_rows(self) -> mx.array:
        batch, heads, _, head_dim = self.means.shape
        index = mx.broadcast_to(self.runs[:, None, :, None], (batch, heads, self.runs.shape[1], head_dim))
        return mx.take_along_axis(self.means, index, axis=2)

    def numbers(self) -> mx.array:
        batch, heads, number, _ = self.means.shape
        first = mx.arange(batch * heads, dtype=mx.int32).reshape(batch, heads, 1) * number
        return first + self.runs[:, None]

    def scores(self, k: mx.array) -> mx.array:
        """mean . k: [batch, query_heads, runs, kv_len]."""
        batch, heads, number, head_dim = self.means.shape
        grouped = self.means.reshape(batch, k.shape[1], -1, head_dim)
        return (grouped @ k.swapaxes(-1, -2)).reshape(batch, heads, number, k.shape[2])


def _means_of(smoothing: Smoothing, groups: mx.array | None) -> mx.array:
    """The mean of each row's or key's group, [batches, kv_heads, rows, head_dim], or of all in one; 0 where not finite:
    any mean is exact."""
    means = mx.where(mx.isfinite(smoothing.means), smoothing.means, 0.0)
    if groups is None:
        return means[:, :, :1]
    heads, head_dim = means.shape[1], means.shape[3]
    batches = max(means.shape[0], groups.shape[0])
    means = mx.broadcast_to(means, (batches, *means.shape[1:]))
    index = mx.broadcast_to(groups[:, None, :, None], (batches, heads, groups.shape[1], head_dim))
    return mx.take_along_axis(means, index, axis=2)


def _largest_of_run(magnitudes: mx.array, block: int, groups: mx.array | None) -> mx.array:
    """magnitudes: [batch, heads, rows], each replaced by the largest of its run."""
    batch, heads, rows = magnitudes.shape
    block = min(block, rows)
    if block == 1:
        return magnitudes
    if groups is None:
        padded = mx.pad(magnitudes, [(0, 0), (0, 0), (0, -rows % block)]).reshape(batch, heads, -1, block)
        largest = mx.broadcast_to(padded.max(axis=-1, keepdims=True), padded.shape)
        return largest.reshape(batch, heads, -1)[..., :rows]
    starts = mx.arange(rows) % block == 0
    changes = mx.concatenate([mx.zeros_like(groups[:, :1]), groups[:, 1:] - groups[:, :-1]], axis=1) != 0
    runs = mx.broadcast_to(mx.cumsum((starts | changes).astype(mx.int32), axis=1)[:, None] - 1, magnitudes.shape)
    of_batch, of_head = mx.arange(batch)[:, None, None], mx.arange(heads)[None, :, None]
    of_runs = mx.zeros_like(magnitudes).at[of_batch, of_head, runs].maximum(magnitudes)
    return mx.take_along_axis(of_runs, runs, axis=2)
