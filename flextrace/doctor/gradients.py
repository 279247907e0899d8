"""A backend's gradients on a tiny problem, compared with their definition in float64 numpy."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from flextrace.decorators import MaskMod, ScoreMod, bound
from flextrace.kernels import AttentionCall, Backend
from flextrace.kernels.call import BackwardCall
from flextrace.run import attend

from .exactness import SLOPES, Array, causal, compare, exact, softmax, tensors

HEADS, LENGTH, HEAD_DIM = 2, 45, 64  # more than one tile, and none of them whole
KINDS = ("q", "k", "v", "a captured array by head", "a captured array by distance")


def differentiate(backend: Backend, dtype: str) -> str | None:
    """Says where the backend has no kernels of gradients.

    Raises AssertionError where a gradient of q, k, v or of what the score_mod captures is not its definition's.
    """
    shape, rows = (1, HEADS, LENGTH, HEAD_DIM), (1, HEADS, LENGTH)
    q, k, v, d_out = tensors([shape] * 4, dtype)
    d_lse, d_max, bias = tensors([rows, rows, (HEADS, 2 * LENGTH)], "float32")
    slopes = mx.array(SLOPES)

    def biased(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score + slopes[h] * (kv_idx - q_idx) + bias[h, q_idx - kv_idx + LENGTH]

    mods, scale = bound(ScoreMod(biased), MaskMod(causal)), HEAD_DIM**-0.5
    call = AttentionCall.of(q, k, v, scale, mods, want_lse=True, want_max=True)
    result = attend(backend, call)
    if result.lse is None:
        raise AssertionError("lse is missing")
    wanted = mods.formulas.differentiable
    made = BackwardCall(call, result.out, result.lse, d_out, d_lse, result.max_scores, d_max, wanted)
    found = backend.backward(made)
    if found is None:
        return "no kernels of gradients: these run on MLX operations"
    by_array = {id(mods.arrays[slot]): gradient for slot, gradient in zip(wanted, found.arrays, strict=True)}
    got = [found.q, found.k, found.v, by_array.get(id(slopes)), by_array.get(id(bias))]

    distance = np.arange(LENGTH)[:, None] - np.arange(LENGTH)
    scores = scale * (exact(q) @ exact(k).swapaxes(-1, -2)) - SLOPES[:, None, None] * distance
    scores = np.where(distance >= 0, scores + exact(bias)[:, distance + LENGTH], -np.inf)
    want = _gradients(scores, distance, scale, *map(exact, (q, k, v, d_out, d_lse, d_max)))
    for kind, mine, expected in zip(KINDS, got, want, strict=True):
        largest = float(np.abs(expected).max())
        compare(None if mine is None else mine / largest, expected / largest, dtype, f"the gradient of {kind}")
    return None


def _gradients(
    scores: Array, distance: Array, scale: float, q: Array, k: Array, v: Array, d_out: Array, d_lse: Array, d_max: Array
) -> list[Array]:
    """In the order of KINDS."""
    weights, highest, total = softmax(scores)
    weights = weights / total[..., None]
    delta = (d_out * (weights @ v)).sum(axis=-1) - d_lse
    d_scores = weights * (d_out @ v.swapaxes(-1, -2) - delta[..., None])
    d_scores += np.where(scores == highest[..., None], d_max[..., None], 0.0)
    by_distance = np.zeros((HEADS, 2 * LENGTH))
    for head in range(HEADS):
        np.add.at(by_distance[head], distance + LENGTH, d_scores[0, head])
    by_head = -(d_scores * distance).sum(axis=(0, 2, 3))
    d_k, d_v = scale * d_scores.swapaxes(-1, -2) @ q, weights.swapaxes(-1, -2) @ d_out
    return [scale * d_scores @ k, d_k, d_v, by_head, by_distance]
