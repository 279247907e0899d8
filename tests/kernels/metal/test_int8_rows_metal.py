"""Keys and values that are in int8 already, in the fused Metal kernel: the simulator with all checks on, against
float64 numpy on the rows that they stand for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import reference
import zoo
from apparatus import clang_check
from apparatus.int8_rows import Rows, Tensors, call_of, compare, expected, heads_last, rounded, run, tensors
from apparatus.mods import traces
from apparatus.simulated import BARRIER, DTYPES, ORDERS, SHAPES, Shape, backend, broken, inputs
from calls import attention_call, formulas, run_on

import flextrace as flex
from flextrace.kernels import AttentionCall
from flextrace.kernels.gpu.tile_lists import CUT_TILES, NO_BLOCKS
from flextrace.kernels.metal.attention.plan import plan_for
from flextrace.kernels.metal.generate import kernel_text
from flextrace.kernels.metal.scoring import Scoring
from flextrace.kernels.simulator import SimulationError, recording

# ---- numbers ------------------------------------------------------------------------------------------------------

KINDS = {"keys": (False, False), "smoothed keys": (False, True), "both": (True, False), "smoothed both": (True, True)}
QUICK = ("ragged", "odd_dims", "gqa", "kv_batch_one", "short_q", "one", "dim_80", "dim_128", "dim_192")


def checked(shape: str, kind: str, dtype: str, order: str) -> None:
    given = tensors(SHAPES[shape], dtype, *KINDS[kind])
    compare(given, run(call_of(given), order=order), expected(given))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("shape", QUICK)
@pytest.mark.parametrize("kind", ["smoothed keys", "both", "smoothed both"])
def test_numbers(shape: str, kind: str) -> None:
    """Each pair in one dtype and lane order, turning."""
    turn = QUICK.index(shape) + list(KINDS).index(kind)
    checked(shape, kind, DTYPES[turn % 3], ORDERS[turn // 3 % 3])


@pytest.mark.long
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_numbers_of_every_shape(shape: str, kind: str, dtype: str) -> None:
    for order in ORDERS:
        checked(shape, kind, dtype, order)


MODS = {"alibi": False, "relative_bias": False, "softcap": True, "sigmoid_activation": True}  # name: add_back
MASKS = ("causal", "checkerboard_heads", "empty_rows", "padding_lengths")


def made(name: str, shape: Shape) -> list[Any]:
    """A mod of the zoo for the kernel, and for numpy."""
    sizes, rng = (shape[0], shape[1], shape[2], shape[6]), np.random.default_rng
    return [zoo.ZOO[name].make(*sizes, rng(3), array) for array in (zoo.mx_array, reference.array)]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", [*MODS, *MASKS])
def test_every_kind_of_mod(name: str) -> None:
    turn, add_back = [*MODS, *MASKS].index(name), MODS.get(name, False)
    given = tensors(SHAPES["gqa"], DTYPES[turn % 3])
    mod, plain = made(name, SHAPES["gqa"])
    kind = zoo.ZOO[name].kind
    want = expected(given, **{f"{kind}_mod": plain}, add_back=add_back)
    for block_size in (None, 16, (5, 11)) if kind == "mask" else (None,):
        call = call_of(given, add_back)
        compare(given, run(call, **{f"{kind}_mod": mod}, order=ORDERS[turn % 3], block_size=block_size), want)


def test_rows_that_attend_to_nothing_give_zeros_and_not_the_mean() -> None:
    given = tensors((1, 1, 20, 16, 1, 1, 40, 16), "float32")
    hidden = lambda b, h, q_idx, kv_idx: (q_idx >= 7) & (kv_idx < 40)  # noqa: E731
    result = run(call_of(given), mask_mod=hidden)
    assert result.lse is not None
    assert mx.all(result.out[:, :, :7] == 0) and mx.all(result.lse[:, :, :7] == -mx.inf)
    compare(given, result, expected(given, mask_mod=hidden))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("size", [1e-4, 1e4])
def test_weights_times_scales_have_the_range_of_float32(size: float, dtype: str) -> None:
    """In float16 the product of a weight and the scale of small values would lose its bits."""
    given = tensors(SHAPES["ragged"], dtype, smooth=False)
    assert isinstance(given.v, Rows)
    given.v = Rows(given.v.values, given.v.scales * np.float32(size), given.v.means)
    got, want = np.array(run(call_of(given)).out.astype(mx.float32)), expected(given).out
    assert abs(got - want).max() < 1e-3 * abs(want).max()


def test_values_alone_may_be_int8() -> None:
    given = tensors(SHAPES["gqa"], "float16", smooth=False)
    call = call_of(given)
    call = call._replace(k=mx.array(given.k.exact()).astype(mx.float16), k_scales=None, quant=None)
    given.k = Rows(np.array(call.k.astype(mx.float32)), np.ones(given.k.scales.shape, np.float32), given.k.means)
    compare(given, run(call), expected(given))


@pytest.mark.parametrize("sliced", [True, False])
def test_scales_lie_in_any_order(sliced: bool) -> None:
    given = tensors(SHAPES["gqa"], "float32")
    one, other = run(call_of(given)), call_of(given, sliced=sliced)
    other = other._replace(**{name: heads_last(getattr(other, name)) for name in ("k", "k_scales", "v", "v_scales")})
    assert mx.array_equal(one.out, run(other).out)


def test_no_head_dim_or_no_key_is_no_error() -> None:
    given = tensors((1, 2, 5, 8, 1, 1, 12, 8), "float32")
    call = call_of(given)
    call = call._replace(q=call.q[..., :0], k=call.k[..., :0], smoothing=None)
    mean = given.v.exact().mean(axis=2, keepdims=True) if isinstance(given.v, Rows) else None
    np.testing.assert_allclose(np.array(run(call).out), np.broadcast_to(mean, (1, 2, 5, 8)), 1e-4, 1e-4)
    call = call_of(given)
    call = call._replace(**{name: getattr(call, name)[:, :, :0] for name in ("k", "k_scales", "v", "v_scales")})
    assert mx.all(run_on(backend(), call).out == 0)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("shape", "int8_values"), [("ragged", True), ("dim_128", False), ("dim_192", True)])
def test_asynchronous_copies_are_the_same(shape: str, int8_values: bool) -> None:
    given = tensors(SHAPES[shape], "float16", int8_values)
    call = call_of(given)
    one, two = run(call), run(call._replace(async_copy=True))
    assert one.lse is not None and two.lse is not None
    assert two.notice is None and mx.array_equal(one.out, two.out) and mx.array_equal(one.lse, two.lse)


def test_strides_that_cannot_be_copied_pass_through_registers() -> None:
    given = tensors(SHAPES["ragged"], "float16")
    one, other = run(call_of(given)), call_of(given)
    other = other._replace(v=mx.contiguous(other.v.swapaxes(2, 3)).swapaxes(2, 3), async_copy=True)
    assert mx.array_equal(one.out, run(other).out)


# ---- rows that hold an infinity or a nan, or only zeros -----------------------------------------------------------

BAD = 33


def spoiled(where: str, dtype: str = "float32") -> Tensors:
    """Key or value BAD of the first head is not finite; key and value 5 are zeros."""
    given = tensors((2, 2, 20, 16, 1, 2, 70, 24), dtype, smooth=False)
    assert isinstance(given.v, Rows)
    exact = {"key": given.k.exact().astype(np.float32), "value": given.v.exact().astype(np.float32)}
    for x in exact.values():
        x[:, :, 5] = 0
    exact[where][0, 0, BAD, 3] = np.inf
    given.k, given.v = rounded(exact["key"], False), rounded(exact["value"], False)
    assert given.k.scales[0, 0, 5] == 0 and np.isnan([given.k, given.v][where == "value"].scales[0, 0, BAD])
    return given


def hides(q_idx: Any, kv_idx: Any) -> Any:
    return (q_idx < 10) | (kv_idx != BAD)


HIDERS: dict[str, dict[str, Any]] = {
    "mask": {"mask_mod": lambda b, h, q_idx, kv_idx: hides(q_idx, kv_idx)},
    "blocks": {"mask_mod": lambda b, h, q_idx, kv_idx: hides(q_idx, kv_idx), "block_size": (10, 3)},
    "mod": {"score_mod": lambda score, b, h, q_idx, kv_idx: mx.where(hides(q_idx, kv_idx), score, -mx.inf)},
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("how", HIDERS)
@pytest.mark.parametrize("where", ["key", "value"])
def test_a_row_that_is_not_finite_shows_only_where_it_is_seen(where: str, how: str, order: str) -> None:
    given = spoiled(where, DTYPES[ORDERS.index(order)])
    result = run(call_of(given), **HIDERS[how], order=order)
    nan = np.isnan(np.array(result.out.astype(mx.float32)))
    assert nan[:, 0, :10].all() and not nan[:, 0, 10:].any() and not nan[:, 1].any()
    compare(given, result, expected(given, mask_mod=lambda b, h, q_idx, kv_idx: hides(q_idx, kv_idx)))


def test_all_zero_keys_and_values() -> None:
    given = tensors(SHAPES["gqa"], "float16", smooth=False)
    assert isinstance(given.v, Rows)
    given.k = Rows(given.k.values * 0, given.k.scales * 0, given.k.means)
    compare(given, run(call_of(given)), expected(given))
    given.v = Rows(given.v.values * 0, given.v.scales * 0, given.v.means)
    assert mx.all(run(call_of(given)).out == 0)


# ---- the checks watch ---------------------------------------------------------------------------------------------

EDGE: Shape = (1, 1, 70, 17, 1, 1, 75, 17)


@pytest.mark.parametrize("which", [1, 2])
def test_every_barrier_is_needed(which: int) -> None:
    given = tensors((1, 1, 70, 16, 1, 1, 1100, 16), "float16")
    mask = lambda b, h, q_idx, kv_idx: kv_idx > 1060  # noqa: E731
    with pytest.raises(SimulationError, match="race|uninitialised"):
        run(call_of(given), mask_mod=mask, kernels=broken(BARRIER, ";", which))


CAUGHT = [
    ("SCALES * P::BK || key >= keys.end) return;", "SCALES * P::BK) return;", "out of bounds"),
    ("if (next.kind == VALUES_AND_SCALES) next.scales.store(scales, index);", "", "uninitialised"),
    ("if (int(index) < SCALES * P::BK) scales[index] =", "scales[index] =", "out of bounds|race|beyond"),
    ("VALUE_MEANS && column < P::VALUE_DIM ?", "VALUE_MEANS ?", "out of bounds"),
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("right", "wrong", "finding"), CAUGHT, ids=["beyond the last key", "no store", "threads", "mean columns"]
)
def test_the_simulator_finds(right: str, wrong: str, finding: str) -> None:
    with pytest.raises(SimulationError, match=finding):
        run(call_of(tensors(EDGE, "float32"), sliced=False), kernels=broken(right, wrong))


WRONG = [
    ("as_type<uint>(weight) == 0 ? 0.0f : weight * unit", "weight * unit"),
    ("scale_in_lane<P>(scales + (SCALES - 1) * P::BK, lane)", "scale_in_lane<P>(scales, lane)"),
    ("VALUE_MEANS && sum != 0.0f", "VALUE_MEANS"),
    ("ushort(j * FRAGMENT + place.column + e)", "ushort(j * FRAGMENT + place.column)"),
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("right", "wrong"), WRONG, ids=["nan times 0", "keys' scales", "empty rows", "neighbours"])
def test_numbers_show(right: str, wrong: str) -> None:
    given = spoiled("value")
    assert isinstance(given.v, Rows)
    given.v = given.v._replace(means=np.ones((1, 2, 1, 24), np.float32))
    mask = lambda b, h, q_idx, kv_idx: (q_idx > 3) & (kv_idx != BAD)  # noqa: E731
    want = expected(given, mask_mod=mask)
    compare(given, run(call_of(given), mask_mod=mask), want)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        compare(given, run(call_of(given), mask_mod=mask, kernels=broken(right, wrong)), want)


# ---- the public face ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score_mod", [None, lambda score, b, h, q_idx, kv_idx: 2 * mx.tanh(score / 2)])
def test_a_cache_is_read_as_it_lies(score_mod: Any) -> None:
    """As its rows in float32 are, to which only the rounding of q is different."""
    q, k, v = inputs((2, 4, 3, 64, 2, 2, 50, 64), "float16")
    cache = flex.Int8KV(quantise_value=True, step=32)
    cache.update(k[:, :, :45] + 3, v[:, :, :45] + 3)
    cache.update(k[:, :, 45:] + 3, v[:, :, 45:] + 3)
    assert isinstance(cache.value, flex.Int8Rows)
    rows = (x.float32().astype(mx.float16) for x in (cache.key, cache.value))
    options = {"BACKEND": "simulator"}
    got = flex.flex_attention(q, cache.key, cache.value, score_mod, enable_gqa=True, kernel_options=options)
    want = flex.flex_attention(q, *rows, score_mod, enable_gqa=True, kernel_options=options)
    np.testing.assert_allclose(np.array(got), np.array(want), atol=0.02)


# ---- counts and text ----------------------------------------------------------------------------------------------


def reads(call: AttentionCall) -> Any:
    with recording() as reports:
        run_on(backend(), call)
    return next(report for report in reports if report.kernel.startswith("flextrace_attention_decode"))


@pytest.mark.parametrize("dim", [64, 128])
def test_a_decode_step_reads_half_the_bytes(dim: int) -> None:
    shape: Shape = (1, 1, 1, dim, 1, 1, 1024, dim)
    plain = reads(attention_call(*inputs(shape, "float16"), 1.0))
    whole = reads(call_of(tensors(shape, "float16")))
    of_float16 = sum(plain.buffers[name].read for name in "kv")
    assert of_float16 == 2 * 1024 * dim * 2
    found = sum(whole.buffers[name].read for name in ("k", "v", "key_scales", "value_scales"))
    assert found <= 0.55 * of_float16 and found == 2 * 1024 * (dim + 4)
    assert whole.threadgroup_allocated <= 32 * 1024 >= plain.threadgroup_allocated


SCORINGS = {"all": Scoring(True, True, True, True, True), "values": Scoring(int8_values=True)}


@pytest.mark.sampled(3)
@clang_check.needs_clang
@pytest.mark.parametrize("async_copy", [False, True])
@pytest.mark.parametrize("kind", SCORINGS)
def test_address_spaces(kind: str, async_copy: bool, tmp_path: Path) -> None:
    text = kernel_text(formulas(*traces("alibi", "document_ids")), async_copy, scoring=SCORINGS[kind])
    for dims, dtype, blocks in (((80, 40), "bfloat16", NO_BLOCKS), ((256, 256), "float16", CUT_TILES)):
        source = clang_check.instance(text, plan_for(*dims, dtype, SCORINGS[kind]), blocks)
        assert clang_check.complaints(source, tmp_path) == ""
    assert clang_check.unqualified_pointers(source, tmp_path) == []
    assert clang_check.narrow_offsets(source, tmp_path) == []


PLANTED: list[Callable[[str], str]] = [
    lambda text: text.replace("const threadgroup uint* scales, uint lane", "const device uint* scales, uint lane"),
    lambda text: text.replace("weights, values, d", "weights, v.data, d"),
    lambda text: text.replace("const device float* value_scales;", "const constant float* value_scales;"),
]


@clang_check.needs_clang
@pytest.mark.parametrize("mistake", PLANTED, ids=["scales", "values", "hole"])
def test_clang_finds_planted_mistakes(mistake: Callable[[str], str], tmp_path: Path) -> None:
    scoring = Scoring(True, int8_values=True)
    text = kernel_text(scoring=scoring)
    source = clang_check.instance(text, plan_for(64, 64, "float16", scoring), NO_BLOCKS)
    assert mistake(source) != source and "error:" in clang_check.complaints(mistake(source), tmp_path)
