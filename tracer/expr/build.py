"""Numbers and Exprs -> Expr: Python's arithmetic, one function per operator, with Python's promotions.

bool counts as 0/1, int stays int32, int meets float as float32, `/` is true division, `//` and `%` floor.
"""

from __future__ import annotations

import math
from typing import Any

from ..errors import Untraceable, with_article
from .node import FALSE, TRUE, DType, Expr, apply, const

INT32 = range(-(2**31), 2**31)  # only an int itself is looked up: for a subclass a range compares all its numbers
ZERO = const(0)


def lift(value: Any) -> Expr:
    """A Python number as a constant; an Expr as itself."""
    if isinstance(value, Expr):
        return value
    if isinstance(value, int) and int(value) not in INT32:
        raise Untraceable(
            f"the integer {value} does not fit int32, the integer type of kernels",
            f"write it as a float ({value}.0) or keep it within [-2**31, 2**31)",
        )
    if isinstance(value, (bool, int, float)):
        return const(value)
    raise Untraceable(
        f"{with_article(type(value).__name__)} cannot be combined with a symbolic number",
        "use numbers, booleans and elements of captured arrays",
    )


def cast(value: Any, dtype: DType) -> Expr:
    """`float(x)`, `int(x)` or `bool(x)` of a number or Expr."""
    if dtype == "float" and isinstance(value, (bool, int, float)):
        return const(_as_float(value))
    node = lift(value)
    if node.dtype == dtype:
        return node
    if node.op == "const":
        return const({"float": float, "int": int, "bool": bool}[dtype](node.value))
    if dtype == "bool":
        return apply("ne", node, const(0.0 if node.dtype == "float" else 0))
    return apply(f"to_{dtype}", node)


def _as_float(value: bool | int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def promote(a: Any, b: Any, *, least: DType = "int") -> tuple[Expr, Expr]:
    """Both operands at the wider of their dtypes, at least `least`."""
    order: list[DType] = ["bool", "int", "float"]
    rank = max(order.index(least), order.index(_dtype(a)), order.index(_dtype(b)))
    return cast(a, order[rank]), cast(b, order[rank])


def _dtype(value: Any) -> DType:
    if isinstance(value, Expr):
        return value.dtype
    return "bool" if isinstance(value, bool) else "int" if isinstance(value, int) else "float"


def arithmetic(op: str, a: Any, b: Any) -> Expr:
    """add, sub, mul, min, max, floor_div, mod with Python's promotion."""
    left, right = promote(a, b)
    if op in ("floor_div", "mod") and right is ZERO:
        raise Untraceable("an integer division or modulo by zero", "divide by another number")
    if op == "add" and left.dtype == "int" and (left is ZERO or right is ZERO):
        return left if right is ZERO else right  # what sum() starts with
    return apply(op, left, right)


def divide(a: Any, b: Any) -> Expr:
    return apply("div", cast(a, "float"), cast(b, "float"))


def power(a: Any, b: Any) -> Expr:
    """`a ** b`: a constant integer exponent multiplies, and keeps an int an int; any other is a float pow."""
    if isinstance(b, int) and not isinstance(b, bool) and abs(b) <= 64:
        base = cast(a, "int") if _dtype(a) == "bool" else lift(a)
        if b < 0:
            return divide(1.0, power(cast(base, "float"), -b))
        result: Expr | None = None
        while b:
            if b & 1:
                result = base if result is None else apply("mul", result, base)
            b >>= 1
            base = apply("mul", base, base) if b else base
        return const(1.0 if base.dtype == "float" else 1) if result is None else result
    if not isinstance(b, Expr) and b == 0.5:
        base = cast(a, "float")  # Python's (-inf) ** 0.5 is inf, (-0.0) ** 0.5 is 0.0
        root = apply("sqrt", apply("add", base, const(0.0)))
        return where(compare("eq", base, -math.inf), math.inf, root)
    return apply("pow", cast(a, "float"), cast(b, "float"))


def bitwise(op: str, a: Any, b: Any) -> Expr:
    """`& | ^ << >>`: logical on two bools, bitwise on ints; from a count of 32 on nothing but the sign is left."""
    left, right = lift(a), lift(b)
    if left.dtype == right.dtype == "bool" and op in ("and", "or", "xor"):
        return apply(op, left, right)
    symbol = {"and": "&", "or": "|", "xor": "^", "shl": "<<", "shr": ">>"}[op]
    if "float" in (left.dtype, right.dtype):
        raise Untraceable(f"{symbol} on a float", "convert with int(...) first, or use and/or for conditions")
    if op in ("shl", "shr") and right.op == "const" and right.value < 0:
        raise Untraceable(f"{symbol} with the negative shift count {right.value}", "shift the other way")
    return apply(op if op in ("shl", "shr") else f"bit_{op}", cast(left, "int"), cast(right, "int"))


def invert(a: Any) -> Expr:
    node = lift(a)
    if node.dtype == "bool":
        raise Untraceable(
            "~ on a bool is -1 or -2 in Python, both of them true",
            "write `not x` (or mx.logical_not(x))",
        )
    if node.dtype == "float":
        raise Untraceable("~ on a float", "convert with int(...) first")
    return apply("bit_not", node)


def positive(a: Any) -> Expr:
    """`+a`: a bool becomes an int."""
    node = lift(a)
    return cast(node, "int") if node.dtype == "bool" else node


def negate(a: Any) -> Expr:
    return apply("neg", positive(a))


def absolute(a: Any) -> Expr:
    return apply("abs", positive(a))


def logical_not(a: Any) -> Expr:
    return apply("not", cast(a, "bool"))


def logical(op: str, a: Any, b: Any) -> Expr:
    """and, or, xor of the truth values."""
    return apply(op, cast(a, "bool"), cast(b, "bool"))


def compare(op: str, a: Any, b: Any) -> Expr:
    """lt, le, gt, ge, eq, ne; exact also for an int against a constant float or a too large int."""
    if op in ("gt", "ge"):
        return compare({"gt": "lt", "ge": "le"}[op], b, a)
    exact = _against_constant(op, a, b)
    return exact if exact is not None else apply(op, *promote(a, b))


def _against_constant(op: str, a: Any, b: Any) -> Expr | None:
    """An int Expr compared with a finite non-int32 number, rewritten over the ints it separates."""
    for node, number, left in ((a, b, True), (b, a, False)):
        if not (isinstance(node, Expr) and node.dtype == "int") or isinstance(number, Expr):
            continue
        if isinstance(number, float) and not math.isfinite(number):
            return None
        if not isinstance(number, float) and int(number) in INT32:
            return None
        if op in ("eq", "ne"):
            if number == int(number) and int(number) in INT32:
                return apply(op, node, const(int(number)))
            return TRUE if op == "ne" else FALSE
        if left:  # node < x  <=>  node < ceil(x);   node <= x  <=>  node <= floor(x)
            bound = math.ceil(number) if op == "lt" else math.floor(number)
            if bound not in INT32:
                return TRUE if number > 0 else FALSE
            return apply(op, node, const(bound))
        bound = math.floor(number) if op == "lt" else math.ceil(number)
        if bound not in INT32:
            return FALSE if number > 0 else TRUE
        return apply(op, const(bound), node)
    return None


def where(condition: Any, a: Any, b: Any) -> Expr:
    """`a if condition else b`, both at the wider dtype."""
    return apply("where", cast(condition, "bool"), *promote(a, b, least="bool"))


def unary(op: str, a: Any) -> Expr:
    """A float function of one number."""
    return apply(op, cast(a, "float"))
