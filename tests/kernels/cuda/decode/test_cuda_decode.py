"""The CUDA kernels for few query rows, on the host with all checks on, against float64 numpy and the user's own
functions (tests/reference.py)."""

from __future__ import annotations

import math
import re
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import reference
import zoo
from apparatus import int8_rows
from apparatus.cuda.simulated import Simulated, simulated_cuda
from apparatus.simulated import DTYPES, ORDERS
from backends import CUDA
from calls import attention_call, run_on
from decode_masks import MASKED, zoo_case

import flextrace as flex
from flextrace.decorators import bound
from flextrace.kernels import AttentionCall, QKQuant, Result, backend_for
from flextrace.kernels.cuda.backend import CudaBackend
from flextrace.kernels.cuda.decode.launch import neighbours
from flextrace.kernels.cuda.decode.plan import FEW_IN_ALL, FEW_ROWS, FEW_TO_ROUND, decode_plan, splits_for
from flextrace.kernels.simulator.report import SimulationError
from flextrace.kernels.spec import ATTENTION, DECODE

Array = np.ndarray


def normal(*size: int) -> Array:
    return np.random.default_rng(size).normal(size=size).astype(np.float32)


def run(call: AttentionCall, **options: Any) -> tuple[Result, Simulated]:
    """The result of a call, which the kernels for few rows have given."""
    with simulated_cuda(**options) as ran:
        result = run_on(CudaBackend(), call)
        mx.eval(result.out)
    kernels = [re.findall(r"void .*flextrace_([a-z]+)_\w+\(", text)[-1] for text in ran.texts]
    assert kernels == ["decode", "merge"]
    if options.get("checks", True):
        assert all(ran.reports[1].buffers[name].unwritten == 0 for name in ("out", "lse", "max_scores"))
    return result, ran


def attend(
    exact: Any, score: Any = None, mask: Any = None, dtype: str = "float32", blocks: Any = None, **options: Any
) -> Result:
    arrays = [x if isinstance(x, mx.array) else mx.array(x).astype(getattr(mx, dtype)) for x in exact]
    mods = (None if score is None else flex.score_mod(score), None if mask is None else flex.mask_mod(mask))
    scale = arrays[0].shape[-1] ** -0.5
    call = attention_call(
        *arrays, scale, *(None if mod is None else mod.bind() for mod in mods), blocks, want_lse=True, want_max=True
    )
    return run(call, **options)[0]


def check(got: Result, want: reference.Attention, dtype: str = "float32") -> None:
    tolerance = reference.tolerance(dtype)
    reference.assert_close(got.out, want.out, tolerance.absolute, tolerance.relative, "out")
    statistics = tolerance.statistic_absolute, tolerance.statistic_relative
    reference.assert_close(got.lse, want.lse, *statistics, "lse")
    reference.assert_close(got.max_scores, want.max_scores, *statistics, "max_scores")


# ---- which kernel, and how many splits ----------------------------------------------------------------------------


def kernel_of(q_len: int, heads: int, kv_heads: int, dim: int = 8, **asked: Any) -> str:
    q, k = mx.zeros((1, heads, q_len, dim)), mx.zeros((1, kv_heads, 300, dim))
    return str(CudaBackend().spec(attention_call(q, k, k, 1.0, **asked)).kernel)


def test_few_rows_have_their_own_kernel() -> None:
    assert (
        kernel_of(1, 8, 8) == kernel_of(1, 71, 1) == kernel_of(FEW_ROWS, 8, 1) == kernel_of(FEW_IN_ALL, 2, 2) == DECODE
    )
    assert kernel_of(FEW_IN_ALL + 1, 4, 4) == kernel_of(FEW_ROWS + 1, 8, 1) == ATTENTION
    rounded = {rows: kernel_of(rows, 4, 4, quant=QKQuant()) for rows in (1, FEW_TO_ROUND, FEW_TO_ROUND + 1)}
    assert rounded == {1: DECODE, FEW_TO_ROUND: DECODE, FEW_TO_ROUND + 1: ATTENTION}
    assert kernel_of(1, 2, 1, 512) == DECODE and decode_plan(8192, 8, "float32", 1) is None, "such rows fit no block"


def test_splits_follow_from_shapes_and_the_gpu() -> None:
    plan, int8 = (decode_plan(128, 128, "bfloat16", 4, *kinds) for kinds in ((), ("int8", "int8")))
    assert plan is not None and int8 is not None and (plan.resident, int8.resident) == (1, 2)
    assert splits_for(plan, 8, 32768, 132) == splits_for(plan, 8, 131072, 132) == 16, "all blocks run at a time"
    assert splits_for(int8, 8, 131072, 132) == 33
    assert splits_for(plan, 512, 32768, 132) == 1 and splits_for(plan, 8, 1024, 132) == 4
    assert splits_for(plan, 1, 100, 132) == splits_for(plan, 1, 0, 132) == 1


# ---- shapes -------------------------------------------------------------------------------------------------------

SIZES = {  # batch, query heads, kv heads, q_len, kv_len, head_dim, value_dim
    "one_row": (1, 4, 4, 1, 700, 32, 32),
    "groups_of_two": (2, 4, 2, 1, 600, 64, 64),
    "groups_of_seven": (1, 7, 1, 2, 330, 40, 24),
    "sixteen_rows": (2, 4, 1, 4, 300, 24, 72),
    "fewer_keys_than_a_tile": (1, 3, 3, 3, 5, 7, 9),
    "groups_of_seventy_one": (1, 71, 1, 1, 113, 64, 80),
    "eight_rows_of_four_heads": (1, 8, 2, 8, 300, 128, 128),
    "one_of_everything": (1, 1, 1, 1, 1, 1, 1),
    "dim_256": (1, 2, 2, 3, 200, 256, 256),
    "mla": (1, 2, 1, 5, 200, 192, 128),
    "mla_absorbed": (1, 16, 1, 1, 100, 576, 512),
    "odd_dims": (1, 6, 2, 16, 90, 17, 33),
    "sliced_values": (1, 2, 1, 1, 70, 64, 1040),
    "many_splits": (1, 2, 2, 1, 2600, 16, 16),
}


def exact_of(name: str, dtype: str) -> list[Array]:
    batch, heads, kv_heads, q_len, kv_len, head_dim, value_dim = SIZES[name]
    sizes = (batch, heads, q_len, head_dim), (batch, kv_heads, kv_len, head_dim), (batch, kv_heads, kv_len, value_dim)
    return [reference.array(normal(*size), dtype) for size in sizes]


@pytest.mark.sampled(40)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SIZES)
def test_shapes(name: str, dtype: str) -> None:
    exact, order = exact_of(name, dtype), ORDERS[list(SIZES).index(name) % 3]
    check(attend(exact, dtype=dtype, order=order), reference.attention(*exact), dtype)


@pytest.mark.sampled(8)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("how", ["cache", "heads_last", "columns_apart", "unaligned", "batch_of_one"])
def test_keys_are_read_where_they_lie(how: str, dtype: str) -> None:
    exact = [reference.array(normal(*size), dtype) for size in ((2, 4, 2, 32), (2, 2, 90, 32), (2, 2, 90, 32))]
    q, *kv = (mx.array(x).astype(getattr(mx, dtype)) for x in exact)
    if how == "cache":
        rooms = [mx.full((2, 2, 120, 32), math.nan, x.dtype) for x in kv]
        for room, x in zip(rooms, kv, strict=True):
            room[:, :, 7:97] = x
        mx.eval(rooms)
        kv = [room[:, :, 7:97] for room in rooms]
    elif how == "heads_last":
        kv = [mx.contiguous(x.swapaxes(1, 2)).swapaxes(1, 2) for x in kv]
    elif how == "columns_apart":
        kv = [mx.contiguous(x.swapaxes(2, 3)).swapaxes(2, 3) for x in kv]
    elif how == "unaligned":
        flat = [mx.concatenate([mx.zeros(1, x.dtype), x.reshape(-1)]) for x in kv]
        mx.eval(flat)
        kv = [x[1:].reshape(2, 2, 90, 32) for x in flat]
    else:
        kv, exact = [x[:1] for x in kv], [exact[0], exact[1][:1], exact[2][:1]]
    mx.eval(kv)
    check(attend([q, *kv], dtype=dtype), reference.attention(*exact), dtype)


def test_neighbours_share_the_memory_of_a_view() -> None:
    """What launch.py takes for granted of MLX: where a slice lies tells the strides."""
    room = mx.zeros((2, 3, 40, 16))
    mx.eval(room)
    view = room[:, :, 5:30].swapaxes(1, 2)
    found = neighbours(view)
    mx.eval(found)
    addresses = [np.asarray(memoryview(x)).__array_interface__["data"][0] for x in found]
    assert [(at - addresses[0]) // 4 for at in addresses[1:]] == [3 * 40 * 16, 16, 40 * 16, 1]
    assert neighbours(mx.zeros((1, 1, 1, 8)))[1] is not None and len(neighbours(mx.zeros((1, 2, 3)))) == 5


# ---- masks --------------------------------------------------------------------------------------------------------

EXACT = [normal(2, 4, 3, 16), normal(2, 2, 1000, 16), normal(2, 2, 1000, 24)]


@pytest.mark.sampled(20)
@pytest.mark.parametrize("block_size", [None, (16, 48), (2, 200)], ids=str)
@pytest.mark.parametrize("name", MASKED)
def test_masks(name: str, block_size: Any) -> None:
    mask, order = MASKED[name], ORDERS[list(MASKED).index(name) % 3]
    blocks = None
    if block_size is not None:
        blocks = flex.create_block_mask(mask, 2, 4, 3, 1000, BLOCK_SIZE=block_size).blocks
    check(attend(EXACT, None, mask, blocks=blocks, order=order), reference.attention(*EXACT, mask_mod=mask))


@pytest.mark.long
def test_blocks_of_each_head_are_its_own() -> None:
    """Edges of blocks cut tiles, and each head has other blocks."""
    for mask in (MASKED["by_head"], lambda b, h, i, j: (j // 24 + h) % 4 != 0):
        blocks = flex.create_block_mask(mask, 2, 4, 3, 1000, BLOCK_SIZE=(16, 24)).blocks
        check(attend(EXACT, None, mask, blocks=blocks), reference.attention(*EXACT, mask_mod=mask))


@pytest.mark.long
def test_rows_of_several_blocks_know_their_heads() -> None:
    exact = [normal(1, 8, 3, 16), normal(1, 1, 700, 16), normal(1, 1, 700, 136)]
    for mask in (lambda b, h, i, j: (j > 300) == (i == 0), lambda b, h, i, j: (j > 40 * h) & (j < 40 * h + 90)):
        check(attend(exact, None, mask), reference.attention(*exact, mask_mod=mask))


def check_zoo(entry: zoo.Entry, dtype: str, order: str) -> None:
    case = zoo_case(entry, dtype, normal)
    check(attend(case.exact, *case.mods, dtype, order=order), case.want, dtype)


@pytest.mark.sampled(60)
@pytest.mark.parametrize("entry", zoo.ZOO.values(), ids=str)
def test_the_zoo(entry: zoo.Entry) -> None:
    turn = list(zoo.ZOO.values()).index(entry)
    check_zoo(entry, DTYPES[turn % 3], ORDERS[turn // 3 % 3])


@pytest.mark.long
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("entry", zoo.ZOO.values(), ids=str)
def test_the_whole_zoo(entry: zoo.Entry, dtype: str) -> None:
    check_zoo(entry, dtype, "shuffled")


@pytest.mark.sampled(12)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_keys_that_are_left_out_may_hold_anything(bad: float, dtype: str) -> None:
    q, k, v = (reference.array(x, dtype) for x in EXACT)
    want = reference.attention(q, k, v, mask_mod=(mask := lambda b, h, i, j: (j < 300) | (j >= 310)))
    k[:, :, 300:310], v[:, :, 300:310] = bad, bad
    check(attend([q, k, v], None, mask, dtype), want, dtype)


@pytest.mark.long
def test_an_infinite_value_that_is_attended_to_stays() -> None:
    q, k, v = (x.copy() for x in EXACT)
    v[0, 0, 77, 3], v[1, 1, 400, 5], v[1, 0, 999] = math.inf, math.nan, math.inf
    check(attend([q, k, v]), reference.attention(q, k, v))
    half = lambda b, h, i, j: j % 2 == h % 2  # noqa: E731
    check(attend([q, k, v], None, half), reference.attention(q, k, v, mask_mod=half))


def test_a_row_that_a_score_mod_makes_minus_infinity_gives_zero() -> None:
    score = lambda s, b, h, i, j: -np.inf if i == 1 else s  # noqa: E731
    result = attend([normal(1, 2, 3, 8), normal(1, 1, 40, 8), normal(1, 1, 40, 8)], score)
    assert result.lse is not None
    assert mx.all(result.out[:, :, 1] == 0) and mx.all(result.lse[:, :, 1] == -mx.inf)
    assert mx.all(mx.isfinite(result.lse[:, :, 2]))


@pytest.mark.long
def test_scores_of_any_size_keep_their_differences() -> None:
    exact = [x * np.float32(30) for x in EXACT]
    check(attend(exact), reference.attention(*exact))


@pytest.mark.long
def test_sinks_take_their_share() -> None:
    q, k, v = (mx.array(x) for x in EXACT)
    sinks = mx.array([0.5, -1.0, 3.0, 0.0])
    with simulated_cuda():
        out = flex.flex_attention(q, k, v, enable_gqa=True, sinks=sinks, kernel_options={"BACKEND": "cuda"})
    want = reference.attention(*EXACT)
    share = 1 / (1 + np.exp(np.array(sinks)[None, :, None] - want.lse))
    reference.assert_close(out, want.out * share[..., None], 2e-5, 2e-5, "out")


# ---- int8 ---------------------------------------------------------------------------------------------------------

ROWS = {
    "narrow": (2, 4, 3, 16, 2, 2, 300, 24),
    "wide": (1, 7, 1, 128, 1, 1, 300, 128),
    "two_tiles": (1, 6, 2, 96, 1, 1, 100, 144),
    "mla": (1, 2, 2, 192, 1, 1, 100, 128),
}


@pytest.mark.sampled(30)
@pytest.mark.parametrize("how", ["plain", "masked", "added_back"])
@pytest.mark.parametrize("int8_values", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ROWS)
def test_int8_rows(shape: str, dtype: str, int8_values: bool, how: str) -> None:
    given = int8_rows.tensors(ROWS[shape], dtype, int8_values)
    mask = (lambda b, h, i, j: (j + h) % 5 != i) if how == "masked" else None
    score = (lambda s, b, h, i, j: mx.maximum(s, 0.5 * s)) if how == "added_back" else None
    plain = (lambda s, b, h, i, j: max(s, 0.5 * s)) if how == "added_back" else None
    back = score is not None
    got = run(with_mods(int8_rows.call_of(given, back), score, mask), order=ORDERS[list(ROWS).index(shape) % 3])[0]
    int8_rows.compare(given, got, int8_rows.expected(given, plain, mask, back))


def with_mods(call: AttentionCall, score: Any, mask: Any) -> AttentionCall:
    mods = bound(None if score is None else flex.score_mod(score), None if mask is None else flex.mask_mod(mask))
    return call._replace(mods=mods)


@pytest.mark.long
def test_a_scale_that_is_no_number_shows_only_where_it_is_seen() -> None:
    mask = lambda b, h, i, j: (j < 5) | (j > 6)  # noqa: E731
    given = int8_rows.tensors(ROWS["narrow"], "float32")
    want = int8_rows.expected(given, mask_mod=mask)
    for rows in (given.k, given.v):
        assert isinstance(rows, int8_rows.Rows)
        rows.scales[:, :, 5:7] = math.nan
    int8_rows.compare(given, run(with_mods(int8_rows.call_of(given), None, mask))[0], want)


# ---- what it reads, always the same, and nothing new -----------------------------------------------------------------


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_keys_and_values_are_read_once_for_all_heads_that_share_them(dtype: str) -> None:
    q, k, v = (mx.array(normal(1, h, n, 64)).astype(getattr(mx, dtype)) for h, n in ((8, 1), (2, 512), (2, 512)))
    _, ran = run(attention_call(q, k, v, 0.125))
    read = ran.reports[0].buffers
    assert (read["k"].read, read["v"].read) == (k.nbytes, v.nbytes)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("as_blocks", [False, True])
def test_a_window_reads_its_own_keys_alone(as_blocks: bool) -> None:
    """1,024 keys of 131,072; blocks of 128 keys leave as many."""
    length = 131072
    q, k, v = mx.array(normal(1, 4, 1, 8)), mx.array(normal(1, 1, length, 8)), mx.array(normal(1, 1, length, 8))
    mask = flex.mask_mod(lambda b, h, q_idx, kv_idx: kv_idx >= length - 1024)
    blocks = flex.create_block_mask(mask, None, None, 1, length).blocks if as_blocks else None
    result, ran = run(attention_call(q, k, v, 0.3, None, mask.bind(), blocks))
    sliced = mx.fast.scaled_dot_product_attention(q, k[:, :, -1024:], v[:, :, -1024:], scale=0.3)
    assert mx.abs(result.out - sliced).max() < 1e-5
    read = ran.reports[0].buffers
    assert (read["k"].read, read["v"].read) == (1024 * 8 * 4, 1024 * 8 * 4)


@pytest.mark.long
def test_the_same_bits_in_every_lane_order() -> None:
    runs = [attend(EXACT, None, MASKED["interleaved"], order=order) for order in ORDERS]
    bits = [[np.array(x).tobytes() for x in (r.out, r.lse, r.max_scores)] for r in runs]
    assert bits[0] == bits[1] == bits[2]


def test_a_growing_cache_compiles_nothing_after_the_first_step() -> None:
    """Lengths, offsets and the number of splits are no part of a kernel."""
    backend, cache, specs = CudaBackend(), mx.zeros((1, 2, 1200, 16)), set()
    for length in range(100, 1100):
        offset, first = length - 1, mx.array([length - 64])

        def recent(b: Any, h: Any, q_idx: Any, kv_idx: Any, offset: int = offset, first: Any = first) -> Any:
            return (q_idx + offset >= kv_idx) & (kv_idx >= first[0])

        view = cache[:, :, :length]
        specs.add(
            backend.spec(attention_call(mx.zeros((1, 4, 1, 16)), view, view, 1.0, None, flex.mask_mod(recent).bind()))
        )
    assert len(specs) == 1


# ---- on a GPU, where there is one ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("backend", CUDA)
def test_shapes_on_a_gpu(backend: str, name: str, dtype: str) -> None:
    exact = exact_of(name, dtype)
    arrays = [mx.array(x).astype(getattr(mx, dtype)) for x in exact]
    call = attention_call(*arrays, exact[0].shape[-1] ** -0.5, want_lse=True, want_max=True)
    once, again = (run_on(backend_for(backend), call) for _ in range(2))
    check(once, reference.attention(*exact), dtype)
    assert mx.array_equal(once.out, again.out) and mx.array_equal(once.lse, again.lse)


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("backend", CUDA)
def test_masks_on_a_gpu(backend: str, name: str) -> None:
    mask = flex.mask_mod(MASKED[name]).bind()
    call = attention_call(*(mx.array(x) for x in EXACT), 0.25, None, mask, want_lse=True, want_max=True)
    check(run_on(backend_for(backend), call), reference.attention(*EXACT, mask_mod=MASKED[name], scale=0.25))


@pytest.mark.parametrize("int8_values", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ROWS)
@pytest.mark.parametrize("backend", CUDA)
def test_int8_rows_on_a_gpu(backend: str, shape: str, dtype: str, int8_values: bool) -> None:
    given = int8_rows.tensors(ROWS[shape], dtype, int8_values)
    int8_rows.compare(given, run_on(backend_for(backend), int8_rows.call_of(given)), int8_rows.expected(given))


# A mistake, where it is, and what is to be seen: a finding, or a wrong number.
MISTAKES = {
    "the transposed weights": ("at[half] = ptx::movmatrix_trans(", "at[half] = (", "Not equal to tolerance"),
    "a key beyond the last": ("smaller(i, last) * row_stride", "i * row_stride", "out of bounds"),
    "a barrier behind queries": ("  __syncthreads();\n  LaneRows rows;", "  LaneRows rows;", "race|uninitialised"),
    "a barrier behind sums": (
        "    __syncthreads();\n    const int n = base",
        "    const int n = base",
        "race|uninitialised",
    ),
    "a barrier behind statistics": (
        "shared.largest[warp][n] = largest;\n    }\n  }\n  __syncthreads();  // and all queries have been read",
        "shared.largest[warp][n] = largest;\n    }\n  }\n",
        "race|uninitialised",
    ),
    "a row too many": (
        "if (row >= block.end_row) continue;",
        "if (row > block.end_row) continue;",
        "bounds|overlapping",
    ),
    "the old reference": ("state.reference[c][e] = now;", "", "Not equal to tolerance"),
    "a column beyond the last": ("if (column + 1 < VALUE_DIM)", "if (true)", "bounds|overlapping"),
}


@pytest.mark.sampled(8)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_seen(mistake: str) -> None:
    right, wrong, seen = MISTAKES[mistake]
    exact = [reference.array(normal(*size), "float16") for size in ((1, 6, 1, 24), (1, 2, 150, 24), (1, 2, 150, 25))]

    def plant(text: str) -> str:
        return text.replace(right, wrong, 1)

    assert right in CudaBackend().text(CudaBackend().named(bound(None, None).formulas)["decode"])
    with pytest.raises((SimulationError, AssertionError)) as found:
        check(attend(exact, dtype="float16", change=plant), reference.attention(*exact), "float16")
    assert re.search(seen, str(found.value))
