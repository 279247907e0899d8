"""Ranges -> Range: arithmetic on the ranges of ints, for many tiles at once (numpy).

A `Range` is a pair of int64 arrays that broadcast. An int32 that may have wrapped has the range of all int32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

INT_MIN, INT_MAX = -(2**31), 2**31 - 1


class Range:
    """lo <= value <= hi in each tile; least <= lo and hi <= most over all tiles, in Python ints."""

    __slots__ = ("hi", "least", "lo", "most")

    def __init__(self, lo: Any, hi: Any, least: int, most: int) -> None:
        self.lo: Any = lo
        self.hi: Any = hi
        self.least: int = least
        self.most: int = most

    def constant(self) -> bool:
        return self.least == self.most


def exactly(value: int) -> Range:
    return Range(value, value, value, value)


ALL = Range(INT_MIN, INT_MAX, INT_MIN, INT_MAX)


def between(lo: Any, hi: Any) -> Range:
    """The range of arrays whose extremes are not known yet."""
    if isinstance(lo, int) and isinstance(hi, int):
        return Range(lo, hi, lo, hi)
    lo, hi = np.asarray(lo, np.int64), np.asarray(hi, np.int64)
    return Range(lo, hi, int(lo.min()), int(hi.max())) if lo.size and hi.size else Range(lo, hi, 0, 0)


def _int32(lo: Any, hi: Any, least: int, most: int) -> Range:
    """`a`, or all of int32 where a bound lies outside it."""
    if least >= INT_MIN and most <= INT_MAX:
        return Range(lo, hi, least, most)
    if isinstance(lo, int) and isinstance(hi, int):
        return ALL
    wraps = (lo < INT_MIN) | (hi > INT_MAX)
    return Range(np.where(wraps, INT_MIN, lo), np.where(wraps, INT_MAX, hi), INT_MIN, INT_MAX)


def _corners(op: Callable[[Any, Any], Any], a: Range, b: Range) -> Range:
    """The range of an op that is monotone in each operand, whichever way."""
    points = [op(x, y) for x in (a.lo, a.hi) for y in (b.lo, b.hi)]
    lo, hi = points[0], points[0]
    for point in points[1:]:
        lo, hi = np.minimum(lo, point), np.maximum(hi, point)
    outer = [op(x, y) for x in (a.least, a.most) for y in (b.least, b.most)]
    return _int32(lo, hi, min(outer), max(outer))


# ---- int arithmetic ------------------------------------------------------------------------------------------


def _wide_add(a: Range, b: Range) -> Range:
    return Range(a.lo + b.lo, a.hi + b.hi, a.least + b.least, a.most + b.most)


def _wide_sub(a: Range, b: Range) -> Range:
    return Range(a.lo - b.hi, a.hi - b.lo, a.least - b.most, a.most - b.least)


def _wide_mul(a: Range, b: Range) -> Range:
    factor = b.least  # a positive constant
    return Range(a.lo * factor, a.hi * factor, a.least * factor, a.most * factor)


def _add(a: Range, b: Range) -> Range:
    return _int32(a.lo + b.lo, a.hi + b.hi, a.least + b.least, a.most + b.most)


def _sub(a: Range, b: Range) -> Range:
    return _int32(a.lo - b.hi, a.hi - b.lo, a.least - b.most, a.most - b.least)


def _neg(a: Range) -> Range:
    return _int32(-a.hi, -a.lo, -a.most, -a.least)


def _meet(a: Range, exact: Range) -> Range:
    """`a`, and also `exact` unless `a` has wrapped."""
    lo, hi = np.maximum(a.lo, exact.lo), np.minimum(a.hi, exact.hi)
    if a.least == INT_MIN and a.most == INT_MAX:
        wrapped = (a.lo == INT_MIN) & (a.hi == INT_MAX)
        return Range(np.where(wrapped, INT_MIN, lo), np.where(wrapped, INT_MAX, hi), INT_MIN, INT_MAX)
    return Range(lo, hi, max(a.least, exact.least), min(a.most, exact.most))


def _mul(a: Range, b: Range) -> Range:
    if a.constant():
        a, b = b, a
    if b.constant() or (a.least >= 0 and b.least >= 0):
        if b.least >= 0:
            return _int32(a.lo * b.lo, a.hi * b.hi, min(a.least * b.least, a.least * b.most), a.most * b.most)
        return _int32(a.hi * b.lo, a.lo * b.lo, a.most * b.least, a.least * b.least)
    return _corners(lambda x, y: x * y, a, b)


def _square(a: Range) -> Range:
    size = _magnitude(a)
    return _int32(size.lo * size.lo, size.hi * size.hi, size.least * size.least, size.most * size.most)


def _magnitude(a: Range) -> Range:
    if a.least >= 0:
        return a
    if a.most <= 0:
        return Range(-a.hi, -a.lo, -a.most, -a.least)
    lo, hi = np.maximum(np.maximum(a.lo, -a.hi), 0), np.maximum(-a.lo, a.hi)
    return Range(lo, hi, 0, max(-a.least, a.most))


def _abs(a: Range) -> Range:
    size = _magnitude(a)
    return _int32(size.lo, size.hi, size.least, size.most)


def _min(a: Range, b: Range) -> Range:
    return Range(np.minimum(a.lo, b.lo), np.minimum(a.hi, b.hi), min(a.least, b.least), min(a.most, b.most))


def _max(a: Range, b: Range) -> Range:
    return Range(np.maximum(a.lo, b.lo), np.maximum(a.hi, b.hi), max(a.least, b.least), max(a.most, b.most))


def _floor_div(a: Range, b: Range) -> Range:
    if b.constant():
        divisor = b.least
        if divisor == 0:
            return exactly(0)
        if divisor > 0:
            return Range(a.lo // divisor, a.hi // divisor, a.least // divisor, a.most // divisor)
        return _int32(a.hi // divisor, a.lo // divisor, a.most // divisor, a.least // divisor)
    if b.least > 0:
        return _corners(lambda x, y: x // y, a, b)
    size, most = np.maximum(-a.lo, a.hi), max(-a.least, a.most)  # no quotient is larger, and x // 0 is 0
    return _int32(-size, size, -most, most)


def _mod(a: Range, b: Range) -> Range:
    if b.constant():
        divisor = b.least
        if divisor == 0:
            return exactly(0)
        if divisor > 0:
            return _mod_constant(a, divisor)
        return Range(divisor + 1, 0, divisor + 1, 0)
    if a.least >= 0 and a.most < b.least:
        return a
    lo, hi = np.minimum(b.lo + 1, 0), np.maximum(b.hi - 1, 0)
    least, most = min(b.least + 1, 0), max(b.most - 1, 0)
    if a.least >= 0 and b.least > 0:  # the remainder is no larger, and the same where the divisor is larger
        below = a.hi < b.lo
        return Range(np.where(below, a.lo, 0), np.minimum(hi, a.hi), 0, min(most, a.most))
    return Range(lo, hi, least, most)


def _mod_constant(a: Range, divisor: int) -> Range:
    """`a % n` for a constant n, exact where the range lies in one period."""
    if a.least // divisor == a.most // divisor:
        start = a.least // divisor * divisor
        return Range(a.lo - start, a.hi - start, a.least - start, a.most - start)
    period = a.lo // divisor
    start, one = period * divisor, period == a.hi // divisor
    lo, hi = np.where(one, a.lo - start, 0), np.where(one, a.hi - start, divisor - 1)
    return Range(lo, hi, 0, divisor - 1)


# ---- bits ----------------------------------------------------------------------------------------------------


def _ones(x: Any) -> Any:
    """The least 2**n - 1 that is not below x >= 0."""
    for shift in (1, 2, 4, 8, 16):
        x = x | (x >> shift)
    return x


def _any_bits(a: Range, b: Range) -> Range:
    """No result has more bits than the operands."""
    size = _ones(np.maximum(np.maximum(a.hi, -1 - a.lo), np.maximum(b.hi, -1 - b.lo)))
    most = _ones(max(a.most, -1 - a.least, b.most, -1 - b.least))
    return Range(-1 - size, size, -1 - most, most)


def _bit_and(a: Range, b: Range) -> Range:
    if a.constant():
        a, b = b, a
    if a.constant():
        return exactly(a.least & b.least)
    if b.constant():
        mask = b.least
        if mask >= 0 and mask & (mask + 1) == 0:
            return _mod_constant(a, mask + 1)
        if mask < 0 and -mask & (-mask - 1) == 0:  # clears the last bits: monotone
            return Range(a.lo & mask, a.hi & mask, a.least & mask, a.most & mask)
    if a.least >= 0 and b.least >= 0:
        return Range(0, np.minimum(a.hi, b.hi), 0, min(a.most, b.most))
    if a.least >= 0 or b.least >= 0:
        masked = a if a.least >= 0 else b
        return Range(0, masked.hi, 0, masked.most)
    return _any_bits(a, b)


def _bit_or(a: Range, b: Range) -> Range:
    if a.constant() and b.constant():
        return exactly(a.least | b.least)
    result = _any_bits(a, b)
    if a.least >= 0 and b.least >= 0:
        return Range(np.maximum(a.lo, b.lo), result.hi, max(a.least, b.least), result.most)
    return result


def _bit_xor(a: Range, b: Range) -> Range:
    if a.constant() and b.constant():
        return exactly(a.least ^ b.least)
    result = _any_bits(a, b)
    return Range(0, result.hi, 0, result.most) if a.least >= 0 and b.least >= 0 else result


def _bit_not(a: Range) -> Range:
    return Range(-1 - a.hi, -1 - a.lo, -1 - a.most, -1 - a.least)


def _amounts(b: Range, most: int) -> Range:
    """The range of how far a shift by `b` goes: a negative count goes as far as the largest."""
    if b.constant():
        return exactly(min(b.least, most) if b.least >= 0 else most)
    lo, hi = np.minimum(b.lo, most), np.minimum(b.hi, most)
    if b.least >= 0:
        return Range(lo, hi, min(b.least, most), min(b.most, most))
    lo = np.where(b.lo < 0, np.where(b.hi < 0, most, 0), lo)
    return Range(lo, np.where(b.lo < 0, most, hi), most if b.most < 0 else 0, most)


def _shl(a: Range, b: Range) -> Range:
    by = _amounts(b, 32)
    if by.least == 32:
        return exactly(0)
    result = _corners(lambda x, n: x << n, a, by)
    if by.most < 32:
        return result
    gone = by.lo == 32
    return Range(np.where(gone, 0, result.lo), np.where(gone, 0, result.hi), min(result.least, 0), max(result.most, 0))


def _shr(a: Range, b: Range) -> Range:
    return _corners(lambda x, n: x >> n, a, _amounts(b, 31))


INT_RULES: dict[str, Callable[..., Any]] = {
    "add.int": _add,
    "sub.int": _sub,
    "mul.int": _mul,
    "square": _square,
    "neg.int": _neg,
    "abs.int": _abs,
    "min.int": _min,
    "max.int": _max,
    "floor_div.int": _floor_div,
    "mod.int": _mod,
    "meet": _meet,
    "wide_add": _wide_add,
    "wide_sub": _wide_sub,
    "wide_mul": _wide_mul,
    "shl": _shl,
    "shr": _shr,
    "bit_and": _bit_and,
    "bit_or": _bit_or,
    "bit_xor": _bit_xor,
    "bit_not": _bit_not,
}
