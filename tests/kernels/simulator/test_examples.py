"""The examples of MLX's documentation of custom kernels, and calls as MLX takes them."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from flextrace.simulator import SimulationError, metal_kernel, recording

EXP = "uint elem = thread_position_in_grid.x;\nT tmp = inp[elem];\nout[elem] = metal::exp(tmp);"
STRIDED = """
    uint elem = thread_position_in_grid.x;
    // Utils from `mlx/backend/metal/kernels/utils.h` are automatically included
    uint loc = elem_to_loc(elem, inp_shape, inp_strides, inp_ndim);
    T tmp = inp[loc];
    out[elem] = metal::exp(tmp);
"""


def whole(a: mx.array, **options: Any) -> dict[str, Any]:
    """A launch with one thread an element."""
    launch = {
        "grid": (a.size, 1, 1),
        "threadgroup": (256, 1, 1),
        "output_shapes": [a.shape],
        "output_dtypes": [a.dtype],
    }
    return {"inputs": [a], **launch, **options}


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_exp_elementwise(dtype: mx.Dtype) -> None:
    a = mx.random.normal((4, 16), key=mx.random.key(0)).astype(dtype)
    kernel = metal_kernel(name="myexp", input_names=["inp"], output_names=["out"], source=EXP)
    (out,) = kernel(**whole(a, template=[("T", dtype)]))
    assert out.dtype == dtype and out.shape == a.shape
    assert mx.allclose(out.astype(mx.float32), mx.exp(a).astype(mx.float32), rtol=1e-2 if dtype.size == 2 else 1e-6)
    assert kernel.report is not None and not kernel.report.findings
    assert kernel.report.buffers["inp"].read == a.nbytes and kernel.report.buffers["out"].written == a.nbytes


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a.reshape(4, 8, 8)[::2],
        lambda a: a.reshape(4, 8, 8).swapaxes(0, 2),
        lambda a: mx.broadcast_to(a[:8].reshape(8, 1), (8, 5)),
    ],
)
def test_a_strided_input_is_read_in_place(view: Any) -> None:
    a = view(mx.random.normal((256,), key=mx.random.key(1)))
    kernel = metal_kernel("strided", ["inp"], ["out"], STRIDED, ensure_row_contiguous=False)
    (out,) = kernel(**whole(a, template=[("T", a.dtype)]))
    assert mx.allclose(out, mx.exp(a), rtol=1e-6)


def test_negative_strides_need_a_signed_index() -> None:
    a = mx.random.normal((16, 16), key=mx.random.key(1))[::-1, ::-2]
    signed = STRIDED.replace("elem_to_loc(elem,", "elem_to_loc(int64_t(elem),").replace("uint loc", "int64_t loc")
    kernel = metal_kernel("strided", ["inp"], ["out"], signed, ensure_row_contiguous=False)
    (out,) = kernel(**whole(a, template=[("T", a.dtype)]))
    assert mx.allclose(out, mx.exp(a), rtol=1e-6)
    wrapped = metal_kernel("strided", ["inp"], ["out"], STRIDED, ensure_row_contiguous=False)
    with pytest.raises(SimulationError, match=r"reads 4 bytes at element 4294967\d+ of 'inp'"):
        wrapped(**whole(a, template=[("T", a.dtype)]))


def test_a_row_contiguous_copy_is_the_default() -> None:
    a = mx.random.normal((8, 8), key=mx.random.key(2)).T
    (out,) = metal_kernel("myexp", ["inp"], ["out"], EXP)(**whole(a, template=[("T", a.dtype)]))
    assert mx.allclose(out, mx.exp(a), rtol=1e-6)


SCATTER = """
    uint elem = thread_position_in_grid.x;
    int bin = bins[elem];
    if (bin < 0) { return; }
    atomic_fetch_add_explicit(&out[bin], values[elem], memory_order_relaxed);
"""


def test_atomic_scatter_add() -> None:
    bins = mx.random.randint(-1, 9, (300,), key=mx.random.key(3))
    values = mx.random.normal((300,), key=mx.random.key(4))
    kernel = metal_kernel("scatter", ["bins", "values"], ["out"], SCATTER, atomic_outputs=True)
    run: dict[str, Any] = {"inputs": [bins, values], "grid": (300, 1, 1), "threadgroup": (64, 1, 1)}
    (out,) = kernel(**run, output_shapes=[(9,)], output_dtypes=[mx.float32], init_value=0)
    expected = np.zeros(9, np.float64)
    kept = np.array(bins) >= 0
    np.add.at(expected, np.array(bins)[kept], np.array(values)[kept])
    np.testing.assert_allclose(np.array(out), expected, atol=1e-4)
    assert kernel.report is not None and kernel.report.atomics == int(kept.sum())
    with pytest.raises(SimulationError, match="uninitialised read.*gave no init_value"):
        kernel(**run, output_shapes=[(9,)], output_dtypes=[mx.float32])


def test_grids_that_threadgroups_do_not_divide() -> None:
    source = """
        uint3 p = thread_position_in_grid;
        uint at = p.x + threads_per_grid.x * (p.y + threads_per_grid.y * p.z);
        uint in_group = thread_position_in_threadgroup.x + threadgroup_position_in_grid.y * 1000;
        out[at] = threads_per_threadgroup.x * 100 + in_group;
    """
    kernel = metal_kernel("ragged", ["a"], ["out"], source)
    (out,) = kernel(
        inputs=[mx.zeros((1,))],
        grid=(10, 3, 2),
        threadgroup=(4, 2, 8),
        output_shapes=[(2, 3, 10)],
        output_dtypes=[mx.uint32],
    )
    x, y = np.arange(10), np.arange(3)[:, None]
    expected = np.where(x < 8, 400, 200) + x % 4 + y // 2 * 1000
    np.testing.assert_array_equal(np.array(out), np.broadcast_to(expected, (2, 3, 10)))


def test_scalars_template_and_several_outputs() -> None:
    source = "uint i = thread_position_in_grid.x; lo[i] = a[i] * s + N; hi[i] = FLAG ? a[i] : T(0);"
    kernel = metal_kernel("several", ["a", "s"], ["lo", "hi"], source)
    a = mx.arange(20).astype(mx.float32)
    lo, hi = kernel(
        inputs=[a, 3.0],
        template=[("T", mx.float32), ("N", 7), ("FLAG", True)],
        grid=(20, 1, 1),
        threadgroup=(8, 1, 1),
        output_shapes=[(20,), (20,)],
        output_dtypes=[mx.float32, mx.float32],
    )
    assert mx.array_equal(lo, a * 3 + 7) and mx.array_equal(hi, a)
    assert kernel.report is not None and kernel.report.buffers["s"].space == "constant"


def test_a_header_is_compiled_before_the_kernel() -> None:
    header = "template <typename T> T twice(T x) { return x + x; }"
    source = "uint i = thread_position_in_grid.x; out[i] = twice(a[i]);"
    a = mx.arange(5)
    (out,) = metal_kernel("headed", ["a"], ["out"], source, header=header)(**whole(a))
    assert out.tolist() == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("dtype", [mx.bool_, mx.uint8, mx.int8, mx.int16, mx.uint32, mx.int64])
def test_integer_dtypes(dtype: mx.Dtype) -> None:
    a = (mx.arange(33) % 2).astype(dtype)
    (out,) = metal_kernel("copied", ["a"], ["out"], "uint i = thread_position_in_grid.x; out[i] = a[i];")(**whole(a))
    assert out.dtype == dtype and mx.array_equal(out, a)


def test_recording_collects_every_report() -> None:
    a = mx.arange(9)
    kernel = metal_kernel("copied", ["a"], ["out"], "uint i = thread_position_in_grid.x; out[i] = a[i];")
    with recording() as reports:
        kernel(**whole(a))
        kernel(**whole(a))
    assert [report.kernel for report in reports] == ["copied", "copied"]
    text = str(reports[0])
    assert "kernel copied" in text and "no findings" in text and "matrix multiplies 0" in text
    assert reports[0].as_dict()["device_read"] == a.nbytes


def test_without_checks_the_numbers_are_the_same_and_memory_is_not_counted() -> None:
    a = mx.random.normal((64,), key=mx.random.key(5))
    kernel = metal_kernel("myexp", ["inp"], ["out"], EXP, checks=False)
    (out,) = kernel(**whole(a, template=[("T", a.dtype)]))
    assert mx.allclose(out, mx.exp(a), rtol=1e-6)
    assert "not checked" in str(kernel.report)


def test_verbose_prints_the_text_of_the_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    a = mx.arange(5)
    kernel = metal_kernel("copied", ["a"], ["out"], "uint i = thread_position_in_grid.x; out[i] = a[i];")
    kernel(**whole(a, verbose=True))
    printed = capsys.readouterr().out
    assert "[[kernel]] void custom_kernel_copied(" in printed
    assert "const constant int32_t* a [[buffer(0)]]" in printed and "device int32_t* out [[buffer(1)]]" in printed
    assert "uint3 thread_position_in_grid [[thread_position_in_grid]]" in printed


def test_a_kernel_may_have_the_name_of_a_function() -> None:
    a = mx.arange(9)
    source = "uint i = thread_position_in_grid.x; out[i] = max(a[i], 4);"
    (out,) = metal_kernel("max", ["a"], ["out"], source)(**whole(a))
    assert out.tolist() == [4, 4, 4, 4, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("access", "moved"),
    [
        ("out[g] = *((device S*)a + g);", 24),  # a struct, as one piece
        ("*((device float3*)(out + g)) = *((const device float3*)(a + g));", 16),  # Metal keeps float3 in 16 bytes
        ("*((device packed_float3*)(out + g)) = *((const device packed_float3*)(a + g));", 12),
        ("((device half*)(out + g))[3] = ((const device half*)(a + g))[2];", 2),
        ("((device uchar*)(out + g))[5] = ((const device uchar*)(a + g))[7];", 1),
        ("*((device float4*)(out + g)) = *((const device float4*)(a + g));", 16),
        ("*((device half4*)(out + g)) = half4(*((const device half4*)(a + g)));", 8),
        ("((device float2*)(out + g))[1].yx = ((const device float2*)(a + g))[0];", 8),
    ],
)
def test_bytes_are_counted_whatever_the_access(access: str, moved: int) -> None:
    header = "struct S { int x[6]; };"
    source = "uint g = thread_position_in_grid.x;\nconst device S* a = (const device S*)raw;\n"
    source += "device S* out = (device S*)made;\n" + access.replace("(device S*)a", "(const device S*)a")
    kernel = metal_kernel("moved", ["raw"], ["made"], source, header=header)
    grid: dict[str, Any] = {"grid": (16, 1, 1), "threadgroup": (8, 1, 1)}
    kernel(inputs=[mx.arange(96)], output_shapes=[(96,)], output_dtypes=[mx.int32], **grid)
    report = kernel.report
    assert report is not None
    assert (report.buffers["raw"].read, report.buffers["made"].written) == (16 * moved, 16 * moved)
    assert report.buffers["made"].unwritten in range(384 - 16 * moved - 16 * 3, 384 - 16 * moved + 1)
