"""simdgroup_async_copy, as macOS 15 and earlier know it: it lands at the wait, and a missing wait is seen."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from flextrace.simulator import SimulationError, metal_kernel

HEADER = """
struct _simdgroup_event_t;
thread _simdgroup_event_t* __metal_simdgroup_async_copy_2d(
    ulong, ulong, threadgroup void*, ulong, ulong, ulong2, const device void*, ulong, ulong, ulong2, long2, int)
    __asm("air.simdgroup_async_copy_2d.p3i8.p1i8");
void __metal_wait_simdgroup_events(int, thread _simdgroup_event_t**) __asm("air.wait_simdgroup_events");
"""
# Each threadgroup takes 4 rows of 16 columns of a [rows, 20] array; beyond the last row there are zeros.
SOURCE = """
    threadgroup float tile[64];
    uint row = threadgroup_position_in_grid.x * 4;
    uint i = thread_index_in_threadgroup;
    if (simdgroup_index_in_threadgroup == 0) {
        thread _simdgroup_event_t* event = __metal_simdgroup_async_copy_2d(
            sizeof(float), alignof(float), tile, 16, 1, ulong2(16, 4), a + row * 20, 20, 1,
            ulong2(16, min(4u, ROWS - row)), long2(0), 0);
        __metal_wait_simdgroup_events(1, &event);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    out[row * 16 + i] = tile[i];
"""


def run(source: str, rows: int = 6, order: str = "forward") -> tuple[mx.array, Any]:
    a = mx.arange(rows * 20).astype(mx.float32).reshape(rows, 20)
    kernel = metal_kernel("copy", ["a"], ["out"], source, header=HEADER, lane_order=order)
    sizes: dict[str, Any] = {"grid": (128, 1, 1), "threadgroup": (64, 1, 1), "output_dtypes": [mx.float32]}
    (out,) = kernel(inputs=[a], template=[("ROWS", rows)], output_shapes=[(8, 16)], **sizes)
    return mx.abs(out[:rows] - a[:, :16]).max() + mx.abs(out[rows:]).sum(), kernel.report


@pytest.mark.parametrize("order", ["forward", "reverse", "shuffled"])
def test_it_copies_and_clamps_to_zero(order: str) -> None:
    wrong, report = run(SOURCE, order=order)
    assert wrong == 0 and report.findings == ()
    assert report.buffers["a"].read == 6 * 16 * 4 and report.threadgroup_written == 2 * 64 * 4


def test_a_missing_wait_is_seen() -> None:
    with pytest.raises(SimulationError) as caught:
        run(SOURCE.replace("__metal_wait_simdgroup_events(1, &event);", ""))
    found = {finding.kind: finding for finding in caught.value.report.findings}
    assert set(found) == {"uninitialised read", "asynchronous copy"}
    assert "an asynchronous copy that nobody waited for" in str(found["asynchronous copy"])
    assert found["asynchronous copy"].place.startswith("copy.metal:")


def test_a_missing_barrier_is_seen() -> None:
    with pytest.raises(SimulationError, match="race|uninitialised"):
        run(SOURCE.replace("threadgroup_barrier(mem_flags::mem_threadgroup);", ""))


def test_a_wrong_tile_is_out_of_bounds() -> None:
    with pytest.raises(SimulationError, match="out of bounds"):
        run(SOURCE.replace("min(4u, ROWS - row)", "4"))
    with pytest.raises(SimulationError, match="out of bounds"):
        run(SOURCE.replace("tile[64]", "tile[63]"))


NOT_READ = "whose tile nobody reads before the next copy to it, or the end of the kernel"


@pytest.mark.parametrize("order", ["forward", "reverse", "shuffled"])
def test_a_copy_that_nobody_reads_is_seen(order: str) -> None:
    with pytest.raises(SimulationError, match=NOT_READ):
        run(SOURCE.replace("= tile[i];", "= 1.0f;"), order=order)


def test_a_copy_over_one_that_nobody_has_read_is_seen() -> None:
    """The first of two copies to one place."""
    start, end = SOURCE.index("    if (simdgroup_index"), SOURCE.index("    out[row")
    twice = SOURCE[:start] + SOURCE[start:end] * 2 + SOURCE[end:]
    with pytest.raises(SimulationError, match=NOT_READ):
        run(twice)
    read_between = SOURCE[:start] + SOURCE[start:end] + "    out[row * 16 + i] = tile[i];\n" + SOURCE[start:]
    barrier = "    threadgroup_barrier(mem_flags::mem_threadgroup);\n"
    wrong, report = run(read_between.replace("tile[i];\n    if", f"tile[i];\n{barrier}    if"))
    assert wrong == 0 and report.findings == ()


def test_a_kernel_that_ends_without_a_barrier_after_the_wait_is_seen() -> None:
    """One simdgroup needs none for its numbers."""
    alone = SOURCE.replace("tile[i]", "tile[i] + tile[i + 32]").replace("row * 16 + i", "row * 16 + i % 32")
    for source, message in (
        (alone, None),
        (alone.replace("threadgroup_barrier", "simdgroup_barrier"), "no threadgroup_b"),
    ):
        kernel = metal_kernel("copy", ["a"], ["out"], source, header=HEADER)
        sizes: dict[str, Any] = {"grid": (32, 1, 1), "threadgroup": (32, 1, 1), "output_dtypes": [mx.float32]}
        call = {"inputs": [mx.ones((4, 20))], "template": [("ROWS", 4)], "output_shapes": [(4, 16)], **sizes}
        if message is None:
            kernel(**call, init_value=0)
        else:
            with pytest.raises(SimulationError, match=message):
                kernel(**call, init_value=0)
