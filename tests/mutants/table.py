"""Mistakes that the tests must catch: a file, what stands in it, what is put there instead, and the tests that fail.

Each is small enough to be made by a tired hand. `make mutants` plants them one at a time (run.py); a quick test
(test_table.py) holds that each still fits the tree.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """One mistake. file: from the project's root. old: stands in it once. tests: pytest's names, which must fail."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    says: str = ""  # what the mistake is, where the change does not say it

    def applied(self, text: str) -> str:
        return text.replace(self.old, self.new)

    def __str__(self) -> str:
        change = self.says or f"{' '.join(self.old.split())[:60]!r} -> {' '.join(self.new.split())[:60]!r}"
        return f"{self.file}: {change}"


EXPR = "tests/tracer/test_expr.py"

MUTANTS: tuple[Mutant, ...] = (
    # tracer/expr.py
    Mutant("tracer/expr.py", "return TRUE if value else FALSE", "return FALSE", (EXPR,)),
    Mutant("tracer/expr.py", "-(2**31) <= value < 2**31", "-(2**31) <= value <= 2**31", (EXPR,)),
    Mutant(
        "tracer/expr.py",
        'struct.pack("d", value) if isinstance(value, float) else (type(value), value)',
        "(type(value), value)",
        (f"{EXPR}::test_constants_are_told_apart_by_type_sign_and_nan",),
        "constants keyed by ==: -0.0 is 0.0",
    ),
    # kernels/smoothing.py
    Mutant(
        "kernels/smoothing.py",
        "agree &= change[first[chosen]] == change[end[chosen] - 1]",
        "agree &= True",
        ("tests/kernels/test_smoothing.py::test_a_full_block_that_starts_in_one_document_and_ends_in_another",),
        "only the first row and key of a full block are looked at",
    ),
)
