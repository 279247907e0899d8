"""VOCABULARY.md says what the tracer's tables say, and all that it lists traces."""

from __future__ import annotations

import ast
import builtins
import functools as functools_module
import itertools
import linecache
import math
import operator
import subprocess
import sys
import textwrap
import types
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from flextrace import tracer
from flextrace.tracer import vocabulary
from flextrace.tracer.expr import functions
from flextrace.tracer.frontends.syntax.expressions import EXPRESSIONS
from flextrace.tracer.frontends.syntax.statements import STATEMENTS, UNSUPPORTED
from flextrace.tracer.semantics import running
from flextrace.tracer.semantics.calls import SPECIAL

FILE = Path(tracer.__file__).with_name("VOCABULARY.md")
PRELUDE = """
xs, n, helper = [score, 1.0], 3, lambda *numbers: numbers[0]
"""
NAMES: dict[str, Any] = {
    "mx": mx,
    "np": np,
    "math": math,
    "operator": operator,
    "builtins": builtins,
    "itertools": itertools,
    "functools": functools_module,
    "slopes": mx.array([0.5, 0.25]),
    "config": types.SimpleNamespace(slope=0.5),
}
ARGUMENTS = (  # what a function of the table may take
    "score",
    "q_idx",
    "score, 2.0",
    "q_idx, 3",
    "q_idx > 3, score, 0.0",
    "[score, 1.0]",
    "score, mx.float32",
    "score, float",
    "score, 'ndim'",
    "None, [1.0, 2.0]",
    "lambda x: x, [score, 1.0]",
    "[score, 1.0], 1",
    "lambda x, y: x, [(score, 1.0)]",
    "lambda x, y: x + y, [score, 1.0]",
    "iter([score, 1.0])",
    "[('a', score)]",
    "{'a': score}, 'a'",
    "8",
)


def trace(body: str) -> None:
    text = "def mod(score, b, h, q_idx, kv_idx):\n" + textwrap.indent(body, "    ")
    filename = f"<vocabulary {len(linecache.cache)}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    scope = {**NAMES, "__name__": "user_module"}
    exec(compile(text, filename, "exec"), scope)
    tracer.trace(scope["mod"], "score_mod")


def traces(call: str) -> bool:
    """Whether a function traces on some of ARGUMENTS."""
    for arguments in ARGUMENTS:
        try:
            trace(f"value = {call}({arguments})\nreturn score")
        except tracer.TraceError:
            continue
        return True
    return False


def test_the_file_is_what_is_printed() -> None:
    done = subprocess.run([sys.executable, "-m", "flextrace.tracer.vocabulary"], capture_output=True, check=True)
    assert done.stdout.decode() == vocabulary.vocabulary() == FILE.read_text(), (
        "write it anew: python -m flextrace.tracer.vocabulary > tracer/VOCABULARY.md"
    )


@pytest.mark.parametrize(
    ("module", "table"),
    [
        ("mx", functions.ARRAY_FUNCTIONS),
        ("np", functions.ARRAY_FUNCTIONS),
        ("mx", functions.MLX_ONLY),
        ("np", functions.NUMPY_ONLY),
        ("math", functions.MATH),
        ("operator", functions.OPERATOR),
        ("builtins", functions.BUILTINS),
    ],
)
def test_every_function_traces(module: str, table: dict[str, Any]) -> None:
    there = [name for name in table if hasattr(NAMES[module], name)]
    assert len(there) >= len(table) - 3, "older Pythons lack math.exp2, older versions of MLX two functions"
    assert [name for name in there if not traces(f"{module}.{name}")] == []


def test_every_method_traces() -> None:
    for name in functions.METHODS:
        trace(f"return score.{name}({'mx.int32' if name == 'astype' else ''})")


def test_functions_that_carry_symbols() -> None:
    listed = vocabulary.vocabulary().split("containers of them:")[1].split("##")[0]
    rows = [row.split("|") for row in listed.splitlines() if row.startswith(("| b", "| `"))]
    names = {f"{row[1].strip(' `')}.{name}" for row in rows for name in row[2].replace("`", "").split()}
    assert len(names) == len(running.CARRIERS) + len(running.WRITERS) + len(SPECIAL)
    for name in sorted(names - {"functools.partial"}):
        assert traces(name), name
    assert {id(special) for special in vocabulary.SPECIAL_FUNCTIONS} == SPECIAL.keys()


def test_every_form_traces() -> None:
    for name, (form, _) in vocabulary.FORMS.items():
        if form in ("break", "continue"):
            form = f"for i in range(3):\n    if q_idx > i: {form}\n    score += i"
        elif issubclass(getattr(ast, name), ast.expr):
            form = f"value = {form}"
        trace(f"{PRELUDE.strip()}\n{form}\nreturn score")


def test_forms_contain_what_they_are_listed_for() -> None:
    for name, (form, _) in vocabulary.FORMS.items():
        tree = ast.parse(f"def f():\n  while True:\n    {form}")
        assert any(type(node).__name__ == name for node in ast.walk(tree)), (name, form)


def test_forms_are_what_the_reader_reads() -> None:
    read = {kind.__name__ for kind in (*STATEMENTS, *EXPRESSIONS)}
    assert read == vocabulary.FORMS.keys() | vocabulary.OPERATOR_NODES
    assert not read & UNSUPPORTED.keys()
    statements = {kind.__name__ for kind in ast.stmt.__subclasses__()}
    assert statements <= read | UNSUPPORTED.keys(), "a statement of this Python is neither read nor refused"


def test_every_operator_traces() -> None:
    line = next(line for line in vocabulary.vocabulary().splitlines() if line.startswith("`+`"))
    symbols = [symbol.replace("\\", "") for symbol in line.partition(".")[0].strip("`").split("` `")]
    assert len(symbols) == 26
    for symbol in symbols:
        operand = {"in": "(1, 2)", "not in": "(1, 2)", "is": "None", "is not": "None"}.get(symbol, "3")
        trace(f"return {symbol} q_idx" if symbol in ("~", "not") else f"return q_idx {symbol} {operand}")
