"""MLX's own attention kernels, read from the installed wheel: right numbers, no findings, the yardstick's counts."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from flextrace.kernels.simulator import mlx_attention
from flextrace.kernels.simulator.mlx_attention import sdpa_vector, steel_attention
from flextrace.simulator import Report, SimulationError

TOLERANCE = {mx.float32: 2e-6, mx.float16: 2e-3, mx.bfloat16: 2e-2}


def agree(run: Any, sizes: tuple[int, int, int, int, int, int], dtype: mx.Dtype = mx.float32, **options: Any) -> Report:
    """Run on random tensors of batch, query heads, key heads, q_len, kv_len, head_dim; compare with MLX."""
    batch, heads, kv_heads, q_len, kv_len, dim = sizes
    shapes = ((heads, q_len), (kv_heads, kv_len), (kv_heads, kv_len))
    q, k, v = (
        mx.random.normal((batch, h, n, dim), key=mx.random.key(i)).astype(dtype) for i, (h, n) in enumerate(shapes)
    )
    scale = dim**-0.5
    mask = "causal" if options.get("causal") else options.get("mask")
    expected = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
    out, report = run(q, k, v, scale, **options)
    assert mx.abs(out.astype(mx.float32) - expected.astype(mx.float32)).max() < TOLERANCE[dtype]
    assert report.findings == ()
    return report


def test_steel_attention_counts_are_the_yardsticks() -> None:
    report = agree(steel_attention, (1, 1, 1, 512, 512, 64))
    read = {name: buffer.read for name, buffer in report.buffers.items() if buffer.space == "device"}
    assert read == {"Q": 131_072, "K": 2_097_152, "V": 2_097_152, "out": 0}
    assert report.buffers["out"].written == 131_072
    assert (report.threadgroup_read, report.threadgroup_written) == (18_874_368, 4_325_376)
    assert report.threadgroup_variables == {"Q_smem": 8_704, "KV_smem": 9_216}
    assert report.matrix_multiplies == 65_536
    assert (report.threadgroup_barriers, report.simdgroup_barriers, report.shuffles) == (1_056, 16_384, 16_384)


@pytest.mark.parametrize("order", ["reverse", "shuffled"])
def test_steel_attention_in_other_lane_orders(order: str) -> None:
    agree(steel_attention, (1, 2, 1, 70, 100, 64), lane_order=order)


@pytest.mark.parametrize(
    ("sizes", "dtype", "options"),
    [
        ((1, 2, 1, 70, 100, 64), mx.float16, {"causal": True}),
        ((2, 2, 2, 33, 40, 64), mx.bfloat16, {}),
        ((1, 1, 1, 40, 40, 128), mx.float32, {"causal": True}),
    ],
)
def test_steel_attention(sizes: tuple[int, int, int, int, int, int], dtype: mx.Dtype, options: Any) -> None:
    agree(steel_attention, sizes, dtype, **options)


def test_steel_attention_with_a_mask() -> None:
    mask = mx.random.normal((1, 1, 64, 96), key=mx.random.key(9)) > 0
    agree(steel_attention, (1, 1, 1, 64, 96, 64), mask=mask)


@pytest.mark.parametrize(
    ("sizes", "dtype", "options"),
    [
        ((1, 4, 2, 1, 100, 64), mx.float32, {}),
        ((1, 2, 2, 3, 65, 128), mx.float16, {"causal": True}),
    ],
)
def test_sdpa_vector(sizes: tuple[int, int, int, int, int, int], dtype: mx.Dtype, options: Any) -> None:
    agree(sdpa_vector, sizes, dtype, **options)


def test_without_checks() -> None:
    agree(steel_attention, (1, 1, 1, 64, 64, 64), checks=False)


@pytest.mark.parametrize("number", range(7))
def test_each_barrier_of_steel_attention_is_missed(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Barriers with mem_threadgroup, in the order of the text, for a kernel of one simdgroup column."""
    from flextrace.kernels.simulator.translate import mlx_text, translate

    text = (mlx_text.include_folder() / mlx_attention.STEEL).read_text(encoding="utf-8")
    head, loop = text.split("for (int kb = 0", 1)
    barrier = "threadgroup_barrier(mem_flags::mem_threadgroup);"
    pieces = (head + "for (int kb = 0" + loop).split(barrier)
    changed = barrier.join(pieces[: number + 1]) + barrier.join(["", *pieces[number + 1 :]])[len(barrier) :]
    whole = {**mlx_text.replacements(), mlx_attention.STEEL: changed}
    monkeypatch.setattr(translate, "replacements", lambda: whole)
    translate._translate.cache_clear()
    # 0 opens the kernel, before anything is shared; 3 and 4 serve kernels of two simdgroup columns only.
    harmless = number in (0, 3, 4)
    try:
        if harmless:
            agree(steel_attention, (1, 1, 1, 64, 64, 64))
        else:
            with pytest.raises(SimulationError, match="race"):
                agree(steel_attention, (1, 1, 1, 64, 64, 64))
    finally:
        translate._translate.cache_clear()


@pytest.mark.long
@pytest.mark.parametrize("order", ["forward", "reverse", "shuffled"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("dim", [64, 80, 128])
def test_steel_attention_everywhere(dim: int, dtype: mx.Dtype, order: str) -> None:
    agree(steel_attention, (1, 2, 1, 200, 333, dim), dtype, lane_order=order)
    agree(steel_attention, (1, 2, 1, 200, 333, dim), dtype, lane_order=order, causal=True)
