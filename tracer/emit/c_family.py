"""What C++, Metal and Python write alike: literals, calls, operators between their operands."""

from __future__ import annotations

import math

import numpy as np

from ..expr.node import Expr

FUNCTIONS = (
    "exp exp2 expm1 log log2 log10 log1p sqrt rsqrt erf sigmoid sin cos tan asin acos atan sinh cosh tanh "
    "asinh acosh atanh floor ceil trunc round"
).split()
INFIX = {
    "add": "({0} + {1})",
    "sub": "({0} - {1})",
    "mul": "({0} * {1})",
    "div": "({0} / {1})",
    "shl": "({0} << {1})",
    "shr": "({0} >> {1})",
    "bit_and": "({0} & {1})",
    "bit_or": "({0} | {1})",
    "bit_xor": "({0} ^ {1})",
    "bit_not": "(~{0})",
    "neg": "(-{0})",
    "lt": "({0} < {1})",
    "le": "({0} <= {1})",
    "eq": "({0} == {1})",
    "ne": "({0} != {1})",
}
# Languages of GPUs write scalars: operators of C, and functions of namespace fx, which are those of the kernels' ops.h.
SCALARS = {
    **{f"{name}.int": f"fx::{name}({{0}}, {{1}})" for name in ("add", "sub", "mul")},
    **{f"{name}.int": f"fx::{name}({{0}})" for name in ("neg", "abs")},
    **{name: f"fx::{name}({{0}}, {{1}})" for name in ("floor_div", "mod", "shl", "shr", "min", "max")},
    "to_int": "fx::to_int({0})",
    "to_float": "float({0})",
    "and": "({0} && {1})",
    "or": "({0} || {1})",
    "xor": "({0} != {1})",
    "not": "(!{0})",
    "stop_gradient": "{0}",
    "where": "({0} ? {1} : {2})",
}


def spelt_call(function: str, arity: int) -> str:
    arguments = ", ".join(f"{{{i}}}" for i in range(arity))
    return f"{function}({arguments})"


def c_const(node: Expr) -> str:
    """A literal that C++ and Metal read as exactly this int32 or float32."""
    value = node.value
    if node.dtype == "bool":
        return "true" if value else "false"
    if node.dtype == "int":
        return f"{value}" if value > -(2**31) else "(-2147483647 - 1)"
    if math.isnan(value):
        return "NAN"
    if math.isinf(value):
        return "INFINITY" if value > 0 else "(-INFINITY)"
    text = str(np.float32(value))  # the shortest that is read as the same float32
    return f"{text}f" if math.copysign(1, value) > 0 else f"({text}f)"


def is_uniform(node: Expr) -> bool:
    """Whether the value is the same for all keys of one row."""
    return node.varies.isdisjoint(("kv_idx", "score"))
