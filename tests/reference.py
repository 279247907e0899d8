"""q, k, v and the user's own functions -> attention in float64 numpy: what every kernel is compared with.

Nothing here knows about tracing: a mod is called with Python numbers, once per element of the score matrix.
Shapes: q [batch, query_heads, q_len, head_dim], k [kv_batch, kv_heads, kv_len, head_dim],
v [kv_batch, kv_heads, kv_len, v_dim]; kv_batch is batch or 1, query_heads a multiple of kv_heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

Array = np.ndarray


def array(values: Any, dtype: str = "float32") -> Array:
    """A captured array for plain Python: rounded to `dtype` as MLX does, held as float64, int64 or bool."""
    stored = mx.array(np.asarray(values)).astype(mx.bool_ if dtype == "bool" else getattr(mx, dtype))
    if mx.issubdtype(stored.dtype, mx.floating):
        return np.array(stored.astype(mx.float32)).astype(np.float64)
    return np.array(stored) if dtype == "bool" else np.array(stored).astype(np.int64)


def number(value: Any) -> float:
    """A mod's result, whatever plain Python made of it: a Python, numpy or 0-d MLX number."""
    return float(value.item() if isinstance(value, (mx.array, np.generic, np.ndarray)) else value)


def apply_score_mod(scores: Array, score_mod: Callable[..., Any]) -> Array:
    """scores: [batch, heads, q_len, kv_len], already scaled -> score_mod of each, float64."""
    out = np.empty(scores.shape, np.float64)
    for b, h, q_idx, kv_idx in np.ndindex(*scores.shape):
        score = float(scores[b, h, q_idx, kv_idx])
        out[b, h, q_idx, kv_idx] = number(score_mod(score, b, h, q_idx, kv_idx))
    return out


def apply_mask_mod(mask_mod: Callable[..., Any], shape: tuple[int, ...]) -> Array:
    """The dense mask: bool [batch, heads, q_len, kv_len]."""
    out = np.empty(shape, bool)
    for index in np.ndindex(*shape):
        out[index] = bool(mask_mod(*index))
    return out


def weighted_sum(weights: Array, v: Array) -> Array:
    """weights @ v over the keys that a row attends to: a weight of 0 leaves its value out, be it inf or nan.

    weights: [..., q_len, kv_len]; v: [..., kv_len, v_dim].
    """
    if np.isfinite(v).all():
        return weights @ v
    out = np.zeros((*weights.shape[:-1], v.shape[-1]))
    with np.errstate(invalid="ignore"):
        for key in range(v.shape[-2]):
            weight = weights[..., key, None]
            out += np.where(weight == 0, 0.0, weight * v[..., None, key, :])
    return out


class Attention(NamedTuple):
    """out: [batch, query_heads, q_len, v_dim]; lse, max_scores: [batch, query_heads, q_len], natural log."""

    out: Array
    lse: Array
    max_scores: Array


def attention(
    q: Array,
    k: Array,
    v: Array,
    score_mod: Callable[..., Any] | None = None,
    mask_mod: Callable[..., Any] | None = None,
    scale: float | None = None,
) -> Attention:
    """The whole score matrix: scale, score_mod, mask, softmax. Empty rows: out 0, lse and max -inf.

    A key with the score -inf is one that its row does not attend to: whatever its value holds, the row never sees it.
    """
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    batch, heads, q_len, head_dim = q.shape
    k, v = (np.repeat(x, heads // x.shape[1], axis=1) for x in (k, v))  # GQA: query head h reads h // ratio
    scale = 1.0 / math.sqrt(head_dim) if scale is None else scale
    scores = np.broadcast_to(scale * (q @ np.swapaxes(k, -1, -2)), (batch, heads, q_len, k.shape[2]))
    if score_mod is not None:
        scores = apply_score_mod(scores, score_mod)
    if mask_mod is not None:
        scores = np.where(apply_mask_mod(mask_mod, scores.shape), scores, -np.inf)
    highest = scores.max(axis=-1, initial=-np.inf)
    weights = np.exp(scores - np.where(highest == -np.inf, 0.0, highest)[..., None])
    total = weights.sum(axis=-1)
    seen = np.where(total == 0, 1.0, total)
    lse = np.where(total == 0, -np.inf, highest + np.log(seen))
    return Attention(weighted_sum(weights / seen[..., None], v), lse, highest)


class Tolerance(NamedTuple):
    """|got - expected| <= absolute + relative * |expected|; `statistic_*`: for lse and max_scores."""

    absolute: float
    relative: float
    statistic_absolute: float
    statistic_relative: float


# float16, bfloat16: the result is rounded once (2**-11, 2**-8 relative) and the weights may be, before P.V.
TOLERANCES = {
    "float32": Tolerance(2e-5, 2e-5, 2e-5, 2e-5),
    "float16": Tolerance(2e-3, 2e-3, 1e-3, 1e-3),
    "bfloat16": Tolerance(1.6e-2, 1.6e-2, 2e-3, 2e-3),
}


def tolerance(dtype: Any) -> Tolerance:
    """dtype: an MLX or numpy dtype, or its name."""
    return TOLERANCES[str(dtype).rsplit(".", 1)[-1]]


def assert_close(got: Any, expected: Array, absolute: float, relative: float, what: str) -> None:
    """got: mx.array or numpy. Infinities and NaN must be the same ones."""
    if isinstance(got, mx.array):
        got = np.array(got.astype(mx.float32))
    assert got.shape == expected.shape, f"{what}: shape {got.shape}, expected {expected.shape}"
    np.testing.assert_allclose(got.astype(np.float64), expected, atol=absolute, rtol=relative, err_msg=what)
