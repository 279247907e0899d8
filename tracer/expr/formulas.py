"""Numbers -> Expr: functions that are written with several ops."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from ..errors import Untraceable
from . import build
from .node import DType, Expr, apply, const

Rule = Callable[..., Any]


def clip(a: Any, low: Any = None, high: Any = None) -> Any:
    a = a if low is None else build.arithmetic("max", a, low)
    return a if high is None else build.arithmetic("min", a, high)


def logaddexp(a: Any, b: Any) -> Any:
    """log(exp(a) + exp(b)); one condition chooses, so that where both are equal the derivative is half of each."""
    is_less = build.compare("lt", a, b)
    top, low = build.where(is_less, b, a), build.where(is_less, a, b)
    both_infinite = build.logical("and", build.compare("eq", low, top), is_infinite(top))
    spread = build.where(both_infinite, 0.0, build.arithmetic("sub", low, top))
    return build.arithmetic("add", top, build.unary("log1p", build.unary("exp", spread)))


def stop_gradient(a: Any) -> Any:
    node = build.lift(a)
    return apply("stop_gradient", node) if node.dtype == "float" else node


def inverted(a: Any) -> Any:
    """What arrays mean by `~`: the other bits of an int, the other truth value of a bool."""
    return build.logical_not(a) if build.lift(a).dtype == "bool" else build.invert(a)


def is_infinite(a: Any) -> Any:
    return build.compare("eq", build.absolute(build.cast(a, "float")), math.inf)


def is_finite(a: Any) -> Any:
    return build.compare("lt", build.absolute(build.cast(a, "float")), math.inf)


def is_nan(a: Any) -> Any:
    node = build.cast(a, "float")
    return build.compare("ne", node, node)


def scalar(a: Any, dtype: Any = None) -> Any:
    if isinstance(a, (list, tuple)):
        raise Untraceable("an array cannot be made inside a mod", "make it outside and index it here")
    return build.lift(a) if dtype is None else astype(a, dtype)


def astype(a: Any, dtype: Any) -> Any:
    """`x.astype(mx.float32)`: kernels compute in float32, int32 and bool."""
    name = getattr(dtype, "__name__", None) or str(dtype)
    name = name.removeprefix("mlx.core.").rstrip("_")
    known: dict[str, DType] = {"bool": "bool", "int": "int", "int32": "int", "int64": "int"}
    known |= {"float": "float", "float32": "float", "float64": "float"}
    if name not in known:
        raise Untraceable(f"kernels have no numbers of type {name}", "use mx.float32, mx.int32 or mx.bool_")
    return build.cast(a, known[name])


def equals_infinity(infinity: float) -> Rule:
    return lambda a: build.compare("eq", build.cast(a, "float"), infinity)


def filled(number: int) -> Rule:
    """zeros_like, ones_like."""
    return lambda a: build.cast(number, build.lift(a).dtype)


def times(factor: float) -> Rule:
    return lambda a: build.arithmetic("mul", a, factor)


def divmod(a: Any, b: Any) -> Any:
    return build.arithmetic("floor_div", a, b), build.arithmetic("mod", a, b)


def copysign(a: Any, b: Any) -> Any:
    negative = build.compare("lt", build.divide(const(1.0), b), 0.0)  # 1/-0.0 is -inf
    negative = build.logical("or", negative, build.compare("lt", b, 0.0))
    return build.where(negative, build.negate(build.absolute(a)), build.absolute(a))


def fmod(a: Any, b: Any) -> Any:
    """C's remainder: the sign of `a`, exact as the modulo of the absolute values is."""
    a, b = build.cast(a, "float"), build.cast(b, "float")
    return copysign(build.arithmetic("mod", build.absolute(a), build.absolute(b)), a)


def hypot(*sides: Any) -> Any:
    """The root of a sum of squares, scaled by a power of two, so that no square leaves float32's range."""
    sizes = [build.absolute(build.cast(side, "float")) for side in sides]
    if len(sizes) < 2:
        return sizes[0] if sizes else const(0.0)
    largest = functools.reduce(lambda a, b: build.where(build.compare("lt", a, b), b, a), sizes)
    is_huge, is_tiny = build.compare("lt", 2.0**60, largest), build.compare("lt", largest, 2.0**-50)
    scale = build.where(is_huge, 2.0**-66, build.where(is_tiny, 2.0**98, 1.0))
    scaled = [build.arithmetic("mul", size, scale) for size in sizes]
    squares = [build.arithmetic("mul", size, size) for size in scaled]
    total = functools.reduce(functools.partial(build.arithmetic, "add"), squares)
    root = build.unary("sqrt", build.where(build.compare("eq", total, 0.0), 0.0, total))  # its derivative at 0 is 0
    back = build.where(is_huge, 2.0**66, build.where(is_tiny, 2.0**-98, 1.0))
    infinite = functools.reduce(functools.partial(build.logical, "or"), map(is_infinite, sizes))
    return build.where(infinite, math.inf, build.arithmetic("mul", root, back))  # also beside nan


def logarithm(a: Any, base: Any = None) -> Any:
    return build.unary("log", a) if base is None else build.divide(build.unary("log", a), build.unary("log", base))


def python_min(a: Any, b: Any) -> Expr:
    """The builtin: keeps the first unless the second is less, so that nan behaves as in Python."""
    left, right = build.promote(a, b)
    return (
        apply("min", left, right) if left.dtype == "int" else build.where(build.compare("lt", right, left), right, left)
    )


def python_max(a: Any, b: Any) -> Expr:
    left, right = build.promote(a, b)
    return (
        apply("max", left, right) if left.dtype == "int" else build.where(build.compare("lt", left, right), right, left)
    )


def python_round(a: Any, digits: Any = None) -> Expr:
    """round(x): half to even, gives an int."""
    node = build.lift(a)
    if digits is not None:
        raise Untraceable("round(x, digits) has no kernel form", "write round(x * 10**digits) / 10**digits")
    return build.cast(node, "int") if node.dtype != "float" else build.cast(apply("round", node), "int")


def rounded(op: str, a: Any, *, to_int: bool) -> Expr:
    """floor, ceil, trunc; `to_int` as in `math`, else as in `mlx.core` (a float stays a float)."""
    node = build.lift(a)
    if node.dtype != "float":
        return build.cast(node, "int")
    result = apply(op, node)
    return build.cast(result, "int") if to_int else result


def sign(a: Any) -> Expr:
    node = build.positive(a)
    zero, one = build.cast(0, node.dtype), build.cast(1, node.dtype)
    itself = apply("trunc", node) if node.dtype == "float" else node  # 0 and nan; what is cut off has no derivative
    below = build.where(build.compare("lt", node, zero), build.negate(one), itself)
    return build.where(build.compare("lt", zero, node), one, below)
