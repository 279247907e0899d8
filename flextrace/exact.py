"""AttentionCall -> out in numpy: attention in float64, and the quantised algorithm that kernels follow.

One head at a time, the whole score matrix at once: for figures of accuracy, not for use. Mods run in float32, as the
tracer's table defines them. BlockMasks are not read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from flextrace.kernels import AttentionCall
from flextrace.kernels.int8_types import LEVELS, SMALLEST, QKQuant
from flextrace.tracer import Bound, evaluate

from .block_mask.refine import captured_arrays

Array = np.ndarray[Any, Any]


class Numbers(NamedTuple):
    """out: float64 [batch, query_heads, q_len, value_dim]; lse: float64 [batch, query_heads, q_len]."""

    out: Array
    lse: Array


def exact_attention(call: AttentionCall) -> Numbers:
    """float64 attention on the call's inputs; quantisation and smoothing are left out."""
    q, k = _float64(call.q), _float64(call.k)

    def scores(b: int, h: int) -> tuple[Array, Array]:
        head = h * k.shape[1] // q.shape[1]
        return call.scale * (q[b, h] @ k[b % len(k), head].T), np.zeros(q.shape[2])

    return _attend(call, scores)


def quantised_attention(call: AttentionCall) -> Numbers:
    """The call as a quantising kernel computes it, rounded nowhere else."""
    assert call.quant is not None
    quant, smooth = call.quant, call.smoothing
    q, k = np.array(call.q.astype(mx.float32)), np.array(call.k.astype(mx.float32))
    no_group = np.zeros((1, max(q.shape[2], k.shape[2])), np.int32)
    row_groups = no_group if smooth is None or smooth.row_groups is None else np.array(smooth.row_groups)
    key_groups = no_group if smooth is None or smooth.key_groups is None else np.array(smooth.key_groups)
    means = np.zeros((1, k.shape[1], 1, k.shape[3]), np.float32) if smooth is None else np.array(smooth.means)
    blocks = (quant.q_block, quant.k_block) if quant.granularity == "block" else (1, 1)

    def scores(b: int, h: int) -> tuple[Array, Array]:
        head = h * k.shape[1] // q.shape[1]
        rows, keys = (ids[b % len(ids)][:n] for ids, n in ((row_groups, q.shape[2]), (key_groups, k.shape[2])))
        mean = means[b % len(means), head]
        key = k[b % len(k), head] - mean[keys]
        query, centre = q[b, h], _query_means(q[b, h], rows, quant)
        q_int, q_scale = quantise(query - centre, blocks[0], rows)
        k_int, k_scale = quantise(key, blocks[1], keys)
        score = (q_int @ k_int.T) * (q_scale[:, None] * k_scale)
        if quant.smooth_q:
            score += centre.astype(np.float64) @ key.T.astype(np.float64)
        term = call.scale * (query.astype(np.float64) * mean[rows]).sum(-1)
        score *= call.scale
        added = smooth is not None and smooth.add_back
        return (score + term[:, None], np.zeros_like(term)) if added else (score, term)

    return _attend(call, scores)


def quantise(x: Array, block: int, groups: Array) -> tuple[Array, Array]:
    """x: float32 [rows, columns] -> whole numbers -127 to 127 of each row (float64), and the scale of each row.

    Rows of one block share a scale as far as they are of one group. A row that is not finite has scale nan.
    """
    run = runs(block, groups)
    finite = np.isfinite(x)
    largest = np.zeros(len(x), np.float32)
    np.maximum.at(largest, run, np.where(finite, np.abs(x), 0).max(axis=1, initial=0))
    scale = np.where(largest < SMALLEST, 0, largest / np.float32(LEVELS)).astype(np.float32)[run]
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    whole = np.rint(np.where(finite, x, 0) * inverse[:, None]).astype(np.float64)
    return whole, np.where(finite.all(axis=1), scale, np.nan).astype(np.float64)


def runs(block: int, groups: Array) -> Array:
    """The number of the run of each row: a new one where a block begins and where the group changes."""
    row = np.arange(len(groups))
    begins = (row % block == 0) | (groups != np.roll(groups, 1))
    return np.asarray(np.cumsum(begins) - 1)


def _query_means(q: Array, groups: Array, quant: QKQuant) -> Array:
    """[q_len, head_dim]: the mean of the finite rows of each row's run, or zeros."""
    if not quant.smooth_q:
        return np.zeros_like(q)
    run = runs(quant.q_block, groups)
    finite = np.isfinite(q).all(axis=1)
    total, count = np.zeros_like(q), np.zeros(len(q), np.float32)
    np.add.at(total, run[finite], q[finite])
    np.add.at(count, run[finite], 1)
    return np.asarray((total / np.maximum(count, 1)[:, None])[run])


def _attend(call: AttentionCall, scores: Callable[[int, int], tuple[Array, Array]]) -> Numbers:
    """scores(b, h): those of a head, and what to add to its lse."""
    batch, heads, q_len, _ = call.q.shape
    v = _float64(call.v)
    out, lse = np.zeros((batch, heads, q_len, v.shape[3])), np.zeros((batch, heads, q_len))
    captured = {mod.trace.kind: captured_arrays(mod) for mod in call.mods.present}
    for b, h in np.ndindex(batch, heads):
        score, term = scores(b, h)
        index = {"b": b, "h": h, "q_idx": np.arange(q_len)[:, None], "kv_idx": np.arange(v.shape[2])}

        def run(mod: Bound, values: dict[str, Any]) -> Array:
            found = evaluate(mod.trace.expr, values, numbers=mod.numbers, arrays=captured[mod.trace.kind])
            return np.broadcast_to(found, (q_len, v.shape[2]))

        if call.mods.score is not None:
            score = run(call.mods.score, {**index, "score": score}).astype(np.float64)
        if call.mods.mask is not None:
            score = np.where(run(call.mods.mask, index), score, -np.inf)
        highest = score.max(axis=1, initial=-np.inf, keepdims=True)
        weights = np.exp(score - np.where(highest == -np.inf, 0, highest))
        total = weights.sum(axis=1, keepdims=True)
        with np.errstate(divide="ignore"):
            lse[b, h] = (highest + np.log(total))[:, 0] + term
        out[b, h] = weights @ v[b % len(v), h * v.shape[1] // heads] / np.where(total == 0, 1, total)
    return Numbers(out, lse)


def _float64(x: mx.array) -> Array:
    return np.array(x.astype(mx.float32)).astype(np.float64)
