"""int8 and smoothed keys in the fused Metal kernel, in the simulator with all checks on, against the same rounding in
numpy."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import reference
import zoo
from apparatus.quantised import MASKS, MODS, QUANTS, SCALE, biased, compare, floats, made, relative_l1, run, smoothing
from apparatus.simulated import DTYPES, ORDERS, SHAPES, Shape, backend, inputs
from calls import attention_call, run_on

import flextrace as flex
from flextrace.kernels import QKQuant

KINDS = ("ragged", "odd_dims", "gqa", "kv_batch_one", "dim_128", "dim_512")  # not a few rows: these are not rounded


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    ("shape", "quant"), [(s, q) for i, s in enumerate(KINDS) for j, q in enumerate(QUANTS) if (i + j) % 2 == 0]
)
def test_attention_rounds_as_numpy_does(shape: str, quant: str) -> None:
    """Every other pair, each in one dtype and lane order, turning."""
    turn = list(SHAPES).index(shape) + list(QUANTS).index(quant)
    tensors, chosen = biased(SHAPES[shape], DTYPES[turn % 3]), QUANTS[quant]
    smooth = smoothing(tensors[1]) if chosen.smooth_k else None
    compare(tensors, run(tensors, chosen, smooth, order=ORDERS[turn // 3 % 3]), chosen, smooth)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*MODS, *MASKS])
def test_every_kind_of_mod_sees_the_whole_score(name: str, dtype: str) -> None:
    turn = [*MODS, *MASKS].index(name) + DTYPES.index(dtype)
    chosen = QUANTS[("block", "row_smooth_q", "odd_blocks", "odd_smooth_q")[turn % 4]]
    tensors = biased(SHAPES["gqa"], dtype, bias=1.0)
    smooth = smoothing(tensors[1], add_back=MODS.get(name, False))
    mod, plain = made(name, SHAPES["gqa"])
    kind = zoo.ZOO[name].kind
    for block_size in (None, 16) if kind == "mask" else (None,):
        result = run(tensors, chosen, smooth, **{f"{kind}_mod": mod}, order=ORDERS[turn % 3], block_size=block_size)
        compare(tensors, result, chosen, smooth, **{kind: plain})


@pytest.mark.sampled(5)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("add_back", [False, True])
@pytest.mark.parametrize("shape", ["ragged", "gqa", "kv_batch_one"])
def test_smoothing_alone_changes_nothing(shape: str, add_back: bool, order: str) -> None:
    tensors = biased(SHAPES[shape], "float32")
    mod = (lambda score, b, h, q_idx, kv_idx: 3 * mx.tanh(score / 3)) if add_back else None
    plain, smooth = (
        run(tensors, None, None, mod),
        run(tensors, None, smoothing(tensors[1], add_back=add_back), mod, None, order),
    )
    for name in ("out", "lse", "max_scores"):
        reference.assert_close(getattr(smooth, name), np.array(getattr(plain, name)), 1e-4, 1e-4, name)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_smoothing_helps_where_keys_are_biased(dtype: str) -> None:
    """The mean makes scores of the order of 100, whose differences are what counts."""
    tensors = biased((1, 1, 40, 64, 1, 1, 96, 64), dtype, bias=30.0)
    exact = reference.attention(*floats(tensors), None, None, SCALE).out
    with_smoothing = relative_l1(run(tensors, QKQuant("block"), smoothing(tensors[1])).out, exact)
    without = relative_l1(run(tensors, QKQuant("block", smooth_k=False), None).out, exact)
    assert 5 * with_smoothing < without
    alone = relative_l1(run(tensors, None, smoothing(tensors[1])).out, exact)
    assert alone < 0.01


@pytest.mark.parametrize("score", [None, lambda score, b, h, q_idx, kv_idx: 3 * mx.tanh(score / 3)])
def test_no_float16_key_becomes_infinite_without_its_mean(score: Any) -> None:
    signs = mx.array([1.0] + [-1.0] * 7)[None, None, :, None]
    q, k, v = inputs((1, 2, 5, 8, 1, 2, 8, 8), "float32")
    tensors = [x.astype(mx.float16) for x in (q * 1e-4, (40000 + k) * signs, v)]
    plain, smooth = (
        flex.flex_attention(*tensors, score, kernel_options={"BACKEND": "simulator", "SMOOTH_K": smooth})
        for smooth in (False, True)
    )
    reference.assert_close(smooth, np.array(plain.astype(mx.float32)), 4e-3, 4e-3, "out")


@pytest.mark.sampled(5)
@pytest.mark.parametrize("quant", [None, "block", "odd_blocks", "row", "odd_smooth_q"])
def test_documents_have_means_of_their_own(quant: str | None) -> None:
    shape: Shape = (2, 2, 60, 24, 2, 1, 60, 16)
    ids = np.stack([np.repeat(np.arange(4), [20, 3, 27, 10]), np.repeat(np.arange(2), [45, 15])])
    captured = mx.array(ids.astype(np.int32))
    q, k, v = inputs(shape, "float32")
    tensors = q, k + mx.array(20.0 * ids[:, None, :, None].astype(np.float32)), v

    def same(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return captured[b, q_idx] == captured[b, kv_idx]

    def plain(b: int, h: int, q_idx: int, kv_idx: int) -> bool:
        return bool(ids[b, q_idx] == ids[b, kv_idx])

    chosen = None if quant is None else QUANTS[quant]
    smooth = smoothing(tensors[1], ids, ids)
    result = run(tensors, chosen, smooth, mask_mod=same)
    if chosen is None:
        want = reference.attention(*floats(tensors), None, plain, SCALE)
        reference.assert_close(result.out, want.out, 1e-4, 1e-4, "out")
        reference.assert_close(result.lse, want.lse, 1e-3, 1e-4, "lse")
    else:
        compare(tensors, result, chosen, smooth, None, plain)
    # Another document's content, however large, does not reach this one: bit for bit.
    elsewhere = mx.array((ids != 1)[:, None, :, None])
    other = mx.where(elsewhere, q * 9, q), mx.where(elsewhere, tensors[1] * -50 + 7, tensors[1]), v
    again = run(other, chosen, smoothing(other[1], ids, ids), mask_mod=same)
    for b in range(2):
        one, two = (np.array(x.out)[b][:, ids[b] == 1] for x in (result, again))
        np.testing.assert_array_equal(one, two)


def test_documents_per_batch_may_share_keys() -> None:
    """One batch of means, cut differently by the rows of each batch; and one of keys for two of groups."""
    ids = np.stack([np.repeat([0, 1], [40, 20]), np.repeat([0, 1], [10, 50])])
    captured = mx.array(ids.astype(np.int32))
    q, k, v = inputs((2, 2, 60, 16, 1, 1, 60, 16), "float32")
    twice = q, *(mx.array(np.repeat(np.array(x), 2, axis=0)) for x in (k, v))
    mask = lambda b, h, q_idx, kv_idx: captured[b, q_idx] == captured[b, kv_idx]  # noqa: E731
    smooth = smoothing(twice[1], ids, ids)
    want = reference.attention(*floats(twice), None, lambda b, h, i, j: bool(ids[b, i] == ids[b, j]), SCALE)
    reference.assert_close(run((q, k, v), None, smooth, mask_mod=mask).out, want.out, 1e-4, 1e-4, "out")
    one, two = (run(x, QKQuant("block"), smooth, mask_mod=mask).out for x in ((q, k, v), twice))
    np.testing.assert_array_equal(np.array(one), np.array(two))


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_an_infinity_spoils_only_who_sees_it(bad: float) -> None:
    tensors = biased((1, 1, 20, 16, 1, 1, 40, 16), "float32")
    smooth, hidden = smoothing(tensors[1]), lambda b, h, q_idx, kv_idx: (q_idx < 10) | (kv_idx != 33)
    clean = run(tensors, QKQuant("block"), smooth, mask_mod=hidden)
    q, k, v = (np.array(x) for x in tensors)
    q[0, 0, 15, 2], k[0, 0, 33, 5] = bad, bad
    got = run((mx.array(q), mx.array(k), mx.array(v)), QKQuant("block"), smooth, mask_mod=hidden)
    spoiled = np.isnan(np.array(got.out)).all(axis=-1)[0, 0]
    assert spoiled.tolist() == [row < 10 or row == 15 for row in range(20)]
    for one, two in zip(got.out[0, 0, 10:15], clean.out[0, 0, 10:15], strict=True):
        np.testing.assert_allclose(np.array(one), np.array(two), atol=0.05)


@pytest.mark.parametrize("zeros", ["q", "k"])
def test_all_zero_inputs_give_the_mean_of_v(zeros: str) -> None:
    q, k, v = biased(SHAPES["gqa"], "float32")
    q, k = (mx.zeros_like(x) if name == zeros else x for name, x in (("q", q), ("k", k)))
    result = run((q, k, v), QKQuant(smooth_k=zeros == "k"), smoothing(k) if zeros == "k" else None)
    mean = np.repeat(np.array(v).mean(axis=2, keepdims=True), 3, axis=1)
    reference.assert_close(result.out, np.broadcast_to(mean, result.out.shape), 1e-5, 1e-5, "out")


def test_nothing_to_quantise() -> None:
    q, none, no_columns = mx.ones((2, 3, 5, 8)), mx.zeros((2, 3, 0, 8)), mx.zeros((2, 3, 5, 0))
    call = attention_call(q, none, none, 1.0, quant=QKQuant("block", smooth_k=False))
    assert mx.all(run_on(backend(), call).out == 0)
    call = attention_call(no_columns, no_columns, q, 1.0, quant=QKQuant("block", smooth_k=False))
    assert mx.all(run_on(backend(), call).out == 1)


@pytest.mark.parametrize("layout", [(0, 2, 1, 3), (3, 2, 1, 0)])
def test_any_strides(layout: tuple[int, ...]) -> None:
    tensors = biased(SHAPES["gqa"], "float16")
    back = tuple(int(i) for i in np.argsort(layout))
    strided = tuple(mx.contiguous(x.transpose(layout)).transpose(back) for x in tensors)
    smooth = smoothing(tensors[1])
    one, two = (run(x, QKQuant("block"), smooth).out for x in (tensors, strided))
    np.testing.assert_array_equal(np.array(one), np.array(two))


@pytest.mark.sampled(5)
@pytest.mark.parametrize("quant", [None, QKQuant("row")], ids=["smoothed", "quantised"])
@pytest.mark.parametrize("shape", ["ragged", "dim_128"])
def test_asynchronous_copies_are_the_same(shape: str, quant: QKQuant | None) -> None:
    tensors = biased(SHAPES[shape], "float16")
    one, two = (run(tensors, quant, smoothing(tensors[1]), async_copy=on) for on in (False, True))
    assert two.notice is None and mx.array_equal(one.out, two.out) and mx.array_equal(one.lse, two.lse)
