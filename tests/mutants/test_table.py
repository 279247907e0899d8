"""The table of mutants fits the tree: a row that no longer applies would test nothing."""

from __future__ import annotations

import ast
import itertools
from pathlib import Path

import pytest
from mutants.run import ROOT, Copy, chosen, stale
from mutants.table import MUTANTS, Mutant


def test_every_mistake_can_be_planted() -> None:
    assert stale(MUTANTS) == []


def test_every_mistake_changes_something_and_names_tests() -> None:
    for mutant in MUTANTS:
        assert mutant.old != mutant.new and mutant.tests, mutant
    assert len({(m.file, m.old, m.new) for m in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (Mutant("cache/none.py", "a", "b", ("tests/mutants/test_table.py",)), "stands there 0 times"),
        (Mutant("LICENSE", "the", "a", ("tests/mutants/test_table.py",)), "not once"),
        (Mutant("LICENSE", "MIT License", "a", ("tests/mutants/test_table.py::test_nothing",)), "there is no test"),
    ],
)
def test_rows_that_do_not_fit_are_named(row: Mutant, says: str) -> None:
    (found,) = stale([row])
    assert says in found


def test_words_choose_rows() -> None:
    rows = chosen(["cpu/attention/walk.h", "MAX_FACTOR"])
    assert {row.file for row in rows if "cpu/attention/walk" in row.file} == {"kernels/cpu/attention/walk.h"}
    assert len(rows) < len(MUTANTS) == len(chosen([]))


def test_a_planted_mistake_is_caught_and_taken_back(tmp_path: Path) -> None:
    """The command itself, on a mistake, and on a change that no test can see."""
    (tmp_path / "tree").mkdir()
    copy, file = Copy(tmp_path / "tree", tmp_path / "cache"), "tracer/expr/node.py"
    before, old = (copy.folder / file).read_text(), "return TRUE if value else FALSE"
    for new, caught in (("return FALSE", True), ("return TRUE if bool(value) else FALSE", False)):
        row = Mutant(
            file, old, new, ("tests/tracer/expr/test_expr.py::test_constants_are_told_apart_by_type_sign_and_nan",)
        )
        assert bool(copy.run(row).failed) == caught
        assert (copy.folder / file).read_text() == before


# ---- every rule has a mistake ----------------------------------------------------------------------------------------

RULES = (
    "bounds/ints",
    "bounds/rules",
    "bounds/relations",
    "bounds/extremes",
    "bounds/tiles",
    "expr/simplify",
    "expr/invariance",
    "expr/derivative",
    "expr/access",
)
# Nothing in these makes a result wrong: they hold a value, or say how much is computed.
HARMLESS = {"__init__", "__repr__", "bounds_of", "entries", "simplify", "_simplify_node"}


def planted(file: str) -> list[tuple[int, int]]:
    """Where the rows of a file change it: first and last line of each."""
    text = (ROOT / file).read_text()
    starts = [(text.index(row.old), len(row.old)) for row in MUTANTS if row.file == file]
    return [(text.count("\n", 0, at) + 1, text.count("\n", 0, at + size - 1) + 1) for at, size in starts]


def rules(file: str) -> dict[str, tuple[int, int]]:
    """What decides something in a file of rules, and its lines: functions, and entries of tables that are made."""
    tree = ast.parse((ROOT / file).read_text())
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name not in HARMLESS:
            found[node.name] = (node.lineno, node.end_lineno or 0)
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and not isinstance(value, (ast.Name, ast.Constant, ast.Attribute)):
                    found[f"{key.value!r}: {ast.unparse(value)}"] = (key.lineno, value.end_lineno or 0)
    return found


def header_rules() -> dict[str, tuple[int, int]]:
    lines = (ROOT / "kernels/template/ranges.h").read_text().splitlines()
    starts = [i for i, line in enumerate(lines, 1) if line.startswith("inline ")] + [len(lines) + 1]
    return {lines[i - 1]: (i, j - 1) for i, j in itertools.pairwise(starts)}


@pytest.mark.parametrize("file", [*(f"tracer/{name}.py" for name in RULES), "kernels/template/ranges.h"])
def test_every_rule_has_a_mistake(file: str) -> None:
    """Each function of what bounds, simplifies and proves, and each entry of its tables."""
    made = planted(file)
    found = rules(file) if file.endswith(".py") else header_rules()
    without = [name for name, (first, last) in found.items() if not any(a <= last and first <= b for a, b in made)]
    assert without == [] and found
