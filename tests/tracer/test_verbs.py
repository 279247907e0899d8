"""The page of verbs is all of the meaning that a front end calls, and it says what every verb means."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from flextrace import tracer
from flextrace.tracer import verbs

FOLDER = Path(tracer.__file__).parent
MEANING = "values tracing changes outside numbers objects running attributes operators calls joins".split()
SHARED = ("frames", "lanes")
FRONT_ENDS = ("read_expressions", "read_statements")


def imported(module: str) -> set[str]:
    """The names that a module of the tracer takes from the package, and the modules from elsewhere."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((FOLDER / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} if node.module else {alias.name for alias in node.names}
    return found


def test_the_page_explains_every_verb() -> None:
    rows = [line.split("|")[1] for line in (verbs.__doc__ or "").splitlines() if line.startswith("| `")]
    explained = {name for row in rows for name in re.findall(r"`(\w+)", row)}
    functions = {name for name in verbs.__all__ if name[0].islower()}
    assert explained == functions


@pytest.mark.parametrize("module", (*SHARED, *FRONT_ENDS))
def test_a_front_end_calls_verbs_alone(module: str) -> None:
    assert "verbs" in imported(module)
    assert imported(module).isdisjoint(MEANING)


@pytest.mark.parametrize("module", ("verbs", *MEANING, *SHARED))
def test_the_meaning_does_not_know_how_a_function_is_read(module: str) -> None:
    assert imported(module).isdisjoint({"ast", "source", *FRONT_ENDS})
