"""How CUDA writes an expression: scalars; what has an approximate form is a function of `special` (ops.h)."""

from __future__ import annotations

from ..expr.node import Expr
from .c_family import FUNCTIONS, INFIX, SCALARS, c_const
from .emit import Language

SPECIAL = ("exp", "exp2", "tanh", "sigmoid")  # those with an approximate form


def _cuda_load(node: Expr, indices: list[str]) -> str:
    name = f"array{node.value[0]}"
    at = f"fx::offset({', '.join([f'{name}_shape', f'{name}_strides', *indices])})" if indices else "0"
    return f"{node.dtype}({name}[{at}])"


CUDA = Language(
    ops={
        **INFIX,
        **{name: f"{name}f({{0}})" for name in FUNCTIONS},
        "round": "rintf({0})",
        "atan2": "atan2f({0}, {1})",
        "pow": "powf({0}, {1})",
        **{name: f"special::{name}({{0}})" for name in SPECIAL},
        "div": "special::div({0}, {1})",
        **SCALARS,
        "abs": "fx::abs({0})",
    },
    const=c_const,
    param=lambda node: f"number{node.value}",
    load=_cuda_load,
)
