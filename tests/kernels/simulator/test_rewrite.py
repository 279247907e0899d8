"""The reading of Metal text: threadgroup declarations, includes, signatures; and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from flextrace.kernels.simulator.translate.rewrite import (
    RewriteError,
    inline_includes,
    read_parameters,
    rewrite_threadgroup,
    set_constants,
)

KERNEL = "[[kernel]] void k(device float* out [[buffer(0)]]) {{ {} }}"


def body(text: str) -> str:
    rewritten = rewrite_threadgroup(KERNEL.format(text))
    return rewritten[rewritten.index("{ ") + 2 : -2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("threadgroup float a[3];", "SIM_THREADGROUP(0, a, float[3]);"),
        ("threadgroup T a[BQ * (BD + pad)][2];", "SIM_THREADGROUP(0, a, T[BQ * (BD + pad)][2]);"),
        ("threadgroup float a;", "SIM_THREADGROUP(0, a, float);"),
        ("threadgroup vec<T, 4> a[8];", "SIM_THREADGROUP(0, a, vec<T, 4>[8]);"),
        ("threadgroup atomic<int> a;", "SIM_THREADGROUP(0, a, atomic<int>);"),
        ("threadgroup unsigned int a[2];", "SIM_THREADGROUP(0, a, unsigned int[2]);"),
        ("threadgroup metal::half4 a[2];", "SIM_THREADGROUP(0, a, metal::half4[2]);"),
        (
            "{ threadgroup float a; } threadgroup int b;",
            "{ SIM_THREADGROUP(0, a, float); } SIM_THREADGROUP(1, b, int);",
        ),
        ("threadgroup float* p = a;", " float* p = a;"),
        ("threadgroup const T* p = a;", " const T* p = a;"),
        ("const threadgroup vec<T, 2>* p = a;", "const  vec<T, 2>* p = a;"),
        ("threadgroup float (&p)[4] = a;", " float (&p)[4] = a;"),
        ("auto p = (threadgroup half*)a;", "auto p = ( half*)a;"),
        ("auto p = reinterpret_cast<threadgroup T*>(a);", "auto p = reinterpret_cast< T*>(a);"),
        ("threadgroup_barrier(mem_flags::mem_threadgroup);", "threadgroup_barrier(mem_flags::mem_threadgroup);"),
        ("// threadgroup nonsense\n", "// threadgroup nonsense\n"),
        ("/* threadgroup x = */ int i;", "/* threadgroup x = */ int i;"),
    ],
)
def test_threadgroup_is_understood(text: str, expected: str) -> None:
    assert body(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "threadgroup float a[3], b[4];",
        "threadgroup float a, b;",
        "threadgroup float a = 0;",
        "threadgroup float a[2] = {1, 2};",
        "threadgroup struct { int i; } a;",
        "static threadgroup float a;",
        "alignas(16) int threadgroup float a",
    ],
)
def test_what_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(RewriteError, match="declare one variable a line"):
        body(text)


def test_refusals_name_the_line() -> None:
    text = '#line 40 "tiles.h"\n' + KERNEL.format("\n\n threadgroup float a = 1;")
    with pytest.raises(RewriteError, match=r"tiles\.h:42: threadgroup 'threadgroup float a = 1'"):
        rewrite_threadgroup(text)


def test_threadgroup_memory_belongs_to_kernels() -> None:
    with pytest.raises(RewriteError, match="outside a kernel function"):
        rewrite_threadgroup("void helper() { threadgroup float a[3]; }")
    with pytest.raises(RewriteError, match="preprocessor directive"):
        rewrite_threadgroup("#define TILE(T, n) \\\n  threadgroup T tile[n]\n")


def test_parameters_methods_and_attributes() -> None:
    text = (
        "void f(threadgroup float* a [[threadgroup(0)]], threadgroup float b[4]); struct S { void g() threadgroup {} };"
    )
    assert rewrite_threadgroup(text) == (
        "void f( float* a [[threadgroup(0)]],  float b[4]); struct S { void g()  {} };"
    )


def test_lines_stay_where_they_are() -> None:
    text = KERNEL.format("threadgroup float\n  a[3];\n int i;")
    assert rewrite_threadgroup(text).count("\n") == text.count("\n")


def test_parameters_of_a_signature() -> None:
    text = (
        "template <typename T>\n[[kernel, max_total_threads_per_threadgroup(32)]] void k(\n"
        "const device T* a [[buffer(0)]],\n"
        "const constant int& n [[buffer(3), function_constant(f)]], uint3 p [[thread_position_in_grid]]) {}"
    )
    a, n, p = read_parameters(text, "k")
    assert (a.name, a.attribute, a.index, a.reference, a.constant) == ("a", "buffer", 0, False, False)
    assert (n.name, n.index, n.reference, n.constant) == ("n", 3, True, True)
    assert (p.name, p.attribute) == ("p", "thread_position_in_grid")
    with pytest.raises(RewriteError, match="no kernel function 'other'"):
        read_parameters(text, "other")
    with pytest.raises(RewriteError, match="has no attribute"):
        read_parameters("kernel void k(int i) {}", "k")


def test_includes(tmp_path: Path) -> None:
    (tmp_path / "a.h").write_text('#include "b.h"\nint a;\n')
    (tmp_path / "b.h").write_text("int b;\n")
    text = inline_includes('#include <metal_stdlib>\n#include "a.h"\n#include "b.h"\nint c;\n', tmp_path, {}, "k.metal")
    marks = '#line 1 "a.h"\n#line 1 "b.h"\nint b;\n\n#line 2 "a.h"\nint a;\n\n#line 3 "k.metal"'
    assert text == f"\n{marks}\n\nint c;\n"
    assert "int d;" in inline_includes('#include "b.h"\n', None, {"b.h": "int d;"}, "k.metal")
    with pytest.raises(RewriteError, match=r'k\.metal:2: "none\.h" cannot be included'):
        inline_includes('\n#include "none.h"\n', tmp_path, {}, "k.metal")
    with pytest.raises(RewriteError, match="<vector> is no header of Metal"):
        inline_includes("#include <vector>\n", tmp_path, {}, "k.metal")


def test_function_constants_need_values() -> None:
    text = "constant bool causal [[function_constant(3)]];"
    assert set_constants(text, {"causal": True}) == "static constexpr bool causal = true;"
    with pytest.raises(RewriteError, match="'causal' has no value"):
        set_constants(text, {})
