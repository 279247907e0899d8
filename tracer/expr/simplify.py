"""Expr -> Expr: the same value with fewer operations.

Every rule is exact in float32 and int32: no `x * 0 -> 0` or `x - x -> 0` on floats, where nan and inf say
otherwise. A rule is a function from a node to a better one, or None.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from .evaluate import fold
from .node import COMMUTATIVE, COMPARISONS, FALSE, TRUE, Expr, apply, const, rebuild

Rule = Callable[[Expr], Expr | None]


def simplify(root: Expr) -> Expr:
    """`root` with all rules applied, arguments first."""
    return rebuild(root, _simplify_node)


def _simplify_node(node: Expr, args: tuple[Expr, ...]) -> Expr:
    node = Expr(node.op, node.dtype, args, node.value)
    if not args:
        return node
    for rule in RULES:
        better = rule(node)
        if better is not None and better is not node:
            # A rule's result is made of simplified parts; only its own new root can match again.
            return _simplify_node(better, better.args)
    return node


def _is(node: Expr, value: float) -> bool:
    return (
        node.op == "const"
        and node.dtype != "bool"
        and node.value == value
        and math.copysign(1, node.value) == math.copysign(1, value)
    )


def constants_last(node: Expr) -> Expr | None:
    if node.op in COMMUTATIVE and node.args[0].op == "const" and node.args[1].op != "const":
        return apply(node.op, node.args[1], node.args[0])
    return None


def drop_neutral(node: Expr) -> Expr | None:
    """x + 0 (int), x - 0, x * 1, x / 1, x // 1 (int), x ** 1, x << 0, ..."""
    if len(node.args) != 2:
        return None
    x, y = node.args
    integer = node.dtype == "int"
    neutral = {
        "add": (integer and _is(y, 0)) or (_is(y, -0.0) and not integer),
        "sub": _is(y, 0),
        "mul": _is(y, 1),
        "div": _is(y, 1),
        "floor_div": integer and _is(y, 1),
        "pow": _is(y, 1),
        "shl": _is(y, 0),
        "shr": _is(y, 0),
        "bit_or": _is(y, 0),
        "bit_xor": _is(y, 0),
        "bit_and": _is(y, -1),
    }
    return x if neutral.get(node.op) else None


def absorb_zero(node: Expr) -> Expr | None:
    """On ints only: x * 0, x % 1, x & 0, x - x."""
    if node.dtype != "int" or len(node.args) != 2:
        return None
    x, y = node.args
    if (
        (node.op in ("mul", "bit_and") and _is(y, 0))
        or (node.op == "mod" and _is(y, 1))
        or (node.op == "sub" and x is y)
    ):
        return const(0)
    return None


def same_operands(node: Expr) -> Expr | None:
    if len(node.args) != 2 or node.args[0] is not node.args[1]:
        return None
    x = node.args[0]
    if node.op in ("min", "max", "and", "or", "bit_and", "bit_or"):
        return x
    if node.op in COMPARISONS and x.dtype == "int":  # a float may be nan
        return TRUE if node.op in ("le", "eq") else FALSE
    return None


def powers_of_two(node: Expr) -> Expr | None:
    """int x // 2**n -> shift, x % 2**n -> mask (both floor, as Python does); float x / 2**n -> multiplication."""
    if len(node.args) != 2 or node.args[1].op != "const":
        return None
    x, y = node.args
    if node.op in ("floor_div", "mod") and node.dtype == "int":
        divisor = y.value
        if divisor > 0 and divisor & (divisor - 1) == 0:
            if node.op == "mod":
                return apply("bit_and", x, const(divisor - 1))
            return apply("shr", x, const(divisor.bit_length() - 1))
    if node.op == "div" and y.value != 0 and math.isfinite(y.value):
        mantissa, exponent = math.frexp(y.value)
        if abs(mantissa) == 0.5 and abs(exponent) < 100:
            return apply("mul", x, const(1.0 / y.value))
    return None


def boolean_algebra(node: Expr) -> Expr | None:
    if node.op == "not":
        (x,) = node.args
        if x.op == "not":
            return x.args[0]
        flipped = {"eq": "ne", "ne": "eq"}.get(x.op)
        if flipped is not None:
            return apply(flipped, *x.args)
        if x.op in ("lt", "le") and x.args[0].dtype == "int":  # not (a < b) holds for nan, b <= a does not
            return apply("le" if x.op == "lt" else "lt", x.args[1], x.args[0])
        return _de_morgan(x) if x.op in ("and", "or") else None
    if node.op not in ("and", "or", "xor"):
        return None
    x, y = node.args
    if y.op == "const":
        if node.op == "xor":
            return apply("not", x) if y is TRUE else x
        decided = y is (FALSE if node.op == "and" else TRUE)
        return y if decided else x
    if node.op == "xor":
        return TRUE if _opposite(x) is y else None
    opposite = _opposite(y)
    while True:  # along a chain: x and y and z
        operand = x.args[1] if x.op == node.op else x
        if operand is opposite:
            return FALSE if node.op == "and" else TRUE
        if operand is y:
            return node.args[0]
        if operand is x:
            return None
        x = x.args[0]


def to_the_left(node: Expr) -> Expr | None:
    """x and (y and z) -> (x and y) and z; so for `or`: one form for one condition, however it was written."""
    if node.op not in ("and", "or") or node.args[1].op != node.op:
        return None
    x, y = node.args
    operands = []
    while y.op == node.op:
        operands.append(y.args[1])
        y = y.args[0]
    for operand in (y, *operands[::-1]):
        x = _simpler(node.op, x, operand)
    return x


def _de_morgan(x: Expr) -> Expr:
    """not (x and y) -> not x or not y, along a chain of them."""
    op, operands = x.op, []
    while x.op == op:
        operands.append(x.args[1])
        x = x.args[0]
    opposite = _opposite(x)
    for operand in operands[::-1]:
        opposite = apply("or" if op == "and" else "and", opposite, _opposite(operand))
    return opposite


def _opposite(x: Expr) -> Expr:
    """`not x`, simplified."""
    node = apply("not", x)
    simpler = boolean_algebra(node)
    return node if simpler is None else simpler


def where_choices(node: Expr) -> Expr | None:
    if node.op != "where":
        return None
    condition, yes, no = node.args
    if condition.op == "const":
        return yes if condition is TRUE else no
    if yes is no:
        return yes
    if condition.op == "not":
        return apply("where", condition.args[0], no, yes)
    if yes.op == "where" and yes.args[0] is condition:
        return apply("where", condition, yes.args[1], no)
    if no.op == "where" and no.args[0] is condition:
        return apply("where", condition, yes, no.args[2])
    if node.dtype == "bool":
        return _where_of_bools(condition, yes, no)
    return None


def _where_of_bools(condition: Expr, yes: Expr, no: Expr) -> Expr | None:
    if yes.op == "const":
        return apply("or", condition, no) if yes is TRUE else apply("and", _opposite(condition), no)
    if no.op == "const":
        return apply("or", _opposite(condition), yes) if no is TRUE else apply("and", condition, yes)
    # where(c, p or x, x) -> (c and p) or x; where(c, p and x, x) -> (not c or p) and x; so with the sides exchanged
    for side, other, holds in ((yes, no, condition), (no, yes, _opposite(condition))):
        if side.op in ("and", "or") and other in side.args:
            mine = side.args[0] if side.args[1] is other else side.args[1]
            if side.op == "or":
                return apply("or", _simpler("and", holds, mine), other)
            return apply("and", _simpler("or", _opposite(holds), mine), other)
    return None


def _simpler(op: str, x: Expr, y: Expr) -> Expr:
    """Two simplified parts as one."""
    node = apply(op, x, y)
    return _simplify_node(node, node.args)


def casts(node: Expr) -> Expr | None:
    """to_int(to_float(x)) is not x beyond 2**24, but a cast to the own dtype and a bool's round trip are."""
    if node.op == "ne" and node.args[0].op in ("to_int", "to_float") and _is(node.args[1], 0):
        inner = node.args[0].args[0]
        return inner if inner.dtype == "bool" else None
    if node.op in ("to_int", "to_float") and node.args[0].dtype == node.dtype:
        return node.args[0]
    return None


def negation(node: Expr) -> Expr | None:
    if node.op == "neg" and node.args[0].op == "neg":
        return node.args[0].args[0]
    if node.op == "add" and node.args[1].op == "neg":
        return apply("sub", node.args[0], node.args[1].args[0])
    if node.op == "sub" and node.args[1].op == "neg":
        return apply("add", node.args[0], node.args[1].args[0])
    if node.op == "abs" and node.args[0].op in ("abs", "neg"):
        return apply("abs", node.args[0].args[0])
    return None


def last_32_bits(node: Expr) -> Expr | None:
    """(x & 0x7FFFFFFF) - ((x >> 31 & 1) << 31) is x, as Python's ints are made int32."""
    if node.op != "sub" or node.args[0].op != "bit_and" or node.dtype != "int":
        return None
    x, mask = node.args[0].args
    sign = apply("shl", apply("bit_and", apply("shr", x, const(31)), const(1)), const(31))
    return x if _is(mask, 2**31 - 1) and node.args[1] is sign else None


RULES: tuple[Rule, ...] = (
    fold,
    constants_last,
    drop_neutral,
    absorb_zero,
    same_operands,
    powers_of_two,
    boolean_algebra,
    to_the_left,
    where_choices,
    casts,
    negation,
    last_32_bits,
)
