"""Every op as Metal spells it, run in the simulator, against the numpy table that defines the ops."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path
from typing import Any

import expressions
import mlx.core as mx
import numpy as np
import pytest

from flextrace import tracer
from flextrace.kernels.metal.text import FOLDER
from flextrace.kernels.simulator import build, metal_kernel
from flextrace.kernels.template.assemble import assemble
from flextrace.tracer.emit.c_family import c_const
from flextrace.tracer.expr.node import OPS, Q_IDX, Expr, apply, const

ELEMENTS = {"int": "int32", "float": "float32", "bool": "bool"}
VALUES = {
    "int": expressions.INT_CONSTANTS,
    "float": (*expressions.USUAL, *expressions.EXTREME, 1e-4, -0.3, 0.2, 0.49, 3.3, -3.7, 20.0, 1e-20),
    "bool": (False, True),
}


def domain(op: str) -> list[list[str]]:
    """The dtypes of arguments that an op takes."""
    row = OPS[op]
    if row.takes == "where":
        return [["bool", kind, kind] for kind in ELEMENTS]
    kinds = {"number": ["int", "float"], "any": list(ELEMENTS)}.get(row.takes, [row.takes])
    return [[kind] * row.arity for kind in kinds]


CASES = [(op, kinds) for op in OPS if op != "load" for kinds in domain(op)]


def leaf(slot: int, kind: str) -> tracer.Expr:
    return apply("load", Q_IDX, value=(slot, ELEMENTS[kind]))


@pytest.mark.parametrize("gives", ["int", "float", "bool"])
def test_every_op(gives: str) -> None:
    """One kernel for all ops of one result type: a block per op, all pairs of values."""
    blocks, wanted, tables = [], [], []
    for op, kinds in CASES:
        columns = [np.array(c) for c in zip(*itertools.product(*(VALUES[kind] for kind in kinds)), strict=True)]
        arrays = [c.astype(bool if k == "bool" else ELEMENTS[k]) for c, k in zip(columns, kinds, strict=True)]
        expr = apply(op, *(leaf(len(tables) + i, kind) for i, kind in enumerate(kinds)))
        if expr.dtype != gives:
            continue
        start, size = sum(w.size for w in wanted), arrays[0].size
        emitted = tracer.emit(expr, tracer.METAL)
        names = {f"array{len(tables) + i}": f"{kind}_{start}_{i}" for i, kind in enumerate(kinds)}
        lines = [*emitted.statements, f"out[{start} + q_idx] = {emitted.result};"]
        blocks.append((op, size, lines, names))
        with np.errstate(all="ignore"):
            got = tracer.evaluate(expr, {"q_idx": np.arange(size)}, arrays=[*tables, *arrays])
        wanted.append(np.broadcast_to(got, (size,)))
        tables += arrays
    packed = {
        kind: np.concatenate([t.ravel() for t in tables if t.dtype == ELEMENTS[kind]] or [[0]]) for kind in ELEMENTS
    }
    at = dict.fromkeys(ELEMENTS, 0)
    offsets: list[tuple[str, int]] = []
    for table in tables:
        kind = {"i": "int", "f": "float", "b": "bool"}[table.dtype.kind]
        offsets.append((kind, at[kind]))
        at[kind] += table.size
    text, slot = "int q_idx = int(thread_position_in_grid.x);\n", 0
    for op, size, lines, names in blocks:
        declared = "".join(
            f"const device {k}* array{slot + i} = all_{k} + {o}; int array{slot + i}_shape[] = {{{size}}}; "
            f"int64_t array{slot + i}_strides[] = {{1}};\n"
            for i, (k, o) in enumerate(offsets[slot : slot + len(names)])
        )
        text += f"if (q_idx < {size}) {{  // {op}\n{declared}" + "\n".join(lines) + "\n}\n"
        slot += len(names)
    header = assemble(FOLDER, "mod/ops.h", {})
    kernel = metal_kernel("ops_" + gives, [f"all_{kind}" for kind in ELEMENTS], ["out"], text, header)
    longest, total = max(size for _, size, _, _ in blocks), sum(w.size for w in wanted)
    (out,) = kernel(
        inputs=[mx.array(packed[kind].astype(bool if kind == "bool" else ELEMENTS[kind])) for kind in ELEMENTS],
        grid=(longest, 1, 1),
        threadgroup=(256, 1, 1),
        output_shapes=[(total,)],
        output_dtypes=[{"int": mx.int32, "float": mx.float32, "bool": mx.bool_}[gives]],
    )
    values, start = np.array(out), 0
    for (op, size, _, names), want in zip(blocks, wanted, strict=True):
        compare(op, len(names), values[start : start + size], want)
        start += size


# ---- nothing is left undefined ------------------------------------------------------------------------------------

UNDEFINED = "signed-integer-overflow,shift,integer-divide-by-zero,float-cast-overflow"


def runs(statements: list[str], folder: Path) -> bool:
    """Whether a C++ program of ops.h and these statements ends well; undefined behaviour is a trap."""
    (folder / "metal_stdlib").touch()
    source = [
        "#include <initializer_list>",
        '#include "metal_stdlib.h"',
        '#include "ops.h"',
        "int main() {",
        *statements,
        "}",
    ]
    (folder / "ops.cpp").write_text("\n".join(source), encoding="ascii")
    flags = ["-std=c++20", "-w", f"-fsanitize={UNDEFINED}", "-fsanitize-undefined-trap-on-error"]
    paths = [f"-I{place}" for place in (folder, FOLDER / "mod", build.STDLIB)]
    subprocess.run([build.compiler().path, *flags, *paths, "ops.cpp", "-o", "ops"], cwd=folder, check=True)
    return subprocess.run([folder / "ops"], check=False).returncode == 0


def test_no_op_leaves_its_result_undefined(tmp_path: Path) -> None:
    """Every op on ints, and the casts of floats, over the extremes: Metal does not promise that its ints wrap."""
    texts = []
    for op, kinds in CASES:
        if "int" not in kinds and op != "to_int":
            continue
        values = [", ".join(c_const(const(value)) for value in VALUES[kind]) for kind in kinds]
        leaves = (Expr("param", kind, (), slot) for slot, kind in enumerate(kinds))
        emitted = tracer.emit(apply(op, *leaves), tracer.METAL)
        loops = [f"for ({kind} number{i} : {{{values[i]}}})" for i, kind in enumerate(kinds)]
        texts += [*loops, f"{{ volatile auto result = {emitted.result}; (void)result; }}  // {op}"]
    assert len(texts) > 50
    assert runs(texts, tmp_path)
    for planted in ("2147483647 + one", "(-2147483647 - one) / -one", "-(-2147483647 - one)"):
        assert not runs(["volatile int one = 1;", f"volatile int result = {planted};"], tmp_path), planted


def compare(op: str, arity: int, got: np.ndarray[Any, Any], want: np.ndarray[Any, Any]) -> None:
    if got.dtype.kind != "f":
        np.testing.assert_array_equal(got, want, err_msg=op)
        return
    exact = op in ("add", "sub", "mul", "div", "neg", "abs", "min", "max", "floor", "ceil", "trunc", "round", "where")
    exact = exact or op in ("to_float", "sqrt", "mod")
    np.testing.assert_allclose(got, want, rtol=0 if exact else 2e-6, atol=0 if exact else 1e-37, err_msg=op)
