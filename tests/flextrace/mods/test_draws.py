"""Random numbers by position: the published hash, the same bits everywhere, and what dropout makes of them."""

from __future__ import annotations

import itertools
import struct
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from backends import EVERY

import flextrace as flex
from flextrace import mods


def murmur3(data: bytes, seed: int) -> int:
    """MurmurHash3_x86_32 of whole words, on Python's ints."""
    word, state = 0xFFFFFFFF, seed & 0xFFFFFFFF
    for (k,) in struct.iter_unpack("<I", data):
        k = k * 0xCC9E2D51 & word
        k = (k << 15 | k >> 17) * 0x1B873593 & word
        state ^= k
        state = ((state << 13 | state >> 19) & word) * 5 + 0xE6546B64 & word
    state ^= len(data)
    state = (state ^ state >> 16) * 0x85EBCA6B & word
    state = (state ^ state >> 13) * 0xC2B2AE35 & word
    return state ^ state >> 16


def test_the_reference_is_the_published_hash() -> None:
    """Values that implementations of it are tested with."""
    known = {(b"", 0): 0, (b"", 1): 0x514E28B7, (b"test", 0): 0xBA6BD213, (b"aaaa", 0x9747B28C): 0x5A97808A}
    assert {key: murmur3(*key) for key in known} == known


EDGES = (0, 1, 2, 4095, 65536, 2**31 - 1, -1, -(2**31))


def test_plain_python_gives_the_hash() -> None:
    for seed, b, h, q_idx, kv_idx in itertools.product((0, 1, -1, 2**31 - 1, -(2**31)), *[EDGES[:3]] * 2, EDGES, EDGES):
        want = murmur3(struct.pack("<4i", b, h, q_idx, kv_idx), seed) >> 8
        assert mods.uniform(seed, b, h, q_idx, kv_idx) == want / 2**24


@pytest.mark.sampled(2)
@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("seed", [0, 12345, -(2**31)])
def test_every_backend_draws_the_same_bits(backend: str, seed: int) -> None:
    """The largest score of a row that sees one key is the number of that position."""
    b, h, q_len, kv_len = 2, 2, 40, 35
    for given in (seed, mx.array(seed, mx.int32)):

        def draw(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any, given: Any = given) -> Any:
            return mods.uniform(given, b, h, q_idx, kv_idx)

        _, aux = flex.flex_attention(
            mx.ones((b, h, q_len, 8)),
            mx.ones((b, h, kv_len, 8)),
            mx.ones((b, h, kv_len, 8)),
            draw,
            lambda b, h, q_idx, kv_idx: kv_idx == (q_idx * 7 + h) % 35,
            return_aux=flex.AuxRequest(max_scores=True),
            kernel_options={"BACKEND": backend},
        )
        want = [murmur3(struct.pack("<4i", *at, (at[2] * 7 + at[1]) % 35), seed) >> 8 for at in np.ndindex(b, h, q_len)]
        np.testing.assert_array_equal(np.array(aux.max_scores), np.reshape(want, (b, h, q_len)) / np.float32(2**24))


def test_fewer_indices_draw_fewer_numbers() -> None:
    seed = 3

    @flex.mask_mod
    def rows(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return mods.uniform(seed, b, 0, q_idx, 0) < 0.5

    kept = np.array(flex.create_mask(rows, 2, 3, 64, 5))
    assert (kept == kept[:, :1, :, :1]).all() and 20 < kept[0, 0, :, 0].sum() < 44
    assert (kept[0] != kept[1]).any() and rows.expr.varies == {"b", "q_idx"}
    assert not rows.trace().volatile


# ---- rate and independence: within 5 standard deviations of what independent draws give ----------------------------


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_the_rate(rate: float) -> None:
    kept = np.array(flex.create_mask(mods.dropout(rate, seed=1), 2, 4, 256, 256))
    for axes in ((0, 1, 2, 3), (2, 3), (0, 1, 3), (0, 1, 2)):
        share = kept.mean(axis=axes)
        count = np.prod([kept.shape[axis] for axis in axes])
        assert (abs(share - (1 - rate)) <= 5 * np.sqrt(rate * (1 - rate) / count)).all()


def drawn(seed: int) -> np.ndarray:
    bound = flex.score_mod(lambda score, b, h, q_idx, kv_idx: mods.uniform(seed, b, h, q_idx, kv_idx)).bind()
    at = dict(zip(("b", "h", "q_idx", "kv_idx"), np.ogrid[:3, :4, :128, :128], strict=True))
    return flex.tracer.evaluate(bound.trace.expr, at, numbers=bound.numbers).astype(np.float64)


def assert_independent(a: np.ndarray, b: np.ndarray) -> None:
    """Correlation, and counts of pairs over 8 x 8 cells."""
    count = a.size
    assert abs(np.corrcoef(a.reshape(-1), b.reshape(-1))[0, 1]) < 5 / np.sqrt(count)
    cells = np.histogram2d(a.reshape(-1), b.reshape(-1), bins=8, range=[[0, 1], [0, 1]])[0]
    assert ((cells - count / 64) ** 2).sum() / (count / 64) < 63 + 5 * np.sqrt(2 * 63)


def test_numbers_are_uniform() -> None:
    numbers = drawn(0)
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = np.histogram(numbers, bins=100, range=(0, 1))[0]
    assert ((counts - numbers.size / 100) ** 2).sum() / (numbers.size / 100) < 99 + 5 * np.sqrt(2 * 99)


@pytest.mark.parametrize("axis", range(4))
@pytest.mark.parametrize("step", [1, 2])
def test_numbers_along_an_index_are_independent(axis: int, step: int) -> None:
    numbers = np.moveaxis(drawn(5), axis, 0)
    assert_independent(numbers[:-step], numbers[step:])


@pytest.mark.parametrize("other", [1, 2, 2**16, -1])
def test_seeds_are_independent(other: int) -> None:
    assert_independent(drawn(0), drawn(other))


def test_swapped_indices_are_independent() -> None:
    numbers = drawn(9)
    upper = np.triu_indices(128, 1)
    assert_independent(numbers[..., upper[0], upper[1]], numbers[..., upper[1], upper[0]])


# ---- dropout ---------------------------------------------------------------------------------------------------------


@pytest.mark.sampled(2)
@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_dropout_of_weights(backend: str, rate: float) -> None:
    """Against float64: weights over all keys, then dropped and divided by 1 - rate. The first row keeps nothing."""
    b, h, n, d = 2, 2, 33, 8
    q, k, v = (mx.random.normal((b, h, n, d), key=mx.random.key(i)) for i in range(3))
    options, drop = {"BACKEND": backend}, mods.dropout(rate, seed=21)
    later = flex.mask_mod(lambda b, h, q_idx, kv_idx: kv_idx < q_idx)
    out, lse = flex.flex_attention(q, k, v, block_mask=later & drop, return_lse=True, kernel_options=options)
    _, full = flex.flex_attention(q, k, v[..., :1], block_mask=later, return_lse=True, kernel_options=options)
    got = mods.dropout_output(out, lse, full, rate)
    exact_q, exact_k, exact_v = (np.array(x).astype(np.float64) for x in (q, k, v))
    weights = np.exp(exact_q @ exact_k.swapaxes(2, 3) / np.sqrt(d)) * np.tril(np.ones((n, n)), -1)
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    kept = [murmur3(struct.pack("<4i", *at), 21) >> 8 for at in np.ndindex(b, h, n, n)]
    weights *= np.reshape(kept, weights.shape) / 2**24 >= np.float32(rate)
    np.testing.assert_allclose(np.array(got), weights @ exact_v / (1 - rate), atol=2e-5)
    assert got.dtype == out.dtype and not np.array(got)[:, :, 0].any()


def test_dropout_keeps_the_mean() -> None:
    q = mx.zeros((1, 1, 1, 8))
    k, v = mx.zeros((1, 1, 400, 8)), mx.ones((1, 1, 400, 8))
    _, full = flex.flex_attention(q, k, v, return_lse=True)
    results = []
    for seed in range(200):
        out, lse = flex.flex_attention(q, k, v, block_mask=mods.dropout(0.5, seed), return_lse=True)
        results.append(mods.dropout_output(out, lse, full, 0.5)[0, 0, 0, 0].item())
    assert abs(np.mean(results) - 1) < 5 / np.sqrt(400 * 200)
    assert 0.5 < np.std(results) * np.sqrt(400) < 1.5
