"""The simulator's checks watch over the stage kernels; what a run moves and multiplies; that nothing is evaluated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from apparatus.simulated_stages import listed, lists_of, stages, tensor
from apparatus.stage_launches import Recorder
from apparatus.steel_gemm import TILES, steel_gemm

from flextrace.kernels.call import Mods
from flextrace.kernels.metal import MetalBackend
from flextrace.kernels.metal.stages.product_plan import Operands, plan_of
from flextrace.kernels.metal.stages.stages import MetalStages
from flextrace.kernels.simulator import SimulationError, metal_kernel, recording
from flextrace.kernels.simulator.report import Report
from flextrace.kernels.stages.protocol import BlockLists
from flextrace.tracer import Traces

BARRIER = "metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);"
CAUSAL = Traces().bind(lambda b, h, q_idx, kv_idx: q_idx >= kv_idx, "mask_mod")


def broken(right: str, wrong: str, count: int = 1) -> MetalStages:
    """The stages with one occurrence of `right` in their text replaced."""

    def factory(**definition: Any) -> Any:
        parts = definition["header"].split(right)
        assert len(parts) > count, right
        definition["header"] = right.join(parts[:count]) + wrong + right.join(parts[count:])
        return metal_kernel(**definition | {"name": definition["name"] + "_broken"})

    return MetalBackend(factory).stages()


def multiply(stages: MetalStages, tiles: tuple[int, ...] | None = (32, 16, 8)) -> mx.array:
    a, b = tensor(1, 2, 37, 45), tensor(1, 1, 45, 53, seed=1)
    return stages.matmul(a, b, transpose_a=False, transpose_b=False, tiles=tiles, dtype=mx.float32)


def multiply_listed(stages: MetalStages) -> mx.array:
    blocks = lists_of(1, 1, 3, 5, (16, 12))
    p, v = tensor(1, 1, 37, 53), tensor(1, 1, 53, 9, seed=1)
    return stages.block_sparse_matmul(p, v, blocks, transpose_b=False, dtype=mx.float32)


def sample(stages: MetalStages) -> mx.array:
    q, k = tensor(1, 1, 37, 45), tensor(1, 1, 53, 45, seed=1)
    every = mx.broadcast_to(mx.arange(5, dtype=mx.int32), (1, 1, 3, 5))  # all blocks, as partial ones
    number = mx.full((1, 1, 3), 5, mx.int32)
    blocks = BlockLists(number, every, mx.zeros_like(number), every, 16, 12)
    return stages.block_sparse_matmul(q, k, blocks, transpose_b=True, dtype=mx.float32)


def stray(stages: MetalStages) -> mx.array:
    """Lists that name blocks which are not there."""
    number, entries = mx.full((1, 1, 2), 7, mx.int32), mx.array([[[[-3, 0, 9], [1 << 30, 1, -1]]]], mx.int32)
    blocks = BlockLists(number, entries, mx.zeros_like(number), entries, 16, 12)
    return stages.score_mod(tensor(1, 1, 30, 20), Mods(), blocks)


def long_rows(stages: MetalStages) -> mx.array:
    return stages.softmax(tensor(1, 1, 3, 1100), normalise=True, dtype=mx.float32).weights


def many_blocks(stages: MetalStages) -> mx.array:
    return stages.block_mask(CAUSAL, 1, 1, 40, 70, (4, 1)).kv_indices  # three turns of 32 blocks


Run = Callable[[MetalStages], Any]
BARRIERS: list[tuple[Run, int, int]] = [  # how many barriers the text has, and which one to remove
    *((run, 2, which) for run in (multiply, multiply_listed, sample) for which in (1, 2)),
    (lambda stages: multiply(stages, (16, 8)), 2, 1),
    (long_rows, 1, 1),
    (many_blocks, 1, 1),
]


@pytest.mark.parametrize(("run", "count", "which"), BARRIERS)
def test_every_barrier_of_a_stage_is_needed(run: Run, count: int, which: int) -> None:
    recorder = Recorder()
    run(MetalBackend(recorder).stages())
    assert recorder.launches[0].definition["header"].count(BARRIER) == count
    run(stages())
    with pytest.raises(SimulationError, match="race|uninitialised"):
        run(broken(BARRIER, ";", which))


def test_both_halves_of_threadgroup_memory_are_needed() -> None:
    with pytest.raises(SimulationError, match="race"):
        multiply(broken("other = both + SIZE;", "other = both;"))
    with pytest.raises(SimulationError, match="race"):
        many_blocks(broken("turn ^= 1;", ""))


BOUNDS: list[tuple[Run, str, str]] = [
    (multiply, "rows.first + place.row < rows.end && is_in_tile(place, i)", "is_in_tile(place, i)"),
    (multiply, "const bool whole = columns.end - columns.first >= COLUMNS;", "const bool whole = true;"),
    (multiply, "if (row < rows.end && column < columns.end)\n", "if (column < columns.end)\n"),
    (multiply, "if (row < rows.end && column < columns.end)\n", "if (row < rows.end)\n"),
    (multiply_listed, "blocks.partial = metal::clamp(lists.kv_num_blocks[row], 0, p.columns);", "blocks.partial = 99;"),
    (
        sample,
        "range.end = range.first + metal::min(size, length - range.first);",
        "range.end = range.first + size;",
    ),
    (stray, "if (block >= 0 && block <= (kv_len - 1) / kv_block) ", ""),
    (long_rows, "column < p.columns ? *from.at(place.row, column) : minus_infinity()", "*from.at(place.row, column)"),
    (long_rows, "if (column < p.columns) to[column]", "to[column]"),
    (lambda stages: stages.scale(tensor(3, 37), 2.0), "if (place.row >= p.rows) return;", ""),
    (lambda stages: stages.scale(tensor(3, 37), 2.0), "if (column < p.columns) ", ""),
    (many_blocks, "if (index < 32 && ", "if (bits + 1 && "),
]


@pytest.mark.parametrize(("run", "right", "wrong"), BOUNDS)
def test_every_bound_of_a_stage_is_needed(run: Run, right: str, wrong: str) -> None:
    with pytest.raises(SimulationError, match="out of bounds|overlapping|race"):
        run(broken(right, wrong))


def test_blocks_that_are_not_there_are_left_out() -> None:
    keep = np.zeros((30, 20), bool)
    keep[:16, :12] = keep[16:, 12:] = True
    np.testing.assert_array_equal(
        np.array(stray(stages()))[0, 0], np.where(keep, np.array(tensor(1, 1, 30, 20))[0, 0], -np.inf)
    )


# ---- counts -------------------------------------------------------------------------------------------------------


def counted(run: Run) -> Report:
    with recording() as reports:
        run(stages())
    return reports[-1]


@pytest.mark.parametrize(("tiles", "steps"), [((32, 16), 1), ((32, 16, 64), 1), ((32, 16, 16), 3), ((32, 16, 8), 6)])
def test_one_barrier_for_each_step_of_a_product(tiles: tuple[int, ...], steps: int) -> None:
    """The loads of step i + 1 go to the other half while step i is computed: no second barrier frees the first."""
    report = counted(lambda stages: multiply(stages, tiles))
    plan = plan_of(Operands(4, 4, False), tiles, 45)
    groups = 2 * -(-37 // 32) * -(-53 // 16)
    assert report.threadgroup_barriers == groups * steps
    assert report.threadgroup_allocated == plan.threadgroup_bytes
    assert report.buffers["a"].read == 2 * 37 * 45 * 4 * 4, "each element once for each of 4 tiles of columns"
    assert report.buffers["b"].read == 2 * 45 * 53 * 4 * 2, "each element once for each of 2 tiles of rows"
    assert report.buffers["out"].written == 2 * 37 * 53 * 4 and report.buffers["out"].unwritten == 0
    assert report.simdgroup_barriers == 0


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("transpose_b", [False, True])
def test_matmul_beside_mlx_s_own_kernel(transpose_b: bool, dtype: mx.Dtype) -> None:
    """The same tiles: as much is read and multiplied, with less than half of the barriers."""
    a, b = tensor(64, 96, dtype=dtype), tensor(*((128, 96) if transpose_b else (96, 128)), dtype=dtype, seed=1)
    product, steel = steel_gemm(a, b, transpose_b)
    flips = {"transpose_a": False, "transpose_b": transpose_b}
    with recording() as reports:
        ours = stages().matmul(a[None, None], b[None, None], **flips, tiles=TILES, dtype=dtype)
    report = reports[-1]
    np.testing.assert_allclose(
        np.array(product), np.array(ours)[0, 0], rtol=1e-3, atol=1e-4 if dtype == mx.float32 else 0.02
    )
    assert report.matrix_multiplies == steel.matrix_multiplies
    for name in ("a", "b", "out"):
        assert report.buffers[name].read == steel.buffers[name].read
        assert report.buffers[name].written == steel.buffers[name].written
    assert report.threadgroup_read <= steel.threadgroup_read
    assert report.threadgroup_written <= steel.threadgroup_written
    assert 2 * report.threadgroup_barriers < steel.threadgroup_barriers
    assert report.simdgroup_barriers == 0 < steel.simdgroup_barriers


def test_simdgroups_without_rows_multiply_nothing() -> None:
    a, b = tensor(1, 1, 9, 32), tensor(1, 1, 32, 64, seed=1)
    report = counted(
        lambda stages: stages.matmul(a, b, transpose_a=False, transpose_b=False, tiles=(64, 64, 16), dtype=mx.float32)
    )
    assert report.matrix_multiplies == (32 // 8) * (64 // 8) * (32 // 8), "32 of 64 rows: one row of simdgroups"


def test_products_cost_what_is_listed() -> None:
    blocks = lists_of(1, 1, 4, 4, (32, 32))
    share = float((listed(blocks, (1, 1, 128, 128)) > 0).mean())
    q, k = tensor(1, 1, 128, 32), tensor(1, 1, 128, 32, seed=1)
    p = tensor(1, 1, 128, 128)
    sampled = counted(lambda stages: stages.block_sparse_matmul(q, k, blocks, transpose_b=True, dtype=mx.float32))
    weighted = counted(lambda stages: stages.block_sparse_matmul(p, k, blocks, transpose_b=False, dtype=mx.float32))
    assert 0 < share < 1
    assert sampled.matrix_multiplies == weighted.matrix_multiplies == share * 16 * 16 * 4
    assert sampled.buffers["out"].written == share * 128 * 128 * 4
    assert weighted.buffers["a"].read == share * 128 * 128 * 4


def test_blocks_far_larger_than_the_scores_cost_no_more() -> None:
    """A block of 128 rows for one query is one row, and sides near the largest int do not overflow."""
    huge = 2**31 - 1
    x, k = tensor(1, 1, 1, 37), tensor(1, 1, 37, 8, seed=1)
    for size in (128, huge):
        blocks = stages().block_mask(CAUSAL, 1, 1, 1, 37, (size, size))
        assert [a.tolist() for a in blocks[:4]] == [[[[1]]], [[[[0]]]], [[[0]]], [[[[0]]]]]
        recorder = Recorder()
        for run in (stages(), MetalBackend(recorder).stages()):
            sampled = run.block_sparse_matmul(x[..., :8], k, blocks, transpose_b=True, dtype=mx.float32)
            weighted = run.block_sparse_matmul(x, k, blocks, transpose_b=False, dtype=mx.float32)
            kept = run.score_mod(x, Mods(None, CAUSAL), blocks)
            assert sampled.shape == kept.shape == (1, 1, 1, 37) and weighted.shape == (1, 1, 1, 8)
        assert all(launched.call["grid"][1:] == (1, 1) for launched in recorder.launches)


def test_softmax_reads_a_row_twice() -> None:
    report = counted(long_rows)
    assert report.buffers["x"].read == 2 * 3 * 1100 * 4 and report.buffers["weights"].unwritten == 0
    assert report.threadgroup_barriers == 3
    assert counted(lambda s: s.softmax(tensor(9, 100), normalise=True, dtype=mx.float32)).threadgroup_barriers == 0


# ---- nothing is evaluated, nothing is launched in vain --------------------------------------------------------------


def test_stages_are_lazy() -> None:
    """All of them run inside mx.compile, where MLX refuses to evaluate."""
    recorder = Recorder()
    lazy = MetalBackend(recorder).stages()

    def pipeline(q: mx.array, k: mx.array, v: mx.array) -> tuple[mx.array, ...]:
        blocks = lazy.block_mask(CAUSAL, 1, 1, 20, 30, (8, 8))
        dense = lazy.matmul(q, k, transpose_a=False, transpose_b=True, tiles=None, dtype=mx.float32)
        scores = lazy.block_sparse_matmul(q, k, blocks, transpose_b=True, dtype=mx.float32) + dense
        parts = lazy.softmax(
            lazy.score_mod(lazy.scale(scores, 0.5), Mods(None, CAUSAL), blocks), normalise=False, dtype=mx.float32
        )
        product = lazy.block_sparse_matmul(parts.weights, v, blocks, transpose_b=False, dtype=mx.float32)
        return tuple(lazy.attention_output(product, parts.max_scores, parts.sums, mx.float16))

    out, lse, largest = mx.compile(pipeline)(tensor(1, 2, 20, 16), tensor(1, 1, 30, 16), tensor(1, 1, 30, 8))
    assert (out.shape, out.dtype, lse.shape, largest.shape) == ((1, 2, 20, 8), mx.float16, (1, 2, 20), (1, 2, 20))
    assert len(recorder.launches) == 8


def test_small_inputs_stay_out_of_the_constant_address_space() -> None:
    recorder = Recorder()
    tiny = MetalBackend(recorder).stages()
    x = mx.ones((1, 1, 1, 2))
    blocks = tiny.block_mask(CAUSAL, 1, 1, 1, 1, (8, 8))
    multiply = {"transpose_a": False, "transpose_b": True, "tiles": None, "dtype": mx.float32}
    tiny.matmul(x, x, **multiply)
    tiny.block_sparse_matmul(x, x, blocks, transpose_b=True, dtype=mx.float32)
    tiny.score_mod(x, Mods(None, CAUSAL), blocks)
    tiny.scale(mx.array(2.0), 2.0)
    tiny.softmax(mx.ones(1), normalise=True, dtype=mx.float32)
    tiny.attention_output(x, x[..., 0], x[..., 0], mx.float32)
    assert len(recorder.launches) == 7
    for launched in recorder.launches:
        assert all(array.size >= 8 for array in launched.call["inputs"])


def test_sizes_of_zero() -> None:
    recorder = Recorder()
    empty, f32 = MetalBackend(recorder).stages(), mx.float32
    flips = {"transpose_a": False, "transpose_b": False, "tiles": None, "dtype": f32}
    got = empty.matmul(mx.ones((1, 2, 3, 0)), mx.ones((1, 1, 0, 5)), **flips)
    assert got.shape == (1, 2, 3, 5) and not got.any()
    assert empty.matmul(mx.ones((1, 2, 0, 4)), mx.ones((1, 1, 4, 5)), **flips).shape == (1, 2, 0, 5)
    assert empty.scale(mx.ones((3, 0)), 2.0).shape == (3, 0)
    assert empty.score_mod(mx.ones((1, 1, 0, 4)), Mods(None, CAUSAL), None).shape == (1, 1, 0, 4)
    weights, largest, sums = empty.softmax(mx.ones((2, 3, 0)), normalise=True, dtype=f32)
    assert weights.shape == (2, 3, 0) and largest.tolist() == [[-np.inf] * 3] * 2 and sums.tolist() == [[0.0] * 3] * 2
    lists = empty.block_mask(CAUSAL, 1, 2, 0, 4, (2, 2))
    assert lists.kv_num_blocks.shape == (1, 2, 0) and lists.full_kv_indices.shape == (1, 2, 0, 2)
    none = empty.block_mask(CAUSAL, 1, 1, 4, 0, (2, 2))
    assert none.kv_num_blocks.tolist() == [[[0, 0]]]
    weighted = empty.block_sparse_matmul(
        mx.ones((1, 1, 4, 0)), mx.ones((1, 1, 0, 3)), none, transpose_b=False, dtype=f32
    )
    assert weighted.shape == (1, 1, 4, 3) and not weighted.any()
    assert empty.attention_output(mx.ones((1, 0, 4)), mx.ones((1, 0)), mx.ones((1, 0)), f32).out.shape == (1, 0, 4)
    assert recorder.launches == []
    sums_of_nothing = stages().block_sparse_matmul(
        mx.ones((1, 1, 4, 0)), mx.ones((1, 1, 4, 0)), stages().block_mask(CAUSAL, 1, 1, 4, 4, (2, 2)),
        transpose_b=True, dtype=f32,
    )  # fmt: skip
    assert sums_of_nothing.tolist() == [[[[0.0, 0.0, -np.inf, -np.inf]] * 2 + [[0.0] * 4] * 2]]
