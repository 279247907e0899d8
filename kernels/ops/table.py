"""Expr -> mlx arrays: the op table of MLX, with Python's semantics on int32, float32 and bool."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import mlx.core as mx

from flextrace.tracer import Expr, Site, derivative, sites
from flextrace.tracer.expr.evaluate import run
from flextrace.tracer.expr.node import SCORE, walk

MLX_DTYPE = {"bool": mx.bool_, "int": mx.int32, "float": mx.float32}
INT_MIN, INT_MAX = -(2**31), 2**31 - 1


def _is_int(a: mx.array) -> bool:
    return bool(a.dtype == mx.int32)


def _int_mod(a: mx.array, b: mx.array) -> mx.array:
    zero = b == 0
    divisor = mx.where(zero | (b == -1), 1, b)  # x mod -1 is 0, and INT_MIN / -1 traps on some machines
    remainder = mx.remainder(a, divisor)
    remainder = mx.where((remainder != 0) & ((remainder ^ divisor) < 0), remainder + divisor, remainder)
    return mx.where(zero, 0, remainder)


def _int_floor_div(a: mx.array, b: mx.array) -> mx.array:
    special = (b == 0) | (b == -1)
    divisor = mx.where(special, 1, b)
    multiple = a.astype(mx.int64) - _int_mod(a, divisor)  # of the divisor, so that either rounding is exact
    exact = mx.floor_divide(multiple, divisor.astype(mx.int64)).astype(mx.int32)
    return mx.where(b == 0, 0, mx.where(b == -1, -a, exact))


def _is_inside(count: mx.array) -> mx.array:
    """Whether a shift leaves some of the 32 bits."""
    return (count >= 0) & (count < 32)


def _truncated(a: mx.array, b: mx.array) -> mx.array:
    """C's fmod: the exact remainder with the sign of `a`."""
    remainder = mx.where(mx.isinf(b) & mx.isfinite(a), mx.abs(a), mx.remainder(mx.abs(a), mx.abs(b)))
    return mx.where(a < 0, -remainder, remainder)


def _float_mod(a: mx.array, b: mx.array) -> mx.array:
    """As CPython: the remainder of truncated division, then the divisor's sign."""
    remainder = _truncated(a, b)
    shifted = mx.where((remainder != 0) & ((remainder < 0) != (b < 0)), remainder + b, remainder)
    return mx.where(remainder == 0, mx.where(b < 0, -0.0, 0.0), shifted)


def _float_floor_div(a: mx.array, b: mx.array) -> mx.array:
    truncated = _truncated(a, b)
    quotient = (a - truncated) / b
    quotient = mx.where((truncated != 0) & ((truncated < 0) != (b < 0)), quotient - 1.0, quotient)
    below = mx.floor(quotient)
    below = mx.where(quotient - below > 0.5, below + 1.0, below)
    zero = a / b * 0.0  # with the sign of the true quotient
    return mx.where(b == 0, a / b, mx.where(quotient == 0, zero, below))


def _to_int(a: mx.array) -> mx.array:
    if a.dtype != mx.float32:
        return a.astype(mx.int32)
    inside = (a > -2147483648.0) & (a < 2147483648.0)
    whole = mx.where(inside, a, 0.0).astype(mx.int32)  # truncates
    return mx.where(inside | mx.isnan(a), whole, mx.where(a < 0, INT_MIN, INT_MAX))


def _by_dtype(integer: Callable[..., Any], floating: Callable[..., Any]) -> Callable[..., Any]:
    return lambda a, b: integer(a, b) if _is_int(a) else floating(a, b)


MLX: dict[str, Callable[..., Any]] = {
    "add": mx.add,
    "sub": mx.subtract,
    "mul": mx.multiply,
    "min": mx.minimum,
    "max": mx.maximum,
    "floor_div": _by_dtype(_int_floor_div, _float_floor_div),
    "mod": _by_dtype(_int_mod, _float_mod),
    "neg": mx.negative,
    "abs": mx.abs,
    "div": mx.divide,
    "pow": mx.power,
    "atan2": mx.arctan2,
    "shl": lambda a, b: mx.where(_is_inside(b), mx.left_shift(a, b & 31), 0),
    "shr": lambda a, b: mx.right_shift(a, mx.where(_is_inside(b), b, 31)),
    "bit_and": mx.bitwise_and,
    "bit_or": mx.bitwise_or,
    "bit_xor": mx.bitwise_xor,
    "bit_not": lambda a: -1 - a,
    "lt": mx.less,
    "le": mx.less_equal,
    "eq": mx.equal,
    "ne": mx.not_equal,
    "and": mx.logical_and,
    "or": mx.logical_or,
    "xor": mx.not_equal,
    "not": mx.logical_not,
    "to_float": lambda a: a.astype(mx.float32),
    "to_int": _to_int,
    "exp": mx.exp,
    "exp2": lambda a: mx.power(2.0, a),
    "expm1": mx.expm1,
    "log": mx.log,
    "log2": mx.log2,
    "log10": mx.log10,
    "log1p": mx.log1p,
    "sqrt": mx.sqrt,
    "rsqrt": mx.rsqrt,
    "erf": mx.erf,
    "sigmoid": mx.sigmoid,
    "sin": mx.sin,
    "cos": mx.cos,
    "tan": mx.tan,
    "asin": mx.arcsin,
    "acos": mx.arccos,
    "atan": mx.arctan,
    "sinh": mx.sinh,
    "cosh": mx.cosh,
    "tanh": mx.tanh,
    "asinh": mx.arcsinh,
    "acosh": mx.arccosh,
    "atanh": mx.arctanh,
    "floor": mx.floor,
    "ceil": mx.ceil,
    "trunc": lambda a: mx.where(a < 0, mx.ceil(a), mx.floor(a)),
    "round": mx.round,
    "stop_gradient": mx.stop_gradient,
    "where": mx.where,
}


# Ops of floats whose slopes are finite everywhere.
LEVEL = frozenset("score load const param add sub neg abs min max floor ceil trunc round where to_float".split())
LEVEL |= frozenset("stop_gradient sigmoid tanh sin cos erf atan asinh".split())


def evaluate(
    root: Expr,
    values: dict[str, mx.array],
    numbers: Sequence[bool | int | float],
    arrays: Sequence[mx.array],
) -> mx.array:
    """The expression over mlx arrays that broadcast: "score" float32, the indices int32."""
    return _evaluate(root, values, numbers, arrays, {})


def evaluate_score(
    root: Expr,
    values: dict[str, mx.array],
    numbers: Sequence[bool | int | float],
    arrays: Sequence[mx.array],
) -> mx.array:
    """As `evaluate`, of a score_mod, whose gradient is 0 where nothing comes back for a score: behind a condition or a
    mask. MLX's own multiplies this 0 with the slope there, which may be infinite."""
    if _is_level(root):
        return evaluate(root, values, numbers, arrays)
    by_score, found = _derivatives(root)
    reads = [_evaluate(site.load, values, numbers, arrays, {}) for site in found]
    slopes = [by_score, *(site.slope for site in found)]

    def at(expr: Expr, inputs: Sequence[mx.array]) -> mx.array:
        score, *rest = inputs
        known = {site.load: read for site, read in zip(found, rest, strict=False)}
        return _evaluate(expr, {**values, "score": score}, numbers, rest[len(found) :], known)

    def vjp(primals: Any, cotangent: mx.array, _: Any) -> list[mx.array]:
        primals = [primals] if isinstance(primals, mx.array) else primals  # MLX hands one alone over
        gradients = [mx.zeros_like(x) for x in primals]
        for i, slope in enumerate(slopes):
            back = mx.where(cotangent == 0, 0.0, cotangent * at(slope, primals))
            gradients[i] = _summed_to(primals[i].shape, back)
        return gradients

    function = mx.custom_function(lambda *inputs: at(root, inputs))
    function.vjp(vjp)
    return cast("mx.array", function(values["score"], *reads, *arrays))


@functools.lru_cache(maxsize=64)
def _is_level(root: Expr) -> bool:
    return all(node.op in LEVEL for node in walk(root) if node.dtype == "float")


@functools.lru_cache(maxsize=64)
def _derivatives(root: Expr) -> tuple[Expr, tuple[Site, ...]]:
    return derivative(root, SCORE), sites(root)


def _summed_to(shape: tuple[int, ...], gradient: mx.array) -> mx.array:
    """The gradient of an array of this shape that was broadcast, or that is one number for many."""
    missing = max(0, gradient.ndim - len(shape))
    over = [i for i, size in enumerate(gradient.shape) if i < missing or shape[i - missing] == 1 < size]
    kept = gradient.sum(axis=over, keepdims=True) if over else gradient
    return mx.broadcast_to(kept.reshape(kept.shape[missing:]), shape)


def _evaluate(
    root: Expr,
    values: dict[str, mx.array],
    numbers: Sequence[bool | int | float],
    arrays: Sequence[mx.array],
    known: dict[Expr, mx.array],
) -> mx.array:
    """known: the values of loads that were read already."""

    def leaf(node: Expr) -> mx.array:
        if node.op in ("const", "param"):
            value = node.value if node.op == "const" else numbers[node.value]
            return mx.array(value, dtype=MLX_DTYPE[node.dtype])
        return values["score" if node.op == "score" else node.value]

    def load(node: Expr, indices: Sequence[mx.array]) -> mx.array:
        if node in known:
            return known[node]
        array = arrays[node.value[0]]
        inside = [
            mx.clip(mx.where(i < 0, i + size, i), 0, size - 1) for i, size in zip(indices, array.shape, strict=True)
        ]
        element: mx.array = array[tuple(inside)] if inside else array
        return element.astype(MLX_DTYPE[node.dtype])

    result: mx.array = run(root, leaf, load, MLX)
    return result
