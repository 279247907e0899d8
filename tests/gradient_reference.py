"""q, k, v, the user's own functions and cotangents -> gradients in float64 numpy: what every backward is compared with.

Nothing here knows about tracing or about derivatives of operations: a mod is called with Python numbers, and its
derivatives by its score and by each element of a captured array that it reads are central differences of such calls.
What follows from them is the textbook's: dV = P^T dO, dP = dO V^T, dS = P (dP - delta). Differences of the loss
check it (tests/flextrace/test_gradients.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from reference import apply_mask_mod, apply_score_mod, array, number

Array = np.ndarray
STEP, COARSE = 1e-5, 4e-3  # of a difference in float64, and of a mod that calls MLX, which computes in float32


class Watched:
    """A captured floating array for plain Python: it notes which elements are read, and can move one of them."""

    def __init__(self, values: Array, places: Array | None = None, root: Watched | None = None) -> None:
        self.values = values
        self.places = np.arange(values.size).reshape(values.shape) if places is None else places
        self.root = root or self
        self.read: set[int] = set()
        self.moved: tuple[int, float] | None = None  # an element, and by how much

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def ndim(self) -> int:
        return self.values.ndim

    @property
    def size(self) -> int:
        return self.values.size

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Any) -> Any:
        part = Watched(np.asarray(self.values[index]), np.asarray(self.places[index]), self.root)
        return part if part.ndim else float(part)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __float__(self) -> float:
        place = int(self.places)
        self.root.read.add(place)
        moved = self.root.moved
        return float(self.values) + (moved[1] if moved is not None and moved[0] == place else 0.0)

    def item(self) -> float:
        return float(self)


def _with_operators() -> None:
    """A 0-d array is a number in arithmetic."""
    names = "add sub mul truediv pow lt le gt ge eq ne".split()
    for name in [*names, *(f"r{name}" for name in names[:5])]:

        def operate(self: Watched, other: Any, name: str = f"__{name}__") -> Any:
            return getattr(float(self), name)(float(other))

        setattr(Watched, f"__{name}__", operate)
    for name in ("neg", "abs"):
        setattr(Watched, f"__{name}__", lambda self, name=f"__{name}__": getattr(float(self), name)())


_with_operators()


class Watch:
    """The maker of captured arrays for a mod in plain Python: floats are watched, in the order they are made."""

    def __init__(self) -> None:
        self.arrays: list[Watched] = []

    def __call__(self, values: Any, dtype: str = "float32") -> Any:
        made = array(values, dtype)
        if not dtype.startswith(("float", "bfloat")):
            return made
        self.arrays.append(Watched(made))
        return self.arrays[-1]


class Gradients(NamedTuple):
    """Of the shapes of q, k, v and of each captured floating array."""

    q: Array
    k: Array
    v: Array
    arrays: list[Array]


def attention_gradients(
    q: Array,
    k: Array,
    v: Array,
    d_out: Array,
    d_lse: Array | None = None,
    d_max: Array | None = None,
    score_mod: Callable[..., Any] | None = None,
    mask_mod: Callable[..., Any] | None = None,
    scale: float | None = None,
    watched: Watch | None = None,
) -> Gradients:
    """The gradients of sum(out * d_out) + sum(lse * d_lse) + sum(max_scores * d_max); a row without keys adds nothing,
    equal largest scores share what their maximum gets."""
    q, k, v, d_out = (np.asarray(x, np.float64) for x in (q, k, v, d_out))
    batch, heads, q_len, head_dim = q.shape
    ratio = heads // k.shape[1]
    keys, values = (np.repeat(x, ratio, axis=1) for x in (k, v))
    scale = 1.0 / math.sqrt(head_dim) if scale is None else scale
    raw = np.broadcast_to(scale * (q @ np.swapaxes(keys, -1, -2)), (batch, heads, q_len, k.shape[2]))
    scores = raw if score_mod is None else apply_score_mod(raw, score_mod)
    kept = np.ones(raw.shape, bool) if mask_mod is None else apply_mask_mod(mask_mod, raw.shape)
    scores = np.where(kept, scores, -np.inf)
    highest = scores.max(axis=-1, keepdims=True, initial=-np.inf)
    weights = np.exp(scores - np.where(highest == -np.inf, 0.0, highest))
    total = weights.sum(axis=-1, keepdims=True)
    weights = weights / np.where(total == 0, 1.0, total)

    out = weights @ values
    delta = (d_out * out).sum(axis=-1, keepdims=True)
    if d_lse is not None:
        delta = delta - d_lse[..., None]
    d_scores = weights * (d_out @ np.swapaxes(values, -1, -2) - delta)
    if d_max is not None:
        top = (scores == highest) & (scores > -np.inf)
        d_scores = d_scores + np.where(top, d_max[..., None] / np.maximum(top.sum(axis=-1, keepdims=True), 1), 0.0)
    d_scores = np.where(scores > -np.inf, d_scores, 0.0)
    arrays = [] if watched is None else [np.zeros(each.shape) for each in watched.arrays]
    if score_mod is not None:
        d_scores = _through_mod(d_scores, raw, score_mod, watched, arrays)

    def to_keys(gradient: Array, shape: tuple[int, ...]) -> Array:
        grouped = gradient.reshape(batch, heads // ratio, ratio, *gradient.shape[2:]).sum(axis=2)
        return grouped.sum(axis=0, keepdims=True) if shape[0] == 1 else grouped

    dk = to_keys(scale * np.swapaxes(d_scores, -1, -2) @ q, k.shape)
    dv = to_keys(np.swapaxes(weights, -1, -2) @ d_out, v.shape)
    return Gradients(scale * d_scores @ keys, dk, dv, arrays)


def _through_mod(
    d_scores: Array, raw: Array, score_mod: Callable[..., Any], watched: Watch | None, arrays: list[Array]
) -> Array:
    """The cotangents of the scores before the mod; what the captured arrays get is added to `arrays`."""
    result = np.zeros(raw.shape)
    for place in np.ndindex(*raw.shape):
        if d_scores[place] == 0:
            continue
        score = float(raw[place])

        def modified(by: float = 0.0, score: float = score, place: tuple[int, ...] = place) -> Any:
            return score_mod(np.float64(score + by), *place)  # a Python float beside a float32 would become one

        result[place] = d_scores[place] * _difference(modified)
        if watched is None:
            continue
        for each in watched.arrays:
            each.read.clear()
        modified()
        for each, gradient in zip(watched.arrays, arrays, strict=True):
            for element in sorted(each.read):

                def moved(by: float, each: Watched = each, element: int = element) -> Any:
                    each.moved = (element, by)
                    try:
                        return modified()
                    finally:
                        each.moved = None

                gradient.flat[element] += d_scores[place] * _difference(moved)
    return result


def _difference(function: Callable[[float], Any]) -> float:
    """The derivative at 0, by four places around it."""
    is_float32 = isinstance(function(STEP), (mx.array, np.float32))
    step = COARSE if is_float32 else STEP
    one, two = (number(function(by)) - number(function(-by)) for by in (step, 2 * step))
    return (8 * one - two) / (12 * step)
