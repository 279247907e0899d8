"""Python callable -> op: the one table of functions that a mod may call on symbolic numbers.

Keys are the callables themselves (`math.exp`, `mx.exp`, `numpy.exp`, `abs`), values build an Expr.
"""

from __future__ import annotations

import builtins
import functools
import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

import mlx.core as mx
import numpy as np

from . import build
from .errors import Untraceable
from .expr import const

Rule = Callable[..., Any]


def _clip(a: Any, low: Any = None, high: Any = None) -> Any:
    a = a if low is None else build.arithmetic("max", a, low)
    return a if high is None else build.arithmetic("min", a, high)


def _logaddexp(a: Any, b: Any) -> Any:
    top, low = build.arithmetic("max", a, b), build.arithmetic("min", a, b)
    spread = build.where(build.compare("eq", low, top), 0.0, build.arithmetic("sub", low, top))
    return build.arithmetic("add", top, build.unary("log1p", build.unary("exp", spread)))


def _is_infinite(a: Any) -> Any:
    return build.compare("eq", build.absolute(build.cast(a, "float")), math.inf)


def _is_finite(a: Any) -> Any:
    return build.compare("lt", build.absolute(build.cast(a, "float")), math.inf)


def _is_nan(a: Any) -> Any:
    node = build.cast(a, "float")
    return build.compare("ne", node, node)


def _scalar(a: Any, dtype: Any = None) -> Any:
    if isinstance(a, (list, tuple)):
        raise Untraceable("an array cannot be made inside a mod", "make it outside and index it here")
    return a if dtype is None else astype(a, dtype)


def astype(a: Any, dtype: Any) -> Any:
    """`x.astype(mx.float32)`: kernels compute in float32, int32 and bool."""
    if dtype == mx.bool_:
        return build.cast(a, "bool")
    return build.cast(a, "int" if mx.issubdtype(dtype, mx.integer) else "float")


def _degrees(factor: float) -> Rule:
    return lambda a: build.arithmetic("mul", a, factor)


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
    return functools.partial(build.rounded, op, to_int=to_int)


FLOAT_FUNCTIONS = "exp expm1 log log2 log10 log1p sqrt sin cos tan sinh cosh tanh".split()
ARRAY_FUNCTIONS: dict[str, Rule] = {  # names that mlx.core and numpy share
    **{name: _unary(name) for name in FLOAT_FUNCTIONS},
    **{f"arc{name}": _unary(f"a{name}") for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh")},
    "arctan2": lambda a, b: build.apply("atan2", build.cast(a, "float"), build.cast(b, "float")),
    "abs": build.absolute,
    "negative": build.negate,
    "square": lambda a: build.power(a, 2),
    "reciprocal": lambda a: build.divide(1.0, a),
    "sign": build.sign,
    "add": _arithmetic("add"),
    "subtract": _arithmetic("sub"),
    "multiply": _arithmetic("mul"),
    "divide": build.divide,
    "floor_divide": _arithmetic("floor_div"),
    "remainder": _arithmetic("mod"),
    "power": build.power,
    "minimum": _arithmetic("min"),
    "maximum": _arithmetic("max"),
    "clip": _clip,
    "logaddexp": _logaddexp,
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
    "isnan": _is_nan,
    "isinf": _is_infinite,
    "isfinite": _is_finite,
    "degrees": _degrees(180 / math.pi),
    "radians": _degrees(math.pi / 180),
    "array": _scalar,
}
MLX_ONLY: dict[str, Rule] = {
    "rsqrt": _unary("rsqrt"),
    "erf": _unary("erf"),
    "sigmoid": _unary("sigmoid"),
    "left_shift": _bitwise("shl"),
    "right_shift": _bitwise("shr"),
    "bitwise_invert": build.invert,
    "stop_gradient": lambda a: a,
    "round": lambda a: build.rounded("round", a, to_int=False),
}
NUMPY_ONLY: dict[str, Rule] = {
    "exp2": _unary("exp2"),
    "logical_xor": _logical("xor"),
    "left_shift": _bitwise("shl"),
    "right_shift": _bitwise("shr"),
    "invert": build.invert,
    "mod": _arithmetic("mod"),
    "true_divide": build.divide,
    "trunc": _rounded("trunc", False),
    "rint": lambda a: build.rounded("round", a, to_int=False),
    "float32": lambda a: build.cast(a, "float"),
    "int32": lambda a: build.cast(a, "int"),
}
MATH: dict[str, Rule] = {
    **{name: _unary(name) for name in FLOAT_FUNCTIONS},
    **{name: _unary(name) for name in "asin acos atan asinh acosh atanh exp2 erf".split()},
    "atan2": ARRAY_FUNCTIONS["arctan2"],
    "fabs": lambda a: build.absolute(build.cast(a, "float")),
    "pow": lambda a, b: build.power(build.cast(a, "float"), build.cast(b, "float")),
    "floor": _rounded("floor", True),
    "ceil": _rounded("ceil", True),
    "trunc": _rounded("trunc", True),
    "isnan": _is_nan,
    "isinf": _is_infinite,
    "isfinite": _is_finite,
    "degrees": _degrees(180 / math.pi),
    "radians": _degrees(math.pi / 180),
    "copysign": lambda a, b: _copysign(build.cast(a, "float"), build.cast(b, "float")),
}


def _copysign(a: Any, b: Any) -> Any:
    negative = build.compare("lt", build.divide(build.const(1.0), b), 0.0)  # 1/-0.0 is -inf
    negative = build.logical("or", negative, build.compare("lt", b, 0.0))
    return build.where(negative, build.negate(build.absolute(a)), build.absolute(a))


def _fold(step: Rule, name: str) -> Rule:
    def over(*args: Any, **kwargs: Any) -> Any:
        if kwargs:
            raise Untraceable(f"{name}() with {', '.join(kwargs)}=", f"compare the candidates with {name}(a, b)")
        return functools.reduce(step, args if len(args) > 1 else _items(args[0], name))

    return over


def _items(value: Any, name: str) -> Iterable[Any]:
    if isinstance(value, Iterable):
        return value
    raise Untraceable(f"{name}() of one number", f"write {name}(a, b)")


def _sum(items: Iterable[Any], start: Any = 0) -> Any:
    return functools.reduce(lambda a, b: b if _is_zero(a) else build.arithmetic("add", a, b), items, start)


def _is_zero(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value == 0


def _divmod(a: Any, b: Any) -> Any:
    return build.arithmetic("floor_div", a, b), build.arithmetic("mod", a, b)


def _float(a: Any = 0.0) -> Any:
    return build.cast(a, "float")


def _int(a: Any = 0) -> Any:
    return build.cast(a, "int")


def _bool(a: Any = False) -> Any:
    return build.cast(a, "bool")


BUILTINS: dict[str, Rule] = {
    "abs": build.absolute,
    "min": _fold(build.python_min, "min"),
    "max": _fold(build.python_max, "max"),
    "float": _float,
    "int": _int,
    "bool": _bool,
    "round": build.python_round,
    "pow": lambda a, b: build.power(a, b),
    "sum": _sum,
    "any": lambda items: functools.reduce(_logical("or"), items, const(False)),
    "all": lambda items: functools.reduce(_logical("and"), items, const(True)),
    "divmod": _divmod,
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
    "astype": astype,
}


def rule_for(function: Any) -> Rule | None:
    """The rule that builds an Expr for `function`, or None."""
    row = TABLE.get(id(function))
    return row[1] if row is not None else None


def advice(function: Any) -> Untraceable:
    """Why `function` cannot be called on a symbolic number, and what to write instead."""
    module = getattr(function, "__module__", None) or type(function).__module__
    name = getattr(function, "__name__", type(function).__name__)
    package = str(module).split(".")[0]
    here = {"mlx": "mx", "numpy": "np", "jax": "jnp", "jaxlib": "jnp"}.get(package, package)
    reason = f"{here}.{name} is not a function of one symbolic number"
    if name in REDUCTIONS:
        return Untraceable(
            f"{here}.{name} reduces an array, and a mod sees one score at a time",
            f"compute {here}.{name}(...) outside the mod and index the result inside it, for example row_{name}[q_idx]",
        )
    if package != "mlx" and name in {**ARRAY_FUNCTIONS, **MLX_ONLY}:
        return Untraceable(f"{here}.{name} cannot run in a kernel", f"write mx.{name}(...) instead")
    return Untraceable(
        reason,
        "use arithmetic, comparisons, mx/math/numpy elementwise functions or a helper written in Python",
    )
