"""Int8KV: what it keeps of keys and values, what it costs, and attention on what it gives back."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import quant_reference
import reference

import flextrace as flex

RNG = np.random.default_rng(0)


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
        if isinstance(rows, flex.kv_cache.Int8Rows):
            half = np.array(rows.scales)[..., None] / 2
            assert (abs(got - want) <= half * 1.001 + rounding * abs(want) + 1e-6).all()
        else:
            np.testing.assert_array_equal(got, want)


def test_integers_are_those_of_the_kernels() -> None:
    x = RNG.normal(size=(20, 32)).astype(np.float32)
    x[3], x[4] = 0, 1e-40
    x[5, 2], x[6, 7] = np.inf, np.nan
    values, scales = flex.kv_cache.quantised(mx.array(x))
    want = quant_reference.quantise(x, 1, np.zeros(20, int))
    np.testing.assert_array_equal(np.array(values), want.integers)
    np.testing.assert_allclose(np.array(scales), want.scale, rtol=1e-6)


def test_the_mean_is_that_of_the_first_update() -> None:
    cache, k, _ = filled([12, 5])
    assert cache.key.means is not None
    np.testing.assert_allclose(np.array(cache.key.means), np.array(k[:, :, :12].mean(axis=2, keepdims=True)), atol=1e-5)
    assert filled([12], smooth_k=False)[0].key.means is None


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


@pytest.mark.parametrize("quantise_value", [False, True])
def test_decoding_step_by_step(quantise_value: bool) -> None:
    """Attention of each new token over the cache is near float64 attention over all tokens."""
    cache, k, v = filled([40], quantise_value=quantise_value)
    for _ in range(6):
        new_k, new_v, q = tokens(1, shift=1.0), tokens(1, columns=48), tokens(1)
        cache.update(new_k, new_v)
        k, v = mx.concatenate([k, new_k], axis=2), mx.concatenate([v, new_v], axis=2)
        got = np.array(flex.flex_attention(q, *cache.dequantised()))
        want = reference.attention(*(np.array(x) for x in (q, k, v))).out
        found = quant_reference.figures(got, want)
        assert found.cosine > 0.9998 and found.relative_l1 < 0.02, found


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        ((2, 3, 4), (2, 3, 4), ValueError, "expected"),
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
    for key, value in ((mx.float32, mx.float32), (mx.float16, mx.float32), (mx.int32, mx.int32)):
        with pytest.raises(TypeError, match="make them one of float32, float16 and bfloat16"):
            cache.update(tokens(1, key), tokens(1, value, columns=48))


def test_an_empty_cache() -> None:
    for ask in (lambda c: c.key, lambda c: c.value, lambda c: c.dequantised()):
        with pytest.raises(ValueError, match=r"the cache is empty; update\(\) it"):
            ask(flex.Int8KV())
    with pytest.raises(ValueError, match="step is 0; expected a positive whole number"):
        flex.Int8KV(step=0)
