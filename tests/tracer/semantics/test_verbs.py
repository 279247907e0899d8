"""The page of verbs is all of the meaning that a front end calls, and it says what every verb means."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from flextrace import tracer
from flextrace.tracer import semantics as verbs

FOLDER = Path(tracer.__file__).parent
FRONT_ENDS = sorted((FOLDER / "frontends").rglob("*.py"))
SHARED = sorted((FOLDER / "frontends").glob("*.py"))
MEANING = sorted((FOLDER / "semantics").glob("*.py"))


def imported(path: Path) -> set[str]:
    """The modules that a file imports, as it names them without leading dots."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def test_the_page_explains_every_verb() -> None:
    rows = [line.split("|")[1] for line in (verbs.__doc__ or "").splitlines() if line.startswith("| `")]
    explained = {name for row in rows for name in re.findall(r"`(\w+)", row)}
    functions = {name for name in verbs.__all__ if name[0].islower()}
    assert explained == functions


def named(path: Path) -> str:
    return path.relative_to(FOLDER).as_posix()


@pytest.mark.parametrize("path", FRONT_ENDS, ids=named)
def test_a_front_end_calls_verbs_alone(path: Path) -> None:
    """It takes them from the page, not from the files that say what they mean."""
    assert not [module for module in imported(path) if module.startswith("semantics.")]


@pytest.mark.parametrize("path", (*MEANING, *SHARED), ids=named)
def test_the_meaning_does_not_know_how_a_function_is_read(path: Path) -> None:
    assert not [module for module in imported(path) if module == "ast" or module.startswith(("syntax", "source.find"))]
