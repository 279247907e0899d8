"""Gradients of flex_attention by q, k, v, lse and max_scores, against plain Python and float64 numpy
(tests/gradient_reference.py), which finite differences of the loss check here."""

from __future__ import annotations

import functools
import math
from typing import Any

import gradient_reference
import mlx.core as mx
import numpy as np
import pytest
import reference
import test_zoo
import zoo
from test_zoo import SHAPES, Shape

import flextrace as flex

BACKENDS = ("cpu", "ops")
WORTH = {
    "float32": (3e-5, 3e-5),
    "float16": (4e-3, 4e-3),
    "bfloat16": (3e-2, 3e-2),
}  # absolute of the largest, relative
MASKS = [entry for entry in zoo.ZOO.values() if entry.kind == "mask"]


def cotangents(shape: Shape) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of out, lse and max_scores, float64 numbers that float32 has."""
    rng = np.random.default_rng(5)
    sizes = (shape.B, shape.Hq, shape.Lq, shape.Dv), (shape.B, shape.Hq, shape.Lq), (shape.B, shape.Hq, shape.Lq)
    out, lse, largest = (rng.normal(size=size).astype(np.float32).astype(np.float64) for size in sizes)
    return out, lse, largest


def dtyped(values: np.ndarray, dtype: str) -> np.ndarray:
    return reference.array(values, dtype)


@functools.lru_cache(maxsize=8)
def expected(name: str, shape_name: str, dtype: str, statistics: bool) -> gradient_reference.Gradients:
    shape = SHAPES[shape_name]
    watch = gradient_reference.Watch()
    score_mod, mask_mod = test_zoo.make(zoo.ZOO[name], shape, watch) if name else (None, None)
    d_out, d_lse, d_max = cotangents(shape)
    aux = (d_lse, d_max) if statistics else (None, None)
    exact = test_zoo.make_inputs(shape, dtype).exact
    return gradient_reference.attention_gradients(
        *exact, dtyped(d_out, dtype), *aux, score_mod=score_mod, mask_mod=mask_mod, watched=watch
    )


def gradients(
    inputs: tuple[mx.array, ...], shape: Shape, backend: str, score_mod: Any, block_mask: Any, statistics: bool
) -> list[mx.array]:
    d_out, d_lse, d_max = (mx.array(x.astype(np.float32)) for x in cotangents(shape))

    def outputs(q: mx.array, k: mx.array, v: mx.array) -> list[mx.array]:
        out, aux = test_zoo.attend((q, k, v), score_mod, block_mask, backend)
        return [out, aux.lse, aux.max_scores]

    def only_out(q: mx.array, k: mx.array, v: mx.array) -> list[mx.array]:
        options = {"BACKEND": backend}
        gqa = q.shape[1] != k.shape[1]
        return [flex.flex_attention(q, k, v, score_mod, block_mask, enable_gqa=gqa, kernel_options=options)]

    function, given = (outputs, [d_out, d_lse, d_max]) if statistics else (only_out, [d_out])
    given[0] = given[0].astype(inputs[0].dtype)
    return list(mx.vjp(function, list(inputs), given)[1])


def compare(got: list[mx.array], want: Any, dtype: str, what: str) -> None:
    absolute, relative = WORTH[dtype]
    for name, mine, exact in zip("qkv", got, want, strict=False):
        largest = max(1.0, float(np.abs(exact).max(initial=0)))
        reference.assert_close(mine, exact, absolute * largest, relative, f"{what}: the gradient of {name}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("statistics", [False, True], ids=["out", "out-lse-max"])
@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "length_512"])
def test_plain_attention(shape: str, statistics: bool, backend: str) -> None:
    got = gradients(test_zoo.make_inputs(SHAPES[shape]).arrays, SHAPES[shape], backend, None, None, statistics)
    compare(got, expected("", shape, "float32", statistics), "float32", f"{shape} on {backend}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype: str, backend: str) -> None:
    got = gradients(test_zoo.make_inputs(SHAPES["gqa"], dtype).arrays, SHAPES["gqa"], backend, None, None, False)
    compare(got, expected("", "gqa", dtype, False), dtype, f"{dtype} on {backend}")


@pytest.mark.sampled(12)
@pytest.mark.parametrize("entry", MASKS, ids=str)
def test_masks(entry: zoo.Entry) -> None:
    mask = test_zoo.make(entry, SHAPES["gqa"])[1]
    got = gradients(test_zoo.make_inputs(SHAPES["gqa"]).arrays, SHAPES["gqa"], "cpu", None, mask, True)
    compare(got, expected(entry.name, "gqa", "float32", True), "float32", str(entry))


@pytest.mark.parametrize("causal", [False, True], ids=["none", "causal"])
def test_the_reference_agrees_with_differences_of_the_loss(causal: bool) -> None:
    shape = Shape(2, 4, 5, 3, 1, 2, 6, 2)
    d_out, d_lse, d_max = cotangents(shape)
    exact = test_zoo.make_inputs(shape).exact
    bias = gradient_reference.Watch()
    table = bias(np.random.default_rng(0).normal(size=(4, 11)))

    def score_mod(score: float, b: int, h: int, q_idx: int, kv_idx: int) -> float:
        return 3 * math.tanh(score / 3) + table[h, q_idx - kv_idx + 5]

    mask_mod = (lambda b, h, q_idx, kv_idx: q_idx >= kv_idx) if causal else None
    found = gradient_reference.attention_gradients(
        *exact, d_out, d_lse, d_max, score_mod=score_mod, mask_mod=mask_mod, watched=bias
    )

    def loss(arrays: list[np.ndarray]) -> float:
        table.values = arrays[3]
        got = reference.attention(*arrays[:3], score_mod, mask_mod)
        return float((got.out * d_out).sum() + (got.lse * d_lse).sum() + (got.max_scores * d_max).sum())

    arrays = [*exact, table.values]
    for i, gradient in enumerate([*found[:3], *found.arrays]):
        direction = np.random.default_rng(i).normal(size=gradient.shape)
        ends = [loss([x + step * direction if i == j else x for j, x in enumerate(arrays)]) for step in (1e-6, -1e-6)]
        table.values = arrays[3]
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float((gradient * direction).sum()), rel=1e-5, abs=1e-6)
