"""int8 and smoothed keys in the CUDA kernel for many rows, on the host with all checks on, against the same rounding in
numpy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import mlx.core as mx
import numpy as np
import pytest
import quant_reference
import reference
import zoo
from apparatus import int8_rows
from apparatus.cuda.simulated import simulated_cuda
from apparatus.quantised import (
    MASKS,
    MODS,
    QUANTS,
    SCALE,
    Tensors,
    biased,
    call_of,
    compare,
    floats,
    made,
    relative_l1,
    smoothing,
)
from apparatus.simulated import DTYPES, ORDERS, SHAPES, Shape, inputs
from calls import attention_call, run_on

import flextrace as flex
from flextrace.decorators import bound
from flextrace.kernels import QKQuant, Result, Smoothing
from flextrace.kernels.cuda import backend
from flextrace.kernels.cuda.backend import CudaBackend

KINDS = ("ragged", "odd_dims", "gqa", "kv_batch_one", "one", "dim_128")


@pytest.fixture(autouse=True)
def many_rows() -> Iterator[None]:
    """Few rows have a kernel of their own, which does not round."""
    with mock.patch.object(backend, "plan_of", lambda call: None):
        yield


def run(
    tensors: Tensors,
    quant: QKQuant | None,
    smooth: Smoothing | None,
    score_mod: Any = None,
    mask_mod: Any = None,
    order: str = "forward",
    block_size: Any = None,
) -> Result:
    call = call_of(tensors, quant, smooth, score_mod, mask_mod, block_size)
    with simulated_cuda(order=order) as ran:
        result = run_on(CudaBackend(), call)
    assert ("flextrace_attention_int8_" in ran.texts[-1]) == (quant is not None)
    return result


@pytest.mark.sampled(20)
@pytest.mark.parametrize(
    ("shape", "quant"), [(s, q) for i, s in enumerate(KINDS) for j, q in enumerate(QUANTS) if (i + j) % 2 == 0]
)
def test_attention_rounds_as_numpy_does(shape: str, quant: str) -> None:
    """Every other pair, each in one dtype and lane order, turning."""
    turn = list(SHAPES).index(shape) + list(QUANTS).index(quant)
    tensors, chosen = biased(SHAPES[shape], DTYPES[turn % 3]), QUANTS[quant]
    smooth = smoothing(tensors[1]) if chosen.smooth_k else None
    compare(tensors, run(tensors, chosen, smooth, order=ORDERS[turn // 3 % 3]), chosen, smooth)


@pytest.mark.sampled(24)
@pytest.mark.parametrize("name", [*MODS, *MASKS])
def test_every_kind_of_mod_sees_the_whole_score(name: str) -> None:
    turn = [*MODS, *MASKS].index(name)
    chosen = QUANTS[("block", "row_smooth_q", "odd_blocks", "odd_smooth_q")[turn % 4]]
    tensors = biased(SHAPES["gqa"], "float32", bias=1.0)
    smooth = smoothing(tensors[1], add_back=MODS.get(name, False))
    mod, plain = made(name, SHAPES["gqa"])
    kind = zoo.ZOO[name].kind
    for block_size in (None, 16) if kind == "mask" else (None,):
        result = run(tensors, chosen, smooth, **{f"{kind}_mod": mod}, order=ORDERS[turn % 3], block_size=block_size)
        compare(tensors, result, chosen, smooth, **{kind: plain})


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_smoothing_helps_where_keys_are_biased(dtype: str) -> None:
    """The mean makes scores of the order of 100, whose differences are what counts."""
    tensors = biased((1, 1, 40, 64, 1, 1, 96, 64), dtype, bias=30.0)
    exact = reference.attention(*floats(tensors), None, None, SCALE).out
    with_smoothing = relative_l1(run(tensors, QKQuant("block"), smoothing(tensors[1])).out, exact)
    without = relative_l1(run(tensors, QKQuant("block", smooth_k=False), None).out, exact)
    assert 5 * with_smoothing < without


@pytest.mark.long
@pytest.mark.parametrize("quant", ["block", "odd_blocks", "row", "odd_smooth_q"])
def test_documents_have_means_of_their_own(quant: str) -> None:
    shape: Shape = (2, 2, 60, 24, 2, 1, 60, 16)
    ids = np.stack([np.repeat(np.arange(4), [20, 3, 27, 10]), np.repeat(np.arange(2), [45, 15])])
    captured = mx.array(ids.astype(np.int32))
    q, k, v = inputs(shape, "float32")
    tensors = q, k + mx.array(20.0 * ids[:, None, :, None].astype(np.float32)), v

    def same(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return captured[b, q_idx] == captured[b, kv_idx]

    def plain(b: int, h: int, q_idx: int, kv_idx: int) -> bool:
        return bool(ids[b, q_idx] == ids[b, kv_idx])

    smooth = smoothing(tensors[1], ids, ids)
    compare(tensors, run(tensors, QUANTS[quant], smooth, mask_mod=same), QUANTS[quant], smooth, None, plain)


@pytest.mark.long
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_an_infinity_spoils_only_who_sees_it(bad: float) -> None:
    tensors = biased((1, 1, 20, 16, 1, 1, 40, 16), "float32")
    smooth, hidden = smoothing(tensors[1]), lambda b, h, q_idx, kv_idx: (q_idx < 10) | (kv_idx != 33)
    q, k, v = (np.array(x) for x in tensors)
    q[0, 0, 15, 2], k[0, 0, 33, 5] = bad, bad
    got = run((mx.array(q), mx.array(k), mx.array(v)), QKQuant("block"), smooth, mask_mod=hidden)
    spoiled = np.isnan(np.array(got.out)).all(axis=-1)[0, 0]
    assert spoiled.tolist() == [row < 10 or row == 15 for row in range(20)]


@pytest.mark.long
@pytest.mark.parametrize("zeros", ["q", "k"])
def test_all_zero_inputs_give_the_mean_of_v(zeros: str) -> None:
    q, k, v = biased(SHAPES["gqa"], "float32")
    q, k = (mx.zeros_like(x) if name == zeros else x for name, x in (("q", q), ("k", k)))
    result = run((q, k, v), QKQuant(smooth_k=zeros == "k"), smoothing(k) if zeros == "k" else None)
    mean = np.repeat(np.array(v).mean(axis=2, keepdims=True), 3, axis=1)
    reference.assert_close(result.out, np.broadcast_to(mean, result.out.shape), 1e-5, 1e-5, "out")


def test_nothing_to_quantise() -> None:
    q, none, no_columns = mx.ones((2, 3, 5, 8)), mx.zeros((2, 3, 0, 8)), mx.zeros((2, 3, 5, 0))
    with simulated_cuda():
        call = attention_call(q, none, none, 1.0, quant=QKQuant("block", smooth_k=False))
        assert mx.all(run_on(CudaBackend(), call).out == 0)
        call = attention_call(no_columns, no_columns, q, 1.0, quant=QKQuant("block", smooth_k=False))
        assert mx.all(run_on(CudaBackend(), call).out == 1)


@pytest.mark.sampled(24)
@pytest.mark.parametrize("add_back", [False, True])
@pytest.mark.parametrize("int8_values", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 4, 70, 16, 2, 2, 90, 24), (1, 2, 20, 128, 1, 1, 100, 128)], ids=str)
def test_int8_rows(shape: Shape, dtype: str, int8_values: bool, add_back: bool) -> None:
    given = int8_rows.tensors(shape, dtype, int8_values)
    mask = None if add_back else (lambda b, h, i, j: (j + h) % 5 != i)
    score = (lambda s, b, h, i, j: mx.maximum(s, 0.5 * s)) if add_back else None
    plain = (lambda s, b, h, i, j: max(s, 0.5 * s)) if add_back else None
    mods = bound(None if score is None else flex.score_mod(score), None if mask is None else flex.mask_mod(mask))
    with simulated_cuda():
        result = run_on(CudaBackend(), int8_rows.call_of(given, add_back)._replace(mods=mods))
    int8_rows.compare(given, result, int8_rows.expected(given, plain, mask, add_back))


def test_the_error_is_that_of_int8() -> None:
    """SageAttention's figure for relative L1 on normal numbers."""
    tensors = inputs((1, 2, 128, 64, 1, 2, 128, 64), "float16")
    exact = reference.attention(*floats(tensors), None, None, SCALE).out
    got = run(tensors, QKQuant("row"), smoothing(tensors[1]))
    assert quant_reference.figures(np.array(got.out.astype(mx.float32)), exact).relative_l1 < 0.025
