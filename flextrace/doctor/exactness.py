"""A kernel's result, its definition in float64 numpy -> nothing, or an error that says how far off it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

# Absolute, and relative to what is expected; "int8" is for q and k in int8, with any dtype.
TOLERANCE = {"float32": 2e-5, "float16": 2e-3, "bfloat16": 1.6e-2, "int8": 5e-2}
CAP = 5.0
SLOPES = np.array([0.5, 0.25], np.float32)
DOCUMENTS = np.repeat(np.arange(5, dtype=np.int32), 14)  # 70 tokens; the last document has no keys
Array = np.ndarray[Any, Any]


def alibi(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score + SLOPES[h] * (kv_idx - q_idx)


def softcap(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return CAP * math.tanh(score / CAP)


def causal(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx >= kv_idx


def same_document(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return DOCUMENTS[q_idx] == DOCUMENTS[kv_idx]


def tensors(shapes: Sequence[tuple[int, ...]], dtype: str) -> list[mx.array]:
    rng = np.random.default_rng(0)
    return [mx.array(rng.standard_normal(shape)).astype(getattr(mx, dtype)) for shape in shapes]


def exact(x: mx.array) -> Array:
    return np.array(x.astype(mx.float32)).astype(np.float64)


def after_mods(scores: Array, score: Callable[..., Any] | None, mask: Callable[..., Any] | None) -> Array:
    """scores: [batch, heads, q_len, kv_len] -> the user's own functions, called once for each."""
    out = scores.copy()
    for index in np.ndindex(*scores.shape):
        if score is not None:
            out[index] = score(float(scores[index]), *index)
        if mask is not None and not mask(*index):
            out[index] = -np.inf
    return out


def softmax(scores: Array) -> tuple[Array, Array, Array]:
    """(weights before the division, maxima, sums) over the last axis; a row without keys has -inf and 0."""
    highest = scores.max(axis=-1)
    weights = np.exp(scores - np.where(highest == -np.inf, 0.0, highest)[..., None])
    return weights, highest, weights.sum(axis=-1)


def compare(got: mx.array | None, expected: Array, kind: str, what: str) -> None:
    """Raises AssertionError where a value is further off than TOLERANCE[kind]."""
    if got is None:
        raise AssertionError(f"{what} is missing")
    if got.shape != expected.shape:
        raise AssertionError(f"{what} has shape {got.shape}, expected {expected.shape}")
    tolerance = TOLERANCE[kind]
    found = exact(got)
    close = np.isclose(found, expected, rtol=tolerance, atol=tolerance)
    if not close.all():
        at = tuple(int(i) for i in np.argwhere(~close)[0])
        raise AssertionError(
            f"{what} differs from float64 numpy in {int((~close).sum())} of {close.size} values by more than "
            f"{tolerance:g}; the first at {at}: {found[at]:g}, expected {expected[at]:g}"
        )
