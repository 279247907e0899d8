"""Random functions full of Python -> traced: what Python gives at every position, or a TraceError.

tests/python_programs.py writes them. Nothing here knows how the tracer works: plain Python calls are the yardstick,
also after a later cell has changed what the function's names mean.
"""

from __future__ import annotations

import io
import itertools
import linecache
import random
import types
from typing import Any

import numpy as np
import pytest
from python_programs import CLASSES, LATER, STATE, random_program

from flextrace import tracer

AXES: dict[str, tuple[int, ...]] = {"b": (0, 1), "h": (0, 2), "q_idx": (0, 1, 3), "kv_idx": (0, 1, 2, 3)}
POINTS = list(itertools.product(*AXES.values()))


CLASS_CODE, STATE_CODE = compile(CLASSES, "<classes>", "exec"), compile(STATE, "<state>", "exec")
linecache.cache["<state>"] = (len(STATE), None, STATE.splitlines(keepends=True), "<state>")
linecache.cache["<classes>"] = (len(CLASSES), None, CLASSES.splitlines(keepends=True), "<classes>")


def classes() -> dict[str, Any]:
    """The names of a new module, of which a program has the classes to itself."""
    names: dict[str, Any] = {"__name__": __name__, "SINK": io.StringIO()}
    exec(CLASS_CODE, names)
    return names


def compiled(source: str) -> types.CodeType:
    filename = f"<program {hash(source)}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    return compile(source, filename, "exec")


def by_python(source: types.CodeType, later: str | None) -> list[float] | None:
    """What plain calls give, each on objects of its own; None where one fails or gives no small number."""
    values, names = [], classes()
    for point in POINTS:
        exec(STATE_CODE, names)
        exec(source, names)
        try:
            if later is not None:
                exec(later, names)
            value = names["scored"](0.5, *point)
        except Exception:  # what Python refuses, a kernel may give anything for
            return None
        finally:
            for shadowed in ("len", "max", "sum", "isinstance", "abs"):
                names.pop(shadowed, None)
        if not isinstance(value, (bool, int, float)) or not abs(value) < 2**20:
            return None
        values.append(float(value))
    return values


def by_trace(traces: tracer.Traces, names: dict[str, Any]) -> list[float]:
    """The value at every point, from the expression of a trace that holds now.

    Raises:
        TraceError: the function is refused.
    """

    bound = traces.bind(names["scored"], "score_mod")
    columns = dict(zip(AXES, np.array(POINTS).T, strict=True))
    arrays = [np.array(array) for array in bound.arrays]
    got = tracer.evaluate(bound.trace.expr, columns, numbers=bound.numbers, arrays=arrays)
    return [float(value) for value in np.broadcast_to(got, len(POINTS))]


def check(seed: int) -> str:
    """Compares one program, and once more after a later cell; "equal", "refused" or "python" (it fails there)."""
    source = random_program(seed)
    code, names, traces = compiled(source), classes(), tracer.Traces()
    exec(STATE_CODE, names)
    exec(code, names)
    later = random.Random(seed).choice(LATER)
    outcome = "python"
    for cell in (None, later):
        if cell is not None:
            exec(cell, names)
        want = by_python(code, cell)
        if want is None:
            continue
        try:
            got = by_trace(traces, names)
        except (tracer.TraceError, OverflowError, ArithmeticError):
            outcome = "refused" if outcome == "python" else outcome
            continue
        if got != want:
            at = next(i for i in range(len(POINTS)) if got[i] != want[i])
            pytest.fail(
                f"seed {seed}\n{source}# then: {cell}\nat (b, h, q_idx, kv_idx) = {POINTS[at]}: Python gives "
                f"{want[at]}, the trace {got[at]}; {sum(a != b for a, b in zip(got, want, strict=True))} points differ"
            )
        outcome = "equal"
    return outcome


def run(seeds: range) -> dict[str, int]:
    outcomes = [check(seed) for seed in seeds]
    return {outcome: outcomes.count(outcome) for outcome in ("equal", "refused", "python")}


@pytest.mark.any_reason
def test_random_python_is_followed_or_refused() -> None:
    counts = run(range(300))
    assert counts["equal"] > 60 and counts["refused"] > 30, counts


@pytest.mark.any_reason
@pytest.mark.long
@pytest.mark.parametrize("part", range(10))
def test_random_python_is_followed_or_refused_long(part: int) -> None:
    counts = run(range(10_000 + part * 3000, 10_000 + (part + 1) * 3000))
    assert counts["equal"] > 600, counts
