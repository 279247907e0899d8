"""Gradients of flex_attention by q, k, v, lse and max_scores, against plain Python and float64 numpy
(tests/gradient_reference.py), which finite differences of the loss check here."""

from __future__ import annotations

import functools
import hashlib
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import gradient_reference
import mlx.core as mx
import numpy as np
import pytest
import reference
import test_zoo
import zoo
from backends import CUDA
from test_zoo import SHAPES, Shape

import flextrace as flex
from flextrace.kernels.cpu import backward

BACKENDS = ("cpu", "ops", *CUDA)
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


@pytest.mark.sampled(3)
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


@pytest.mark.sampled(40)
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


# -- score_mods and what they capture ----------------------------------------------------------------------------

SCORES = [entry for entry in zoo.ZOO.values() if entry.kind == "score"]


class Replay:
    """The maker of captured arrays of a mod that is differentiated by them: floating ones come from a list."""

    def __init__(self, given: list[mx.array] | None = None) -> None:
        self.given = given
        self.made: list[mx.array] = []

    def __call__(self, values: Any, dtype: str = "float32") -> mx.array:
        array = zoo.mx_array(values, dtype)
        if not mx.issubdtype(array.dtype, mx.floating):
            return array
        self.made.append(array if self.given is None else self.given[len(self.made)])
        return self.made[-1]


def captured_gradients(entry: zoo.Entry, shape: Shape, backend: str) -> list[mx.array]:
    """Of q, k, v and all floating arrays that the entry captures."""
    first = Replay()
    test_zoo.make(entry, shape, first)

    def out(q: mx.array, k: mx.array, v: mx.array, *arrays: mx.array) -> list[mx.array]:
        score_mod = test_zoo.make(entry, shape, Replay(list(arrays)))[0]
        options, gqa = {"BACKEND": backend}, q.shape[1] != k.shape[1]
        return [flex.flex_attention(q, k, v, score_mod, enable_gqa=gqa, kernel_options=options)]

    d_out = mx.array(cotangents(shape)[0].astype(np.float32))
    return list(mx.vjp(out, [*test_zoo.make_inputs(shape).arrays, *first.made], [d_out])[1])


@pytest.mark.sampled(20)
@pytest.mark.parametrize("entry", SCORES, ids=str)
def test_score_mods(entry: zoo.Entry) -> None:
    got, want = captured_gradients(entry, SHAPES["gqa"], "cpu"), expected(entry.name, "gqa", "float32", False)
    compare(got, want, "float32", str(entry))
    assert len(got) == 3 + len(want.arrays)
    for mine, exact in zip(got[3:], want.arrays, strict=True):
        worth = 3e-5 if mine.dtype == mx.float32 else 2e-2
        largest = max(1.0, float(np.abs(exact).max(initial=0)))
        reference.assert_close(mine, exact, worth * largest, worth, f"{entry}: a captured array")


L, LK, HEADS = 140, 150, 4  # more than one tile of rows and of keys
RNG = np.random.default_rng(2)
ROWS_OF, KEYS_OF = mx.array(RNG.integers(0, 5, L)), mx.array(RNG.integers(0, 6, LK))
ARRAYS = {
    name: mx.array(RNG.normal(size=size).astype(np.float32))
    for name, size in {
        "number": (),
        "of_head": (HEADS,),
        "of_batch_and_head": (2, HEADS),
        "of_row": (2, L),
        "of_key": (HEADS, LK),
        "of_difference": (HEADS, L + LK),
        "dense": (L, LK),
        "dense_by_head": (HEADS, LK, L),
        "dense_by_all": (2, HEADS, L, LK),
        "table": (5, 6),
    }.items()
}
Arrays = dict[str, mx.array]
MODS: dict[str, Any] = {
    "number": lambda a: lambda s, b, h, i, j: s * a["number"] + a["number"] * a["number"] * (i - j) * 0.01,
    "of_head": lambda a: lambda s, b, h, i, j: s + a["of_head"][h] * (i - j) * 0.01,
    "two_sites": lambda a: lambda s, b, h, i, j: s * a["of_head"][h] + a["of_head"][(h + 1) % HEADS],
    "chained": lambda a: lambda s, b, h, i, j: s + a["of_batch_and_head"][b][h] * s,
    "of_row": lambda a: lambda s, b, h, i, j: s * a["of_row"][b, i],
    "of_row_by_data": lambda a: lambda s, b, h, i, j: s * a["of_head"][ROWS_OF[i] % HEADS],
    "of_key": lambda a: lambda s, b, h, i, j: s + mx.tanh(s * a["of_key"][h, j]),
    "of_key_by_data": lambda a: lambda s, b, h, i, j: s * a["of_row"][b, KEYS_OF[j]],
    "difference": lambda a: lambda s, b, h, i, j: s * a["of_difference"][h, i - j + LK],
    "distance": lambda a: lambda s, b, h, i, j: s + a["of_difference"][h, abs(i - j)],
    "bucket": lambda a: lambda s, b, h, i, j: s + a["of_batch_and_head"][0, mx.minimum(abs(j - i) // 16, 3)],
    "dense": lambda a: lambda s, b, h, i, j: s + a["dense"][i, j] * s,
    "dense_by_head": lambda a: lambda s, b, h, i, j: s + a["dense_by_head"][h, j, i],
    "dense_by_all": lambda a: lambda s, b, h, i, j: s + a["dense_by_all"][b, h, i, j],
    "table": lambda a: lambda s, b, h, i, j: s + a["table"][ROWS_OF[i], KEYS_OF[j]] * s,
    "by_sum": lambda a: lambda s, b, h, i, j: s + a["of_difference"][h, i + j],
    "unused": lambda a: lambda s, b, h, i, j: mx.where(a["number"] > 0, s, 2 * s),
    "ignores_its_score": lambda a: lambda s, b, h, i, j: a["of_head"][h] * j,
    "all": lambda a: (
        lambda s, b, h, i, j: s * a["number"] + a["of_head"][h] * a["of_key"][h, j] + a["of_difference"][h, i - j + LK]
    ),
}
Q, K, V, D_OUT = (
    mx.array(RNG.normal(size=size).astype(np.float32))
    for size in ((2, HEADS, L, 32), (2, 2, LK, 32), (2, 2, LK, 24), (2, HEADS, L, 24))
)


def loss(name: str, mask: Any, **options: Any) -> Any:
    def of(q: mx.array, k: mx.array, v: mx.array, arrays: Arrays) -> mx.array:
        score_mod = MODS[name](arrays)
        return (flex.flex_attention(q, k, v, score_mod, mask, enable_gqa=True, kernel_options=options) * D_OUT).sum()

    return mx.grad(of, argnums=(0, 1, 2, 3))


MASKED = {
    "none": None,
    "causal": flex.mods.causal(offset=0),
    "window": flex.mods.sliding_window(30, offset=0),
    "blocks": flex.create_block_mask(flex.mods.sliding_window(30), 2, HEADS, L, LK, BLOCK_SIZE=(64, 32), offset=0),
}


def differences(got: Any, want: Any) -> dict[str, float]:
    """Of each gradient, relative to its largest element."""
    names = ["q", "k", "v", *ARRAYS]
    arrays = [([*each[:3], *each[3].values()]) for each in (got, want)]
    return {
        name: float(mx.abs(mine - exact).max() / mx.maximum(mx.abs(exact).max(), 1.0))
        for name, mine, exact in zip(names, *arrays, strict=True)
    }


@pytest.mark.sampled(19)
@pytest.mark.parametrize("mask", MASKED)
@pytest.mark.parametrize("name", MODS)
def test_captured_arrays_over_several_tiles(name: str, mask: str) -> None:
    want = loss(name, MASKED[mask], BACKEND="ops")(Q, K, V, ARRAYS)
    found = differences(loss(name, MASKED[mask], BACKEND="cpu")(Q, K, V, ARRAYS), want)
    assert max(found.values()) < 5e-5, found


def bits(gradients: Any) -> list[bytes]:
    return [np.array(x).tobytes() for x in (*gradients[:3], *gradients[3].values())]


def test_the_same_bits_on_any_number_of_threads() -> None:
    for name, mask in (("all", "causal"), ("table", "window")):
        runs = [bits(loss(name, MASKED[mask], NUM_THREADS=n)(Q, K, V, ARRAYS)) for n in (1, 2, 3, 2)]
        assert all(run == runs[0] for run in runs), name


def test_one_head_is_shared_out_and_keeps_its_bits() -> None:
    q, k = (mx.array(RNG.normal(size=(1, 1, 1500, 32)).astype(np.float32)) for _ in range(2))

    def gradient(threads: int) -> list[mx.array]:
        def of(q: mx.array, k: mx.array, gain: mx.array) -> mx.array:
            def gained(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
                return score * gain

            out = flex.flex_attention(q, k, k, gained, flex.mods.causal, kernel_options={"NUM_THREADS": threads})
            return (out * mx.cos(mx.arange(out.size).reshape(out.shape))).sum()

        return list(mx.grad(of, argnums=(0, 1, 2))(q, k, mx.array(0.7)))

    runs = [[np.array(x).tobytes() for x in gradient(threads)] for threads in (1, 2, 5, 5)]
    assert all(run == runs[0] for run in runs)


IN_A_PROCESS = """
import sys; sys.path[:0] = {path!r}
import hashlib, test_gradients as t
print(hashlib.sha256(b"".join(t.bits(t.loss("all", t.MASKED["causal"])(t.Q, t.K, t.V, t.ARRAYS)))).hexdigest())
"""


def test_the_same_bits_in_another_process() -> None:
    mine = hashlib.sha256(b"".join(bits(loss("all", MASKED["causal"])(Q, K, V, ARRAYS)))).hexdigest()
    done = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS.format(path=[str(Path(__file__).parent), str(Path(__file__).parents[1])])],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == mine


# -- rows that attend to nothing, infinities, what is not a number ------------------------------------------------


def gradients_of_out(
    score_mod: Any, mask: Any, q: mx.array, k: mx.array, v: mx.array, backend: str = "cpu"
) -> list[mx.array]:
    options = {"BACKEND": backend}

    def of(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return (
            flex.flex_attention(q, k, v, score_mod, mask, kernel_options=options) * mx.arange(1.0, 1 + v.shape[-1])
        ).sum()

    return list(mx.grad(of, argnums=(0, 1, 2))(q, k, v))


def normal(*size: int) -> mx.array:
    return mx.array(np.random.default_rng(sum(size)).normal(size=size).astype(np.float32))


def test_rows_without_keys_get_zero_and_give_none() -> None:
    q, k = normal(1, 2, 40, 16), normal(1, 2, 300, 16)
    dq, dk, dv = gradients_of_out(None, lambda b, h, i, j: (i >= 20) & (j > 200), q, k, k)
    assert not np.array(dq[:, :, :20]).any() and np.array(dq[:, :, 20:]).all()
    assert not np.array(dk[:, :, :201]).any() and np.array(dk[:, :, 201:]).all() and np.isfinite(np.array(dv)).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_score_of_minus_infinity_gets_zero(backend: str) -> None:
    q, k = normal(1, 1, 20, 16), normal(1, 1, 150, 16)

    def by_score(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        return mx.where((j < 130) & (i < 10) | (i == 11), -mx.inf, mx.sqrt(score * score))

    kept = lambda b, h, i, j: not ((j < 130) & (i < 10) | (i == 11))  # noqa: E731
    got = gradients_of_out(by_score, None, q, k, k, backend)
    want = gradients_of_out(lambda s, b, h, i, j: mx.sqrt(s * s), kept, q, k, k, backend)
    for mine, same in zip(got, want, strict=True):
        np.testing.assert_allclose(np.array(mine), np.array(same), atol=1e-5)
    assert not np.array(got[0][:, :, 11]).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_groups_of_rows_without_keys_between_others(backend: str) -> None:
    q, k = normal(4, 4, 96, 16), normal(4, 4, 140, 16)  # heads enough for query tiles of several groups of rows
    mask = lambda b, h, i, j: (i // 12 % 2 == 0) | (j < 5)  # noqa: E731
    got = gradients_of_out(None, mask, q, k, k, backend)
    rows, keys = np.ogrid[:96, :140]
    bias = mx.array(np.where(mask(0, 0, rows, keys), 0, -np.inf).astype(np.float32))

    def dense(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        weights = mx.softmax(q @ k.swapaxes(2, 3) / 4 + bias, axis=-1)
        return (weights @ v * mx.arange(1.0, 17)).sum()

    for mine, same in zip(got, mx.grad(dense, argnums=(0, 1, 2))(q, k, k), strict=True):
        np.testing.assert_allclose(np.array(mine), np.array(same), atol=2e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_derivative_that_is_infinite_where_nothing_is_attended_to_adds_nothing(backend: str) -> None:
    q, k = normal(1, 1, 20, 16), normal(1, 1, 150, 16)
    keys = mx.where(mx.arange(150).reshape(1, 1, 150, 1) < 140, k, 0.0)  # scores of 0, where the root has no slope
    got = gradients_of_out(lambda s, b, h, i, j: mx.sqrt(s * s), lambda b, h, i, j: j < 140, q, keys, k, backend)
    want = gradients_of_out(lambda s, b, h, i, j: mx.sqrt(s * s), None, q, k[:, :, :140], k[:, :, :140], backend)
    assert not any(np.array(x[:, :, 140:]).any() for x in got[1:])
    for mine, same in zip((got[0], got[1][:, :, :140], got[2][:, :, :140]), want, strict=True):
        np.testing.assert_allclose(np.array(mine), np.array(same), atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_largest_scores_share_what_their_maximum_gets(backend: str) -> None:
    q, k = mx.zeros((1, 1, 3, 16)), normal(1, 1, 150, 16)
    mask = lambda b, h, i, j: (j % 3 != i) | (j > 140)  # noqa: E731

    def largest(q: mx.array) -> mx.array:
        aux, options = flex.AuxRequest(max_scores=True), {"BACKEND": backend}
        return flex.flex_attention(q, k, k, block_mask=mask, return_aux=aux, kernel_options=options)[1].max_scores.sum()

    kept = np.array([[bool(mask(0, 0, i, j)) for j in range(150)] for i in range(3)])
    means = np.stack([np.array(k[0, 0])[row].mean(axis=0) for row in kept])
    np.testing.assert_allclose(np.array(mx.grad(largest)(q))[0, 0], means / 4, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_the_mask_leaves_out_may_hold_anything(bad: float, backend: str) -> None:
    q, k, v = normal(1, 1, 30, 16), normal(1, 1, 140, 16), normal(1, 1, 140, 8)
    mask = lambda b, h, i, j: (i < 25) & (j < 133)  # noqa: E731
    want = gradients_of_out(None, mask, q, k, v, backend)
    row, key = (mx.arange(n).reshape(1, 1, n, 1) for n in (30, 140))
    spoilt = mx.where(row >= 25, bad, q), mx.where(key >= 133, bad, k), mx.where(key >= 133, bad, v)
    rounding = 2e-6 if backend in CUDA else 0.0  # such values are summed apart there, in another order
    for mine, same in zip(gradients_of_out(None, mask, *spoilt, backend), want, strict=True):
        np.testing.assert_allclose(np.array(mine), np.array(same), rtol=0, atol=rounding)


def test_no_rows_or_no_keys() -> None:
    for rows, keys in ((0, 5), (5, 0)):
        q, k = mx.zeros((1, 2, rows, 8)), mx.zeros((1, 2, keys, 8))
        dq, dk, dv = gradients_of_out(None, None, q, k, k)
        assert (dq.shape, dk.shape, dv.shape) == (q.shape, k.shape, k.shape)
        assert not any(np.array(x).any() for x in (dq, dk, dv))


def test_any_strides_of_what_comes_back() -> None:
    q = normal(1, 30, 2, 16).swapaxes(1, 2)
    ways = {
        "broadcast": lambda out: out.sum(),
        "transposed": lambda out: (out.swapaxes(2, 3) * mx.arange(30.0)).sum(),
        "reversed": lambda out: (out[..., ::-1] * mx.arange(16.0)).sum(),
    }
    for name, way in ways.items():
        both = [
            mx.grad(lambda q, b=backend, way=way: way(flex.flex_attention(q, q, q, kernel_options={"BACKEND": b})))(q)
            for backend in BACKENDS
        ]
        np.testing.assert_allclose(*map(np.array, both), atol=1e-4, err_msg=name)


def test_keys_of_one_batch_and_a_view_of_them_for_every_batch() -> None:
    q, k = normal(3, 2, 20, 16), normal(1, 2, 30, 16)
    for keys in (k, mx.broadcast_to(k, (3, 2, 30, 16))):
        both = [
            mx.grad(lambda k, b=b: (flex.flex_attention(q, k, k, kernel_options={"BACKEND": b}) * q).sum())(keys)
            for b in BACKENDS
        ]
        assert both[0].shape == keys.shape
        np.testing.assert_allclose(*map(np.array, both), atol=1e-5)


# -- limits -------------------------------------------------------------------------------------------------------


def test_memory_of_captured_gradients_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    want = bits(loss("table", None)(Q, K, V, ARRAYS))
    monkeypatch.setattr(backward, "MOST_BYTES", 4 * 30)  # one thread's table
    assert bits(loss("table", None)(Q, K, V, ARRAYS)) == want
    monkeypatch.setattr(backward, "MOST_BYTES", 4 * 30 - 1)
    with pytest.raises(ValueError, match=r"the gradient of .* for each thread, which is over .* Index it by one side"):
        loss("table", None)(Q, K, V, ARRAYS)
