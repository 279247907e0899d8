"""Ranges -> ranges: the rule of every op, for many tiles at once (numpy).

An int's range is a `Range`. A bool's is (must, may): true everywhere in the tile, true somewhere; Python bools or
arrays. A float's is (lo, hi) of float32, both nan where nothing is known: only operations that are exact and monotone
on every device keep a float known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..expr.node import Expr
from .ints import INT_MAX, INT_MIN, INT_RULES, Range, between, exactly

Truth = tuple[Any, Any]
Interval = tuple[Any, Any]
TRUE: Truth = (True, True)
FALSE: Truth = (False, False)
NOT_KNOWN: Interval = (np.float32(math.nan), np.float32(math.nan))


# ---- comparisons ---------------------------------------------------------------------------------------------


def _lt(a: Range, b: Range) -> Truth:
    if a.most < b.least or a.least >= b.most:
        return (a.most < b.least,) * 2
    return a.hi < b.lo, a.lo < b.hi


def _le(a: Range, b: Range) -> Truth:
    if a.most <= b.least or a.least > b.most:
        return (a.most <= b.least,) * 2
    return a.hi <= b.lo, a.lo <= b.hi


def _eq(a: Range, b: Range) -> Truth:
    if a.most < b.least or b.most < a.least:
        return FALSE
    meets = (a.lo <= b.hi) & (b.lo <= a.hi)
    return meets & (a.lo == b.hi) & (a.hi == b.lo), meets


def _float_lt(a: Interval, b: Interval) -> Truth:
    return a[1] < b[0], np.logical_not(a[0] >= b[1])


def _float_le(a: Interval, b: Interval) -> Truth:
    return a[1] <= b[0], np.logical_not(a[0] > b[1])


def _float_eq(a: Interval, b: Interval) -> Truth:
    same = (a[0] == a[1]) & (b[0] == b[1]) & (a[0] == b[0])
    return same, np.logical_not((a[1] < b[0]) | (b[1] < a[0]))


def _opposite(compare: Callable[..., Truth]) -> Callable[..., Truth]:
    return lambda *operands: _not(compare(*operands))


def _by_difference(compare: Callable[[Range, Range], Truth]) -> Callable[[Range, Range, Range], Truth]:
    """`a` is compared with `b`, and also `a - b` with 0 where neither has wrapped."""

    def both(a: Range, b: Range, difference: Range) -> Truth:
        (must, may), (must_too, may_too) = compare(a, b), compare(difference, exactly(0))
        for x in (a, b):
            if x.least == INT_MIN and x.most == INT_MAX:
                wrapped = (x.lo == INT_MIN) & (x.hi == INT_MAX)
                must_too, may_too = must_too & np.logical_not(wrapped), may_too | wrapped
        return must | must_too, may & may_too

    return both


# ---- truth, choice, conversion -------------------------------------------------------------------------------


def _not(a: Truth) -> Truth:
    return a[1] ^ True, a[0] ^ True


def _and(a: Truth, b: Truth) -> Truth:
    return a[0] & b[0], a[1] & b[1]


def _or(a: Truth, b: Truth) -> Truth:
    return a[0] | b[0], a[1] | b[1]


def _xor(a: Truth, b: Truth) -> Truth:
    must = (a[0] & _not(b)[0]) | (_not(a)[0] & b[0])
    must_not = (a[0] & b[0]) | (_not(a)[0] & _not(b)[0])
    return must, must_not ^ True


def _choose(condition: Truth, yes: Any, no: Any, joined: Any) -> Any:
    return np.where(condition[0], yes, np.where(condition[1], joined, no))


def _where(condition: Truth, yes: Range, no: Range) -> Range:
    if condition[0] is True or condition[1] is False:
        return yes if condition[0] is True else no
    return Range(
        _choose(condition, yes.lo, no.lo, np.minimum(yes.lo, no.lo)),
        _choose(condition, yes.hi, no.hi, np.maximum(yes.hi, no.hi)),
        min(yes.least, no.least),
        max(yes.most, no.most),
    )


def _where_float(condition: Truth, yes: Interval, no: Interval) -> Interval:
    return (
        _choose(condition, yes[0], no[0], np.minimum(yes[0], no[0])),
        _choose(condition, yes[1], no[1], np.maximum(yes[1], no[1])),
    )


def _where_bool(condition: Truth, yes: Truth, no: Truth) -> Truth:
    must = (yes[0] | (condition[1] ^ True)) & (no[0] | condition[0])
    return must, (yes[1] & condition[1]) | (no[1] & (condition[0] ^ True))


def _bool_to_int(a: Truth) -> Range:
    return Range(np.asarray(a[0], np.int64), np.asarray(a[1], np.int64), int(a[0] is True), int(a[1] is not False))


def _int_to_float(a: Range) -> Interval:  # rounds, monotonically
    return np.asarray(a.lo, np.float32), np.asarray(a.hi, np.float32)


def _bool_to_float(a: Truth) -> Interval:
    return np.asarray(a[0], np.float32), np.asarray(a[1], np.float32)


def _float_to_int(a: Interval) -> Range:  # truncates and saturates, monotonically
    lo = np.clip(np.trunc(np.asarray(a[0], np.float64)), INT_MIN, INT_MAX)
    hi = np.clip(np.trunc(np.asarray(a[1], np.float64)), INT_MIN, INT_MAX)
    nothing = np.isnan(lo) | np.isnan(hi)
    return between(
        np.where(nothing, INT_MIN, lo).astype(np.int64),
        np.where(nothing, INT_MAX, hi).astype(np.int64),
    )


# ---- floats: what is exact, and monotone -----------------------------------------------------------------------


def _float_neg(a: Interval) -> Interval:
    return -a[1], -a[0]


def _float_abs(a: Interval) -> Interval:
    return np.maximum(np.maximum(a[0], -a[1]), np.float32(0)), np.maximum(-a[0], a[1])


def _monotone(op: Callable[..., Any]) -> Callable[..., Interval]:
    return lambda *operands: (op(*(a[0] for a in operands)), op(*(a[1] for a in operands)))


def _same(a: Any) -> Any:
    return a


# op.dtype of the last argument, or op -> the function. A float whose op is missing here is unknown.
RANGES: dict[str, Callable[..., Any]] = {
    **INT_RULES,
    "lt.int": _lt,
    "le.int": _le,
    "eq.int": _eq,
    "ne.int": _opposite(_eq),
    "lt_by_difference": _by_difference(_lt),
    "le_by_difference": _by_difference(_le),
    "eq_by_difference": _by_difference(_eq),
    "ne_by_difference": _opposite(_by_difference(_eq)),
    "lt.float": _float_lt,
    "le.float": _float_le,
    "eq.float": _float_eq,
    "ne.float": _opposite(_float_eq),
    "not": _not,
    "and": _and,
    "or": _or,
    "xor": _xor,
    "where.int": _where,
    "where.float": _where_float,
    "where.bool": _where_bool,
    "to_int.bool": _bool_to_int,
    "to_int.int": _same,
    "to_int.float": _float_to_int,
    "to_float.bool": _bool_to_float,
    "to_float.int": _int_to_float,
    "to_float.float": _same,
    "neg.float": _float_neg,
    "abs.float": _float_abs,
    "min.float": _monotone(np.minimum),
    "max.float": _monotone(np.maximum),
    "floor": _monotone(np.floor),
    "ceil": _monotone(np.ceil),
    "trunc": _monotone(np.trunc),
    "round": _monotone(np.rint),
}


def rule(node: Expr) -> Callable[..., Any]:
    """The function for a node's op and the dtype of its arguments."""
    found = RANGES.get(f"{node.op}.{node.args[-1].dtype}") or RANGES.get(node.op)
    if found is None:
        raise NotImplementedError(f"{node.op} on {node.args[-1].dtype} has no bounds; give it a row in RANGES")
    return found


def has_rule(node: Expr) -> bool:
    return f"{node.op}.{node.args[-1].dtype}" in RANGES or node.op in RANGES
