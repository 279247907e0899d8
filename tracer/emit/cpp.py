"""How C++ writes an expression: every op is a function of the kernels' ops.h, for a scalar or neighbouring keys."""

from __future__ import annotations

from ..expr.node import KV_IDX, OPS, Expr
from .c_family import FUNCTIONS, c_const, is_uniform, spelt_call
from .emit import Language

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


CPP = Language(
    ops={
        **{name: "fx::" + spelt_call(name, OPS[name].arity) for name in (*_CALLS, *FUNCTIONS)},
        **{name: "fx::" + spelt_call(f"{name}_", OPS[name].arity) for name in ("and", "or", "xor", "not")},
        "stop_gradient": "{0}",
    },
    const=c_const,
    param=_cpp_param,
    load=_cpp_load,
)
