"""The Metal kernels for few query rows, in the simulator with all checks on, against float64 numpy and the user's own
functions (tests/reference.py)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import reference
import zoo
from apparatus.int8_rows import Rows, call_of, compare, expected, run, tensors
from apparatus.quantised import biased, smoothing
from apparatus.quantised import run as run_rounded
from apparatus.simulated import DTYPES, ORDERS, backend
from calls import attention_call, run_on
from decode_masks import MASKED, zoo_case

import flextrace as flex
from flextrace import warm
from flextrace.cache import Store
from flextrace.kernels import QKQuant
from flextrace.kernels.metal import MetalBackend
from flextrace.kernels.metal.backend import no_results
from flextrace.kernels.metal.decode.plan import FEW_ROWS, splits_for
from flextrace.kernels.simulator import recording
from flextrace.kernels.spec import ATTENTION, DECODE

Array = np.ndarray


def normal(*size: int) -> Array:
    return np.random.default_rng(size).normal(size=size).astype(np.float32)


def attend(
    exact: Any, score: Any, mask: Any, dtype: str = "float32", order: str = "forward", blocks: Any = None
) -> Any:
    """The result of a call, which the kernels for few rows have run."""
    arrays = [mx.array(x).astype(getattr(mx, dtype)) for x in exact]
    score = None if score is None else flex.score_mod(score).bind()
    bound = None if mask is None else flex.mask_mod(mask).bind()
    scale = exact[0].shape[-1] ** -0.5
    call = attention_call(*arrays, scale, score, bound, blocks, want_lse=True, want_max=True)
    with recording() as reports:
        result = run_on(backend(order), call)
    assert [report.kernel.split("_")[2] for report in reports] == ["decode", "merge"]
    assert all(reports[1].buffers[name].unwritten == 0 for name in ("out", "lse", "max_scores"))
    return result


def check(got: Any, want: reference.Attention, dtype: str = "float32") -> None:
    tolerance = reference.tolerance(dtype)
    reference.assert_close(got.out, want.out, tolerance.absolute, tolerance.relative, "out")
    statistics = tolerance.statistic_absolute, tolerance.statistic_relative
    reference.assert_close(got.lse, want.lse, *statistics, "lse")
    reference.assert_close(got.max_scores, want.max_scores, *statistics, "max_scores")


# ---- which kernel, and how many splits ----------------------------------------------------------------------------


def kernel_of(q_len: int, heads: int, kv_heads: int, dim: int = 8) -> str:
    q, k = mx.zeros((1, heads, q_len, dim)), mx.zeros((1, kv_heads, 300, dim))
    return str(backend().spec(attention_call(q, k, k, 1.0)).kernel)


def test_few_rows_have_their_own_kernel() -> None:
    assert kernel_of(1, 8, 8) == kernel_of(1, 71, 1) == kernel_of(FEW_ROWS, 4, 1) == DECODE
    assert kernel_of(FEW_ROWS + 1, 4, 4) == ATTENTION
    assert kernel_of(1, 2, 1, 512) == DECODE and kernel_of(1, 2, 1, 8192) == ATTENTION, "such rows fit no registers"


def test_splits_follow_from_shapes() -> None:
    assert splits_for(8, 32768) * 8 >= 4 * 40, "threadgroups of a core, cores"
    assert splits_for(8, 131072) == splits_for(8, 32768) and splits_for(512, 32768) == 1
    assert splits_for(8, 1024) == 2 and splits_for(1, 100) == splits_for(1, 0) == 1


# ---- shapes -------------------------------------------------------------------------------------------------------

SIZES = {  # batch, query heads, kv heads, q_len, kv_len, head_dim, value_dim
    "one_row": (1, 4, 4, 1, 700, 32, 32),
    "groups_of_two": (2, 4, 2, 1, 1300, 64, 64),
    "groups_of_seven": (1, 7, 1, 2, 650, 40, 24),
    "sixteen_rows": (2, 4, 1, 4, 900, 24, 72),
    "fewer_keys_than_a_tile": (1, 3, 3, 3, 5, 7, 9),
    "groups_of_seventy_one": (1, 71, 1, 1, 513, 64, 80),
    "eight_rows_of_four_heads": (1, 8, 2, 8, 600, 128, 128),
    "one_of_everything": (1, 1, 1, 1, 1, 1, 1),
    "dim_256": (1, 2, 2, 3, 600, 256, 256),
    "mla": (1, 2, 1, 5, 600, 192, 128),
    "mla_absorbed": (1, 16, 1, 1, 300, 576, 512),
    "odd_dims": (1, 6, 2, 16, 270, 17, 33),
}


@pytest.mark.sampled(12)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SIZES)
def test_shapes(name: str, dtype: str) -> None:
    batch, heads, kv_heads, q_len, kv_len, head_dim, value_dim = SIZES[name]
    sizes = (batch, heads, q_len, head_dim), (batch, kv_heads, kv_len, head_dim), (batch, kv_heads, kv_len, value_dim)
    exact = [reference.array(normal(*size), dtype) for size in sizes]
    order = ORDERS[list(SIZES).index(name) % 3]
    check(attend(exact, None, None, dtype, order), reference.attention(*exact), dtype)


def test_one_batch_of_keys_serves_all() -> None:
    exact = [normal(3, 4, 2, 16), normal(1, 2, 300, 16), normal(1, 2, 300, 16)]
    check(attend(exact, None, None), reference.attention(*exact))


def test_views_of_a_larger_cache() -> None:
    cache, q = normal(1, 900, 2, 16), normal(1, 4, 1, 16)
    keys, view = np.swapaxes(cache, 1, 2), mx.array(cache).swapaxes(1, 2)
    for length in (1, 31, 32, 640):
        out = run_on(backend(), attention_call(mx.array(q), *2 * [view[:, :, :length]], 0.25)).out
        want = reference.attention(q, *2 * [keys[:, :, :length]])
        reference.assert_close(out, want.out, 2e-5, 2e-5, f"{length} keys")
    odd = mx.array(normal(1, 2, 200, 32))[..., ::2]  # a column stride of 2
    out = run_on(backend(), attention_call(mx.array(q), odd, odd, 0.25)).out
    reference.assert_close(out, reference.attention(q, *2 * [np.array(odd)]).out, 2e-5, 2e-5, "every other column")


# ---- masks --------------------------------------------------------------------------------------------------------

EXACT = [normal(2, 4, 3, 16), normal(2, 2, 1000, 16), normal(2, 2, 1000, 24)]
WIDE = [normal(2, 4, 3, 160), normal(2, 2, 1000, 160), normal(2, 2, 1000, 136)]  # simdgroups share columns


@pytest.mark.sampled(14)
@pytest.mark.parametrize("block_size", [None, (16, 48), (2, 200)], ids=str)
@pytest.mark.parametrize("exact", [EXACT, WIDE], ids=["narrow", "wide"])
@pytest.mark.parametrize("name", MASKED)
def test_masks(name: str, exact: Any, block_size: Any) -> None:
    mask, order = MASKED[name], ORDERS[list(MASKED).index(name) % 3]
    blocks = None
    if block_size is not None:
        blocks = flex.create_block_mask(mask, 2, 4, 3, 1000, BLOCK_SIZE=block_size).blocks
    check(attend(exact, None, mask, order=order, blocks=blocks), reference.attention(*exact, mask_mod=mask))


def test_blocks_of_each_head_are_its_own() -> None:
    """Edges of blocks cut tiles, and each head has other blocks."""
    for mask in (MASKED["by_head"], lambda b, h, i, j: (j // 24 + h) % 4 != 0):
        blocks = flex.create_block_mask(mask, 2, 4, 3, 1000, BLOCK_SIZE=(16, 24)).blocks
        check(attend(EXACT, None, mask, blocks=blocks), reference.attention(*EXACT, mask_mod=mask))


def test_rows_of_several_tiles_know_their_heads() -> None:
    exact = [normal(1, 8, 3, 16), normal(1, 1, 700, 16), normal(1, 1, 700, 16)]
    for mask in (lambda b, h, i, j: (j > 300) == (i == 0), lambda b, h, i, j: (j > 40 * h) & (j < 40 * h + 90)):
        check(attend(exact, None, mask), reference.attention(*exact, mask_mod=mask))


def check_zoo(entry: zoo.Entry, dtype: str, order: str) -> None:
    case = zoo_case(entry, dtype, normal)
    check(attend(case.exact, *case.mods, dtype, order), case.want, dtype)


@pytest.mark.sampled(40)
@pytest.mark.parametrize("entry", zoo.ZOO.values(), ids=str)
def test_the_zoo(entry: zoo.Entry) -> None:
    turn = list(zoo.ZOO.values()).index(entry)
    check_zoo(entry, DTYPES[turn % 3], ORDERS[turn // 3 % 3])


@pytest.mark.long
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("entry", zoo.ZOO.values(), ids=str)
def test_the_whole_zoo(entry: zoo.Entry, order: str) -> None:
    for dtype in DTYPES:
        check_zoo(entry, dtype, order)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("exact", [EXACT, WIDE], ids=["narrow", "wide"])
def test_keys_that_are_left_out_may_hold_anything(exact: Any, bad: float) -> None:
    q, k, v = (x.copy() for x in exact)
    k[:, :, 300:310], v[:, :, 300:310] = bad, bad
    mask = lambda b, h, i, j: (j < 300) | (j >= 310)  # noqa: E731
    check(attend([q, k, v], None, mask), reference.attention(*exact, mask_mod=mask))


def test_an_infinite_value_that_is_attended_to_stays() -> None:
    q, k, v = (x.copy() for x in EXACT)
    v[0, 0, 77, 3], v[1, 1, 400, 5] = math.inf, math.nan
    check(attend([q, k, v], None, None), reference.attention(q, k, v))
    half = lambda b, h, i, j: j % 2 == h % 2  # noqa: E731
    check(attend([q, k, v], None, half), reference.attention(q, k, v, mask_mod=half))


def test_a_row_that_a_score_mod_makes_minus_infinity_gives_zero() -> None:
    score = lambda s, b, h, i, j: -np.inf if i == 1 else s  # noqa: E731
    result = attend(EXACT, score, None)
    assert mx.all(result.out[:, :, 1] == 0) and mx.all(result.lse[:, :, 1] == -mx.inf)
    assert mx.all(mx.isfinite(result.lse[:, :, 2]))


def test_sinks_take_their_share() -> None:
    q, k, v = (mx.array(x) for x in EXACT)
    sinks = mx.array([0.5, -1.0, 3.0, 0.0])
    out = flex.flex_attention(q, k, v, enable_gqa=True, sinks=sinks, kernel_options={"BACKEND": "simulator"})
    want = reference.attention(*EXACT)
    share = 1 / (1 + np.exp(np.array(sinks)[None, :, None] - want.lse))
    reference.assert_close(out, want.out * share[..., None], 2e-5, 2e-5, "out")


# ---- int8 and smoothed keys ---------------------------------------------------------------------------------------

ROWS = {
    "narrow": (2, 4, 3, 16, 2, 2, 700, 24),
    "wide": (1, 7, 1, 128, 1, 1, 600, 128),
    "mla": (1, 2, 2, 192, 1, 1, 300, 128),
}


@pytest.mark.sampled(6)
@pytest.mark.parametrize("int8_values", [False, True])
@pytest.mark.parametrize("shape", ROWS)
def test_int8_rows(shape: str, int8_values: bool) -> None:
    turn = list(ROWS).index(shape)
    given = tensors(ROWS[shape], DTYPES[turn], int8_values)
    mask = lambda b, h, i, j: (j + h) % 5 != i  # noqa: E731
    for how in (None, mask):
        compare(given, run(call_of(given), mask_mod=how, order=ORDERS[turn]), expected(given, mask_mod=how))


@pytest.mark.parametrize("shape", ["narrow", "wide"])
def test_a_scale_that_is_no_number_shows_only_where_it_is_seen(shape: str) -> None:
    mask = lambda b, h, i, j: (j < 5) | (j > 6)  # noqa: E731
    given = tensors(ROWS[shape], "float32")
    want = expected(given, mask_mod=mask)
    for rows in (given.k, given.v):
        assert isinstance(rows, Rows)
        rows.scales[:, :, 5:7] = math.nan
    compare(given, run(call_of(given), mask_mod=mask), want)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("shape", ["narrow", "wide"])
def test_keys_that_are_not_in_int8_are_read_as_they_are(shape: str) -> None:
    """Whatever was asked for: nothing is rounded and no mean is taken, so the bits are those without it."""
    given = biased(ROWS[shape], "float32")
    rounded = QKQuant("block", smooth_q=True, q_block=2, k_block=50)
    for mod in (None, lambda score, b, h, q_idx, kv_idx: 3 * mx.tanh(score / 3)):
        plain = run_rounded(given, None, None, mod)
        for quant in (None, QKQuant("row"), rounded):
            other = run_rounded(given, quant, smoothing(given[1], add_back=mod is not None), mod)
            for name in ("out", "lse", "max_scores"):
                assert mx.array_equal(getattr(other, name), getattr(plain, name)), name


def test_options_that_round_keys_change_nothing_of_a_few_rows() -> None:
    q, k, v = biased(ROWS["narrow"], "float32")
    results = []
    for asked in ({}, {"QK_QUANT": "int8"}, {"SMOOTH_K": True}, {"QK_QUANT": "int8", "SMOOTH_Q": True}):
        with recording() as reports:
            options = {"BACKEND": "simulator", **asked}
            results.append(flex.flex_attention(q, k, v, enable_gqa=True, kernel_options=options))
        assert len(reports) == 2, "the kernel, and the sum of its splits"
    assert all(mx.array_equal(results[0], other) for other in results[1:])


# ---- always the same, and nothing new -----------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [EXACT, WIDE], ids=["narrow", "wide"])
def test_the_same_bits_in_every_lane_order(exact: Any) -> None:
    runs = [attend(exact, None, MASKED["interleaved"], order=order) for order in ORDERS]
    bits = [[np.array(x).tobytes() for x in (r.out, r.lse, r.max_scores)] for r in runs]
    assert bits[0] == bits[1] == bits[2]


def test_a_growing_cache_compiles_nothing_after_the_first_step() -> None:
    """Lengths, offsets and the number of splits are no part of a kernel: MLX compiles one for a text and its template
    arguments."""
    compiled: set[Any] = set()

    def factory(**definition: Any) -> Any:
        def launch(**call: Any) -> Any:
            compiled.add((definition["name"], *call["template"], tuple(len(x.shape) for x in call["inputs"])))
            return no_results(call)

        return launch

    lazy, cache = MetalBackend(factory), mx.zeros((1, 2, 1200, 16))
    counts = []
    for length in range(100, 1100):
        offset, first = length - 1, mx.array([length - 64])

        def recent(b: Any, h: Any, q_idx: Any, kv_idx: Any, offset: int = offset, first: Any = first) -> Any:
            return (q_idx + offset >= kv_idx) & (kv_idx >= first[0])

        view = cache[:, :, :length]
        call = attention_call(mx.zeros((1, 4, 1, 16)), view, view, 1.0, None, flex.mask_mod(recent).bind())
        mx.eval(run_on(lazy, call).out)
        counts.append((lazy.built, len(compiled)))
    assert counts[-1] == counts[0] and counts[0][1] == 2


def test_the_launches_are_lazy_inside_compile() -> None:
    """Neither inputs nor captures are evaluated: with a stand-in for MLX's lazy kernel, mx.compile traces it."""
    lazy = MetalBackend(lambda **definition: lambda **call: no_results(call))
    bias = mx.ones(500)
    score = flex.score_mod(lambda s, b, h, q_idx, kv_idx: s + bias[kv_idx]).bind()

    @mx.compile
    def step(q: mx.array, k: mx.array) -> mx.array:
        return run_on(lazy, attention_call(q * 2, k, k, 1.0, score)).out + 1

    assert step(mx.zeros((1, 4, 1, 16)), mx.zeros((1, 2, 500, 16))).shape == (1, 4, 1, 16)


# ---- warm ---------------------------------------------------------------------------------------------------------


ROUNDED = {"QK_QUANT": "int8"}  # which a few rows do not follow


def test_a_step_compiles_nothing_that_warm_has_compiled(fresh_cache: Path) -> None:
    """Of the two kernels the sum of splits may be in memory."""
    offset, window = 499, 100
    recent = flex.mask_mod(lambda b, h, q_idx, kv_idx: (q_idx + offset - kv_idx < window) & (kv_idx != 450))
    shapes = [(1, 4, 1, 16), (1, 2, 500, 16), (1, 2, 500, 16)]
    (step,) = warm.steps([(None, recent)], [shapes], ["float16"], "simulator", ROUNDED)
    warmed = step.run()
    assert [each.kernel.partition(",")[0] for each in warmed] == ["attention_decode", "attention_merge"]
    assert warmed[0].found == "compiled"
    before = {entry.key for entry in Store().entries()}
    assert warmed[0].key in before
    q, k, v = (mx.zeros(shape, mx.float16) for shape in shapes)
    chosen = {"BACKEND": "simulator", **ROUNDED}
    mx.eval(flex.flex_attention(q, k, v, block_mask=recent, enable_gqa=True, kernel_options=chosen))
    assert {entry.key for entry in Store().entries()} == before


def test_what_warm_keeps_on_metal_is_the_text_of_a_step(fresh_cache: Path) -> None:
    lazy = MetalBackend(lambda **definition: lambda **call: no_results(call))
    call = attention_call(mx.zeros((1, 4, 1, 16)), *[mx.zeros((1, 2, 500, 16))] * 2, 1.0, quant=QKQuant("row"))
    assert lazy.spec(call).kernel == DECODE
    (built,) = lazy.build(call)
    assert built.for_readers and built.key == lazy.key(lazy.spec(call))
    entry = Store().get(built.key)
    assert entry is not None and entry.manifest["kernel"].startswith("flextrace_attention_decode")
    lazy.load(lazy.spec(call)).run(call)
    assert lazy.built == 0, "it was on disk"
