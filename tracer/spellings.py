"""The target languages: how each op is written in Python's notation (for readers), C++ and Metal."""

from __future__ import annotations

import math

import numpy as np

from .emit import Language, emit
from .expr import KV_IDX, OPS, Expr, print_by

_FUNCTIONS = (
    "exp exp2 expm1 log log2 log10 log1p sqrt rsqrt erf sigmoid sin cos tan asin acos atan sinh cosh tanh "
    "asinh acosh atanh floor ceil trunc round"
).split()
_INFIX = {
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


def _python_const(node: Expr) -> str:
    return repr(node.value)


PYTHON = Language(
    ops={
        **_INFIX,
        **{name: f"{name}({{0}})" for name in _FUNCTIONS},
        "floor_div": "({0} // {1})",
        "mod": "({0} % {1})",
        "pow": "({0} ** {1})",
        "atan2": "atan2({0}, {1})",
        "min": "min({0}, {1})",
        "max": "max({0}, {1})",
        "abs": "abs({0})",
        "and": "({0} and {1})",
        "or": "({0} or {1})",
        "xor": "({0} ^ {1})",
        "not": "(not {0})",
        "to_float": "float({0})",
        "to_int": "int({0})",
        "where": "({1} if {0} else {2})",
    },
    const=_python_const,
    param=lambda node: f"number{node.value}",
    load=lambda node, indices: f"array{node.value[0]}[{', '.join(indices)}]" if indices else f"array{node.value[0]}",
    local="{name} = {value}",
)


def show(root: Expr) -> str:
    """The expression in Python's notation: one line, or named intermediates above the result."""
    emitted = emit(root, PYTHON)
    return "\n".join([*emitted.statements, emitted.result])


print_by(show)


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


# ---- C++: every op is a function of kernels/cpu/ops.h, for a scalar or a vector of neighbouring keys ----------

CPP_ELEMENTS = {
    "bool": "bool",
    **{f"{sign}int{bits}": f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    "float16": "float16",
    "bfloat16": "bfloat16",
    "float32": "float",
    "float64": "double",
}
_CALLS = (
    "add sub mul div neg abs min max floor_div mod pow atan2 shl shr bit_and bit_or bit_xor bit_not "
    "lt le eq ne to_float to_int where"
).split()


def _call(function: str, arity: int) -> str:
    arguments = ", ".join(f"{{{i}}}" for i in range(arity))
    return f"{function}({arguments})"


def _cpp_param(node: Expr) -> str:
    slot = f"in.numbers[{node.value}]"
    return {"float": f"{slot}.f", "int": f"{slot}.i", "bool": f"({slot}.i != 0)"}[node.dtype]


def _cpp_load(node: Expr, indices: list[str]) -> str:
    slot, element = node.value
    function = "load_unit" if node.args and _is_neighbourly(node) else "load"
    return f"fx::{function}<{CPP_ELEMENTS[element]}>({', '.join(['in', str(slot), *indices])})"


def _is_neighbourly(load: Expr) -> bool:
    """Whether neighbouring keys read neighbouring elements: the last index is kv_idx plus something uniform."""
    *others, last = load.args
    while last.op in ("add", "sub"):
        if is_uniform(last.args[1]):
            last = last.args[0]
        elif last.op == "add" and is_uniform(last.args[0]):
            last = last.args[1]
        else:
            return False
    return last is KV_IDX and all(is_uniform(other) for other in others)


def is_uniform(node: Expr) -> bool:
    """Whether the value is the same for all keys of one row."""
    return node.varies.isdisjoint(("kv_idx", "score"))


CPP = Language(
    ops={
        **{name: "fx::" + _call(name, OPS[name].arity) for name in (*_CALLS, *_FUNCTIONS)},
        **{name: "fx::" + _call(f"{name}_", OPS[name].arity) for name in ("and", "or", "xor", "not")},
    },
    const=c_const,
    param=_cpp_param,
    load=_cpp_load,
)


# ---- Metal: scalars; `precise` functions, because a user's formula is not ours to approximate; ints that wrap are
# functions of kernels/metal/mod/ops.h, because Metal leaves the overflow of its own operators undefined ------------


def _metal_load(node: Expr, indices: list[str]) -> str:
    slot, _ = node.value
    name = f"array{slot}"
    value = f"{name}[fx::offset({', '.join([f'{name}_shape', f'{name}_strides', *indices])})]" if indices else name
    return f"{node.dtype}({value})"


METAL = Language(
    ops={
        **_INFIX,
        **{name: f"metal::precise::{name}({{0}})" for name in _FUNCTIONS},
        **{name: f"fx::{name}({{0}})" for name in ("expm1", "log1p", "erf", "sigmoid")},
        **{name: "fx::" + _call(name, 2) for name in ("floor_div", "mod", "pow")},
        **{name: f"metal::{name}({{0}})" for name in ("floor", "ceil", "trunc")},  # exact in any mathematics
        "round": "metal::rint({0})",
        "atan2": "metal::precise::atan2({0}, {1})",
        **{f"{name}.int": f"fx::{name}({{0}}, {{1}})" for name in ("add", "sub", "mul")},
        **{f"{name}.int": f"fx::{name}({{0}})" for name in ("neg", "abs")},
        **{name: "fx::" + _call(name, 2) for name in ("shl", "shr")},
        "min.int": "metal::min({0}, {1})",
        "max.int": "metal::max({0}, {1})",
        "min": "fx::min({0}, {1})",
        "max": "fx::max({0}, {1})",
        "abs": "metal::abs({0})",
        "and": "({0} && {1})",
        "or": "({0} || {1})",
        "xor": "({0} != {1})",
        "not": "(!{0})",
        "to_float": "float({0})",
        "to_int": "fx::to_int({0})",
        "where": "({0} ? {1} : {2})",
    },
    const=c_const,
    param=lambda node: f"number{node.value}",
    load=_metal_load,
)
