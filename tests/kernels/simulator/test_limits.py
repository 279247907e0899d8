"""Limits of Metal and of the call, and the texts of their errors."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

import flextrace.kernels.simulator.build as build
from flextrace.simulator import CompileError, RewriteError, SimulatorUnavailable, metal_kernel

COPY = "uint i = thread_position_in_grid.x; out[i] = a[i];"


def call(source: str = COPY, header: str = "", **changes: Any) -> list[mx.array]:
    run: dict[str, Any] = {
        "inputs": [mx.arange(9)],
        "grid": (9, 1, 1),
        "threadgroup": (9, 1, 1),
        "output_shapes": [(9,)],
        "output_dtypes": [mx.int32],
    }
    return metal_kernel("limited", ["a"], ["out"], source, header=header)(**{**run, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threadgroup": (32, 33, 1), "grid": (64, 64, 1)}, r"has 1056 threads; Metal allows 1024"),
        ({"grid": (0, 1, 1)}, r"grid is three positive numbers of threads, got \(0, 1, 1\)"),
        ({"threadgroup": (8, 8)}, r"threadgroup is three positive numbers"),
        ({"inputs": []}, r"names 1 inputs, the call gives 0"),
        ({"output_shapes": [(9,), (9,)]}, r"names 1 output_shapes, the call gives 2"),
        ({"output_dtypes": []}, r"names 1 output_dtypes, the call gives 0"),
    ],
)
def test_calls_that_metal_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(**changes)


def test_types() -> None:
    with pytest.raises(TypeError, match="no Metal type for mlx.core.complex64; cast it"):
        call(inputs=[mx.array([1j])])
    with pytest.raises(TypeError, match="a template argument is a dtype, a bool or an int, as in MLX; got float"):
        call(template=[("S", 0.5)])


def test_text_is_ascii() -> None:
    with pytest.raises(
        ValueError, match="the source of kernel 'limited' has '\u2264' in line 2; Metal text is ASCII only"
    ):
        call("int i;\n// i \u2264 9")
    with pytest.raises(ValueError, match="the header of kernel 'limited'"):
        call(header="// \u2264")


def test_names_and_options() -> None:
    with pytest.raises(ValueError, match="must be a C\\+\\+ identifier"):
        metal_kernel("two words", ["a"], ["out"], COPY)
    with pytest.raises(ValueError, match="lane_order is one of forward, reverse, shuffled; got 'random'"):
        metal_kernel("k", ["a"], ["out"], COPY, lane_order="random")
    with pytest.raises(ValueError, match="math_mode is one of safe, relaxed, fast"):
        metal_kernel("k", ["a"], ["out"], COPY, compile_options={"math_mode": "wild"})
    metal_kernel("k", ["a"], ["out"], COPY, compile_options={"math_mode": "fast"})


def test_at_most_31_buffers() -> None:
    names = [f"a{i}" for i in range(31)]
    kernel = metal_kernel("many", names, ["out"], "out[0] = a0[0];")
    one: dict[str, Any] = {"grid": (1, 1, 1), "threadgroup": (1, 1, 1), "output_shapes": [(1,)]}
    with pytest.raises(ValueError, match="has 32 buffers; Metal allows 31"):
        kernel(inputs=[mx.zeros((9,))] * 31, output_dtypes=[mx.float32], **one)


def test_compile_errors_name_the_kernels_line() -> None:
    with pytest.raises(CompileError, match=r"limited\.metal:2:.*'?nothing"):
        call("uint i = 0;\nout[i] = nothing;")
    with pytest.raises(CompileError, match=r"limited_header\.metal:1:"):
        call(header="int f() { return nothing; }")
    with pytest.raises(CompileError, match=r"limited\.metal:1:"):
        call("a[0] = 1;")  # inputs are const


def test_other_text_that_metal_refuses() -> None:
    with pytest.raises(RewriteError, match=r"limited\.metal:1: threadgroup"):
        call("threadgroup float a0[1], a1[1];")
    with pytest.raises(RewriteError, match="cannot be included; a kernel's text must be complete"):
        call(header='#include "mine.h"')


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        SimulatorUnavailable, match=r"found no g\+\+ 12 or later: CXX='no-such-compiler' is none; install g\+\+ 12"
    ):
        call("uint i = thread_position_in_grid.x; out[i] = a[i] + 12345;")
    monkeypatch.setattr(build, "_is_recent_gcc", lambda path: False)
    monkeypatch.delenv("CXX")
    with pytest.raises(SimulatorUnavailable):
        call("uint i = thread_position_in_grid.x; out[i] = a[i] + 12346;")
