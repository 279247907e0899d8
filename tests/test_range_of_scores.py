"""Scores from the whole range of float32 -> attention by every way to compute it, against float64 numpy.

A score_mod that reads a table gives every key the score that a test asks for, and one kernel serves all tables. What
rounding a product costs is no question here: weights follow from differences of scores, however large both are.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import reference
from backends import EVERY, WAYS

import flextrace as flex

LARGEST = float(np.finfo(np.float32).max)
FILLS = (-LARGEST, -1e10, -1e12, -1e15, -3e38, 0.0, 1.5e9, 1e12, 1e15, 3e38, LARGEST, -1.5e9, 1e-45)
HEADS, ROWS, KEYS = 2, 29, 150  # more than one tile of keys, the last one cut
Array = np.ndarray


# --- rows of scores ---------------------------------------------------------------------------------------------


def whole_range(rng: np.random.Generator, n: int) -> Array:
    """Any finite float32: random bits."""
    bits = rng.integers(0, 2**32, size=n, dtype=np.uint32)
    return np.where((bits & 0x7F800000) == 0x7F800000, bits & 0xFF7FFFFF, bits).view(np.float32)


def filled(rng: np.random.Generator, n: int) -> Array:
    return np.full(n, rng.choice(FILLS), np.float32)


def partly_filled(rng: np.random.Generator, n: int) -> Array:
    """What a mask added as a number leaves: some scores as they were, the others all alike."""
    return np.where(rng.random(n) < rng.choice([0.02, 0.5, 0.98]), rng.normal(size=n) * 5, filled(rng, n))


def neighbours(rng: np.random.Generator, n: int) -> Array:
    """A few units in the last place apart, at any size."""
    bits = np.float32(rng.choice([1, -1]) * 10.0 ** rng.integers(0, 38)).view(np.int32)
    return (bits + rng.integers(0, 4, size=n)).astype(np.int32).view(np.float32)


def extremes(rng: np.random.Generator, n: int) -> Array:
    return rng.choice([-LARGEST, LARGEST, -np.inf, 0.0, -0.0, 1e-45], size=n, p=[0.4, 0.05, 0.4, 0.05, 0.05, 0.05])


def rising(rng: np.random.Generator, n: int) -> Array:
    """Every tile has a new maximum."""
    return np.sort(whole_range(rng, n))


KINDS = (whole_range, filled, partly_filled, neighbours, extremes, rising)


def table_of_scores(seed: int) -> Array:
    """float32 [HEADS, ROWS, KEYS], each row of a kind of its own."""
    rng = np.random.default_rng(seed)
    rows = [KINDS[i % len(KINDS)](rng, KEYS) for i in range(HEADS * ROWS)]
    return np.array(rows, np.float32).reshape(HEADS, ROWS, KEYS)


# --- the check --------------------------------------------------------------------------------------------------

table = mx.zeros((HEADS, ROWS, KEYS))


@flex.score_mod
def given(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return table[h, q_idx, kv_idx]


@flex.mask_mod
def banded(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return (kv_idx + q_idx) % 50 > 9


BLOCKS = flex.create_block_mask(banded, None, None, ROWS, KEYS, BLOCK_SIZE=16)
MASKS = {"none": (None, None), "mask_mod": (banded, banded), "BlockMask": (BLOCKS, banded)}


def expected(scores: Array, v: Array) -> reference.Attention:
    """scores: [heads, rows, keys], -inf where nothing is attended to."""
    highest = scores.max(axis=-1)
    weights = np.exp(scores - np.where(highest == -np.inf, 0.0, highest)[..., None])
    total = weights.sum(axis=-1)
    seen = np.where(total == 0, 1.0, total)
    return reference.Attention(weights @ v / seen[..., None], highest + np.log(seen), highest)


def attend(q: Array, k: Array, v: Array, way: str, **options: Any) -> list[Array]:
    """out, lse, max_scores as float64, of one batch."""
    aux = flex.AuxRequest(lse=True, max_scores=True)
    out, rest = flex.flex_attention(
        *(mx.array(x, mx.float32)[None] for x in (q, k, v)), return_aux=aux, kernel_options=WAYS[way], **options
    )
    return [np.array(x[0]).astype(np.float64) for x in (out, rest.lse, rest.max_scores)]


def assert_right(got: list[Array], want: reference.Attention, what: str) -> None:
    """max_scores to the bit; lse as exactly as float32 holds it."""
    out, lse, highest = got
    np.testing.assert_array_equal(highest, want.max_scores, err_msg=f"max_scores of {what}")
    reference.assert_close(lse, want.lse, 2e-5, 2.0**-23, f"lse of {what}")
    reference.assert_close(out, want.out, 2e-5, 2e-5, f"out of {what}")


def check(way: str, mask: str, seed: int) -> None:
    global table
    scores = table_of_scores(seed)
    table = mx.array(scores)
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(HEADS, n, 8)) for n in (ROWS, KEYS, KEYS))
    given_mask, plain = MASKS[mask]
    got = attend(q, k, v, way, score_mod=given, block_mask=given_mask)
    exact = scores.astype(np.float64)
    if plain is not None:
        kept = np.fromfunction(lambda q_idx, kv_idx: plain(0, 0, q_idx, kv_idx), (ROWS, KEYS), dtype=int)
        exact = np.where(kept, exact, -np.inf)
    assert_right(got, expected(exact, v), f"{way}, {mask}, seed {seed}")


@pytest.mark.sampled(5)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("way", WAYS)
def test_scores_of_any_size(way: str, mask: str) -> None:
    check(way, mask, 0)


@pytest.mark.long
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("way", WAYS)
def test_scores_of_any_size_long(way: str, mask: str) -> None:
    for seed in range(1, 41 if "simulator" in way else 401):
        check(way, mask, seed)


# --- scores without a table -------------------------------------------------------------------------------------


@pytest.mark.sampled(2)
@pytest.mark.parametrize("way", WAYS)
def test_a_mask_added_as_a_number(way: str) -> None:
    """Rows in which all keys are masked so average all values; the others are as with a mask."""
    fills = [fill for fill in FILLS if abs(fill) >= 1e10]
    values = mx.array(fills)

    def added(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score + values[q_idx] if q_idx < kv_idx or q_idx % 2 == 0 else score

    rows = len(fills)
    q, k, v = (np.random.default_rng(i).normal(size=(1, n, 8)).astype(np.float32) for i, n in enumerate((rows, 40, 40)))
    q, k = np.rint(q * 2) / 2, np.rint(k * 2) / 2
    scores = np.einsum("hqd,hkd->hqk", q, k).astype(np.float32)
    masked = (np.arange(rows)[:, None] < np.arange(40)) | (np.arange(rows) % 2 == 0)[:, None]
    scores = np.where(masked, scores + np.array(fills, np.float32)[:, None], scores).astype(np.float64)
    want = expected(scores, v.astype(np.float64))
    out, lse, highest = attend(q, k, v, way, score_mod=flex.score_mod(added), scale=1.0)
    tolerance = 0.05 if "int8" in way or "-q" in way else 2e-5
    large = abs(want.lse) > 1e6
    reference.assert_close(out[large], want.out[large], 2e-5, 2e-5, f"out of {way}")
    reference.assert_close(out, want.out, tolerance, tolerance, f"out of {way}")
    reference.assert_close(lse, want.lse, tolerance, tolerance, f"lse of {way}")
    reference.assert_close(highest, want.max_scores, tolerance, tolerance, f"max_scores of {way}")


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("scale", [1.0, -1.0])
def test_products_of_any_size(backend: str, scale: float) -> None:
    """One column, so that a score is one product, and queries that are powers of two, so that it is exact."""
    rng = np.random.default_rng(3)
    q = np.float32(2.0) ** rng.integers(-126, 127, size=(1, ROWS, 1)) * rng.choice([-1, 1], size=(1, ROWS, 1))
    q[0, :4, 0] = 1, -1, 2.0**127, -(2.0**127)
    k = rng.uniform(-1.9999, 1.9999, size=(1, KEYS, 1)).astype(np.float32)
    k[0, :3, 0] = np.array([LARGEST, -LARGEST, LARGEST * 0.7], np.float32) * 2.0**-127
    v = rng.normal(size=(1, KEYS, 8))
    scores = np.einsum("hqd,hkd->hqk", q.astype(np.float64) * scale, k.astype(np.float64))
    scores = scores.astype(np.float32).astype(np.float64)
    assert np.isfinite(scores).all() and abs(scores).max() > 3e38
    assert_right(attend(q, k, v, backend, scale=scale), expected(scores, v), f"{backend}, scale {scale}")


@pytest.mark.sampled(2)
@pytest.mark.parametrize("way", WAYS)
def test_a_score_that_is_infinite_or_nan_spoils_its_own_row_only(way: str) -> None:
    global table
    scores = table_of_scores(7)
    rng = np.random.default_rng(7)
    bad = {3: np.inf, 11: np.nan}
    for row, value in bad.items():
        scores[:, row, rng.integers(KEYS)] = value
    table = mx.array(scores)
    q, k, v = (rng.normal(size=(HEADS, n, 8)) for n in (ROWS, KEYS, KEYS))
    got = attend(q, k, v, way, score_mod=given)
    others = [row for row in range(ROWS) if row not in bad]
    assert all(np.isnan(got[0][:, row]).all() and np.isnan(got[1][:, row]).all() for row in bad)
    want = expected(scores[:, others].astype(np.float64), v)
    assert_right([part[:, others] for part in got], want, way)
