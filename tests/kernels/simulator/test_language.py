"""The stand-in for <metal_stdlib>: vectors, mathematics, collectives, matrices, half and bfloat, atomics."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import flextrace.kernels.simulator.build as build
from flextrace.simulator import metal_kernel


def each(source: str, a: Any = None, out: mx.Dtype = mx.float32, header: str = "", group: int = 32) -> Any:
    """One value for each of 32 lanes (or as many as `a` has); `a` defaults to 0, 1, 2, ..."""
    a = mx.arange(32).astype(mx.float32) if a is None else a
    kernel = metal_kernel("each", ["a"], ["out"], "uint g = thread_position_in_grid.x;\n" + source, header=header)
    grid = {"grid": (a.size, 1, 1), "threadgroup": (group, 1, 1)}
    (made,) = kernel(inputs=[a], output_shapes=[a.shape], output_dtypes=[out], **grid)
    return np.array(made.astype(mx.float32) if out == mx.bfloat16 else made)


def together(expressions: Sequence[str]) -> Any:
    """Every expression in one kernel: [expressions, 32]."""
    lines = [f"out[{at} * 32 + g] = {expression};" for at, expression in enumerate(expressions)]
    kernel = metal_kernel("together", ["a"], ["out"], "uint g = thread_position_in_grid.x;\n" + "\n".join(lines))
    sizes: dict[str, Any] = {"grid": (32, 1, 1), "threadgroup": (32, 1, 1), "output_dtypes": [mx.float32]}
    (out,) = kernel(inputs=[mx.arange(32).astype(mx.float32)], output_shapes=[(len(expressions), 32)], **sizes)
    return np.array(out)


EXPRESSIONS: list[tuple[str, Any]] = [
    ("float4(float4(1, 2, 3, 4).wzyx).x", 4),
    ("(float4(1, 2, 3, 4).xy * 2.0f + float2(1)).y", 5),
    ("float2(float4(float2(1, 2), 3, 4).zw).y", 4),
    ("float3(float2(7, 2), 3).x", 7),
    ("dot(float4(1, 2, 3, 4), float4(1))", 10),
    ("length(float2(3, 4))", 5),
    ("cross(float3(1, 0, 0), float3(0, 1, 0)).z", 1),
    ("max(float4(1, 2, 3, 4), 2.5f).x", 2.5),
    ("clamp(float3(-1, 0.5, 7), 0.0f, 1.0f).z", 1),
    ("fma(float4(2), 3.0f, float4(1)).w", 7),
    ("select(float2(1, 2), float2(3, 4), bool2(true, false)).x", 3),
    ("select(1.0f, 2.0f, false)", 1),
    ("any(float2(1, 2) > float2(1, 1)) ? 1 : 0", 1),
    ("all(float2(1, 2) > float2(1, 1)) ? 1 : 0", 0),
    ("float((int3(7, 8, 9) % 4).y)", 0),
    ("float((uint2(1, 2) << 3).y)", 16),
    ("float(as_type<uint>(1.0f))", 1065353216),
    ("as_type<float2>(as_type<ulong>(float2(1, 9))).y", 9),
    ("float(half(2049.0f))", 2048),
    ("float(half(1) / half(3))", 0.333251953125),
    ("float(bfloat(1.005f))", 1.0078125),
    ("float(bfloat(2) * bfloat(1.5f))", 3),
    ("sizeof(float3)", 16),
    ("sizeof(packed_float3)", 12),
    ("sizeof(half4)", 8),
    ("1.0 / 3", np.float32(1) / np.float32(3)),
    ("metal::precise::exp2(3.0f)", 8),
    ("metal::precise::sqrt(16.0f)", 4),
    ("metal::abs(metal::fast::sqrt(16.0f) - 4.0f) < 1e-6f ? 1 : 0", 1),  # 2 ulp
    ("rsqrt(0.25f)", 2),
    ("round(-2.5f)", -3),
    ("rint(2.5f)", 2),
    ("fmin(NAN, 2.0f)", 2),
    ("sign(-3.0f)", -1),
    ("float(abs(-3))", 3),
    ("float(popcount(255u))", 8),
    ("float(clz(1u))", 31),
    ("float(mulhi(1u << 31, 4u))", 2),
    ("float(isnan(NAN)) + float(isinf(INFINITY))", 2),
    ("mix(1.0f, 3.0f, 0.5f)", 2),
    ("numeric_limits<half>::max()", 65504),
    ("metal::numeric_limits<bfloat>::infinity()", np.inf),
    ("Limits<float>::finite_min", np.float32(-3.4028235e38)),
    ("float(is_same_v<bfloat16_t, bfloat>)", 1),
    ("M_LOG2E_F", np.float32(1.4426950408889634)),
]


@functools.cache
def values_of_expressions() -> Any:
    """All expressions in one kernel, one value for each lane: [expressions, 32]."""
    return together([expression for expression, _ in EXPRESSIONS])


@pytest.mark.parametrize("number", range(len(EXPRESSIONS)), ids=[expression for expression, _ in EXPRESSIONS])
def test_expressions(number: int) -> None:
    assert values_of_expressions()[number][3] == np.float32(EXPRESSIONS[number][1])


def test_swizzles_are_assigned() -> None:
    source = """float4 v = float4(a[g]); v.xy = float2(1, 2); v.zw = v.yx; v.x += 10; v.yz *= 3;
        out[g] = dot(v, float4(1, 10, 100, 1000));"""
    assert each(source)[0] == 11 + 60 + 600 + 1000
    alias = "float4 v = float4(1, 2, 3, 4); float4 w = float4(5, 6, 7, 8); w.xy = v.xy; out[g] = w.x + w.z * 10;"
    assert each(alias)[0] == 71


COLLECTIVES: list[tuple[str, Callable[[int], float]]] = [
    ("simd_sum(a[g])", lambda lane: 496),
    ("simd_max(a[g])", lambda lane: 31),
    ("simd_min(a[g] + 3)", lambda lane: 3),
    ("float(simd_or(1u << g))", lambda lane: 4294967295),
    ("simd_sum(float2(a[g], 1)).y", lambda lane: 32),
    ("simd_shuffle(a[g], 7)", lambda lane: 7),
    ("simd_shuffle(a[g], 31 - g)", lambda lane: 31 - lane),
    ("simd_shuffle_xor(a[g], 5)", lambda lane: lane ^ 5),
    ("simd_shuffle_down(a[g], 4)", lambda lane: lane + 4 if lane < 28 else lane),
    ("simd_shuffle_up(a[g], 4)", lambda lane: lane - 4 if lane >= 4 else lane),
    ("simd_broadcast(a[g], 9)", lambda lane: 9),
    ("simd_broadcast_first(a[g] + 2)", lambda lane: 2),
    ("simd_prefix_inclusive_sum(a[g])", lambda lane: lane * (lane + 1) // 2),
    ("simd_prefix_exclusive_sum(a[g])", lambda lane: lane * (lane - 1) // 2),
    ("float(simd_any(g == 3)) + float(simd_all(g < 40))", lambda lane: 2),
    ("float(ulong(simd_ballot(g < 5)))", lambda lane: 31),
    ("float(simd_shuffle_xor(half(a[g]), 1))", lambda lane: lane ^ 1),
    ("float(simd_max(bfloat(a[g])))", lambda lane: 31),
    ("simd_shuffle_and_fill_up(a[g], a[g] + 100, 2)", lambda lane: lane - 2 if lane > 1 else 130 + lane),
]


@functools.cache
def values_of_collectives() -> Any:
    return together([expression for expression, _ in COLLECTIVES])


@pytest.mark.parametrize("number", range(len(COLLECTIVES)), ids=[expression for expression, _ in COLLECTIVES])
def test_collectives(number: int) -> None:
    expected = COLLECTIVES[number][1]
    np.testing.assert_array_equal(values_of_collectives()[number], np.float32([expected(lane) for lane in range(32)]))


def test_collectives_of_a_short_simdgroup() -> None:
    a = mx.arange(40).astype(mx.float32)
    got = each("out[g] = simd_sum(a[g]);", a, group=40)
    assert set(got[:32]) == {496.0} and set(got[32:]) == {sum(range(32, 40))}


MATMUL = """
    uint tile_row = threadgroup_position_in_grid.y, tile_column = threadgroup_position_in_grid.x;
    simdgroup_matrix<T, 8, 8> left, right;
    simdgroup_float8x8 sum = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    for (uint k = 0; k < K; k += 8) {
        simdgroup_load(left, a + tile_row * 8 * K + k, K);
        ulong2 origin = TRANSPOSED ? ulong2(k, tile_column * 8) : ulong2(tile_column * 8, k);
        simdgroup_load(right, b, TRANSPOSED ? K : N, origin, TRANSPOSED);
        simdgroup_multiply_accumulate(sum, left, right, sum);
    }
    simdgroup_store(sum, out + tile_row * 8 * N + tile_column * 8, N);
"""


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_matrix_multiply_by_simdgroup_matrices(dtype: mx.Dtype, transposed: bool) -> None:
    m, n, k = 24, 16, 40
    a = mx.random.normal((m, k), key=mx.random.key(0)).astype(dtype)
    b = mx.random.normal((n, k) if transposed else (k, n), key=mx.random.key(1)).astype(dtype)
    kernel = metal_kernel("matmul", ["a", "b"], ["out"], MATMUL)
    (out,) = kernel(
        inputs=[a, b],
        template=[("T", dtype), ("N", n), ("K", k), ("TRANSPOSED", transposed)],
        grid=(32 * n // 8, m // 8, 1),
        threadgroup=(32, 1, 1),
        output_shapes=[(m, n)],
        output_dtypes=[mx.float32],
    )
    left, right = (np.array(x.astype(mx.float32)).astype(np.float64) for x in (a, b))
    np.testing.assert_allclose(np.array(out), left @ (right.T if transposed else right), rtol=1e-5, atol=1e-5)
    report = kernel.report
    assert report is not None and report.matrix_multiplies == m // 8 * (n // 8) * (k // 8)
    assert report.buffers["a"].read == m * k * dtype.size * (n // 8)


def test_the_lane_mapping_is_apples() -> None:
    source = """simdgroup_float8x8 m; simdgroup_load(m, a);
        out[g * 2] = m.thread_elements()[0]; out[g * 2 + 1] = m.thread_elements()[1];"""
    a = mx.arange(64).astype(mx.float32)
    kernel = metal_kernel("mapping", ["a"], ["out"], "uint g = thread_position_in_grid.x;" + source)
    grid: dict[str, Any] = {"grid": (32, 1, 1), "threadgroup": (32, 1, 1)}
    (out,) = kernel(inputs=[a], output_shapes=[(64,)], output_dtypes=[mx.float32], **grid)
    got = np.array(out).reshape(32, 2)
    for lane in range(32):
        q = lane // 4
        row, column = (q & 4) + lane // 2 % 4, (q & 2) * 2 + lane % 2 * 2
        assert got[lane].tolist() == [row * 8 + column, row * 8 + column + 1]


def test_diagonal_and_product_of_matrices() -> None:
    source = (
        "simdgroup_float8x8 m, d(2.0f); simdgroup_load(m, a); simdgroup_multiply(m, d, m); simdgroup_store(m, out);"
    )
    a = mx.arange(64).astype(mx.float32)
    kernel = metal_kernel("diagonal", ["a"], ["out"], source)
    grid: dict[str, Any] = {"grid": (32, 1, 1), "threadgroup": (32, 1, 1)}
    (out,) = kernel(inputs=[a], output_shapes=[(64,)], output_dtypes=[mx.float32], **grid)
    assert mx.array_equal(out, a * 2)


@pytest.mark.parametrize("order", ["forward", "reverse", "shuffled"])
def test_threadgroup_reduction_in_every_lane_order(order: str) -> None:
    source = """
        uint i = thread_index_in_threadgroup;
        threadgroup float partial[8];
        float sum = simd_sum(a[thread_position_in_grid.x]);
        if (thread_index_in_simdgroup == 0) { partial[simdgroup_index_in_threadgroup] = sum; }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (i == 0) {
            for (uint s = 1; s < simdgroups_per_threadgroup; s++) { sum += partial[s]; }
            out[threadgroup_position_in_grid.x] = sum;
        }
    """
    a = mx.arange(512).astype(mx.float32)
    kernel = metal_kernel("total", ["a"], ["out"], source, lane_order=order)
    grid: dict[str, Any] = {"grid": (512, 1, 1), "threadgroup": (256, 1, 1)}
    (out,) = kernel(inputs=[a], output_shapes=[(2,)], output_dtypes=[mx.float32], **grid)
    assert out.tolist() == [sum(range(256)), sum(range(256, 512))]
    report = kernel.report
    assert report is not None
    counts = (report.threadgroup_allocated, report.threadgroup_barriers, report.reductions)
    assert counts == (32, 2, 16)
    assert (report.threadgroup_written, report.threadgroup_read) == (64, 56)


def test_atomics_of_integers_and_compare_exchange() -> None:
    source = """
        atomic_fetch_max_explicit(&out[0], int(a[g]), memory_order_relaxed);
        int seen = atomic_load_explicit(&out[1], memory_order_relaxed);
        while (!atomic_compare_exchange_weak_explicit(
            &out[1], &seen, seen + 2, memory_order_relaxed, memory_order_relaxed)) {}
    """
    kernel = metal_kernel(
        "atomics", ["a"], ["out"], "uint g = thread_position_in_grid.x;" + source, atomic_outputs=True
    )
    grid: dict[str, Any] = {"grid": (50, 1, 1), "threadgroup": (25, 1, 1)}
    (out,) = kernel(inputs=[mx.arange(50)], output_shapes=[(2,)], output_dtypes=[mx.int32], init_value=0, **grid)
    assert out.tolist() == [49, 100]


def test_the_portable_context_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "RUNTIME_FLAGS", (*build.RUNTIME_FLAGS, "-DSIM_UCONTEXT"))
    test_threadgroup_reduction_in_every_lane_order("shuffled")
