"""Op -> what plain Python gives for it, one number at a time: ints of any size cut to 32 bits, bools, numpy's float32.

Written without the tracer's own tables, so that these can be compared with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from flextrace.tracer.expr.node import Expr, walk

INT_MIN, INT_MAX = -(2**31), 2**31 - 1
F32 = np.float32


def wrapped(number: int) -> int:
    """An int of Python's as the int32 that has its last 32 bits."""
    return (number + 2**31) % 2**32 - 2**31


def truncated(number: Any) -> int:
    """int(x) of a float32: towards 0, into int32; 0 of nan."""
    if math.isnan(number):
        return 0
    return (
        int(min(max(float(number), INT_MIN), INT_MAX))
        if math.isinf(number)
        else min(max(int(number), INT_MIN), INT_MAX)
    )


# Exact, of any size: cutting the result to int32 is the one difference.
INTS: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "min": min,
    "max": max,
    "floor_div": lambda a, b: a // b if b else 0,
    "mod": lambda a, b: a % b if b else 0,
    "shl": lambda a, b: a << min(b, 99) if b >= 0 else 0,
    "shr": lambda a, b: a >> b if b >= 0 else a >> 99,
    "bit_and": lambda a, b: a & b,
    "bit_or": lambda a, b: a | b,
    "bit_xor": lambda a, b: a ^ b,
    "bit_not": lambda a: ~a,
    "neg": lambda a: -a,
    "abs": abs,
    "to_int": lambda a: a,
    "to_float": lambda a: F32(a),
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
}
BOOLS: dict[str, Callable[..., Any]] = {
    "and": lambda a, b: a and b,
    "or": lambda a, b: a or b,
    "xor": lambda a, b: a != b,
    "not": lambda a: not a,
    "to_int": int,
    "to_float": lambda a: F32(a),
}
FLOATS: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "floor_div": lambda a, b: np.floor_divide(a, b),
    "mod": lambda a, b: np.mod(a, b),
    "pow": lambda a, b: a**b,
    "neg": lambda a: -a,
    "abs": abs,
    "sqrt": np.sqrt,
    "exp": np.exp,
    "min": lambda a, b: a + b if math.isnan(a) or math.isnan(b) else min(a, b),
    "max": lambda a, b: a + b if math.isnan(a) or math.isnan(b) else max(a, b),
    "floor": np.floor,
    "ceil": np.ceil,
    "trunc": np.trunc,
    "round": np.rint,
    "to_int": truncated,
    "to_float": lambda a: a,
    "lt": lambda a, b: bool(a < b),
    "le": lambda a, b: bool(a <= b),
    "eq": lambda a, b: bool(a == b),
    "ne": lambda a, b: bool(a != b),
}
TABLES = {"int": INTS, "bool": BOOLS, "float": FLOATS}


def value(root: Expr, leaves: dict[str, Any], arrays: tuple[list[Any], ...] = ()) -> Any:
    """An expression at one point. leaves: "q_idx" and the like, "score"; arrays: nested lists, by slot."""
    values: dict[Expr, Any] = {}
    with np.errstate(all="ignore"):
        for node in walk(root):
            args = [values[arg] for arg in node.args]
            if node.op == "where":
                found = args[1] if args[0] else args[2]
            elif node.op == "load":
                found = arrays[node.value[0]]
                for i in args:
                    found = found[min(max(i + len(found) if i < 0 else i, 0), len(found) - 1)]
            elif args:
                found = TABLES[node.args[-1].dtype][node.op](*args)
            else:
                found = node.value if node.op == "const" else leaves[node.value or "score"]
            values[node] = wrapped(found) if node.dtype == "int" else F32(found) if node.dtype == "float" else found
    return values[root]


def runs(count: int) -> list[tuple[int, int]]:
    """First and last of every run of `count` things."""
    return [(i, j) for i in range(count) for j in range(i, count)]


def over_runs(values: np.ndarray, axis: int, extreme: Any) -> np.ndarray:
    """The extreme of every run along this axis, in the order of `runs`."""
    values = np.moveaxis(values, axis, 0)
    return np.moveaxis(np.stack([extreme.reduce(values[i : j + 1]) for i, j in runs(len(values))]), 0, axis)
