"""Int8KV: what it keeps of keys and values, what it costs, and attention on what it gives back."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import quant_reference
import reference

import flextrace as flex
from flextrace.int8.kv_cache import quantised
from flextrace.kernels import BACKENDS, backend_for

RNG = np.random.default_rng(0)
QUANTISING = [
    name
    for name in BACKENDS
    if backend_for(name, to_run=False).quantises and backend_for(name, to_run=False).unavailable() is None
]


def tokens(length: int, dtype: mx.Dtype = mx.float32, shift: float = 0.0, columns: int = 64) -> mx.array:
    channels = shift * np.where(np.arange(columns) % 8 == 0, 8.0, 0.0)
    return mx.array(RNG.normal(size=(2, 3, length, columns)) + channels).astype(dtype)


def filled(sizes: list[int], dtype: mx.Dtype = mx.float32, **options: Any) -> tuple[flex.Int8KV, mx.array, mx.array]:
    cache, keys, values = flex.Int8KV(**options), [], []
    for size in sizes:
        keys.append(tokens(size, dtype, 1.0))
        values.append(tokens(size, dtype, 0.0, 48))
        cache.update(keys[-1], values[-1])
    return cache, mx.concatenate(keys, axis=2), mx.concatenate(values, axis=2)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("quantise_value", [False, True])
@pytest.mark.parametrize("sizes", [[5], [17, 1, 1, 1], [3, 0, 40, 7], [16, 16, 16]], ids=str)
def test_what_comes_back(sizes: list[int], quantise_value: bool, dtype: mx.Dtype) -> None:
    """Within half a step of each row, in order, whatever the updates; unquantised values exactly."""
    cache, k, v = filled(sizes, dtype, quantise_value=quantise_value, step=16)
    assert len(cache) == sum(sizes)
    got_k, got_v = cache.dequantised()
    assert got_k.dtype == got_v.dtype == dtype
    rounding = {mx.float32: 1e-6, mx.float16: 1e-3, mx.bfloat16: 8e-3}[dtype]
    for got, want, rows in ((got_k, k, cache.key), (got_v, v, cache.value)):
        got, want = (np.array(x.astype(mx.float32)) for x in (got, want))
        assert got.shape == want.shape
        if isinstance(rows, flex.Int8Rows):
            half = np.array(rows.scales)[..., None] / 2
            assert (abs(got - want) <= half * 1.001 + rounding * abs(want) + 1e-6).all()
        else:
            np.testing.assert_array_equal(got, want)


def test_integers_are_those_of_the_kernels() -> None:
    x = RNG.normal(size=(20, 32)).astype(np.float32)
    x[3], x[4] = 0, 1e-40
    x[5, 2], x[6, 7] = np.inf, np.nan
    values, scales = quantised(mx.array(x))
    want = quant_reference.quantise(x, 1, np.zeros(20, int))
    np.testing.assert_array_equal(np.array(values), want.integers)
    np.testing.assert_allclose(np.array(scales), want.scale, rtol=1e-6)


@pytest.mark.parametrize(("sizes", "of_mean"), [([12], 12), ([70, 5], 70), ([12, 5], 17), ([1, 62, 8, 9], 71)], ids=str)
def test_the_mean_is_that_of_the_first_update_or_of_enough_tokens(sizes: list[int], of_mean: int) -> None:
    cache, k, v = filled(sizes, quantise_value=True)
    for rows, x in ((cache.key, k), (cache.value, v)):
        assert isinstance(rows, flex.Int8Rows) and rows.means is not None
        np.testing.assert_allclose(rows.means, x[:, :, :of_mean].mean(axis=2, keepdims=True), atol=1e-5)
    plain = filled(sizes, quantise_value=True, smooth_k=False, smooth_v=False)[0]
    assert plain.key.means is None and plain.value.means is None


def test_the_first_token_does_not_shape_all_others() -> None:
    """A first token with outliers of its own, as models have it, given alone and with the rest."""
    k = np.array(tokens(300, columns=64))
    k[:, :, 0, 5], k[:, :, 0, 20] = 60, -40
    whole, stepwise = flex.Int8KV(), flex.Int8KV()
    whole.update(mx.array(k), mx.array(k))
    for first, end in ((0, 1), (1, 30), (30, 300)):
        stepwise.update(mx.array(k[:, :, first:end]), mx.array(k[:, :, first:end]))
    for got, want in zip(stepwise.key, whole.key, strict=True):
        np.testing.assert_array_equal(got, want)


def test_inputs_may_change_after_an_update() -> None:
    k, more = tokens(5), tokens(2)
    cache, want = flex.Int8KV(), flex.Int8KV()
    want.update(mx.concatenate([k, more], axis=2), mx.concatenate([k, more], axis=2))
    cache.update(k, k)
    k[...] = 7.0
    cache.update(more, more)
    np.testing.assert_array_equal(cache.dequantised()[0], want.dequantised()[0])


@pytest.mark.parametrize("transform", [mx.compile, mx.vmap, lambda f: mx.grad(lambda k: f(k).sum())])
@pytest.mark.parametrize("size", [2, 70])
def test_inside_a_transformation_nothing_is_kept(size: int, transform: Any) -> None:
    cache, _, _ = filled([size])
    before = [np.array(x) for x in cache.dequantised()]

    def step(k: mx.array) -> mx.array:
        cache.update(k, k[..., :48])
        return cache.dequantised()[0]

    with pytest.raises(ValueError, match=r"no values to keep inside mx.compile, mx.vmap or mx.grad; call it outside"):
        mx.eval(transform(step)(tokens(1)[None] if transform is mx.vmap else tokens(1)))
    assert len(cache) == size
    for got, want in zip(cache.dequantised(), before, strict=True):
        np.testing.assert_array_equal(got, want)
    cache.update(tokens(1), tokens(1, columns=48))
    assert cache.key.float32().shape[2] == size + 1


def test_forks_go_on_by_themselves() -> None:
    for fork in (copy.copy, copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))):
        for size in (5, 70):
            first, _, values = filled([size], mx.bfloat16, quantise_value=True)
            second = fork(first)
            ones = tokens(1, mx.bfloat16), tokens(1, mx.bfloat16, columns=48)
            second.update(*ones)
            first.update(*(9 * x for x in ones))
            assert len(first) == len(second) == size + 1
            for cache, factor in ((first, 9), (second, 1)):
                want = np.array(mx.concatenate([values, factor * ones[1]], axis=2).astype(mx.float32))
                got = np.array(cache.dequantised()[1].astype(mx.float32))
                assert isinstance(cache.value, flex.Int8Rows)
                half = np.array(cache.value.scales)[..., None] / 2  # of a step; a bfloat16 is rounded by 2**-8 at most
                assert (abs(got - want) <= half * 1.001 + 2.0**-8 * abs(got)).all()


def test_filled_in_one_thread_and_read_in_another() -> None:
    cache = flex.Int8KV(quantise_value=True)
    k = tokens(70)
    mx.eval(k)
    worker = threading.Thread(target=lambda: [cache.update(k + 1, k + 1) for _ in range(2)])
    worker.start()
    worker.join()
    assert flex.flex_attention(tokens(2), cache.key, cache.value).shape == (2, 3, 2, 64)
    cache.update(k, k)
    assert len(cache) == 210 and np.isfinite(np.array(cache.dequantised()[0])).all()


def test_smoothing_keeps_outlier_channels_from_coarsening_the_rest() -> None:
    errors = []
    for smooth in (True, False):
        cache = flex.Int8KV(smooth_k=smooth)
        k = tokens(64, shift=2.0)
        cache.update(k, k)
        errors.append(float(mx.abs(cache.dequantised()[0] - k).mean()))
    assert errors[0] < errors[1] / 3


def test_a_prompt_that_is_not_finite_spoils_its_row_only() -> None:
    k = tokens(9)
    k[0, 1, 4, 3] = float("inf")
    cache = flex.Int8KV()
    cache.update(k, k)
    got = np.isfinite(np.array(cache.dequantised()[0])).all(axis=-1)
    assert not got[0, 1, 4] and got.sum() == got.size - 1


@pytest.mark.parametrize(("quantise_value", "share"), [(False, 0.77), (True, 0.55)])
def test_bytes(quantise_value: bool, share: float) -> None:
    cache = flex.Int8KV(quantise_value=quantise_value)
    k = tokens(1024, mx.float16, columns=128)
    cache.update(k, k)
    assert cache.key.values.dtype == mx.int8
    assert 0.5 * 2 * k.nbytes < cache.nbytes <= share * 2 * k.nbytes
    before = cache.nbytes
    cache.update(k[:, :, :1], k[:, :, :1])
    assert cache.nbytes < before * 1.3
    assert flex.Int8KV().nbytes == 0


@pytest.mark.parametrize("backend", QUANTISING)
@pytest.mark.parametrize("quantise_value", [False, True])
@pytest.mark.parametrize("mod", [None, flex.mods.softcap(5.0)], ids=["no mod", "softcap"])
def test_decoding_step_by_step(mod: Any, quantise_value: bool, backend: str) -> None:
    """Attention of each new token over the cache, read in place, is near float64 attention over all tokens."""
    cache, k, v = filled([40], quantise_value=quantise_value, step=16)
    options = {"BACKEND": backend}
    for step in range(4):
        new_k, new_v, q = tokens(1, shift=1.0), tokens(1, columns=48), tokens(1)
        cache.update(new_k, new_v)
        k, v = mx.concatenate([k, new_k], axis=2), mx.concatenate([v, new_v], axis=2)
        mask = flex.mask_mod(lambda b, h, q_idx, kv_idx, step=step: kv_idx > 3 * step)
        got, lse = flex.flex_attention(q, cache.key, cache.value, mod, mask, return_lse=True, kernel_options=options)
        arrays = [np.array(x) for x in (q, k, v)]
        want = reference.attention(*arrays, score_mod=mod, mask_mod=mask)
        found = quant_reference.figures(np.array(got), want.out)
        assert found.cosine > 0.9997 and found.relative_l1 < 0.025, found
        assert np.abs(np.array(lse) - want.lse).max() < 0.1


@pytest.mark.parametrize("backend", QUANTISING)
def test_one_cache_serves_a_batch_and_groups_of_heads(backend: str) -> None:
    """What is read in place is what the dequantised rows give, up to the rounding of q."""
    cache = flex.Int8KV(quantise_value=True)
    cache.update(tokens(33, mx.float16, 1.0)[:1], tokens(33, mx.float16, 1.0)[:1])
    q = mx.array(RNG.normal(size=(2, 6, 5, 64))).astype(mx.float16)
    got = flex.flex_attention(q, cache.key, cache.value, enable_gqa=True, kernel_options={"BACKEND": backend})
    want = flex.flex_attention(q, *cache.dequantised(), enable_gqa=True, kernel_options={"BACKEND": "ops"})
    found = quant_reference.figures(*(np.array(x.astype(mx.float32)) for x in (got, want)))
    assert got.dtype == mx.float16 and found.cosine > 0.9999 and found.relative_l1 < 0.015


def test_values_with_a_bias_are_smoothed() -> None:
    """Exactly, so the error falls to what is left to round; a row that attends to nothing stays 0."""
    k, v, q = tokens(64), tokens(64, shift=2.0), tokens(8)
    mask = flex.mask_mod(lambda b, h, q_idx, kv_idx: q_idx != 3)
    want = reference.attention(*(np.array(x) for x in (q, k, v)), mask_mod=mask).out
    errors = []
    for smooth_v in (True, False):
        cache = flex.Int8KV(quantise_value=True, smooth_v=smooth_v)
        cache.update(k, v)
        got = np.array(flex.flex_attention(q, cache.key, cache.value, block_mask=mask))
        assert not got[:, :, 3].any()
        errors.append(np.abs(got - want).mean())
    assert errors[0] < 0.6 * errors[1], errors


def test_a_gradient_is_refused() -> None:
    cache, _, _ = filled([8], quantise_value=True)

    def loss(q: mx.array) -> mx.array:
        return flex.flex_attention(q, cache.key, cache.value).sum()

    with pytest.raises(flex.GradientError):
        mx.eval(mx.grad(loss)(tokens(1)))


Rows = flex.Int8Rows
VALUES, SCALES = mx.zeros((1, 2, 8, 16), mx.int8), mx.ones((1, 2, 8))
GOOD = Rows(VALUES, SCALES, mx.zeros((1, 2, 1, 16)))
Q = mx.zeros((1, 2, 4, 16))


@pytest.mark.parametrize(
    ("key", "value", "options", "error", "message"),
    [
        (GOOD._replace(values=Q), GOOD, {}, TypeError, "expected int8 and float32"),
        (GOOD._replace(scales=SCALES.astype(mx.float16)), GOOD, {}, TypeError, "expected int8 and float32"),
        (GOOD._replace(scales=None), GOOD, {}, TypeError, r"key.scales is a NoneType; expected an mx.array"),
        (GOOD._replace(scales=mx.ones((1, 2, 7))), GOOD, {}, ValueError, r"one number a row \(1, 2, 8\)"),
        (GOOD, GOOD._replace(means=mx.zeros((1, 2, 16))), {}, ValueError, r"value.means is float32 \(1, 2, 16\)"),
        (GOOD, Rows(VALUES[0], SCALES[0]), {}, ValueError, "expected 4 axes"),
        (mx.zeros((1, 2, 8, 16)), GOOD, {}, TypeError, r"value is in int8, key is not"),
        (
            GOOD,
            VALUES,
            {},
            TypeError,
            "are float32, int8 and int8; beside a key in int8 make query",
        ),
        (
            GOOD,
            Q.astype(mx.float16),
            {},
            TypeError,
            "int8 and float16; beside a key .* all float32",
        ),
        (VALUES, VALUES, {}, TypeError, "int8 needs its scales: pass flex.Int8Rows, or what flex.Int8KV keeps"),
        (flex.Int8KV(), GOOD, {}, TypeError, r"key is an Int8KV; pass its rows: .*\(query, cache.key, cache.value\)"),
        (GOOD, flex.Int8KV(), {}, TypeError, "value is an Int8KV; pass its rows"),
        (Rows(VALUES[..., :8], SCALES), GOOD, {}, ValueError, "head_dim of query is 16, of key 8"),
        (GOOD, GOOD, {"SMOOTH_K": True}, ValueError, "SMOOTH_K=True does not go with a key in int8"),
        (GOOD, GOOD, {"QK_QUANT": flex.QKQuant("block")}, ValueError, "does not go with a key in int8"),
        (GOOD, GOOD, {"QK_QUANT": flex.QKQuant("row", smooth_q=True)}, ValueError, "does not go with a key in int8"),
        (
            GOOD,
            GOOD,
            {"BACKEND": "ops"},
            ValueError,
            r"does not read int8 keys; choose BACKEND .* or pass \*cache.dequantised",
        ),
        (GOOD, GOOD, {"PIPELINE": "staged"}, ValueError, '"PIPELINE": "staged" exclude each other'),
    ],
)
def test_rows_that_do_not_fit(key: Any, value: Any, options: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        flex.flex_attention(Q, key, value, kernel_options=options)


def test_what_goes_with_rows_in_int8() -> None:
    for options in ({"QK_QUANT": "int8"}, {"QK_QUANT": flex.QKQuant("row")}, {"SMOOTH_K": False}):
        assert flex.flex_attention(Q, GOOD, GOOD, kernel_options=options).shape == Q.shape


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        ((2, 3, 4), (2, 3, 4), ValueError, "expected"),
        ((2, 3, 4, 64), (2, 3, 4, 0), ValueError, "expected"),
        ((2, 3, 4, 64), (2, 3, 5, 48), ValueError, "expected"),
        ((2, 3, 4, 32), (2, 3, 4, 48), ValueError, "those of the cache"),
        ((1, 3, 4, 64), (1, 3, 4, 48), ValueError, "start another"),
    ],
)
def test_shapes_that_do_not_fit(key: Any, value: Any, error: Any, message: str) -> None:
    cache, _, _ = filled([4])
    with pytest.raises(error, match=message):
        cache.update(mx.zeros(key), mx.zeros(value))


def test_dtypes_that_do_not_fit() -> None:
    cache, _, _ = filled([4], mx.float16)
    with pytest.raises(TypeError, match=r"key is an ndarray; convert it with mx.array\(...\)"):
        cache.update(np.zeros((1, 1, 1, 8), np.float32), tokens(1))  # type: ignore[arg-type]
    for key, value in ((mx.float32, mx.float32), (mx.float16, mx.float32), (mx.int32, mx.int32)):
        with pytest.raises(TypeError, match="make them one of float32, float16 and bfloat16"):
            cache.update(tokens(1, key), tokens(1, value, columns=48))


@pytest.mark.parametrize("quantise_value", [False, True])
def test_what_is_trimmed_is_written_over(quantise_value: bool) -> None:
    for size in (20, 80):
        cache, k, v = filled([size], quantise_value=quantise_value, step=16)
        cache.trim(7)
        cache.update(k[:, :, size - 7 : size - 4], v[:, :, size - 7 : size - 4])
        whole = flex.Int8KV(quantise_value=quantise_value)
        few = size < 64  # then the mean is that of what is there
        whole.update(*(x[:, :, : size - 4] if few else x for x in (k, v)))
        for got, want in zip(cache.dequantised(), whole.dequantised(), strict=True):
            np.testing.assert_array_equal(got, want[:, :, : size - 4])


def test_a_cache_that_is_trimmed_whole_is_as_new() -> None:
    cache, _, _ = filled([5], mx.float16)
    cache.trim(0)
    cache.trim(5)
    assert cache.nbytes == len(cache) == 0
    other = mx.array(RNG.normal(size=(1, 1, 3, 8)) + 4)
    cache.update(other, other)
    mean = cache.key.means
    assert mean is not None
    np.testing.assert_allclose(mean, np.array(other).mean(axis=2, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("count", [-1, 6, 1.0, True])
def test_trimming_what_is_not_there(count: Any) -> None:
    cache, _, _ = filled([5])
    with pytest.raises(ValueError, match=f"cannot trim {count} tokens of 5; expected a whole number from 0"):
        cache.trim(count)
    assert len(cache) == 5


def test_an_empty_cache() -> None:
    for ask in (lambda c: c.key, lambda c: c.value, lambda c: c.dequantised()):
        with pytest.raises(ValueError, match=r"the cache is empty; update\(\) it"):
            ask(flex.Int8KV())
    cache = flex.Int8KV()
    assert (cache or flex.Int8KV()) is cache
    with pytest.raises(ValueError, match="step is 0; expected a positive whole number"):
        flex.Int8KV(step=0)
