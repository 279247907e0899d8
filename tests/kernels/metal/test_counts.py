"""The simulator's checks watch over the Metal kernel, and what a run moves and multiplies."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from apparatus.simulated import BARRIER, backend, broken, inputs
from calls import attention_call, run_on

import flextrace as flex
from flextrace.kernels.metal.attention.plan import plan_for
from flextrace.kernels.metal.generate import kernel_text
from flextrace.kernels.simulator import SimulationError, recording
from flextrace.kernels.simulator.mlx_attention import steel_attention

# ---- the checks watch ---------------------------------------------------------------------------------------------


def barriers() -> int:
    return kernel_text().header.count(BARRIER)


@pytest.mark.parametrize("which", [1, 2])
def test_every_barrier_is_needed(which: int) -> None:
    assert barriers() == 2
    q, k, v = inputs((1, 1, 70, 64, 1, 1, 1100, 64), "float32")  # more than one survey of 32 tiles
    mask = flex.mask_mod(lambda b, h, q_idx, kv_idx: kv_idx > 1060).bind()  # the first survey finds nothing
    call = attention_call(q, k, v, 1.0, None, mask)
    run_on(backend(), call)
    with pytest.raises(SimulationError, match="race|uninitialised"):
        run_on(broken(BARRIER, ";", which), call)


BOUNDS = [
    ("const bool there = rows.first + place.row < rows.end &&", "const bool there ="),
    ("if (row < p.q_len) {", "{"),
    ("if (column < P::VALUE_DIM) to.out", "to.out"),
    ("return metal::clamp(index < 0 ? index + size : index, 0, size - 1);", "return index;"),
]


@pytest.mark.parametrize(("right", "wrong"), BOUNDS, ids=["rows", "query rows", "columns", "gather"])
def test_every_bound_is_needed(right: str, wrong: str) -> None:
    table = mx.ones(30)
    score = flex.score_mod(lambda s, b, h, q_idx, kv_idx: s + table[kv_idx + 5]).bind()
    q, k, v = inputs((1, 1, 70, 17, 1, 1, 75, 17), "float32")
    with pytest.raises(SimulationError, match="out of bounds|overlapping"):
        run_on(broken(right, wrong), attention_call(q, k, v, 1.0, score))


# ---- counts -------------------------------------------------------------------------------------------------------


def counts(length: int, dim: int, dtype: str = "float32", mask: Any = None, block_mask: bool = False) -> Any:
    q, k, v = inputs((1, 1, length, dim, 1, 1, length, dim), dtype)
    mod = None if mask is None else flex.mask_mod(mask)
    blocks = flex.create_block_mask(mod, None, None, length, length).blocks if block_mask else None
    with recording() as reports:
        run_on(backend(), attention_call(q, k, v, 1.0, None, None if mod is None else mod.bind(), blocks))
    return reports[-1]


def test_a_dense_run_moves_what_the_plan_says() -> None:
    length, dim = 256, 64
    report, plan = counts(length, dim), plan_for(dim, dim, "float32")
    tensor = length * dim * 4
    assert report.buffers["q"].read == tensor, "queries are read once"
    assert report.buffers["k"].read == report.buffers["v"].read == tensor * length // plan.bq
    assert report.buffers["out"].written == tensor
    assert report.threadgroup_allocated == plan.threadgroup_bytes
    assert report.threadgroup_read == 2 * tensor * length // (8 * plan.row_fragments)
    assert report.matrix_multiplies == 2 * (length // 8) ** 2 * dim // 8
    tiles = length // plan.bq * length // plan.bk
    assert report.threadgroup_barriers == 2 * tiles
    of_simdgroup = dim // 8 + plan.bk // 8 * (dim // 32)  # they keep few loads under way
    assert report.simdgroup_barriers == tiles * plan.simdgroups * of_simdgroup


def causal(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx >= kv_idx


def window(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return (q_idx >= kv_idx) & (q_idx - kv_idx < 64)


@pytest.mark.parametrize("block_mask", [False, True], ids=["mask_mod", "BlockMask"])
def test_masked_tiles_cost_nothing(block_mask: bool) -> None:
    length = 1024
    dense = counts(length, 16)
    half, band = (counts(length, 16, mask=mask, block_mask=block_mask) for mask in (causal, window))
    # Tiles that are masked look their values over for what is not finite, which reads them once more.
    for name, triangle, strip in (("matrix_multiplies", 0.53, 0.11), ("threadgroup_read", 0.54, 0.12)):
        assert getattr(half, name) < triangle * getattr(dense, name), name
        assert getattr(band, name) < strip * getattr(dense, name), name
    for buffer in ("k", "v"):
        assert half.buffers[buffer].read < 0.54 * dense.buffers[buffer].read
        assert band.buffers[buffer].read < 0.16 * dense.buffers[buffer].read
    none = counts(length, 16, mask=lambda b, h, q_idx, kv_idx: q_idx < 0, block_mask=block_mask)
    assert none.matrix_multiplies == none.buffers["k"].read == 0


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("dim", [64, 128])
def test_counts_beside_mlx_s_own_kernel(dim: int, dtype: str) -> None:
    """MLX's steel attention, read from the installed package and run in the same simulator."""
    length = 128
    _, steel = steel_attention(*inputs((1, 1, length, dim, 1, 1, length, dim), dtype), 1.0)
    ours = counts(length, dim, dtype)
    assert ours.matrix_multiplies == steel.matrix_multiplies
    tensors = (sum(ours.buffers[name].read for name in "qkv"), sum(steel.buffers[name].read for name in "QKV"))
    assert tensors[0] <= 0.6 * tensors[1], "bytes of q, k and v from device memory"
    one_fragment = plan_for(dim, dim, dtype).row_fragments == 1  # of rows: each fragment of K and V serves half as many
    assert ours.threadgroup_read <= (0.8 if one_fragment else 0.6) * steel.threadgroup_read
    assert ours.threadgroup_written < 0.6 * steel.threadgroup_written
    assert ours.threadgroup_allocated <= steel.threadgroup_allocated
    assert ours.threadgroup_barriers <= 0.5 * steel.threadgroup_barriers
    assert ours.simdgroup_barriers < steel.simdgroup_barriers
    assert ours.shuffles < 0.5 * steel.shuffles
