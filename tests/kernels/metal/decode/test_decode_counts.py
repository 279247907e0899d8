"""The simulator's checks watch over the Metal kernels for few query rows, and what a run of them moves."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from apparatus.simulated import BARRIER, backend, broken, inputs
from calls import attention_call, run_on

import flextrace as flex
from flextrace.kernels.metal.decode.plan import LEAST_KEYS, decode_plan
from flextrace.kernels.metal.decode.text import decode_text, merge_text
from flextrace.kernels.metal.generate import NO_MODS
from flextrace.kernels.simulator import SimulationError, recording
from flextrace.kernels.simulator.mlx_attention import sdpa_vector_2pass

NARROW, WIDE = (1, 4, 1, 64, 1, 1, 700, 64), (1, 4, 1, 128, 1, 1, 700, 128)  # float32


def ran(q: mx.array, k: mx.array, v: mx.array, mask: Any = None, blocks: Any = None) -> Any:
    """The reports of both kernels, and the output."""
    bound = None if mask is None else flex.mask_mod(mask).bind()
    with recording() as reports:
        out = run_on(backend(), attention_call(q, k, v, 0.3, None, bound, blocks)).out
    assert len(reports) == 2
    return *reports, out


def reports_of(q: mx.array, k: mx.array, v: mx.array, mask: Any = None, blocks: Any = None) -> Any:
    return ran(q, k, v, mask, blocks)[:2]


# ---- the checks watch ---------------------------------------------------------------------------------------------


def test_simdgroups_share_columns_only_where_they_must() -> None:
    narrow, wide = decode_plan(64, 64, "float32", 4), decode_plan(128, 128, "float32", 4)
    assert narrow is not None and wide is not None
    assert (narrow.share, wide.share) == (1, 4)


@pytest.mark.parametrize(("which", "shape"), [(1, WIDE), (2, NARROW), (3, NARROW), (4, NARROW)], ids=str)
def test_every_barrier_is_needed(which: int, shape: Any) -> None:
    """That of shared columns, and those of the simdgroups' results; the merge has none."""
    assert decode_text(NO_MODS).header.count(BARRIER) == 4 and "barrier" not in merge_text().header
    call = attention_call(*inputs(shape, "float32"), 1.0)
    run_on(backend(), call)
    with pytest.raises(SimulationError, match="race|uninitialised"):
        run_on(broken(BARRIER, ";", which, "attention_decode"), call)


BROKEN = [
    ("place ^= 1;", "", WIDE, "race"),  # one place is not enough for one barrier
    ("if (rows.row(r, e) >= rows.of_group.end) continue;", "", WIDE, "overlapping|out of bounds"),
    ("if (rows.of_group.first + n >= rows.of_group.end ||", "if (", NARROW, "overlapping|out of bounds"),
    ("from.column_stride == 1 && exists &&", "from.column_stride == 1 &&", NARROW, "out of bounds"),
    ("(!BEYOND || column < DIM)", "true", (1, 1, 1, 72, 1, 1, 40, 72), "out of bounds"),
]


@pytest.mark.parametrize(("right", "wrong", "shape", "finding"), BROKEN, ids=str)
def test_every_bound_is_needed(right: str, wrong: str, shape: Any, finding: str) -> None:
    call = attention_call(*inputs(shape, "float32"), 1.0)
    with pytest.raises(SimulationError, match=finding):
        run_on(broken(right, wrong, kernel="attention_decode"), call)


def test_a_split_that_is_not_in_use_is_not_read() -> None:
    """Nothing has been written there."""
    q, k, v = inputs((1, 1, 1, 16, 1, 1, 2000, 16), "float32")
    mask = lambda b, h, q_idx, kv_idx: kv_idx >= 1900  # noqa: E731
    first, second = reports_of(q, k, v, mask)
    splits = first.buffers["partial"].size // (4 * 16)
    assert splits == 2000 // LEAST_KEYS and first.buffers["partial"].unwritten == (splits - 1) * 4 * 16
    assert second.buffers["partial"].read == 4 * 16


# ---- counts -------------------------------------------------------------------------------------------------------


def grouped(kv_len: int, dim: int, dtype: str, kv_heads: int = 1) -> tuple[mx.array, mx.array, mx.array]:
    """Four query heads of one row for each head of keys."""
    return inputs((1, 4 * kv_heads, 1, dim, 1, kv_heads, kv_len, dim), dtype)


def moved(reports: Any) -> int:
    return sum(int(report.device_read + report.device_written) for report in reports)


@pytest.mark.parametrize(("dim", "dtype"), [(64, "float32"), (128, "float16")])
def test_keys_and_values_are_read_once_for_all_heads_that_share_them(dim: int, dtype: str) -> None:
    q, k, v = grouped(4096, dim, dtype)
    first, second = reports_of(q, k, v)
    assert (first.buffers["k"].read, first.buffers["v"].read) == (k.nbytes, v.nbytes)
    queries = first.buffers["q"].read
    partial = first.buffers["partial"].written + second.buffers["partial"].read
    assert queries + partial <= 0.05 * (k.nbytes + v.nbytes)


@pytest.mark.parametrize("as_blocks", [False, True])
def test_a_window_reads_its_own_keys_alone(as_blocks: bool) -> None:
    """1,024 keys of 131,072; blocks of 128 keys leave as many."""
    length = 131072
    q, k, v = grouped(length, 16, "float32")
    mask = flex.mask_mod(lambda b, h, q_idx, kv_idx: kv_idx >= length - 1024)
    blocks = flex.create_block_mask(mask, None, None, 1, length).blocks if as_blocks else None
    first, second, out = ran(q, k, v, mask, blocks)
    sliced = mx.fast.scaled_dot_product_attention(q, k[:, :, -1024:], v[:, :, -1024:], scale=0.3)
    assert mx.abs(out - sliced).max() < 1e-5
    live = 1024 * (16 + 16) * 4
    assert first.buffers["k"].read + first.buffers["v"].read == live
    assert first.buffers["partial"].written + second.buffers["partial"].read <= 0.05 * live
    splits = first.buffers["statistics"].size // (4 * 2 * 4)
    assert splits == (1024 // LEAST_KEYS if as_blocks else 320), "what the host knows starts no threadgroup in vain"


@pytest.mark.parametrize("as_blocks", [False, True])
def test_a_window_moves_hardly_more_than_its_own_keys(as_blocks: bool) -> None:
    """What has no key to read does not read queries either, and captured numbers are in the constant address space."""
    length, window = 8192, 1024
    q, k, v = grouped(length, 128, "float16")
    offset = length - 1
    mask = flex.mask_mod(lambda b, h, q_idx, kv_idx: q_idx + offset - kv_idx < window)
    blocks = flex.create_block_mask(mask, None, None, 1, length).blocks if as_blocks else None
    reports = reports_of(q, k, v, mask, blocks)
    live = window * (128 + 128) * 2
    assert reports[0].buffers["k"].read + reports[0].buffers["v"].read == live
    assert moved(reports) <= 1.05 * live
    assert reports[0].buffers["params"].space == "constant"


def test_the_mask_of_a_block_is_asked_before_keys_are_read() -> None:
    q, k, v = grouped(2048, 16, "float32")
    mask = lambda b, h, q_idx, kv_idx: (kv_idx >= 1024) & (kv_idx < 1024 + 32)  # noqa: E731
    blocks = flex.create_block_mask(mask, None, None, 1, 2048).blocks
    assert blocks is not None
    assert reports_of(q, k, v, mask, blocks)[0].buffers["k"].read == 32 * 16 * 4


def test_blocks_of_several_heads_are_read_once() -> None:
    q, k, v = grouped(2048, 16, "float32")
    by_head = flex.create_block_mask(lambda b, h, i, j: j // 512 == h, 1, 4, 1, 2048).blocks
    one = flex.create_block_mask(lambda b, h, i, j: (j // 512 == 1) & (h < 4), 1, 4, 1, 2048).blocks
    assert by_head is not None and one is not None
    mask = lambda b, h, q_idx, kv_idx: kv_idx // 512 == h  # noqa: E731
    assert reports_of(q, k, v, mask, by_head)[0].buffers["k"].read == k.nbytes
    assert reports_of(q, k, v, None, one)[0].buffers["k"].read == k.nbytes // 4


def dependent_steps(report: Any, simdgroups: int, threadgroups: int) -> float:
    """What a simdgroup waits for, one after the other: exchanges of its lanes, and barriers."""
    exchanges = (report.shuffles + report.reductions) / simdgroups
    return float(exchanges + report.threadgroup_barriers / threadgroups)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_counts_beside_mlx_s_own_kernels(dtype: str) -> None:
    """MLX's kernels of two passes, read from the installed package and run in the same simulator, with the fewest keys
    for a block that its host code takes: 32 blocks from 4,096 keys on."""
    q, k, v = grouped(4096, 128, dtype)
    scale, blocks = 0.1, 32
    out, (pass_1, _) = sdpa_vector_2pass(q, k, v, scale, blocks=blocks)
    with recording() as reports:
        ours = run_on(backend(), attention_call(q, k, v, scale)).out
    assert mx.abs(ours.astype(mx.float32) - out.astype(mx.float32)).max() < 2e-2
    first = reports[0]
    splits = first.buffers["partial"].size // (4 * 4 * 128)
    assert splits == 4096 // LEAST_KEYS, "three times as many keys as MLX's"
    keys = ("k", "v"), ("keys", "values")
    read = [
        sum(report.buffers[name].read for name in names) for report, names in zip((first, pass_1), keys, strict=True)
    ]
    assert read[0] * 4 == read[1], "MLX reads them once for each query head"
    assert dependent_steps(first, 4 * splits, splits) <= dependent_steps(pass_1, 4 * blocks, blocks)


def test_the_same_number_of_steps_at_32768_keys() -> None:
    """What the test above counts, by the plan: 8 heads of keys, 40 splits, against 64 blocks."""
    for dtype in ("float32", "float16", "bfloat16"):
        for dim in (64, 128):
            plan = decode_plan(dim, dim, dtype, 4)
            assert plan is not None
            keys = 32768 / 40 / (4 if plan.share == 1 else 1)
            steps = (3 + (plan.share > 1)) * -(-keys // plan.bk)
            assert steps <= 0.5 * 32768 / 64
