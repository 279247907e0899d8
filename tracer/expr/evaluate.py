"""Expr -> numbers: evaluation with numpy (or with any table of array functions), broadcasting over the leaves.

The numpy table is the executable definition of every op: float32 and wrapping int32, with the totality rules
that kernels share (division of ints by zero gives 0, a shift by a negative count goes as far as one by 32, loads
wrap a negative index once and are then clamped).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .node import NOW, Expr, const, walk

Table = Mapping[str, Callable[..., Any]]
_erf = np.vectorize(math.erf, otypes=[np.float32])


def _int_floor_div(a: Any, b: Any) -> Any:
    zero = b == 0
    wide = np.floor_divide(a.astype(np.int64), np.where(zero, 1, b).astype(np.int64))
    return np.where(zero, 0, wide).astype(np.int32)


def _int_mod(a: Any, b: Any) -> Any:
    zero = b == 0
    wide = np.mod(a.astype(np.int64), np.where(zero, 1, b).astype(np.int64))
    return np.where(zero, 0, wide).astype(np.int32)


def _shift_left(a: Any, count: Any) -> Any:
    inside = (count >= 0) & (count < 32)
    return np.where(inside, np.left_shift(a, np.where(inside, count, 0)), 0).astype(np.int32)


def _shift_right(a: Any, count: Any) -> Any:
    return np.right_shift(a, np.where((count >= 0) & (count < 32), count, 31)).astype(np.int32)


def _by_dtype(integer: Callable[..., Any], floating: Callable[..., Any]) -> Callable[..., Any]:
    return lambda a, b: integer(a, b) if np.asarray(a).dtype.kind == "i" else floating(a, b)


def _to_int(a: Any) -> Any:
    if a.dtype.kind != "f":
        return a.astype(np.int32)
    wide = np.trunc(np.where(np.isnan(a), 0, a).astype(np.float64))
    return np.clip(wide, -(2**31), 2**31 - 1).astype(np.int32)


def _sigmoid(a: Any) -> Any:
    e = np.exp(-np.abs(a))
    return np.where(a >= 0, 1 / (1 + e), e / (1 + e)).astype(np.float32)


NUMPY: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
    "floor_div": _by_dtype(_int_floor_div, np.floor_divide),
    "mod": _by_dtype(_int_mod, np.mod),
    "neg": np.negative,
    "abs": np.abs,
    "div": np.divide,
    "pow": np.power,
    "atan2": np.arctan2,
    "shl": _shift_left,
    "shr": _shift_right,
    "bit_and": np.bitwise_and,
    "bit_or": np.bitwise_or,
    "bit_xor": np.bitwise_xor,
    "bit_not": np.invert,
    "lt": np.less,
    "le": np.less_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
    "not": np.logical_not,
    "to_float": lambda a: a.astype(np.float32),
    "to_int": _to_int,
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "log": np.log,
    "log2": np.log2,
    "log10": np.log10,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "rsqrt": lambda a: np.float32(1) / np.sqrt(a),
    "erf": _erf,
    "sigmoid": _sigmoid,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "floor": np.floor,
    "ceil": np.ceil,
    "trunc": np.trunc,
    "round": np.rint,
    "stop_gradient": lambda a: a,
    "where": np.where,
}
_NUMPY_DTYPE = {"bool": np.bool_, "int": np.int32, "float": np.float32}


def run(root: Expr, leaf: Callable[[Expr], Any], load: Callable[[Expr, Sequence[Any]], Any], table: Table) -> Any:
    """Evaluate `root`: `leaf(node)` gives every leaf, `load(node, indices)` every gather, `table` the rest."""
    values: dict[Expr, Any] = {}
    for node in walk(root):
        args = [values[arg] for arg in node.args]
        if node.op == "load":
            values[node] = load(node, args)
        elif node.args:
            values[node] = table[node.op](*args)
        else:
            values[node] = leaf(node)
    return values[root]


def evaluate(
    root: Expr,
    values: Mapping[str, Any] | None = None,
    *,
    numbers: Sequence[bool | int | float] = (),
    arrays: Sequence[Any] = (),
) -> Any:
    """The value of an expression in numpy.

    Args:
        root: the expression.
        values: "score" (float32) and "b", "h", "q_idx", "kv_idx" (int32): scalars or arrays that broadcast.
        numbers: the captured numbers by slot.
        arrays: the captured arrays (numpy) by slot.

    Returns:
        A numpy array of the broadcast shape, of dtype bool, int32 or float32.

    Example:
        >>> import numpy as np
        >>> from flextrace.tracer.expr.node import Q_IDX, KV_IDX, apply
        >>> causal = apply("le", KV_IDX, Q_IDX)
        >>> evaluate(causal, {"q_idx": np.arange(3)[:, None], "kv_idx": np.arange(3)}).sum()
        np.int64(6)
    """
    given = dict(values or {})

    def leaf(node: Expr) -> Any:
        if node.op == "const":
            value = node.value
        elif node.op == "param":
            value = numbers[node.value]
        else:
            value = given["score" if node.op == "score" else node.value]
        return np.asarray(value).astype(_NUMPY_DTYPE[node.dtype])

    def load(node: Expr, indices: Sequence[Any]) -> Any:
        array = np.asarray(arrays[node.value[0]])
        clamped = tuple(
            np.clip(np.where(i < 0, i + size, i), 0, size - 1) for i, size in zip(indices, array.shape, strict=True)
        )
        return np.asarray(array[clamped]).astype(_NUMPY_DTYPE[node.dtype])

    with np.errstate(all="ignore"):
        return run(root, leaf, load, NUMPY)


def fold(root: Expr) -> Expr:
    """An expression of constants as one constant; any other as it is."""
    if root.op == "const" or root.stage != NOW:
        return root
    return const(evaluate(root).item())
