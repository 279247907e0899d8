"""sinks=: one more term in each denominator, against attention over one more key in float64, and against MLX's own."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import reference
from backends import EVERY, WAYS

import flextrace as flex

SINKS = [0.5, -1.0, 3.0, 0.0]  # of four query heads
SLOPES = mx.array([0.3, 0.1, -0.2, 0.05])


def tensors(q_len: int = 21, kv_len: int = 21, kv_heads: int = 2, dtype: Any = mx.float32) -> tuple[mx.array, ...]:
    rng = np.random.default_rng(5)
    shapes = ((2, 4, q_len, 16), (2, kv_heads, kv_len, 16), (2, kv_heads, kv_len, 8))
    return tuple(mx.array(rng.normal(size=shape).astype(np.float32)).astype(dtype) for shape in shapes)


def steep(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score + SLOPES[h] * (kv_idx - q_idx)


def causal(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx >= kv_idx


def late(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx >= 5 and kv_idx <= q_idx - 5


def with_one_more_key(
    q: mx.array, k: mx.array, v: mx.array, score_mod: Any = None, mask_mod: Any = None, scale: float | None = None
) -> reference.Attention:
    """Dense, float64: the last key has the score of its head's sink, and the value 0. max_scores is without it."""
    arrays = [np.array(x.astype(mx.float32)).astype(np.float64) for x in (q, k, v)]
    q, k, v = arrays
    last = k.shape[2]
    wider = [np.pad(x, [(0, 0), (0, 0), (0, 1), (0, 0)]) for x in (k, v)]

    def score(s: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        if kv_idx == last:
            return SINKS[h]
        return s if score_mod is None else score_mod(s, b, h, q_idx, kv_idx)

    def mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return kv_idx == last or mask_mod is None or mask_mod(b, h, q_idx, kv_idx)

    keys_only = reference.attention(q, k, v, score_mod, mask_mod, scale)
    return reference.attention(q, *wider, score, mask, scale)._replace(max_scores=keys_only.max_scores)


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("case", ["plain", "mods", "blocks", "empty rows"])
def test_a_sink_is_a_key_that_brings_nothing(backend: str, case: str) -> None:
    q, k, v = tensors()
    score_mod = steep if case == "mods" else None
    mask_mod = {"plain": None, "empty rows": late}.get(case, causal)
    mask: Any = mask_mod
    if case == "blocks":
        mask = flex.create_block_mask(causal, None, None, 21, 21, BLOCK_SIZE=8)
    request = flex.AuxRequest(lse=True, max_scores=True)
    out, aux = flex.flex_attention(
        q,
        k,
        v,
        score_mod,
        mask,
        0.7,
        enable_gqa=True,
        return_aux=request,
        sinks=mx.array(SINKS),
        kernel_options={"BACKEND": backend},
    )
    expected = with_one_more_key(q, k, v, score_mod, mask_mod, 0.7)
    for got, right, what in zip((out, aux.lse, aux.max_scores), expected, expected._fields, strict=True):
        reference.assert_close(got, right, 2e-5, 2e-5, what)
    if case == "empty rows":
        assert mx.all(out[:, :, :5] == 0) and mx.all(aux.lse[:, :, :5] == mx.array(SINKS)[:, None])


@pytest.mark.parametrize("way", [way for way in WAYS if "-" in way and way.startswith("cpu")])
def test_sinks_go_with_stages_and_quantisation(way: str) -> None:
    q, k, v = tensors()
    options = {"enable_gqa": True, "sinks": mx.array(SINKS), "kernel_options": WAYS[way]}
    out, lse = flex.flex_attention(q, k, v, block_mask=causal, return_lse=True, **options)
    expected = with_one_more_key(q, k, v, mask_mod=causal)
    tolerance = 2e-5 if way in ("cpu-staged", "cpu-smooth") else 5e-2
    reference.assert_close(out, expected.out, tolerance, tolerance, "out")
    reference.assert_close(lse, expected.lse, tolerance, tolerance, "lse")


def test_sinks_go_with_keys_in_int8() -> None:
    q, k, v = tensors()
    cache = flex.Int8KV(quantise_value=True)
    cache.update(k, v)
    sinks = mx.array(SINKS)
    out = flex.flex_attention(q, cache.key, cache.value, block_mask=causal, enable_gqa=True, sinks=sinks)
    reference.assert_close(out, with_one_more_key(q, k, v, mask_mod=causal).out, 5e-2, 5e-2, "out")


def test_intermediates_end_in_what_the_call_returns() -> None:
    q, k, v = tensors()
    out, aux = flex.flex_attention(
        q,
        k,
        v,
        enable_gqa=True,
        sinks=mx.array(SINKS),
        return_aux=flex.AuxRequest(intermediates=True),
        kernel_options={"BACKEND": "cpu", "PIPELINE": "staged"},
    )
    assert aux.lse is None and aux.intermediates is not None
    assert mx.array_equal(aux.intermediates["out"], out)
    reference.assert_close(aux.intermediates["lse"], with_one_more_key(q, k, v).lse, 2e-5, 2e-5, "lse")


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_half_precision_takes_sinks_of_either_dtype(dtype: Any) -> None:
    q, k, v = tensors(dtype=dtype)
    expected = with_one_more_key(q, k, v, mask_mod=causal)
    for sinks in (mx.array(SINKS), mx.array(SINKS, dtype)):
        options = {"enable_gqa": True, "sinks": sinks}
        out, lse = flex.flex_attention(q, k, v, block_mask=causal, return_lse=True, **options)
        assert (out.dtype, lse.dtype) == (dtype, mx.float32)
        tolerance = reference.tolerance(dtype)
        reference.assert_close(out, expected.out, tolerance.absolute, tolerance.relative, "out")
        reference.assert_close(lse, expected.lse, tolerance.statistic_absolute, tolerance.statistic_relative, "lse")


@pytest.mark.parametrize("backend", EVERY)
def test_sinks_are_those_of_mlx(backend: str) -> None:
    q, k, v = tensors(kv_len=30)
    options: dict[str, Any] = {"scale": 0.25, "sinks": mx.array(SINKS)}
    got = flex.flex_attention(q, k, v, enable_gqa=True, kernel_options={"BACKEND": backend}, **options)
    expected = mx.fast.scaled_dot_product_attention(q, k, v, **options)
    np.testing.assert_allclose(np.array(got), np.array(expected), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("backend", ["cpu", "ops", pytest.param("simulator", marks=pytest.mark.long)])
def test_gradients_are_those_of_mlx(backend: str) -> None:
    q, k, v = tensors()
    weights = mx.random.normal((2, 4, 21, 8), key=mx.random.key(1))
    seen = mx.tril(mx.ones((21, 21), mx.bool_))

    def ours(q: mx.array, k: mx.array, v: mx.array, sinks: mx.array) -> mx.array:
        options = {"enable_gqa": True, "sinks": sinks, "kernel_options": {"BACKEND": backend}}
        return (flex.flex_attention(q, k, v, block_mask=causal, **options) * weights).sum()

    def mlxs(q: mx.array, k: mx.array, v: mx.array, sinks: mx.array) -> mx.array:
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.25, mask=seen, sinks=sinks)
        return (out * weights).sum()

    inputs = (q, k, v, mx.array(SINKS))
    for got, expected in zip(*(mx.grad(f, argnums=(0, 1, 2, 3))(*inputs) for f in (ours, mlxs)), strict=True):
        np.testing.assert_allclose(np.array(got), np.array(expected), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", ["cpu", "ops"])
def test_gradients_by_the_sinks_also_come_through_lse(backend: str) -> None:
    """The derivative of lse by a sink is its weight, that of out is -weight * out, also of rows without keys."""
    q, k, v = tensors()

    def statistic(sinks: mx.array) -> mx.array:
        options = {"enable_gqa": True, "sinks": sinks, "kernel_options": {"BACKEND": backend}}
        out, lse = flex.flex_attention(q, k, v, block_mask=late, return_lse=True, **options)
        return (lse + 2 * out.sum(-1)).sum((0, 2))

    got = mx.grad(lambda sinks: statistic(sinks).sum())(mx.array(SINKS))
    out, lse, _ = with_one_more_key(q, k, v, mask_mod=late)
    weight = np.exp(np.array(SINKS)[:, None] - lse)
    reference.assert_close(got, (weight * (1 - 2 * out.sum(-1))).sum((0, 2)), 1e-4, 1e-4, "gradient")


@pytest.mark.parametrize("backend", ["cpu", "ops"])
def test_a_sink_of_minus_infinity_is_none(backend: str) -> None:
    q, k, v = tensors()
    none = mx.full((4,), -mx.inf)
    options: dict[str, Any] = {"enable_gqa": True, "return_lse": True, "kernel_options": {"BACKEND": backend}}
    plain, sunk = (flex.flex_attention(q, k, v, block_mask=late, sinks=s, **options) for s in (None, none))
    for got, expected in zip(sunk, plain, strict=True):
        reference.assert_close(got, np.array(expected, np.float64), 1e-6, 1e-6, "without")
    gradient = mx.grad(lambda q: flex.flex_attention(q, k, v, block_mask=late, sinks=none, **options)[0].sum())(q)
    assert mx.all(mx.isfinite(gradient))


@pytest.mark.parametrize("transform", [pytest.param("compile", marks=pytest.mark.long), "vmap"])
def test_sinks_inside_transformations(transform: str) -> None:
    q, k, v = tensors()

    def call(sinks: mx.array) -> mx.array:
        return flex.flex_attention(q, k, v, enable_gqa=True, sinks=sinks, kernel_options={"BACKEND": "ops"})

    sinks = mx.array(SINKS)
    got = mx.compile(call)(sinks) if transform == "compile" else mx.vmap(call)(mx.stack([sinks + 1, sinks]))[1]
    reference.assert_close(got, with_one_more_key(q, k, v).out, 2e-5, 2e-5, transform)


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "list": (SINKS, TypeError, r"sinks is a list; convert it with mx.array"),
    "per key head": (mx.array([0.0, 1.0]), ValueError, r"sinks has shape \(2,\); expected .* query head: \(4,\)"),
    "two axes": (mx.zeros((1, 4)), ValueError, r"sinks has shape \(1, 4\); expected"),
    "integers": (mx.zeros((4,), mx.int32), TypeError, r"sinks is int32; make it float32 with .astype"),
    "other half": (mx.zeros((4,), mx.float16), TypeError, r"sinks is float16; make it float32 with .astype"),
}


@pytest.mark.parametrize("case", BAD)
def test_sinks_that_do_not_fit(case: str) -> None:
    q, k, v = tensors()
    sinks, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        flex.flex_attention(q, k, v, enable_gqa=True, sinks=sinks)
    with pytest.raises(TypeError, match="make it float32 or bfloat16 with"):
        half = [x.astype(mx.bfloat16) for x in (q, k, v)]
        flex.flex_attention(*half, enable_gqa=True, sinks=mx.zeros((4,), mx.float16))
