"""Every trace that a test makes is made by both front ends: with the same expression, captures and guards; where a mod
is refused, for the same reason.

What code does not say is stated here: `DIFFERENCES` of what is refused, and `OTHER_SHAPES` of versions of Python whose
code is the same for two expressions of one value. That value is compared bit by bit on a grid of positions.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from flextrace.tracer import Kind, Trace, Untraceable, evaluate, reader

# What the reader of bytecode says otherwise, and why -> reasons (patterns) from the source and from the bytecode;
# None: it reads what the other refuses.
DIFFERENCES: tuple[tuple[str, str, str | None], ...] = (
    ("how a call is written is not known: a module is named by its class", "module that makes", "module that makes"),
    ("so is a foreign function", "cannot run in a kernel", "cannot run in a kernel|reduces an array"),
    ("`return` and the end of a function are one", "the returned value is .*None", "returns a value on some paths"),
    ("what `with` opens is opened first", "the statement `with`", "Python raised"),
    ("a `match` is the comparisons that it became", "the statement `match`", None),
    ("a `try` that guards nothing is gone", "the statement `try`", None),
    ("a deep expression is no deep recursion", "nests too deeply", None),
    ("a `while True` with a `break` and a `while` are one", "a loop ran", "`while` on"),
    ("a loop may have been turned over, and asks for the first time within", "`while` on", "`while` on"),
)

# How a call is written is not known: advice on it is in general, as `write mx.exp(x) for torch.exp(x)`.
GENERAL_ADVICE = r"write .* for \w[\w.]*\("
# Python -> why an expression that is read from its code may be of another shape.
OTHER_SHAPES: dict[tuple[int, int], str] = {
    (3, 10): "without columns `return (x if c else y) + 1` and `return x + 1 if c else y + 1` are one code",
    (3, 14): "of a copied end it computes what has constants alone: `(x if c else 1) + 1` is `x + 1 if c else 2`",
}
GRID = list(itertools.product((-2.5, 0.0, 1.25, np.inf), (0, 1), (0, 1, 3), (0, 1, 2, 40), (0, 1, 2, 3, 41)))
AXES = ("score", "b", "h", "q_idx", "kv_idx")


def check_both(monkeypatch: pytest.MonkeyPatch, any_reason: bool = False) -> None:
    """any_reason: of several reasons to refuse a mod either may be said."""
    module: Any = sys.modules["flextrace.tracer.trace"]
    one: Callable[[Any, Kind, str], Trace] = module._trace
    real = reader.reader_of
    hidden = threading.local()  # tests trace in several threads

    def outcome(function: Any, kind: Kind, name: str) -> Trace | Untraceable:
        try:
            return one(function, kind, name)
        except Untraceable as error:
            return error

    def both(function: Any, kind: Kind, name: str) -> Trace:
        if getattr(hidden, "now", False):
            return one(function, kind, name)
        source = outcome(function, kind, name)
        hidden.now = True
        try:
            code = outcome(function, kind, name)
        finally:
            hidden.now = False
        if sys.version_info[:2] in OTHER_SHAPES and isinstance(source, Trace) and isinstance(code, Trace):
            code = as_shaped(source, code, function)
        assert_same(source, code, any_reason)
        if isinstance(source, Untraceable):
            raise source
        return source

    monkeypatch.setattr(reader, "reader_of", lambda code: "bytecode" if getattr(hidden, "now", False) else real(code))
    monkeypatch.setattr(module, "_trace", both)


def as_shaped(source: Trace, code: Trace, function: Any) -> Trace:
    """The second trace, with the expression of the first if that has the same values at every position of the grid."""
    if source.expr is code.expr or (captured := source.reads.captured(function, source.name)) is None:
        return code
    columns = dict(zip(AXES, map(np.array, zip(*GRID, strict=True)), strict=True))
    arrays, numbers = [np.array(array) for array in captured[0]], captured[1]
    want, got = (
        np.broadcast_to(evaluate(trace.expr, columns, numbers=numbers, arrays=arrays), len(GRID))
        for trace in (source, code)
    )
    return (
        dataclasses.replace(code, expr=source.expr)
        if np.array_equal(want, got, equal_nan=want.dtype.kind == "f")
        else code
    )


def assert_same(source: Trace | Untraceable, code: Trace | Untraceable, any_reason: bool) -> None:
    if isinstance(source, Trace) and isinstance(code, Trace):
        assert source.expr is code.expr, f"{source.expr}\n--- from its bytecode:\n{code.expr}"
        assert (source.arrays, source.numbers, source.volatile) == (code.arrays, code.numbers, code.volatile)
        ours, theirs = source.reads, code.reads
        guards, others = (sorted(getattr(check, "__qualname__", "") for *_, check in r.steps) for r in (ours, theirs))
        assert guards == others  # the sides of an `if` may be read in another order
        assert (ours.same, ours.divisors, ours.counts) == (theirs.same, theirs.divisors, theirs.counts)
        return
    said = source.reason if isinstance(source, Untraceable) else None
    other = code.reason if isinstance(code, Untraceable) else None
    known = (any_reason and None not in (said, other)) or any(
        said is not None
        and re.search(first, said)
        and (second is None if other is None else second and re.search(second, other))
        for _, first, second in DIFFERENCES
    )
    assert said == other or known, f"{said or source}\n--- from its bytecode:\n{other or code}"
    if said == other and isinstance(source, Untraceable) and isinstance(code, Untraceable):
        assert source.remedy == code.remedy or re.match(GENERAL_ADVICE, code.remedy), code.remedy
