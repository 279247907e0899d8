"""The cuda backend's gradient kernels on the host, thread by thread: right against float64, no report of the checks,
and each planted mistake is seen."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import zoo
from apparatus import gradients
from apparatus.captured_cases import CASES, SHAPE, WIDE
from apparatus.cuda.simulated import simulated_cuda
from apparatus.gradients import backward_call, close, exact
from apparatus.simulated import DTYPES, ORDERS, SHAPES, Shape, inputs

import flextrace as flex
from flextrace.kernels.call import BackwardCall, Gradients
from flextrace.kernels.cuda.backend import CudaBackend
from flextrace.kernels.gpu import captured
from flextrace.kernels.simulator.report import SimulationError

MASKS = [entry.name for entry in zoo.ZOO.values() if entry.kind == "mask"]
IN_FLOAT32 = ("softcap_array_functions",)  # in plain Python too: too coarse for differences
SCORES = [entry.name for entry in zoo.ZOO.values() if entry.kind == "score" and entry.name not in IN_FLOAT32]
SMALL = (2, 4, 21, 8, 1, 2, 27, 16)  # grouped heads, one batch of keys for two of queries
KERNELS = [(80, dtype) for dtype in DTYPES] + [(90, "float16"), (90, "bfloat16")]
kernels = pytest.mark.parametrize(("architecture", "dtype"), KERNELS)
one_of_each = pytest.mark.parametrize(("architecture", "dtype"), [(80, "float32"), (90, "float16")])


def check(
    shape: Shape,
    dtype: str = "float32",
    names: tuple[str, ...] = (),
    order: str = "forward",
    change: Callable[[str], str] | None = None,
    architecture: int = 80,
    **options: Any,
) -> None:
    with simulated_cuda(architecture, order=order, change=change):
        gradients.check(shape, dtype, names, on=CudaBackend(), **options)


def run(call: BackwardCall, architecture: int = 80) -> Gradients:
    with simulated_cuda(architecture):
        return CudaBackend().backward(call)


@pytest.mark.sampled(9)
@pytest.mark.parametrize("order", ORDERS)
@kernels
def test_every_order_of_lanes(order: str, architecture: int, dtype: str) -> None:
    check(SMALL, dtype, ("causal",), order, statistics=True, architecture=architecture)


@pytest.mark.sampled(1500)
@pytest.mark.parametrize("statistics", [False, True], ids=["out", "out-lse-max"])
@kernels
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape(shape: str, architecture: int, dtype: str, statistics: bool) -> None:
    check(SHAPES[shape], dtype, statistics=statistics, architecture=architecture)


@pytest.mark.sampled(3000)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("block_size", [None, 16, 64, (17, 33)], ids=str)
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("architecture", [80, 90])
def test_every_mask(architecture: int, name: str, block_size: Any, order: str) -> None:
    check(SMALL, "float16", (name,), order, block_size=block_size, statistics=True, architecture=architecture)


@pytest.mark.sampled(1100)
@pytest.mark.parametrize("mask", [(), ("causal",)], ids=["none", "causal"])
@kernels
@pytest.mark.parametrize("name", SCORES)
def test_every_score_mod(name: str, architecture: int, dtype: str, mask: tuple[str, ...]) -> None:
    check(SMALL, dtype, (name, *mask), architecture=architecture)


@pytest.mark.sampled(220)
@pytest.mark.parametrize("mask", [(), ("causal",)], ids=["none", "causal"])
@pytest.mark.parametrize("name", CASES)
def test_every_pattern_of_a_captured_array(name: str, mask: tuple[str, ...]) -> None:
    check(SHAPE, names=mask, score_of=CASES[name], wanted=True)


@pytest.mark.sampled(90)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", WIDE)
def test_pairs_of_several_tiles(name: str, order: str) -> None:
    check((1, 1, 70, 8, 1, 1, 75, 8), "float32", ("sliding_window",), order, score_of=WIDE[name], wanted=True)


@pytest.mark.long
def test_blocks_that_sum_pairs_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured, "GROUPS", 1)
    for name in ("head, distance", "ids of both"):
        check(SHAPE, score_of=CASES[name], wanted=True, names=("causal",))


@pytest.mark.sampled(1500)
@kernels
@pytest.mark.parametrize("name", [entry.name for entry in zoo.ZOO.values() if entry.kind == "score"])
def test_every_array_of_the_zoo(name: str, architecture: int, dtype: str) -> None:
    check(SHAPE, dtype, (name, "causal"), wanted=True, architecture=architecture)


def test_memory_of_captured_gradients_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    table = mx.ones(80)
    score = flex.score_mod(lambda s, b, h, q, k: s + table[q - k + 40])
    monkeypatch.setattr(captured, "MOST_BYTES", 100)
    with pytest.raises(ValueError, match=r"the gradient of table needs 0 MB of sums, .* Index it by one side"):
        run(backward_call((1, 1, 40, 8, 1, 1, 40, 8), "float32", score, wanted=True))


@pytest.mark.parametrize("shape", [(1, 1, 0, 8, 1, 1, 4, 8), (1, 1, 4, 8, 1, 1, 0, 8)])
def test_nothing_to_sum_gives_zeros(shape: Shape) -> None:
    call = backward_call(shape, "float32")
    found = run(call)
    for mine, like in zip((found.q, found.k, found.v), (call.call.q, call.call.k, call.call.v), strict=True):
        assert mine.shape == like.shape and not np.array(mine).any()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("dims", [(0, 8), (8, 0)])
def test_rows_without_columns(dims: tuple[int, int]) -> None:
    check((1, 2, 20, dims[0], 1, 1, 30, dims[1]), "float16")


def _a_row_beside(mask: Any, rows: tuple[int, ...], special: float, dtype: str) -> tuple[BackwardCall, BackwardCall]:
    """A call where nobody attends to some rows of q, k, v and d_out, and where these hold something special."""
    shape = (1, 1, 33, 8, 1, 1, 33, 16)
    clean, dirty = [np.array(x) for x in inputs(shape, dtype)], []
    clean.append(np.random.default_rng(0).normal(size=(1, 1, 33, 16)).astype(dtype))
    for array, row in zip(clean, rows, strict=True):
        dirty.append(array.copy())
        dirty[-1][:, :, row] = special
        array[:, :, row] = 0
    plain = (None, mask)
    one, other = (
        backward_call(shape, dtype, None, flex.mask_mod(mask), plain, given=tuple(map(mx.array, given)))
        for given in (clean, dirty)
    )
    return one, BackwardCall(other.call, one.out, one.lse, other.d_out)  # whose delta is nan


@pytest.mark.sampled(4)
@pytest.mark.parametrize("special", [np.nan, np.inf])
@one_of_each
def test_what_is_masked_out_reaches_no_gradient(architecture: int, dtype: str, special: float) -> None:
    def mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return (kv_idx != 5) & (kv_idx <= q_idx + 3) & (q_idx != 7)

    one, other = (run(call, architecture) for call in _a_row_beside(mask, (7, 5, 5, 7), special, dtype))
    for name in ("q", "k", "v"):
        close(getattr(other, name), exact(getattr(one, name)), dtype, name)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("special", [np.nan, np.inf])
@one_of_each
def test_a_cotangent_that_is_not_finite_reaches_what_its_row_attends_to_and_nothing_else(
    architecture: int, dtype: str, special: float
) -> None:
    def mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return kv_idx <= q_idx

    call = backward_call((1, 1, 33, 8, 1, 1, 33, 8), dtype, None, flex.mask_mod(mask), (None, mask))
    d_out, rows = np.array(call.d_out), np.arange(33)
    d_out[0, 0, 20, 3] = special
    clean, found = (
        run(BackwardCall(call.call, call.out, call.lse, x), architecture) for x in (call.d_out, mx.array(d_out))
    )
    triples = ((found.q, clean.q, rows == 20), (found.k, clean.k, rows <= 20), (found.v, clean.v, rows <= 20))
    for mine, whole, reached in triples:
        array = np.array(mine)[0, 0]
        assert not np.isfinite(array[reached]).all(axis=1).any(), "every row that is reached shows it"
        close(mx.array(array[~reached]), exact(whole)[0, 0][~reached], dtype, "rows that have no part in it")


@pytest.mark.sampled(4)
@pytest.mark.parametrize("power", [-14, 10])
def test_cotangents_of_any_size_give_gradients_of_float16(power: int) -> None:
    """Gradients of scores are in float16 on the way, where small ones would be lost and large ones infinite."""
    shape = (1, 2, 40, 16, 1, 2, 90, 16)
    q, k, v = inputs(shape, "float16")
    d_out = mx.random.normal((1, 2, 40, 16), key=mx.random.key(7)).astype(mx.float16)
    calls = [backward_call(shape, "float16", given=(q, k, v, x)) for x in (d_out, d_out * 2.0**power)]
    one, other = (run(call) for call in calls)
    for name in ("q", "k", "v"):
        mine, want = exact(getattr(other, name)) * 2.0**-power, exact(getattr(one, name))
        assert np.abs(mine - want).max() < 4e-3 * np.abs(want).max() + 2.0 ** (-25 - power), name


@pytest.mark.long
def test_rows_without_keys_and_keys_without_rows_have_no_gradient() -> None:
    def mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return (kv_idx > 40) & (q_idx > 3)

    call = backward_call((1, 2, 40, 16, 1, 2, 70, 16), "float32", None, flex.mask_mod(mask), (None, mask))
    found = run(call)
    assert not any(bool(mx.isnan(x).any()) for x in (found.q, found.k, found.v))
    assert float(mx.abs(found.q[:, :, :4]).max()) == float(mx.abs(found.k[:, :, :41]).max()) == 0


@pytest.mark.sampled(2)
@pytest.mark.parametrize("architecture", [80, 90])
def test_rows_that_begin_anywhere_in_memory(architecture: int) -> None:
    """Arrays that are parts of others begin inside 16 bytes: neither cp.async nor TMA takes them."""
    shape = (1, 2, 70, 16, 1, 2, 90, 16)
    whole = backward_call(shape, "float16")

    def moved(x: mx.array) -> mx.array:
        return mx.concatenate([mx.zeros(1, x.dtype), x.reshape(-1)])[1:].reshape(x.shape)

    parts = tuple(moved(x) for x in (whole.call.q, whole.call.k, whole.call.v, whole.d_out))
    mx.eval(*parts)
    one, other = (run(call, architecture) for call in (whole, backward_call(shape, "float16", given=parts)))
    for name in ("q", "k", "v"):
        assert mx.array_equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.long
def test_a_training_step_reaches_the_kernels() -> None:
    """mx.grad of a table that is read twice, and of a bias that all share, beside MLX's own operations."""
    q = mx.random.normal((2, 2, 9, 8), key=mx.random.key(1))

    def loss(table: mx.array, bias: mx.array, backend: str) -> mx.array:
        mod = flex.score_mod(lambda s, b, h, q, k: s * table[h, 0] + table[h, q - k + 8] + bias[q, k])
        return (flex.flex_attention(q, q, q, mod, kernel_options={"BACKEND": backend}) ** 2).sum()

    given = mx.random.normal((2, 17), key=mx.random.key(2)), mx.random.normal((9, 9), key=mx.random.key(3))
    with simulated_cuda():
        found = [mx.grad(loss, (0, 1))(*given, name) for name in ("cuda", "ops")]
    for mine, own in zip(*found, strict=True):
        assert float(mx.abs(mine - own).max()) < 1e-4


# A mistake, where it is, and what is to be seen: a finding, or a wrong number.
NUMBERS = "off|Not equal"
MISTAKES = {
    "delta is left out": ("fmaf(slope, factor, -of_query.delta)", "slope * factor", NUMBERS),
    "the scale": ("sums, p.scale * inverse", "sums, inverse", NUMBERS),
    "a head of the group": ("reader < tensors.sharing * heads", "reader < tensors.sharing * heads - 1", NUMBERS),
    "the batch of a reader": ("* tensors.sharing + reader / heads", "* tensors.sharing", NUMBERS),
    "the largest score's gradient": ("change += of_query.d_max", "change += 0.0f", NUMBERS),
    "the lse's gradient": ("(sum - tensors.d_lse[row])", "sum", NUMBERS),
    "a barrier before the tile": ("wait_group<0>();\n    __syncthreads();", "wait_group<0>();", "race"),
    "a wait for the tile": ("ptx::cp_async_wait_group<0>();", "", f"{NUMBERS}|race|uninitialised"),
    "a row beyond the last": ("const bool exists = row < heads.count;", "const bool exists = true;", "out of bounds"),
    "a row too many": ("if (row >= rows) continue;", "if (row > rows) continue;", "out of bounds|overlapping"),
    "the mask of the key kernel": ("if (MASKED && !is_kept", "if (!KEY_ROWS && MASKED && !is_kept", NUMBERS),
}


@pytest.mark.sampled(90)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_seen(mistake: str) -> None:
    right, wrong, seen = MISTAKES[mistake]
    planted = []

    def plant(text: str) -> str:
        planted.append(right in text)
        return text.replace(right, wrong)

    with pytest.raises((SimulationError, AssertionError)) as found:
        check((2, 4, 37, 24, 1, 2, 75, 24), "float16", ("causal",), change=plant, statistics=True)
    assert any(planted) and re.search(seen, str(found.value))
