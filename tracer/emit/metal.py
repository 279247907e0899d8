"""How Metal writes an expression: scalars; `precise` functions, because a user's formula is not ours to approximate,
unless the user asks for fast ones.

Ints that wrap are functions of the kernels' ops.h, because Metal leaves the overflow of its own operators undefined.
"""

from __future__ import annotations

import functools
from dataclasses import replace

from ..expr.node import Expr
from .c_family import FUNCTIONS, INFIX, SCALARS, c_const
from .emit import Language


def _metal_load(node: Expr, indices: list[str], owner: str = "") -> str:
    slot, _ = node.value
    name = f"{owner}array{slot}"
    value = f"{name}[fx::offset({', '.join([f'{name}_shape', f'{name}_strides', *indices])})]" if indices else name
    return f"{node.dtype}({value})"


METAL = Language(
    ops={
        **INFIX,
        **{name: f"metal::precise::{name}({{0}})" for name in FUNCTIONS},
        **{name: f"fx::{name}({{0}})" for name in ("expm1", "log1p", "erf", "sigmoid")},
        **SCALARS,
        "pow": "fx::pow({0}, {1})",
        **{name: f"metal::{name}({{0}})" for name in ("floor", "ceil", "trunc")},  # exact in fast mathematics too
        "round": "metal::rint({0})",
        "atan2": "metal::precise::atan2({0}, {1})",
        "min.int": "metal::min({0}, {1})",
        "max.int": "metal::max({0}, {1})",
        "abs": "metal::abs({0})",
    },
    const=c_const,
    param=lambda node: f"number{node.value}",
    load=_metal_load,
)


# A score_mod under kernel_options={"MATH": "fast"}, for finite arguments. Errors by the table of fast mathematics in
# the Metal Shading Language Specification: exp, exp2 3 + 2 |x| ulp; log, log2, log10 3 ulp, and 2^-21 for x from 0.5 to
# 2; rsqrt 2 ulp, sqrt is x * rsqrt(x); a quotient 2.5 ulp. tanh and sigmoid follow from these: to within 1e-6. (Metal's
# own fast tanh is inf / inf beyond 44.) Its fast sine and cosine have no bound beyond pi, and positions in an angle are
# large: they stay precise, and so does whatever the machine has no instruction for.
METAL_FAST = replace(
    METAL,
    ops={
        **METAL.ops,
        **{name: f"metal::fast::{name}({{0}})" for name in ("exp", "exp2", "log", "log2", "log10", "sqrt", "rsqrt")},
        "tanh": "(1.0f - metal::fast::divide(2.0f, 1.0f + metal::fast::exp(fx::min(2.0f * {0}, 60.0f))))",
        "sigmoid": "metal::fast::divide(1.0f, 1.0f + metal::fast::exp(fx::min(-{0}, 60.0f)))",
    },
)


def metal_of(owner: str, fast: bool = False) -> Language:
    """Metal as a function writes it that is given what is captured: `owner.array0`, `owner.number0`."""
    load, language = functools.partial(_metal_load, owner=f"{owner}."), METAL_FAST if fast else METAL
    return replace(language, param=lambda node: f"{owner}.number{node.value}", load=load)
