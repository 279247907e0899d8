"""q, k, v and the user's own functions -> quantised attention as kernels compute it: what they are compared with.

Integers and scales are those of float32, so they are a kernel's own; all else is float64. Nothing here knows about
tracing: documents are told as arrays of ids, a mod is called with Python numbers, once per score. `scores` gives the
matrix before the mod, which kernels agree with up to float rounding.

Rules: rows of a block share a scale as far as they are of one document. A row that holds an infinity or a nan has
scores nan, and its block takes the largest finite magnitude. A mean of q counts finite rows only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import reference

from flextrace import QKQuant

Array = np.ndarray
FLOAT = np.float32


def document_runs(block: int, ids: Array) -> Iterator[slice]:
    """Neighbouring rows of one block and one document."""
    first = 0
    for row in range(1, len(ids) + 1):
        if row == len(ids) or row % block == 0 or ids[row] != ids[first]:
            yield slice(first, row)
            first = row


class Quantised(NamedTuple):
    """integers: float64 [rows, columns], whole numbers -127 to 127; scale: float64 [rows], nan for a row not finite."""

    integers: Array
    scale: Array


def quantise(x: Array, block: int, ids: Array) -> Quantised:
    """x: float32 [rows, columns]."""
    integers, scale = np.zeros(x.shape), np.zeros(len(x))
    for run in document_runs(block, ids):
        finite = np.where(np.isfinite(x[run]), x[run], FLOAT(0))
        largest = np.abs(finite).max(initial=FLOAT(0))
        unit = FLOAT(0) if largest < 2.0**-119 else largest / FLOAT(127)
        if unit:
            integers[run] = np.rint(finite * (FLOAT(1) / unit))
        scale[run] = np.where(np.isfinite(x[run]).all(axis=1), unit, np.nan)
    return Quantised(integers, scale)


def key_means(k: Array, ids: Array) -> Array:
    """k: [kv_len, head_dim] -> float32, the mean over each key's document; an element not finite counts as 0."""
    clean = np.where(np.isfinite(k), k, 0).astype(np.float64)
    means = np.empty(k.shape)
    for document in np.unique(ids):
        means[ids == document] = clean[ids == document].mean(axis=0)
    return means.astype(FLOAT)


def query_means(q: Array, ids: Array, block: int) -> Array:
    """q: [q_len, head_dim] -> the mean of each row's block, as far as it is of one document, float32."""
    means = np.zeros(q.shape, FLOAT)
    for run in document_runs(block, ids):
        finite = q[run][np.isfinite(q[run]).all(axis=1)]
        if len(finite):
            means[run] = finite.mean(axis=0, dtype=np.float64)
    return means


class Scores(NamedTuple):
    """scores: [batch, heads, q_len, kv_len], scaled, before the mod, without term: [batch, heads, q_len]."""

    scores: Array
    term: Array


def scores(
    q: Array, k: Array, quant: QKQuant, scale: float | None = None, row_ids: Any = None, key_ids: Any = None
) -> Scores:
    """row_ids, key_ids: integers [1 or batch, length], the document of each row and key; None: one document. Only
    smoothing of k looks for documents: without it all is one."""
    if not quant.smooth_k:
        row_ids = key_ids = None
    q, k = np.asarray(q, FLOAT), np.asarray(k, FLOAT)
    batch, heads, q_len, head_dim = q.shape
    rows = np.zeros((1, q_len), int) if row_ids is None else np.atleast_2d(row_ids)
    keys = np.zeros((1, k.shape[2]), int) if key_ids is None else np.atleast_2d(key_ids)
    q_block, k_block = (quant.q_block, quant.k_block) if quant.granularity == "block" else (1, 1)
    factor = 1 / math.sqrt(head_dim) if scale is None else scale
    found, term = np.zeros((batch, heads, q_len, k.shape[2])), np.zeros((batch, heads, q_len))
    for b, h in np.ndindex(batch, heads):
        query, key = q[b, h], k[b % len(k), h * k.shape[1] // heads]
        row, column = rows[b % len(rows)], keys[b % len(keys)]
        mean = key_means(key, column) if quant.smooth_k else np.zeros_like(key)
        centre = query_means(query, row, quant.q_block) if quant.smooth_q else np.zeros_like(query)
        small = key - mean
        a, c = quantise(query - centre, q_block, row), quantise(small, k_block, column)
        product = (a.integers @ c.integers.T) * a.scale[:, None] * c.scale
        with np.errstate(invalid="ignore"):
            found[b, h] = factor * (product + centre.astype(np.float64) @ small.T.astype(np.float64))
        for i in range(q_len):
            of_document = np.flatnonzero(column == row[i])
            if len(of_document):
                term[b, h, i] = factor * (query[i].astype(np.float64) @ mean[of_document[0]].astype(np.float64))
    return Scores(found, term)


def attention(
    q: Array,
    k: Array,
    v: Array,
    quant: QKQuant,
    score_mod: Callable[..., Any] | None = None,
    mask_mod: Callable[..., Any] | None = None,
    scale: float | None = None,
    row_ids: Any = None,
    key_ids: Any = None,
    add_back: bool = False,
) -> reference.Attention:
    """As reference.attention; add_back: the row term goes to the score before score_mod, not to lse and max_scores."""
    found, term = scores(q, k, quant, scale, row_ids, key_ids)
    found = found + term[..., None] if add_back else found
    if score_mod is not None:
        found = reference.apply_score_mod(found, score_mod)
    if mask_mod is not None:
        found = np.where(reference.apply_mask_mod(mask_mod, found.shape), found, -np.inf)
    highest = found.max(axis=-1, initial=-np.inf)
    weights = np.exp(found - np.where(highest == -np.inf, 0.0, highest)[..., None])
    total = weights.sum(axis=-1)
    seen = np.where(total == 0, 1.0, total)
    values = np.repeat(np.asarray(v, np.float64), q.shape[1] // v.shape[1], axis=1)
    late = 0 if add_back else term
    lse = np.where(total == 0, -np.inf, highest + np.log(seen) + late)
    return reference.Attention(reference.weighted_sum(weights / seen[..., None], values), lse, highest + late)


class Figures(NamedTuple):
    """How far a result is from the exact one, over all its elements."""

    cosine: float
    relative_l1: float
    rmse: float
    largest: float


def figures(got: Array, exact: Array) -> Figures:
    """cosine similarity; sum |got - exact| / sum |exact|; root of the mean square error; largest error."""
    got, exact = np.asarray(got, np.float64).ravel(), np.asarray(exact, np.float64).ravel()
    error = np.abs(got - exact)
    cosine = got @ exact / math.sqrt((got @ got) * (exact @ exact))
    return Figures(cosine, error.sum() / np.abs(exact).sum(), math.sqrt((error**2).mean()), error.max())
