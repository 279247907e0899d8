"""Python callable -> op: the one table of functions that a mod may call on symbolic numbers.

Keys are the callables themselves (`math.exp`, `mx.exp`, `numpy.exp`, `abs`), values build an Expr.
"""

from __future__ import annotations

import builtins
import functools
import math
import operator
from collections.abc import Iterable
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import Untraceable
from . import build, formulas
from .formulas import Rule
from .node import FALSE, TRUE, apply


def _unary(op: str) -> Rule:
    return functools.partial(build.unary, op)


def _arithmetic(op: str) -> Rule:
    return functools.partial(build.arithmetic, op)


def _compare(op: str) -> Rule:
    return functools.partial(build.compare, op)


def _logical(op: str) -> Rule:
    return functools.partial(build.logical, op)


def _bitwise(op: str) -> Rule:
    return functools.partial(build.bitwise, op)


def _rounded(op: str, to_int: bool) -> Rule:
    return functools.partial(formulas.rounded, op, to_int=to_int)


FLOAT_FUNCTIONS = "exp expm1 log log2 log10 log1p sqrt sin cos tan sinh cosh tanh".split()
ARRAY_FUNCTIONS: dict[str, Rule] = {  # names that mlx.core and numpy share
    **{name: _unary(name) for name in FLOAT_FUNCTIONS},
    **{f"arc{name}": _unary(f"a{name}") for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh")},
    "arctan2": lambda a, b: apply("atan2", build.cast(a, "float"), build.cast(b, "float")),
    "abs": build.absolute,
    "negative": build.negate,
    "square": lambda a: build.power(a, 2),
    "reciprocal": lambda a: build.divide(1.0, a),
    "sign": formulas.sign,
    "add": _arithmetic("add"),
    "subtract": _arithmetic("sub"),
    "multiply": _arithmetic("mul"),
    "divide": build.divide,
    "floor_divide": _arithmetic("floor_div"),
    "remainder": _arithmetic("mod"),
    "power": build.power,
    "minimum": _arithmetic("min"),
    "maximum": _arithmetic("max"),
    "clip": formulas.clip,
    "logaddexp": formulas.logaddexp,
    "floor": _rounded("floor", False),
    "ceil": _rounded("ceil", False),
    "where": build.where,
    "equal": _compare("eq"),
    "not_equal": _compare("ne"),
    "less": _compare("lt"),
    "less_equal": _compare("le"),
    "greater": _compare("gt"),
    "greater_equal": _compare("ge"),
    "logical_and": _logical("and"),
    "logical_or": _logical("or"),
    "logical_not": build.logical_not,
    "bitwise_and": _bitwise("and"),
    "bitwise_or": _bitwise("or"),
    "bitwise_xor": _bitwise("xor"),
    "isnan": formulas.is_nan,
    "isinf": formulas.is_infinite,
    "isfinite": formulas.is_finite,
    "isposinf": formulas.equals_infinity(math.inf),
    "isneginf": formulas.equals_infinity(-math.inf),
    "zeros_like": formulas.filled(0),
    "ones_like": formulas.filled(1),
    "divmod": formulas.divmod,
    "degrees": formulas.times(180 / math.pi),
    "radians": formulas.times(math.pi / 180),
    "array": formulas.scalar,
}
MLX_ONLY: dict[str, Rule] = {
    "rsqrt": _unary("rsqrt"),
    "erf": _unary("erf"),
    "sigmoid": _unary("sigmoid"),
    "left_shift": _bitwise("shl"),
    "right_shift": _bitwise("shr"),
    "bitwise_invert": formulas.inverted,
    "stop_gradient": formulas.stop_gradient,
    "round": lambda a: formulas.rounded("round", a, to_int=False),
    "trunc": _rounded("trunc", False),
    "logical_xor": _logical("xor"),
}
NUMPY_ONLY: dict[str, Rule] = {
    "exp2": _unary("exp2"),
    "logical_xor": _logical("xor"),
    "left_shift": _bitwise("shl"),
    "right_shift": _bitwise("shr"),
    "invert": formulas.inverted,
    "mod": _arithmetic("mod"),
    "true_divide": build.divide,
    "trunc": _rounded("trunc", False),
    "rint": lambda a: formulas.rounded("round", a, to_int=False),
    "float32": lambda a: build.cast(a, "float"),
    "float64": lambda a: build.cast(a, "float"),
    "int32": lambda a: build.cast(a, "int"),
    "int64": lambda a: build.cast(a, "int"),
    "bool_": lambda a: build.cast(a, "bool"),
    "fmod": formulas.fmod,
    "hypot": formulas.hypot,
}
MATH: dict[str, Rule] = {
    **{name: _unary(name) for name in FLOAT_FUNCTIONS},
    "log": formulas.logarithm,
    "fmod": formulas.fmod,
    "hypot": formulas.hypot,
    "prod": lambda items, *, start=1: functools.reduce(_arithmetic("mul"), items, start),
    **{name: _unary(name) for name in "asin acos atan asinh acosh atanh exp2 erf".split()},
    "atan2": ARRAY_FUNCTIONS["arctan2"],
    "fabs": lambda a: build.absolute(build.cast(a, "float")),
    "pow": lambda a, b: build.power(build.cast(a, "float"), build.cast(b, "float")),
    "floor": _rounded("floor", True),
    "ceil": _rounded("ceil", True),
    "trunc": _rounded("trunc", True),
    "isnan": formulas.is_nan,
    "isinf": formulas.is_infinite,
    "isfinite": formulas.is_finite,
    "degrees": formulas.times(180 / math.pi),
    "radians": formulas.times(math.pi / 180),
    "copysign": lambda a, b: formulas.copysign(build.cast(a, "float"), build.cast(b, "float")),
}


def _fold(step: Rule, name: str) -> Rule:
    def over(*args: Any, **kwargs: Any) -> Any:
        if kwargs:
            raise Untraceable(f"{name}() with {', '.join(kwargs)}=", f"compare the candidates with {name}(a, b)")
        return functools.reduce(step, args if len(args) > 1 else args[0])

    return over


def _sum(items: Iterable[Any], start: Any = 0) -> Any:
    return functools.reduce(_arithmetic("add"), items, start)


def _float(a: Any = 0.0) -> Any:
    return build.cast(a, "float")


def _int(a: Any = 0) -> Any:
    return build.cast(a, "int")


def _bool(a: Any = False) -> Any:
    return build.cast(a, "bool")


BUILTINS: dict[str, Rule] = {
    "abs": build.absolute,
    "min": _fold(formulas.python_min, "min"),
    "max": _fold(formulas.python_max, "max"),
    "float": _float,
    "int": _int,
    "bool": _bool,
    "round": formulas.python_round,
    "pow": build.power,
    "sum": _sum,
    "any": lambda items: functools.reduce(_logical("or"), items, FALSE),
    "all": lambda items: functools.reduce(_logical("and"), items, TRUE),
    "divmod": formulas.divmod,
}
OPERATOR: dict[str, Rule] = {
    **{name: _arithmetic(op) for name, op in (("add", "add"), ("sub", "sub"), ("mul", "mul"), ("mod", "mod"))},
    "floordiv": _arithmetic("floor_div"),
    "truediv": build.divide,
    "pow": build.power,
    "neg": build.negate,
    "invert": build.invert,
    "not_": build.logical_not,
    "abs": build.absolute,
    **{name: _compare(name) for name in ("lt", "le", "gt", "ge", "eq", "ne")},
    "and_": _bitwise("and"),
    "or_": _bitwise("or"),
    "xor": _bitwise("xor"),
    "lshift": _bitwise("shl"),
    "rshift": _bitwise("shr"),
}
REDUCTIONS = frozenset(
    "sum mean max min prod any all argmax argmin cumsum cumprod logsumexp softmax var std sort median norm".split()
)


def _table() -> dict[int, tuple[Any, Rule]]:
    """id(callable) -> (callable, rule); ids, because some callables (numpy dtypes) compare loosely."""
    rules: dict[int, tuple[Any, Rule]] = {}
    for module, names in (
        (builtins, BUILTINS),
        (math, MATH),
        (operator, OPERATOR),
        (np, {**ARRAY_FUNCTIONS, **NUMPY_ONLY}),
        (mx, {**ARRAY_FUNCTIONS, **MLX_ONLY}),
    ):
        for name, rule in names.items():
            if hasattr(module, name):  # older Pythons lack math.exp2, and so on
                rules[id(getattr(module, name))] = (getattr(module, name), rule)
    return rules


TABLE = _table()
METHODS: dict[str, Rule] = {  # x.exp(), x.astype(...): as on an mlx array of shape ()
    **{name: ARRAY_FUNCTIONS[name] for name in "abs exp log log2 log10 log1p sqrt sin cos square reciprocal".split()},
    "rsqrt": MLX_ONLY["rsqrt"],
    "round": MLX_ONLY["round"],
    "astype": formulas.astype,
}


def rule_for(function: Any) -> Rule | None:
    """The rule that builds an Expr for `function`, or None."""
    row = TABLE.get(id(function))
    return row[1] if row is not None else None


def module_of(function: Any) -> str:
    """The module that a callable comes from."""
    owner = getattr(function, "__self__", None)
    module = getattr(function, "__module__", None) or getattr(owner, "__module__", None) or type(function).__module__
    return str(module)


def package_of(function: Any) -> str:
    """The top-level package that a callable comes from."""
    return module_of(function).split(".")[0]
