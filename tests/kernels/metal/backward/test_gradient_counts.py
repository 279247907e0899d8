"""What the Metal gradient kernels multiply and move, beside the forward kernel and beside MLX's matrix products."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from apparatus.simulated import backend, inputs
from apparatus.steel_gemm import steel_gemm
from calls import attention_call, run_on

import flextrace as flex
from flextrace.kernels.call import BackwardCall
from flextrace.kernels.metal.attention.plan import plan_for
from flextrace.kernels.metal.backward.plan import gradient_plan
from flextrace.kernels.simulator import Report, recording


def counted(length: int, dim: int, dtype: str = "float32", mask: Any = None, blocks: bool = False) -> list[Report]:
    """The forward kernel, dQ, then dK and dV, of one head."""
    q, k, v = inputs((1, 1, length, dim, 1, 1, length, dim), dtype)
    mod = None if mask is None else flex.mask_mod(mask)
    lists = flex.create_block_mask(mod, None, None, length, length).blocks if blocks else None
    call = attention_call(q, k, v, 1.0, None, None if mod is None else mod.bind(), lists, want_lse=True)
    with recording() as reports:
        made = run_on(backend(), call)
        assert made.lse is not None
        backend().backward(BackwardCall(call, made.out, made.lse, q))
    return reports


def test_a_dense_backward_pass_moves_what_the_plan_says() -> None:
    length, dim = 192, 64
    forward, of_query, of_key = counted(length, dim)
    assert of_query.matrix_multiplies + of_key.matrix_multiplies == 3.5 * forward.matrix_multiplies
    tensor = length * dim * 4
    for report, own, others in ((of_query, ("q", "d_out"), ("k", "v")), (of_key, ("k", "v"), ("q", "d_out"))):
        plan = gradient_plan(report is of_key, dim, dim, "float32")
        assert {report.buffers[name].read for name in own} == {tensor}, "own rows are read once"
        assert {report.buffers[name].read for name in others} == {tensor * length // plan.bq}
        assert report.threadgroup_allocated == plan.threadgroup_bytes
        assert report.threadgroup_barriers == plan.barriers_per_row * length * length // plan.bq
    assert [of_query.buffers["d_q"].written, of_key.buffers["d_k"].written, of_key.buffers["d_v"].written] == [
        tensor
    ] * 3


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("dim", [64, 80, 128])
def test_a_backward_pass_costs_so_many_forward_passes(dim: int, dtype: str) -> None:
    """Seven products against two, and at most four times the bytes; each kernel's memory fits a threadgroup."""
    forward, of_query, of_key = counted(512, dim, dtype)
    assert of_query.matrix_multiplies + of_key.matrix_multiplies == 3.5 * forward.matrix_multiplies
    read = [report.device_read for report in (forward, of_query, of_key)]
    assert sum(read[1:]) <= 4 * read[0]
    written = [report.device_written for report in (forward, of_query, of_key)]
    assert sum(written[1:]) <= 4 * written[0]
    assert max(of_query.threadgroup_allocated, of_key.threadgroup_allocated) <= 32 * 1024


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_bytes_grow_as_the_plans_say(dtype: str) -> None:
    """So what holds at length 512 holds for longer rows."""
    for dim in range(16, 144, 16):  # two parts of whole fragments
        forward = 2 * dim / plan_for(dim, dim, dtype).bq
        both = [gradient_plan(of_keys, dim, dim, dtype).device_columns for of_keys in (False, True)]
        assert sum(both) <= 4 * forward, dim


def causal(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx >= kv_idx


def window(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return (q_idx >= kv_idx) & (q_idx - kv_idx < 64)


@pytest.mark.long
@pytest.mark.parametrize("blocks", [False, True], ids=["mask_mod", "BlockMask"])
def test_masked_tiles_cost_nothing_in_both_directions(blocks: bool) -> None:
    dense, half, band = (
        counted(1024, 16, mask=mask, blocks=blocks and mask is not None)[1:] for mask in (None, causal, window)
    )
    for whole, triangle, strip in zip(dense, half, band, strict=True):
        assert triangle.matrix_multiplies < 0.58 * whole.matrix_multiplies
        assert strip.matrix_multiplies < 0.25 * whole.matrix_multiplies
        for name in ("k", "v") if "query" in whole.kernel else ("q", "d_out"):
            assert triangle.buffers[name].read < 0.6 * whole.buffers[name].read
            assert strip.buffers[name].read < 0.28 * whole.buffers[name].read


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_counts_beside_mlx_s_own_products(dtype: str) -> None:
    """An unfused backward multiplies matrices: S again, dP, dV, dQ and dK; here they are MLX's steel products."""
    length, dim = 512, 64
    rng = np.random.default_rng(0)
    rows, square = (
        mx.array(rng.normal(size=shape)).astype(getattr(mx, dtype)) for shape in ((length, dim), (length, length))
    )
    _, scores = steel_gemm(rows, rows, transpose_b=True)  # S, dP
    _, sums = steel_gemm(square, rows)  # dV, dQ, dK
    _, *ours = counted(length, dim, dtype)
    multiplies = 2 * scores.matrix_multiplies + 3 * sums.matrix_multiplies
    assert sum(report.matrix_multiplies for report in ours) == 7 / 5 * multiplies, "S and dP are computed twice"
    bytes_of_steel = 2 * (scores.device_read + scores.device_written) + 3 * (sums.device_read + sums.device_written)
    assert sum(report.device_read + report.device_written for report in ours) < bytes_of_steel
