"""The Metal gradient kernels in the simulator: right numbers, the same bits, and no report of its checks."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import zoo
from apparatus.gradients import backward_call, broken, check, close, exact
from apparatus.simulated import BARRIER, DTYPES, ORDERS, SHAPES, backend, inputs
from calls import attention_call
from gradient_reference import attention_gradients

import flextrace as flex
from flextrace.kernels import registry
from flextrace.kernels.call import BackwardCall
from flextrace.kernels.metal import MetalBackend, launch
from flextrace.kernels.metal.backend import no_results
from flextrace.kernels.metal.backward.plan import gradient_plan
from flextrace.kernels.metal.backward.text import KEY, QUERY, gradient_text
from flextrace.kernels.metal.generate import NO_MODS
from flextrace.kernels.metal.kernel import Variant
from flextrace.kernels.simulator import SimulationError, recording

MASKS = [entry.name for entry in zoo.ZOO.values() if entry.kind == "mask"]
IN_FLOAT32 = ("softcap_array_functions",)  # in plain Python too: too coarse for differences
SCORES = [entry.name for entry in zoo.ZOO.values() if entry.kind == "score" and entry.name not in IN_FLOAT32]
SMALL = (2, 4, 21, 8, 1, 2, 27, 12)  # grouped heads, one batch of keys for two of queries


@pytest.mark.parametrize("order", ORDERS)
def test_every_lane_order(order: str) -> None:
    check(SMALL, names=("causal",), order=order, statistics=True)


@pytest.mark.sampled(90)
@pytest.mark.parametrize("statistics", [False, True], ids=["out", "out-lse-max"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape(shape: str, dtype: str, statistics: bool) -> None:
    check(SHAPES[shape], dtype, statistics=statistics)


def check_shared_rows(dims: tuple[int, int], order: str) -> None:
    plans = [gradient_plan(of_keys, *dims, "float32") for of_keys in (False, True)]
    assert max(plan.parts for plan in plans) > 1
    assert {gradient_plan(plan.of_keys, *dims, "float32", with_max=True).parts for plan in plans} == {1}
    check((2, 2, 61, dims[0], 1, 1, 45, dims[1]), "float32", ("alibi", "causal"), order, wanted=True)


@pytest.mark.long
def test_simdgroups_share_rows() -> None:
    """Where head dims are large; what a captured array gets is summed once. Not where max_scores has a gradient."""
    check_shared_rows((128, 128), "shuffled")


@pytest.mark.sampled(6)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dims", [(96, 96), (128, 96), (192, 128), (256, 256)], ids=str)
def test_simdgroups_share_rows_of_every_plan(dims: tuple[int, int], order: str) -> None:
    check_shared_rows(dims, order)


@pytest.mark.sampled(500)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("block_size", [None, 16, 64, (17, 33)], ids=str)
@pytest.mark.parametrize("name", MASKS)
def test_every_mask(name: str, block_size: Any, order: str) -> None:
    check(SMALL, names=(name,), block_size=block_size, order=order, statistics=True)


@pytest.mark.sampled(150)
@pytest.mark.parametrize("mask", [(), ("causal",)], ids=["none", "causal"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SCORES)
def test_every_score_mod(name: str, dtype: str, mask: tuple[str, ...]) -> None:
    check(SMALL, dtype, (name, *mask))


def test_rows_without_keys_and_keys_without_rows_have_no_gradient() -> None:
    def mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return (kv_idx > 40) & (q_idx > 3) & (q_idx + h != 20)  # the first tile of a row is empty

    shape = (1, 2, 40, 16, 1, 2, 70, 16)
    call = backward_call(shape, "float32", None, flex.mask_mod(mask), (None, mask))
    found = backend().backward(call)
    given = [exact(x) for x in (call.call.q, call.call.k, call.call.v, call.d_out)]
    want = attention_gradients(*given, mask_mod=mask, scale=0.3)
    for mine, true in zip((found.q, found.k, found.v), want[:3], strict=True):
        close(mine, true, "float32", "rows without keys")
    assert float(mx.abs(found.q[:, :, :4]).max()) == float(mx.abs(found.k[:, :, :41]).max()) == 0


def test_a_score_of_minus_infinity_has_no_gradient() -> None:
    def score(s: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return s * s if kv_idx <= q_idx else -np.inf  # the derivative of what is left out is not asked for

    def plain(s: float, b: int, h: int, q_idx: int, kv_idx: int) -> float:
        return s * s if kv_idx <= q_idx else -np.inf

    shape = (1, 1, 20, 8, 1, 1, 30, 8)
    call = backward_call(shape, "float32", flex.score_mod(score), None, (plain, None))
    found = backend().backward(call)
    want = attention_gradients(
        *[exact(x) for x in (call.call.q, call.call.k, call.call.v, call.d_out)], score_mod=plain, scale=0.3
    )
    for mine, true in zip((found.q, found.k, found.v), want[:3], strict=True):
        close(mine, true, "float32", "scores of -inf")


def test_infinite_slopes_of_what_is_masked_out_are_not_seen() -> None:
    def score(s: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return s / mx.where(kv_idx <= q_idx, 1.0, 0.0)

    def mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return kv_idx <= q_idx

    plain = (lambda s, b, h, q_idx, kv_idx: s, mask)
    call = backward_call((1, 1, 20, 8, 1, 1, 20, 8), "float32", flex.score_mod(score), flex.mask_mod(mask), plain)
    found = backend().backward(call)
    want = attention_gradients(
        *[exact(x) for x in (call.call.q, call.call.k, call.call.v, call.d_out)], mask_mod=mask, scale=0.3
    )
    for mine, true in zip((found.q, found.k, found.v), want[:3], strict=True):
        close(mine, true, "float32", "infinite slopes")


@pytest.mark.parametrize("special", [np.nan, pytest.param(np.inf, marks=pytest.mark.long)])
def test_what_is_masked_out_reaches_no_gradient(special: float) -> None:
    """Keys and values that no row attends to, and a row that attends to nothing, may hold anything."""

    def mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return (kv_idx != 5) & (kv_idx <= q_idx + 3) & (q_idx != 7)

    shape = (1, 1, 33, 8, 1, 1, 33, 16)
    clean, dirty = [np.array(x) for x in inputs(shape, "float32")], []
    d_out = np.random.default_rng(0).normal(size=(1, 1, 33, 16)).astype(np.float32)
    for array, rows in zip([*clean, d_out], (7, 5, 5, 7), strict=True):
        dirty.append(array.copy())
        dirty[-1][:, :, rows] = special
        array[:, :, rows] = 0
    calls = [
        backward_call(shape, "float32", None, flex.mask_mod(mask), (None, mask), given=tuple(map(mx.array, given)))
        for given in ([*clean, d_out], dirty)
    ]
    calls[1] = BackwardCall(calls[1].call, calls[0].out, calls[0].lse, calls[1].d_out)  # whose delta is nan
    one, other = (backend().backward(call) for call in calls)
    for name in ("q", "k", "v"):
        close(getattr(other, name), exact(getattr(one, name)), "float32", name)


@pytest.mark.parametrize("special", [np.nan, pytest.param(np.inf, marks=pytest.mark.long)])
def test_a_cotangent_that_is_not_finite_reaches_what_its_row_attends_to_and_nothing_else(special: float) -> None:
    """So a training step that overflowed shows, and rows that had no part in it stay right."""

    def mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return kv_idx <= q_idx

    shape = (1, 1, 33, 8, 1, 1, 33, 8)
    call = backward_call(shape, "float32", None, flex.mask_mod(mask), (None, mask))
    clean = backend().backward(call)
    d_out = np.array(call.d_out)
    d_out[0, 0, 20, 3] = special
    found = backend().backward(BackwardCall(call.call, call.out, call.lse, mx.array(d_out)))
    rows = np.arange(33)
    triples = ((found.q, clean.q, rows == 20), (found.k, clean.k, rows <= 20), (found.v, clean.v, rows <= 20))
    for mine, whole, reached in triples:
        array = np.array(mine)[0, 0]
        assert not np.isfinite(array[reached]).all(axis=1).any(), "every row that is reached shows it"
        close(mx.array(array[~reached]), exact(whole)[0, 0][~reached], "float32", "rows that have no part in it")


def test_any_strides() -> None:
    shape = (2, 2, 19, 8, 2, 2, 26, 8)
    whole = backward_call(shape, "float32")
    turned = [x.transpose(3, 1, 0, 2) for x in (whole.call.q, whole.call.k, whole.call.v, whole.d_out)]
    turned = [mx.contiguous(x).transpose(2, 1, 3, 0) for x in turned]
    mx.eval(turned)
    other = backward_call(shape, "float32", given=tuple(turned))
    one, two = (backend().backward(call) for call in (whole, other))
    for name in ("q", "k", "v"):
        assert mx.array_equal(getattr(one, name), getattr(two, name)), name


@pytest.mark.parametrize("statistics", [False, pytest.param(True, marks=pytest.mark.long)])
def test_several_launches_give_the_same_bits(statistics: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    call = backward_call((1, 2, 200, 8, 1, 1, 190, 8), "float32", statistics=statistics)
    found = []
    for most, launches in ((launch.MOST_MULTIPLIES, 2 + statistics), (1, 3 + 2 + 3 * statistics)):
        monkeypatch.setattr(launch, "MOST_MULTIPLIES", most)
        with recording() as reports:
            found.append(backend().backward(call))
        assert len(reports) == launches
    for name in ("q", "k", "v"):
        assert mx.array_equal(*(getattr(each, name) for each in found)), name


def test_nothing_to_sum_gives_zeros() -> None:
    for shape in ((1, 1, 0, 8, 1, 1, 4, 8), (1, 1, 4, 8, 1, 1, 0, 8)):
        call = backward_call(shape, "float32")
        found = backend().backward(call)
        for mine, like in zip((found.q, found.k, found.v), (call.call.q, call.call.k, call.call.v), strict=True):
            assert mine.shape == like.shape and not np.array(mine).any()


def test_a_whole_step_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Mac nothing is evaluated on the way: all kernels of a step are nodes of one graph."""
    launched: list[str] = []

    def factory(**definition: Any) -> Any:
        def launch(**call: Any) -> list[mx.array]:
            launched.append(definition["name"].removeprefix("flextrace_").rpartition("_")[0])
            return no_results(call)

        return launch

    monkeypatch.setitem(registry.made, "metal", MetalBackend(factory))
    options: Any = {"enable_gqa": True, "kernel_options": {"BACKEND": "metal"}}

    def loss(q: mx.array, k: mx.array, bias: mx.array, slopes: mx.array) -> mx.array:
        mod = flex.score_mod(lambda s, b, h, q_idx, kv_idx: s * slopes[h] + bias[h, q_idx - kv_idx + 32])
        asked = flex.AuxRequest(lse=True, max_scores=True)
        out, aux = flex.flex_attention(q, k, k, mod, flex.mods.causal, return_aux=asked, **options)
        return out.sum() + aux.lse.sum() + aux.max_scores.sum()

    given = [mx.zeros(shape) for shape in ((2, 4, 32, 16), (1, 2, 32, 16), (4, 64), (4,))]
    _, found = mx.compile(mx.value_and_grad(loss, (0, 1, 2, 3)))(*given)
    assert [x.shape for x in found] == [x.shape for x in given]
    for kernel in ("attention", "ties", "query", "key", "pairs", "elements", "segments"):
        assert any(kernel in name for name in launched), kernel


# ---- the checks watch ---------------------------------------------------------------------------------------------


BETWEEN_PARTS = f"{BARRIER}\n  if (live) of_scores.take"


def barriers(kernel: str) -> list[int]:
    """The numbers of those that every plan has, from 1 on, in the order of the text."""
    following = gradient_text(kernel, NO_MODS, Variant()).header.split(BARRIER)[1:]
    of_parts = BETWEEN_PARTS.removeprefix(BARRIER)
    return [number for number, text in enumerate(following, 1) if not text.startswith(of_parts)]


def far(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return (kv_idx > 1060) & (q_idx > 1060)  # the first survey of 32 tiles finds nothing


@pytest.mark.sampled(6)
@pytest.mark.parametrize("which", [1, 2, 3])
@pytest.mark.parametrize("kernel", [QUERY, KEY])
def test_every_barrier_is_needed(kernel: str, which: int) -> None:
    """Of the walk, of turning to the next tile, and of turning back to one."""
    assert len(barriers(kernel)) == 3
    q, k = (mx.random.normal((1, 1, length, 8), key=mx.random.key(0)) for length in (1100, 1100))
    rows = mx.zeros((1, 1, 1100))
    call = BackwardCall(attention_call(q, k, k, 1.0, None, flex.mask_mod(far).bind()), q, rows, q)
    backend().backward(call)
    with pytest.raises(SimulationError, match="race|uninitialised"):
        broken(BARRIER, ";", barriers(kernel)[which - 1], (kernel,)).backward(call)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kernel", [QUERY, KEY])
def test_the_barrier_between_parts_is_needed(kernel: str) -> None:
    call = backward_call((1, 1, 20, 128, 1, 1, 20, 128), "float32")
    with pytest.raises(SimulationError, match="race|uninitialised"):
        broken(BETWEEN_PARTS, BETWEEN_PARTS.removeprefix(BARRIER), only=(kernel,)).backward(call)


BOUNDS = [
    ("row < rows.end && column + PIECE <= columns.end", "true", (QUERY, KEY)),
    ("row < rows.end && column + e < columns.end ?", "true ?", (QUERY, KEY)),
    ("    if (row < p.q_len) {", "    {", (QUERY, KEY)),
    ("if (column < columns) to[", "to[", (QUERY, KEY)),
    ("term < TERMS && row < rows.end ?", "true ?", (KEY,)),
    ("if (int(index) < TERMS * P::BK) staged", "staged", (KEY,)),
]


@pytest.mark.sampled(6)
@pytest.mark.parametrize(("right", "wrong", "kernels"), BOUNDS, ids=[right for right, *_ in BOUNDS])
def test_every_bound_is_needed(right: str, wrong: str, kernels: tuple[str, ...]) -> None:
    call = backward_call((1, 1, 70, 17, 1, 1, 75, 17), "float32")
    for kernel in kernels:
        with pytest.raises(SimulationError, match="out of bounds|overlapping|race"):
            broken(right, wrong, only=(kernel,)).backward(call)
