"""Expr -> Expr: the derivative of an expression with respect to the score, or to one read of a captured array.

Forward mode: every node gets its tangent from those of its arguments, by one row of `TANGENTS` per op. So a condition
chooses between two derivatives as it chooses between two values, and the branch that is not taken adds nothing,
whatever it holds: `where(c, x, y)` gives `where(c, dx, dy)`, never `c * dx + (1 - c) * dy`, where 0 * inf is nan.

Where a function has a kink or a step, the derivative is that of one side, by `KINKS`: MLX's choice where it has one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from .node import COMPARISONS, Expr, apply, const, walk
from .simplify import simplify

Row = Callable[..., Expr]  # (node, *tangents of its arguments) -> the node's tangent
Factor = Callable[[Expr, Expr], Expr]  # (x, f(x)) -> f'(x)
ZERO, ONE = const(0.0), const(1.0)
KINKS = {
    "abs(x), mx.sign(x) at 0": "0",
    "mx.minimum(x, y), mx.maximum(x, y) where x == y": "that of y: `mx.maximum(score, 0.0)` has 0 at 0",
    "min(x, y), max(x, y) where x == y": "that of x, which Python gives back",
    "x if c else y": "that of the branch which is taken; the condition adds nothing",
    "comparisons, floor, ceil, trunc, round, //, int(x), bool(x), what is computed in ints": "0 everywhere",
    "x % y": "1 in x, -(x // y) in y",
    "x ** y": "in x: 0 for y = 0, also at x = 0; in y: 0 at x = 0, nan for x < 0",
    "atan2(y, x), hypot(x, y) at (0, 0)": "0",
    "sqrt, log, asin, ... at the end of their domain": "the limit, which is infinite; times 0, as in sqrt(x * x), nan",
    "mx.stop_gradient(x)": "0",
    "an index of an array": "nothing: which element is read does not change gradually",
}


def derivative(expr: Expr, wrt: Expr) -> Expr:
    """d expr / d wrt, a simplified float expression over the same leaves.

    Args:
        expr: an expression of any dtype; one of ints or bools has the derivative 0.
        wrt: the node that moves, while all others that do not contain it stand still: `SCORE`, a `load` of a floating
            array (the same element may be read by another load, which then stands still), or a float `param`.

    Raises:
        TypeError: `wrt` is not a float.

    Example:
        >>> from flextrace.tracer.expr.node import SCORE, H, apply, const
        >>> bias = apply("load", H, value=(0, "float16"))
        >>> capped = apply("tanh", apply("mul", SCORE, bias))
        >>> derivative(capped, bias)
        e0 = tanh((score * array0[h]))
        score * (1.0 - (e0 * e0))
        >>> derivative(apply("max", SCORE, const(0.0)), SCORE)
        1.0 if (0.0 < score) else 0.0
    """
    if wrt.dtype != "float":
        raise TypeError(f"a derivative with respect to {wrt}, which is of type {wrt.dtype}")
    tangents: dict[Expr, Expr] = {}
    for node in walk(expr):
        args = [tangents[arg] for arg in node.args]
        if node is wrt:
            tangents[node] = ONE
        else:
            tangents[node] = TANGENTS[node.op](node, *args) if any(arg is not ZERO for arg in args) else ZERO
    return simplify(tangents[expr])


def gradient_sites(expr: Expr) -> tuple[Expr, ...]:
    """The reads of floating arrays on which the expression depends by more than a step, arguments first.

    Example:
        >>> from flextrace.tracer.expr.node import SCORE, B, H, apply, const
        >>> a, c = (apply("load", index, value=(slot, "float32")) for slot, index in enumerate((H, B)))
        >>> gradient_sites(apply("where", apply("lt", a, const(0.0)), SCORE, apply("mul", SCORE, c)))
        (array1[b],)
    """
    reads = (node for node in walk(expr) if node.op == "load" and node.dtype == "float")
    return tuple(read for read in reads if derivative(expr, read) is not ZERO)


# ---- sums and products of tangents: what is zero is left out ----------------------------------------------------


def _add(a: Expr, b: Expr) -> Expr:
    if a is ZERO or b is ZERO:
        return b if a is ZERO else a
    if a.op == b.op == "where" and a.args[0] is b.args[0]:
        return _where(a.args[0], _add(a.args[1], b.args[1]), _add(a.args[2], b.args[2]))
    return apply("add", a, b)


def _neg(a: Expr) -> Expr:
    return ZERO if a is ZERO else _inside(a, lambda core: apply("neg", core))


def _times(tangent: Expr, factor: Expr) -> Expr:
    if tangent is ZERO or factor is ZERO:
        return ZERO
    return _inside(tangent, lambda core: _product(core, factor))


def _product(a: Expr, b: Expr) -> Expr:
    """a * b, with known factors multiplied beforehand: 30 * tanh(x / 30) has the derivative 1 - tanh(x / 30) ** 2."""
    a, b = (b, a) if a.op == "const" else (a, b)
    if a.op == "const":
        return const(a.value * b.value)
    if b.op == "const" and a.op == "mul" and a.args[1].op == "const":
        together = a.args[1].value * b.value
        if _is_usual(together):
            a, b = a.args[0], const(together)
    if b is ONE:
        return a
    quotient = a.args[0] if a.op == "mul" else a
    if quotient.op == "div" and quotient.args[1] is b:  # cap * tanh(x / cap): what was divided by is multiplied with
        return quotient.args[0] if quotient is a else _product(quotient.args[0], a.args[1])
    return apply("mul", a, b)


def _is_usual(number: float) -> bool:
    """Whether a number is far from where float32 ends, so that it may stand for two factors that came one by one."""
    return 1e-30 < abs(number) < 1e30


def _where(condition: Expr, yes: Expr, no: Expr) -> Expr:
    """A choice of tangents, whose zeros are never nested: where(c, where(d, x, 0), 0) is where(c and d, x, 0)."""
    if yes is no:
        return yes
    if no is ZERO and (inner := _guard(yes)) is not None:
        return apply("where", apply("and", condition, inner[0]), inner[1], ZERO)
    if yes is ZERO and (inner := _guard(no)) is not None:
        return apply("where", apply("and", apply("not", condition), inner[0]), inner[1], ZERO)
    return apply("where", condition, yes, no)


def _guard(tangent: Expr) -> tuple[Expr, Expr] | None:
    """(c, x) of a tangent that is x where c holds, else 0."""
    if tangent.op != "where" or ZERO not in tangent.args:
        return None
    condition, yes, no = tangent.args
    return (condition, yes) if no is ZERO else (apply("not", condition), no)


def _inside(tangent: Expr, change: Callable[[Expr], Expr]) -> Expr:
    """A linear change of a tangent. A zero that was chosen stays one, also where the change multiplies by infinity."""
    if tangent.op != "where" or ZERO not in tangent.args:
        return change(tangent)
    condition, yes, no = tangent.args
    return _where(condition, *(ZERO if side is ZERO else change(side) for side in (yes, no)))


# ---- the rows ---------------------------------------------------------------------------------------------------


def _stands_still(node: Expr, *tangents: Expr) -> Expr:
    return ZERO


def _of(factor: Factor) -> Row:
    """The row of a function of one number: f'(x) dx."""
    return lambda node, dx: _times(dx, factor(node.args[0], node))


def _mul(node: Expr, da: Expr, db: Expr) -> Expr:
    a, b = node.args
    return _times(da, apply("add", a, a)) if a is b else _add(_times(da, b), _times(db, a))


def _div(node: Expr, da: Expr, db: Expr) -> Expr:
    b = node.args[1]
    if b.op == "const" and b.value and _is_usual(1 / b.value):
        return _times(da, const(1 / b.value))
    above = _inside(da, lambda core: apply("div", core, b)) if da is not ZERO else ZERO
    return _add(above, _neg(_times(db, apply("div", node, b))))


def _pow(node: Expr, da: Expr, db: Expr) -> Expr:
    a, b = node.args
    of_base = apply("mul", b, apply("pow", a, apply("sub", b, ONE)))
    of_exponent = apply("mul", node, apply("log", a))
    moves_base, moves_exponent = (apply("ne", x, ZERO) for x in (b, a))
    return _add(
        _where(moves_base, _times(da, of_base), ZERO),
        _where(moves_exponent, _times(db, of_exponent), ZERO),
    )


def _mod(node: Expr, da: Expr, db: Expr) -> Expr:
    return _add(da, _neg(_times(db, apply("floor_div", *node.args))))


def _atan2(node: Expr, dy: Expr, dx: Expr) -> Expr:
    y, x = node.args
    square = apply("add", apply("mul", y, y), apply("mul", x, x))
    turned = _add(_times(dy, apply("div", x, square)), _neg(_times(dx, apply("div", y, square))))
    return _where(apply("ne", square, ZERO), turned, ZERO)


def _abs(node: Expr, dx: Expr) -> Expr:
    (x,) = node.args
    return _where(apply("ne", x, ZERO), _where(apply("lt", x, ZERO), _neg(dx), dx), ZERO)


def _one_minus_square(x: Expr) -> Expr:
    return apply("mul", apply("sub", ONE, x), apply("add", ONE, x))  # exact near 1, where 1 - x * x is not


def _plus_one(x: Expr) -> Expr:
    return apply("add", x, ONE)


def _scaled(factor: float, x: Expr) -> Expr:
    return apply("mul", x, const(factor))


def _over(factor: float, x: Expr) -> Expr:
    return apply("div", const(factor), x)


def _square(x: Expr) -> Expr:
    return apply("mul", x, x)


FACTORS: dict[str, Factor] = {
    "exp": lambda x, y: y,
    "exp2": lambda x, y: _scaled(math.log(2), y),
    "expm1": lambda x, y: apply("exp", x),  # y + 1 loses the small ones
    "log": lambda x, y: _over(1.0, x),
    "log2": lambda x, y: _over(1 / math.log(2), x),
    "log10": lambda x, y: _over(1 / math.log(10), x),
    "log1p": lambda x, y: _over(1.0, _plus_one(x)),
    "sqrt": lambda x, y: _over(0.5, y),
    "rsqrt": lambda x, y: apply("mul", _scaled(-0.5, y), _square(y)),
    "erf": lambda x, y: _scaled(2 / math.sqrt(math.pi), apply("exp", apply("neg", _square(x)))),
    "sigmoid": lambda x, y: apply("mul", y, apply("sub", ONE, y)),
    "sin": lambda x, y: apply("cos", x),
    "cos": lambda x, y: apply("neg", apply("sin", x)),
    "tan": lambda x, y: _plus_one(_square(y)),
    "asin": lambda x, y: apply("rsqrt", _one_minus_square(x)),
    "acos": lambda x, y: apply("neg", apply("rsqrt", _one_minus_square(x))),
    "atan": lambda x, y: _over(1.0, _plus_one(_square(x))),
    "sinh": lambda x, y: apply("cosh", x),
    "cosh": lambda x, y: apply("sinh", x),
    "tanh": lambda x, y: apply("sub", ONE, _square(y)),
    "asinh": lambda x, y: apply("rsqrt", _plus_one(_square(x))),
    "acosh": lambda x, y: apply("rsqrt", apply("mul", apply("sub", x, ONE), _plus_one(x))),
    "atanh": lambda x, y: _over(1.0, _one_minus_square(x)),
}
STEPS = "floor_div floor ceil trunc round shl shr bit_and bit_or bit_xor bit_not and or xor not to_int load".split()
STOPS = (*STEPS, *COMPARISONS, "stop_gradient")
TANGENTS: dict[str, Row] = {
    **{name: _of(factor) for name, factor in FACTORS.items()},
    **{name: _stands_still for name in STOPS},
    "add": lambda node, da, db: _add(da, db),
    "sub": lambda node, da, db: _add(da, _neg(db)),
    "mul": _mul,
    "div": _div,
    "min": lambda node, da, db: _where(apply("lt", *node.args), da, db),
    "max": lambda node, da, db: _where(apply("lt", *node.args[::-1]), da, db),
    "mod": _mod,
    "neg": lambda node, dx: _neg(dx),
    "abs": _abs,
    "pow": _pow,
    "atan2": _atan2,
    "to_float": lambda node, dx: dx,
    "where": lambda node, dc, da, db: _where(node.args[0], da, db),
}
