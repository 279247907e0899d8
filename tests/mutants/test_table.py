"""The table of mutants fits the tree: a row that no longer applies would test nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutants.run import Copy, chosen, stale
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
    rows = chosen(["cpu/visits.h", "MAX_FACTOR"])
    assert {row.file for row in rows if "visits" in row.file} == {"kernels/cpu/visits.h"}
    assert len(rows) < len(MUTANTS) == len(chosen([]))


def test_a_planted_mistake_is_caught_and_taken_back(tmp_path: Path) -> None:
    """The command itself, on a mistake, and on a change that no test can see."""
    (tmp_path / "tree").mkdir()
    copy, file = Copy(tmp_path / "tree", tmp_path / "cache"), "tracer/expr.py"
    before, old = (copy.folder / file).read_text(), "return TRUE if value else FALSE"
    for new, caught in (("return FALSE", True), ("return TRUE if bool(value) else FALSE", False)):
        row = Mutant(file, old, new, ("tests/tracer/test_expr.py::test_constants_are_told_apart_by_type_sign_and_nan",))
        assert bool(copy.run(row).failed) == caught
        assert (copy.folder / file).read_text() == before
