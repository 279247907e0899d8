"""Every kind of finding, with its file, line, lanes and buffer; and kernels that look alike but are right."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from flextrace.simulator import Finding, MetalKernel, SimulationError, metal_kernel, recording

TILE = """uint i = thread_position_in_threadgroup.x, g = thread_position_in_grid.x;
threadgroup float tile[64];
"""
GROUP = "threadgroup_barrier(mem_flags::mem_threadgroup);\n"
SIMD = "simdgroup_barrier(mem_flags::mem_threadgroup);\n"


def probe(source: str, **options: Any) -> MetalKernel:
    """Run on 128 elements in two threadgroups of 64."""
    kernel = metal_kernel("probe", ["a"], ["out"], source, **options)
    launch: dict[str, Any] = {"grid": (128, 1, 1), "threadgroup": (64, 1, 1), "output_dtypes": [mx.float32]}
    kernel(inputs=[mx.arange(128).astype(mx.float32)], output_shapes=[(128,)], **launch)
    return kernel


def findings(source: str, **options: Any) -> list[Finding]:
    with pytest.raises(SimulationError) as caught:
        probe(source, **options)
    return list(caught.value.report.findings)


RIGHT = {
    "barrier": TILE + "tile[i] = a[g];\n" + GROUP + "out[g] = tile[63 - i];",
    "simdgroup barrier": TILE + "tile[i] = a[g];\n" + SIMD + "out[g] = tile[i ^ 1];",
    "same lane": TILE + "tile[i] = a[g];\nout[g] = tile[i];",
    "neighbouring bytes": TILE + "threadgroup uchar b[64];\nb[i] = i;\nout[g] = b[i];",
    "halves of a float4": TILE
    + "((threadgroup half*)tile)[2 * i] = 1; ((threadgroup half*)tile)[2 * i + 1] = 2;\n"
    + GROUP
    + "out[g] = tile[i ^ 40];",
    "device barrier": "uint g = thread_position_in_grid.x;\nout[g] = a[g];\n"
    "threadgroup_barrier(mem_flags::mem_device);\nfloat x = out[g ^ 33];\n"
    "threadgroup_barrier(mem_flags::mem_device);\nout[g] = x;",
    "many readers": TILE
    + "tile[i] = 1;\n"
    + GROUP
    + "float x = tile[0] + tile[63];\n"
    + GROUP
    + "tile[i] = x;\nout[g] = tile[i];",
}


@pytest.mark.parametrize("order", ["forward", "reverse", "shuffled"])
@pytest.mark.parametrize("name", RIGHT)
def test_right_kernels_have_no_findings(name: str, order: str) -> None:
    kernel = probe(RIGHT[name], lane_order=order)
    assert kernel.report is not None and kernel.report.findings == ()


WRONG = {
    "read of another simdgroup's write": ("race", TILE + "tile[i] = a[g];\n" + SIMD + "out[g] = tile[i ^ 32];"),
    "no memory flag": (
        "race",
        TILE + "tile[i] = a[g];\nthreadgroup_barrier(mem_flags::mem_none);\nout[g] = tile[i ^ 1];",
    ),
    "wrong memory flag": (
        "race",
        TILE + "tile[i] = a[g];\nthreadgroup_barrier(mem_flags::mem_device);\nout[g] = tile[i ^ 1];",
    ),
    "write after read": (
        "race",
        TILE + "tile[i] = a[g];\n" + GROUP + "float x = tile[i ^ 1];\ntile[i] = x;\nout[g] = tile[i];",
    ),
    "write after write": ("race", TILE + "tile[i / 2] = a[g];\n" + GROUP + "out[g] = tile[i / 2];"),
    "device race in a threadgroup": (
        "race",
        "uint g = thread_position_in_grid.x;\nout[g] = a[g];\n" + GROUP + "float x = out[g ^ 1];\nout[g] = x;",
    ),
    "device race of threadgroups": (
        "overlapping write",
        "uint i = thread_position_in_threadgroup.x;\nout[i] = a[i];\nout[64 + i] = a[i];",
    ),
    "overlapping lanes": ("overlapping write", "uint g = thread_position_in_grid.x;\nout[g / 2] = a[g];"),
    "half of the tile": (
        "uninitialised read",
        TILE + "if (i < 32) { tile[i] = a[g]; }\n" + GROUP + "out[g] = tile[i];",
    ),
    "output not yet written": ("uninitialised read", "uint g = thread_position_in_grid.x;\nout[g] = out[g] + a[g];"),
    "one past an input": ("out of bounds", "uint g = thread_position_in_grid.x;\nout[g] = a[g + 1];"),
    "one before an input": ("out of bounds", "uint g = thread_position_in_grid.x;\nout[g] = a[int(g) - 1];"),
    "one past an output": ("out of bounds", "uint g = thread_position_in_grid.x;\nout[g + 1] = a[g];"),
    "one past a tile": ("out of bounds", TILE + "tile[i + 1] = a[g];\nout[g] = a[g];"),
    "a vector over the end": (
        "out of bounds",
        "uint g = thread_position_in_grid.x;\nfloat4 v = *(const device float4*)(a + g);\nout[g] = v.x;",
    ),
    "a struct over the end": (
        "out of bounds",
        "struct Words { float x[5]; };\nuint g = thread_position_in_grid.x;\n"
        "const Words w = *reinterpret_cast<const device Words*>(a + (g < 4 ? 124 : g));\nout[g] = w.x[0];",
    ),
    "write to an input": (
        "write to input",
        "uint g = thread_position_in_grid.x;\n((device float*)a)[g] = 1;\nout[g] = 1;",
    ),
    "half at a barrier": (
        "divergent",
        TILE + "if (i < 32) {\n" + GROUP + "}\nout[g] = a[g];",
    ),
    "two barriers": (
        "divergent",
        TILE + "if (i < 32) {\n" + GROUP + "} else {\n" + GROUP + "}\nout[g] = a[g];",
    ),
    "early return": (
        "divergent",
        TILE + "if (i == 5) { return; }\nout[g] = simd_sum(a[g]);",
    ),
    "reduction in a branch": (
        "divergent",
        TILE + "float x = a[g];\nif (i % 2 == 0) {\nx = simd_sum(x);\n} else {\nx = simd_max(x);\n}\nout[g] = x;",
    ),
    "lane that is not there": ("bad lane", TILE + "out[g] = simd_shuffle(a[g], 40);"),
    "too much threadgroup memory": (
        "threadgroup memory limit",
        "threadgroup float big[8193];\nbig[0] = 0;\nout[0] = 0;",
    ),
    "wild pointer": ("wild access", "uint g = thread_position_in_grid.x;\nout[g] = *(const device float*)(ulong)(64);"),
    "large locals": (
        "stack overflow",
        "uint g = thread_position_in_grid.x;\nfloat x[100000];\nfor (int i = 0; i < 100000; i++) { x[i] = a[g]; }\n"
        "out[g] = x[g];",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_each_mistake_is_found(name: str) -> None:
    kind, source = WRONG[name]
    found = findings(source)
    assert kind in {finding.kind for finding in found}, found


@pytest.mark.parametrize("order", ["forward", "reverse", "shuffled"])
@pytest.mark.parametrize("name", [name for name, (kind, _) in WRONG.items() if kind == "race"])
def test_races_are_found_in_every_lane_order(name: str, order: str) -> None:
    kind, source = WRONG[name]
    assert kind in {finding.kind for finding in findings(source, lane_order=order)}


def test_a_race_names_both_places_both_lanes_and_the_buffer() -> None:
    (race,) = findings(TILE + "tile[i] = a[g];\n\nout[g] = tile[i ^ 32];", lane_order="reverse")[1:]
    assert race.place == "probe.metal:5" and race.buffer == "tile" and race.lanes == (31, 63)
    assert str(race) == (
        "race: probe.metal:5: lane 31 of simdgroup 0 of threadgroup (0, 0, 0) reads byte 252 of threadgroup 'tile' "
        "(256 bytes), which lane 31 of simdgroup 1 wrote at probe.metal:3; no barrier with mem_flags::mem_threadgroup "
        "lies between"
    )


def test_threadgroups_that_collide_are_both_named() -> None:
    found = findings("uint i = thread_position_in_threadgroup.x;\nout[i] = a[i];\nout[i + 64] = 0;")
    assert "threadgroup (1, 0, 0) writes element 0 of 'out' (128 elements)" in found[0].message
    assert "of threadgroup (0, 0, 0) wrote at probe.metal:2; threadgroups are not ordered" in found[0].message


def test_places_point_into_headers_and_marked_files() -> None:
    header = "float peek(const device float* p, uint i) {\n  return p[i + 1000];\n}\n"
    (found,) = findings("uint g = thread_position_in_grid.x;\nout[g] = peek(a, g);", header=header)
    assert found.place == "probe_header.metal:2"
    marked = 'uint g = thread_position_in_grid.x;\n#line 70 "tiles.h"\nout[g] = a[g + 1000];'
    (found,) = findings(marked)
    assert found.place == "tiles.h:70" and "element 1000 of 'a' (128 elements)" in found.message


def test_the_vector_library_is_not_blamed() -> None:
    source = "uint g = thread_position_in_grid.x;\nfloat2 v = ((const device float4*)a)[g].zw;\nout[g] = v.x;"
    (found,) = findings(source)
    assert found.place == "probe.metal:2" and found.kind == "out of bounds"


def test_matrix_operations_need_a_whole_simdgroup() -> None:
    source = "simdgroup_float8x8 m; simdgroup_load(m, a); simdgroup_store(m, out);"
    kernel = metal_kernel("probe", ["a"], ["out"], source)
    launch: dict[str, Any] = {"grid": (20, 1, 1), "threadgroup": (20, 1, 1), "output_dtypes": [mx.float32]}
    with pytest.raises(SimulationError, match="simdgroup_load, which needs a whole simdgroup"):
        kernel(inputs=[mx.zeros((64,))], output_shapes=[(64,)], **launch)


def test_the_report_is_kept_with_the_error() -> None:
    kernel = metal_kernel("probe", ["a"], ["out"], "out[thread_position_in_grid.x + 1] = 0;")
    launch: dict[str, Any] = {"grid": (4, 1, 1), "threadgroup": (4, 1, 1), "output_dtypes": [mx.float32]}
    with pytest.raises(SimulationError, match="kernel 'probe' is wrong") as caught:
        kernel(inputs=[mx.zeros((4,))], output_shapes=[(4,)], **launch)
    assert kernel.report is caught.value.report
    assert kernel.report.buffers["out"].unwritten == 4
    assert "out of bounds" in str(kernel.report)


@pytest.mark.parametrize(("size", "written"), [(1, 0), (1, 1), (3, 3), (5, 2), (7, 7), (8, 0)])
@pytest.mark.parametrize("dtype", [mx.float16, mx.uint8, mx.float32], ids=str)
def test_unwritten_bytes_are_those_of_the_output(dtype: mx.Dtype, size: int, written: int) -> None:
    """Also where its size is no multiple of the four bytes that the checks keep together."""
    kernel = metal_kernel(
        "probe", ["a"], ["out"], f"uint i = thread_position_in_grid.x; if (i < {written}) out[i] = 1;"
    )
    launch: dict[str, Any] = {"grid": (8, 1, 1), "threadgroup": (8, 1, 1), "output_dtypes": [dtype]}
    kernel(inputs=[mx.zeros((4,))], output_shapes=[(size,)], **launch)
    assert kernel.report is not None
    assert kernel.report.buffers["out"].unwritten == (size - written) * dtype.size


def test_unchecked_runs_still_catch_what_faults() -> None:
    with pytest.raises(SimulationError, match="out of bounds"):
        probe("uint g = thread_position_in_grid.x;\nout[g] = a[g + 1000000];", checks=False)


def test_a_run_after_a_fault_is_right() -> None:
    findings(WRONG["wild pointer"][1])
    probe(RIGHT["barrier"])


BY_VALUE = {"float": 4, "half": 2, "bfloat": 2, "char": 1, "float2": 8, "half4": 8, "float4": 16, "packed_float3": 12}


@pytest.mark.parametrize("kind", BY_VALUE)
def test_an_element_that_is_an_argument_is_seen_to_be_read(kind: str) -> None:
    """Arguments of every type: a copy that the compiler makes by itself is an access too."""
    header = "template <typename T> inline void pass(T x, device float* out) { *out = 1.0f; }"
    source = f"threadgroup {kind} tile[32]; uint i = thread_index_in_simdgroup; WRITE pass(tile[i ^ 1], out + i);"
    one = "float3(1)" if kind == "packed_float3" else "1.0f"
    written = f"tile[i] = {kind}({one}); simdgroup_barrier(mem_flags::mem_threadgroup);"

    def run(source: str) -> None:
        sizes = {"grid": (32, 1, 1), "threadgroup": (32, 1, 1), "output_shapes": [(32,)], "output_dtypes": [mx.float32]}
        metal_kernel("by_value", ["a"], ["out"], source, header=header)(inputs=[mx.ones(32)], **sizes)

    with pytest.raises(SimulationError, match="reads .* threadgroup 'tile' .* nobody wrote"):
        run(source.replace("WRITE", ""))
    with recording() as reports:
        run(source.replace("WRITE", written))
    assert reports[-1].threadgroup_read == 32 * BY_VALUE[kind]
