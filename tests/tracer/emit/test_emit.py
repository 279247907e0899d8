"""emit: statements of a language; what is used twice is named, constants come back exactly, brackets do not pile up."""

from __future__ import annotations

import math
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import zoo

import flextrace
from flextrace import tracer
from flextrace.tracer.emit.c_family import FUNCTIONS, c_const, is_uniform
from flextrace.tracer.emit.emit import MAX_NESTING, emit_many
from flextrace.tracer.expr.derivative import derivative, gradient_sites
from flextrace.tracer.expr.node import KV_IDX, OPS, Q_IDX, SCORE, B, Expr, H, apply, const

P = apply("lt", Q_IDX, KV_IDX)
RUNNABLE = {
    "stop_gradient": lambda x: x,
    **{name: getattr(math, name) for name in FUNCTIONS if hasattr(math, name)},
    "rsqrt": lambda x: 1 / math.sqrt(x),
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "inf": math.inf,
}


def as_numpy(array: Any) -> np.ndarray:
    return np.array(array.astype(mx.float32) if array.dtype == mx.bfloat16 else array)


class Clamped:
    """An array by a kernel's indices."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __getitem__(self, indices: int | tuple[int, ...]) -> Any:
        several = indices if isinstance(indices, tuple) else (indices,)
        sizes = zip(several, self.array.shape, strict=True)
        return self.array[tuple(min(max(i + n if i < 0 else i, 0), n - 1) for i, n in sizes)].item()


SYMBOLS = {"bool": (P, apply("eq", H, B), P), "int": (Q_IDX, KV_IDX, H), "float": (SCORE,) * 3}


def test_what_is_used_once_is_written_in_place() -> None:
    node = apply("add", SCORE, apply("to_float", apply("sub", KV_IDX, Q_IDX)))
    assert repr(node) == "score + float((kv_idx - q_idx))"


def test_what_is_used_twice_has_a_name() -> None:
    shared = apply("sub", KV_IDX, Q_IDX)
    emitted = tracer.emit(apply("mul", shared, apply("abs", shared)), tracer.CPP)
    assert emitted.statements == ("const auto e0 = fx::sub(kv_idx, q_idx);",)
    assert emitted.result == "fx::mul(e0, fx::abs(e0))"


def test_leaves_have_no_names() -> None:
    assert tracer.emit(apply("mul", SCORE, SCORE), tracer.METAL).statements == ()


def test_deep_expressions_are_cut_into_statements() -> None:
    node: Expr = SCORE
    for i in range(500):
        node = apply("add", node, const(i + 0.5))
    for language in (tracer.CPP, tracer.METAL, tracer.PYTHON):
        emitted = tracer.emit(node, language)
        assert len(emitted.statements) > 500 // MAX_NESTING
        assert max(text.count("(") for text in emitted.statements) <= 2 * MAX_NESTING


def test_parts_of_several_results_are_computed_once() -> None:
    squashed = apply("tanh", SCORE)
    slope = apply("sub", const(1.0), apply("mul", squashed, squashed))
    many = emit_many((squashed, slope, squashed), tracer.CPP)
    assert many.statements == ("const auto e0 = fx::tanh(score);",) and many.outer == ()
    assert many.results == ("e0", "fx::sub(1.0f, fx::mul(e0, e0))", "e0")
    once = emit_many((apply("exp", squashed), squashed), tracer.CPP)
    assert (once.statements, once.results) == (many.statements, ("fx::exp(e0)", "e0"))


def test_results_that_stay_the_same_come_before_the_loop() -> None:
    """Alone, the caller decides where a result is computed; among several, it is read in the inner loop."""
    bias = apply("mul", apply("load", H, value=(0, "float32")), const(2.0))
    number = Expr("param", "float", value=1)
    many = emit_many((apply("mul", SCORE, bias), bias, number, const(1.0), Q_IDX), tracer.CPP, is_uniform)
    assert many.outer == (
        "const auto u0 = fx::mul(fx::load<float>(in, 0, h), 2.0f);",
        "const auto u1 = in.numbers[1].f;",
    )
    assert many.statements == () and many.results == ("fx::mul(score, u0)", "u0", "u1", "1.0f", "q_idx")
    alone = tracer.emit(bias, tracer.CPP, is_uniform)
    assert alone.outer == () and alone.result == "fx::mul(fx::load<float>(in, 0, h), 2.0f)"


def test_one_result_is_written_as_by_emit() -> None:
    for entry in zoo.SCORE_MODS:
        expr = flextrace.score_mod(entry.make(2, 3, 16, 16, np.random.default_rng(0))).bind().trace.expr
        for language in (tracer.CPP, tracer.METAL, tracer.PYTHON):
            one, many = tracer.emit(expr, language), emit_many((expr,), language)
            assert (one.statements, (one.result,), one.outer) == (many.statements, many.results, many.outer)


def test_several_results_mean_their_expressions() -> None:
    """Every mod of the zoo beside its derivatives, as text that Python runs."""
    names = {"score": 0.75, "b": 1, "h": 2, "q_idx": 5, "kv_idx": 3}
    for entry in zoo.SCORE_MODS:
        bound = flextrace.score_mod(entry.make(2, 3, 16, 16, np.random.default_rng(0))).bind()
        expr, arrays = bound.trace.expr, [as_numpy(array) for array in bound.arrays]
        roots = [expr, derivative(expr, SCORE), *(derivative(expr, site) for site in gradient_sites(expr))]
        many = emit_many(roots, tracer.PYTHON)
        scope = {**RUNNABLE, **names, **{f"number{i}": n for i, n in enumerate(bound.numbers)}}
        scope |= {f"array{i}": Clamped(array) if array.ndim else array.item() for i, array in enumerate(arrays)}
        for statement in many.statements:
            exec(statement, scope)
        got = [float(eval(text, scope)) for text in many.results]
        want = [float(tracer.evaluate(root, names, numbers=bound.numbers, arrays=arrays)) for root in roots]
        assert got == pytest.approx(want, rel=1e-4, abs=1e-5, nan_ok=True), entry.name


def test_a_result_has_no_name_of_its_own() -> None:
    node: Expr = SCORE
    for _ in range(2 * MAX_NESTING + 1):
        node = apply("sin", node)
        assert tracer.emit(node, tracer.CPP).result.startswith("fx::sin(")


@pytest.mark.parametrize(
    ("node", "cpp", "metal"),
    [
        (const(True), "true", "true"),
        (const(-5), "-5", "-5"),
        (const(-(2**31)), "(-2147483647 - 1)", "(-2147483647 - 1)"),
        (const(1.0), "1.0f", "1.0f"),
        (const(-0.0), "(-0.0f)", "(-0.0f)"),
        (const(1e20), "1e+20f", "1e+20f"),
        (const(math.inf), "INFINITY", "INFINITY"),
        (const(-math.inf), "(-INFINITY)", "(-INFINITY)"),
        (const(math.nan), "NAN", "NAN"),
        (Q_IDX, "q_idx", "q_idx"),
        (SCORE, "score", "score"),
        (Expr("param", "float", value=2), "in.numbers[2].f", "number2"),
        (Expr("param", "int", value=0), "in.numbers[0].i", "number0"),
        (Expr("param", "bool", value=0), "in.numbers[0].i != 0", "number0"),
        (apply("min", SCORE, SCORE), "fx::min(score, score)", "fx::min(score, score)"),
        (apply("min", Q_IDX, KV_IDX), "fx::min(q_idx, kv_idx)", "metal::min(q_idx, kv_idx)"),
        (apply("load", value=(0, "float16")), "fx::load<float16>(in, 0)", "float(array0)"),
        (
            apply("load", H, Q_IDX, value=(1, "uint8")),
            "fx::load<uint8_t>(in, 1, h, q_idx)",
            "int(array1[fx::offset(array1_shape, array1_strides, h, q_idx)])",
        ),
    ],
    ids=lambda x: repr(x) if isinstance(x, Expr) else "",
)
def test_spellings(node: Expr, cpp: str, metal: str) -> None:
    bare = [text.removeprefix("(").removesuffix(")") if text.startswith("(") else text for text in (cpp, metal)]
    assert [tracer.emit(node, language).result for language in (tracer.CPP, tracer.METAL)] == bare


@pytest.mark.parametrize(
    ("last", "unit"),
    [
        (KV_IDX, True),
        (apply("add", KV_IDX, Q_IDX), True),
        (apply("sub", apply("add", const(3), KV_IDX), H), True),
        (apply("sub", Q_IDX, KV_IDX), False),
        (apply("mul", KV_IDX, const(2)), False),
        (apply("add", KV_IDX, KV_IDX), False),
        (Q_IDX, False),
        (apply("add", KV_IDX, apply("to_int", SCORE)), False),
    ],
    ids=lambda x: repr(x) if isinstance(x, Expr) else "",
)
def test_neighbouring_loads_are_told_to_cpp(last: Expr, unit: bool) -> None:
    text = tracer.emit(apply("load", H, last, value=(0, "float32")), tracer.CPP).result
    assert ("load_unit<" in text) is unit
    rows = tracer.emit(apply("load", KV_IDX, last, value=(0, "float32")), tracer.CPP).result
    assert "load_unit<" not in rows


FLOATS = [0.0, -0.0, 0.1, 1 / 3, 1e-45, 1.17549435e-38, 3.4028235e38, 1e20, 16777217.0, -2.5e-7, math.inf, -math.inf]


def test_python_text_means_the_expression() -> None:
    names = {"score": 0.75, "q_idx": 5, "kv_idx": 3, "h": 2, "b": 1}
    node = apply("where", P, apply("neg", SCORE), apply("add", SCORE, apply("to_float", apply("mod", KV_IDX, H))))
    assert eval(repr(node), {}, names) == tracer.evaluate(node, names).item()


def any_of(op: str, dtype: str) -> Expr:
    row = OPS[op]
    if op == "where":
        return apply("where", P, *SYMBOLS[dtype][:2])
    return apply(op, *SYMBOLS[dtype][: row.arity])


def all_ops() -> list[Expr]:
    nodes = []
    for op, row in OPS.items():
        if op == "load":
            continue
        for dtype in ("bool", "int", "float"):
            if row.takes in (dtype, "any", "where") or (row.takes == "number" and dtype != "bool"):
                nodes.append(any_of(op, dtype))
    return nodes


def compiler() -> str | None:
    return shutil.which("g++") or shutil.which("clang++")


@pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")
def test_cpp_compiles_for_every_op_and_constants_are_exact(tmp_path: Path) -> None:
    """One file: every op on scalars, and a program that prints the bits of every constant."""
    lines = ['#include "ops.h"', "#include <cstdio>"]
    for i, node in enumerate(all_ops()):
        emitted = tracer.emit(node, tracer.CPP)
        body = " ".join([*emitted.statements, f"return {emitted.result};"])
        lines.append(f"auto f{i}(float score, int32_t q_idx, int32_t kv_idx, int32_t h, int32_t b) {{ {body} }}")
    prints = "".join(f"  print({c_const(const(x))});\n" for x in FLOATS)
    lines.append('void print(float x) { unsigned u; __builtin_memcpy(&u, &x, 4); std::printf("%08x\\n", u); }')
    lines.append(f"int main() {{\n{prints}}}")
    (tmp_path / "all.cpp").write_text("\n".join(lines))
    kernels = Path(flextrace.kernels.__file__).parent / "cpu"
    folders = [f"-I{kernels / room}" for room in ("mod", "tile")]
    command = [str(compiler()), "-std=c++17", "-w", "-O0", *folders, "all.cpp", "-o", "all"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:3000]
    bits = subprocess.run(["./all"], cwd=tmp_path, capture_output=True, text=True).stdout.split()
    assert bits == [struct.pack(">f", const(x).value).hex() for x in FLOATS]
