"""Mutations: take each barrier out of a right kernel, break each of its bounds, and the checks must say so."""

from __future__ import annotations

import re
from typing import Any

import mlx.core as mx
import pytest

from flextrace.simulator import MetalKernel, SimulationError, metal_kernel

# A tiled matrix product of ragged shapes, double-buffered: [M, K] by [K, N]. Each line that guards is a target.
MATMUL = """
    constexpr int TILE = 16;
    threadgroup float left[2 * TILE * TILE];
    threadgroup float right[2 * TILE * TILE];
    uint3 at = thread_position_in_threadgroup;
    int row = threadgroup_position_in_grid.y * TILE + at.y, column = threadgroup_position_in_grid.x * TILE + at.x;
    int place = at.y * TILE + at.x;
    float sum = 0;
    int tiles = (K + TILE - 1) / TILE;
    for (int t = 0; t < tiles; t++) {
        int half_ = (t % 2) * TILE * TILE;
        int k = t * TILE;
        left[half_ + place] = row < M && k + int(at.x) < K ? a[row * K + k + at.x] : 0;
        right[half_ + place] = k + int(at.y) < K && column < N ? b[(k + at.y) * N + column] : 0;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (int i = 0; i < TILE; i++) {
            sum += left[half_ + at.y * TILE + i] * right[half_ + i * TILE + at.x];
        }
    }
    if (row < M && column < N) {
        out[row * N + column] = sum;
    }
"""
# A softmax of rows that one threadgroup shares; every barrier is needed.
SOFTMAX = """
    threadgroup float partial[4];
    threadgroup float kept[COLUMNS];
    uint i = thread_index_in_threadgroup, row = threadgroup_position_in_grid.y;
    float most = -INFINITY;
    for (uint c = i; c < COLUMNS; c += 128) {
        kept[c] = a[row * COLUMNS + c];
        most = max(most, kept[c]);
    }
    most = simd_max(most);
    if (thread_index_in_simdgroup == 0) {
        partial[simdgroup_index_in_threadgroup] = most;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);  // the maxima are there
    most = max(max(partial[0], partial[1]), max(partial[2], partial[3]));
    threadgroup_barrier(mem_flags::mem_threadgroup);  // the maxima are read
    float sum = 0;
    for (uint c = i; c < COLUMNS; c += 128) {
        sum += exp(kept[c] - most);
    }
    sum = simd_sum(sum);
    if (thread_index_in_simdgroup == 0) {
        partial[simdgroup_index_in_threadgroup] = sum;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);  // the sums are there
    sum = partial[0] + partial[1] + partial[2] + partial[3];
    for (uint c = COLUMNS - 1 - i; c < COLUMNS; c -= 128) {
        out[row * COLUMNS + c] = exp(kept[c] - most) / sum;
    }
"""
M, N, K, COLUMNS = 20, 35, 40, 300


def matmul(source: str, **options: Any) -> tuple[mx.array, MetalKernel]:
    a, b = (mx.random.normal(shape, key=mx.random.key(0)) for shape in ((M, K), (K, N)))
    kernel = metal_kernel("matmul", ["a", "b"], ["out"], source, **options)
    sizes: dict[str, Any] = {"grid": (48, 32, 1), "threadgroup": (16, 16, 1), "output_dtypes": [mx.float32]}
    (out,) = kernel(inputs=[a, b], template=[("M", M), ("N", N), ("K", K)], output_shapes=[(M, N)], **sizes)
    return out - a @ b, kernel


def softmax(source: str, **options: Any) -> tuple[mx.array, MetalKernel]:
    a = mx.random.normal((3, COLUMNS), key=mx.random.key(0))
    kernel = metal_kernel("softmax", ["a"], ["out"], source, **options)
    sizes: dict[str, Any] = {"grid": (128, 3, 1), "threadgroup": (128, 1, 1), "output_dtypes": [mx.float32]}
    (out,) = kernel(inputs=[a], template=[("COLUMNS", COLUMNS)], output_shapes=[a.shape], **sizes)
    return out - mx.softmax(a, axis=-1), kernel


@pytest.mark.parametrize("order", ["forward", "reverse", "shuffled"])
@pytest.mark.parametrize(("run", "source"), [(matmul, MATMUL), (softmax, SOFTMAX)])
def test_the_originals_are_right_in_every_lane_order(run: Any, source: str, order: str) -> None:
    difference, kernel = run(source, lane_order=order)
    assert mx.abs(difference).max() < 1e-4
    assert kernel.report.findings == ()


def without(source: str, pattern: str, number: int) -> str:
    """`source` without the `number`th match of `pattern`."""
    found = list(re.finditer(pattern, source))[number]
    return source[: found.start()] + source[found.end() :]


@pytest.mark.parametrize("order", ["forward", "reverse", "shuffled"])
@pytest.mark.parametrize(("run", "source", "number"), [(matmul, MATMUL, 0), *((softmax, SOFTMAX, n) for n in range(3))])
def test_every_barrier_is_missed(run: Any, source: str, number: int, order: str) -> None:
    with pytest.raises(SimulationError) as caught:
        run(without(source, r"threadgroup_barrier\(.*?\);", number), lane_order=order)
    assert {finding.kind for finding in caught.value.report.findings} & {"race", "uninitialised read"}


def test_a_weaker_barrier_is_missed() -> None:
    weaker = SOFTMAX.replace(
        "threadgroup_barrier(mem_flags::mem_threadgroup)", "simdgroup_barrier(mem_flags::mem_threadgroup)"
    )
    with pytest.raises(SimulationError, match="race"):
        softmax(weaker)
    with pytest.raises(SimulationError, match="race"):
        matmul(MATMUL.replace("mem_threadgroup)", "mem_none)"))


def test_one_buffer_instead_of_two_races() -> None:
    with pytest.raises(SimulationError, match="race"):
        matmul(MATMUL.replace("(t % 2) * TILE * TILE", "0"))


BROKEN_BOUNDS = {
    "rows of the left": ("row < M && k + int(at.x) < K ?", "k + int(at.x) < K ?"),
    "columns of the right": ("k + int(at.y) < K && column < N ?", "column < N ?"),
    "rows of the result": ("if (row < M && column < N)", "if (column < N)"),
    "columns of the result": ("if (row < M && column < N)", "if (row < M)"),
    "one tile more": ("t < tiles", "t <= tiles + 900"),
    "one row less of the tile": ("left[2 * TILE * TILE]", "left[2 * TILE * TILE - 1]"),
    "a tile too far": ("(t % 2) * TILE * TILE", "(t % 3) * TILE * TILE"),
}


@pytest.mark.parametrize("name", BROKEN_BOUNDS)
def test_every_harmful_bound_is_missed(name: str) -> None:
    old, new = BROKEN_BOUNDS[name]
    assert old in MATMUL
    broken = MATMUL.replace(old, new)
    if name == "one tile more":
        broken = broken.replace("row < M && k + int(at.x) < K ?", "row < M ?")
    with pytest.raises(SimulationError) as caught:
        matmul(broken)
    assert {finding.kind for finding in caught.value.report.findings} & {"out of bounds", "overlapping write"}
