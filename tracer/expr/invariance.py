"""Expr -> proof: what a score_mod does with a shift of the score, and what a mask says about packed documents.

Smoothed keys (arXiv 2410.02367) leave one number c per row out of the scores. Where f(score + c) = f(score) + c for
every score and c in exact arithmetic, softmax does not see it; elsewhere c is added back before f.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from .node import COMPARISONS, Expr, walk

ANY = "any"  # the value is infinite, so every c may be added to it
Shift = Fraction | str | None  # how much of c is added to the value: a factor, ANY, or nothing that can be said


def shifts_with_score(expr: Expr, numbers: Sequence[bool | int | float] = ()) -> bool:
    """Whether a score_mod's expression is proven to give f(score + c) = f(score) + c, for all c, in exact arithmetic.

    numbers: captured numbers by slot; without them nothing is assumed of a captured number, with them the proof is
        for these values alone (a captured -inf or 1.0 counts as if it were written out).

    Example:
        >>> from flextrace.tracer.expr.node import KV_IDX, SCORE, apply
        >>> shifts_with_score(apply("add", SCORE, apply("to_float", KV_IDX)))
        True
        >>> shifts_with_score(apply("tanh", SCORE))
        False
    """
    shifts: dict[Expr, Shift] = {}
    values = {node: _number(node, numbers) for node in walk(expr)}
    for node in values:
        shifts[node] = _shift(node, [shifts[arg] for arg in node.args], values)
    return shifts[expr] in (1, ANY)


def _number(node: Expr, numbers: Sequence[bool | int | float]) -> float | None:
    """The value of a known number of the expression."""
    if node.op == "const" or (node.op == "param" and node.value < len(numbers)):
        return float(node.value if node.op == "const" else numbers[node.value])
    return None


def _shift(node: Expr, shifts: list[Shift], values: dict[Expr, float | None]) -> Shift:
    """How `node` changes when c is added to the score, from how its arguments do."""
    if node.op == "score":
        return Fraction(1)
    number = values[node]
    if number is not None and math.isinf(number):
        return ANY
    if all(shift == 0 for shift in shifts):  # this holds for leaves too, and where the score has cancelled out
        return Fraction(0)
    if node.op in ("add", "sub"):
        return _sum(shifts[0], shifts[1], 1 if node.op == "add" else -1)
    if node.op == "stop_gradient":
        return shifts[0]
    if node.op == "neg":
        return _times(shifts[0], -1)
    if node.op in ("mul", "div"):
        return _scaled(node, shifts, values)
    if node.op in ("min", "max") or node.op in COMPARISONS:
        both = _same(shifts[0], shifts[1])
        return both if node.op in ("min", "max") or both is None else Fraction(0)
    if node.op == "where" and shifts[0] == 0:
        return _same(shifts[1], shifts[2])
    return None


def _sum(a: Shift, b: Shift, sign: int) -> Shift:
    if a is None or b is None:
        return None
    return ANY if isinstance(a, str) or isinstance(b, str) else a + sign * b


def _times(shift: Shift, factor: float) -> Shift:
    if shift is None or not math.isfinite(factor) or factor == 0:
        return None
    return shift if isinstance(shift, str) else shift * Fraction(factor)


def _scaled(node: Expr, shifts: list[Shift], values: dict[Expr, float | None]) -> Shift:
    """x * number, number * x, x / number."""
    a, b = (values[arg] for arg in node.args)
    if b is not None:
        return _times(shifts[0], b) if node.op == "mul" else _divided(shifts[0], b)
    return _times(shifts[1], a) if a is not None and node.op == "mul" else None


def _divided(shift: Shift, divisor: float) -> Shift:
    if shift is None or not math.isfinite(divisor) or divisor == 0:
        return None
    return shift if isinstance(shift, str) else shift / Fraction(divisor)


def _same(a: Shift, b: Shift) -> Shift:
    """The shift that both have; an infinite value moves along with the other."""
    if isinstance(a, str):
        return b
    return a if isinstance(b, str) or a == b else None


class DocumentIds(NamedTuple):
    """Two int expressions that are equal wherever a mask keeps a pair: of a row (b, q_idx) and of a key (b, kv_idx).

    starts: the mask says instead ids(q_idx) <= kv_idx <= q_idx, with one array for rows and keys. It keeps to equal
        ids only where the array holds the first token of each token's document: never falling, its own value there.
    """

    rows: Expr
    keys: Expr
    starts: bool


def document_ids(mask: Expr) -> DocumentIds | None:
    """The conjunct of a mask that keeps packed documents apart, or None.

    Recognised: eq(f(b, q_idx), g(b, kv_idx)), whatever f and g are of ints and bools, those that read captured arrays
    first; and start[.., q_idx] <= kv_idx and kv_idx <= q_idx. Not through floats: a kernel's may differ in the last
    bit from those of whoever sorts the keys by document, and an id that was rounded the other way is another one.

    Example:
        >>> from flextrace.tracer.expr.node import KV_IDX, Q_IDX, apply
        >>> ids = [apply("load", index, value=(0, "int32")) for index in (Q_IDX, KV_IDX)]
        >>> document_ids(apply("and", apply("eq", *ids), apply("le", KV_IDX, Q_IDX)))
        DocumentIds(rows=array0[q_idx], keys=array0[kv_idx], starts=False)
    """
    conjuncts = _conjuncts(mask)
    pairs = [pair for node in conjuncts if (pair := _equality(node)) is not None]
    pairs += [pair for node in conjuncts if (pair := _since_start(node, conjuncts)) is not None]
    return min(pairs, key=lambda pair: not any(node.op == "load" for node in walk(pair.rows, pair.keys)), default=None)


def _conjuncts(mask: Expr) -> list[Expr]:
    if mask.op == "and":
        return [part for arg in mask.args for part in _conjuncts(arg)]
    return [mask]


def _equality(node: Expr) -> DocumentIds | None:
    if node.op != "eq" or any(part.dtype == "float" for part in walk(*node.args)):
        return None
    for row, key in (node.args, node.args[::-1]):
        if _depends(row, "q_idx") and _depends(key, "kv_idx"):
            return DocumentIds(row, key, False)
    return None


def _since_start(node: Expr, conjuncts: list[Expr]) -> DocumentIds | None:
    if node.op != "le" or node.args[0].op != "load" or not _depends(node.args[0], "q_idx"):
        return None
    start, key = node.args
    if key.op != "index" or key.value != "kv_idx":
        return None
    row = next((arg for arg in start.args if arg.op == "index" and arg.value == "q_idx"), None)
    if row is None or not any(other.op == "le" and other.args == (key, row) for other in conjuncts):
        return None
    if sum("q_idx" in arg.varies for arg in start.args) != 1:
        return None
    of_key = Expr(start.op, start.dtype, tuple(key if arg is row else arg for arg in start.args), start.value)
    return DocumentIds(start, of_key, True)


def _depends(expr: Expr, index: str) -> bool:
    """Whether a node varies with this index, and besides with the batch at most."""
    return index in expr.varies and expr.varies <= {index, "b"}
