"""mask Expr -> text of tile_state: every op as a function of the kernels' bounds.h, on ranges instead of numbers.

The generated function, here in C++ (Metal has it as a member of `Mods`, of a range of heads and without `in`);
`tile_state_body` gives what stands between its braces:

    // What the mask leaves of rows q_first..q_last and keys kv_first..kv_last, inclusive: 0 nothing, 1 some, 2 all.
    int tile_state(int batch, int head, int q_first, int q_last, int kv_first, int kv_last, const Inputs& in)
"""

from __future__ import annotations

import math

from ..bounds.rules import RANGES
from ..bounds.tiles import bounds_of
from ..expr.node import INDICES, OPS, Expr
from .c_family import c_const, is_uniform
from .cpp import CPP, CPP_ELEMENTS
from .emit import Language, emit
from .metal import METAL

_PRIVATE_ARITY = {"square": 1, "meet": 2, "wide_add": 2, "wide_sub": 2, "wide_mul": 2}
_PRIVATE_ARITY |= {f"{op}_by_difference": 3 for op in ("lt", "le", "eq", "ne")}
_WORDS = ("and", "or", "xor", "not")  # C++ reserves these words
_LEAF = {
    "b": "bounds::exactly(batch)",
    "q_idx": "bounds::range(q_first, q_last)",
    "kv_idx": "bounds::range(kv_first, kv_last)",
}


def _ops() -> dict[str, str]:
    names = {key.partition(".")[0] for key in RANGES}
    arity = {name: OPS[name].arity if name in OPS else _PRIVATE_ARITY[name] for name in names}
    return {
        name: f"bounds::{name}{'_' * (name in _WORDS)}({', '.join(f'{{{i}}}' for i in range(arity[name]))})"
        for name in sorted(names)
    }


UNKNOWN = "bounds::unknown()"


def _const(node: Expr) -> str:
    if node.dtype == "float" and not math.isfinite(node.value):
        return UNKNOWN  # as Metal's bounds.h takes them, and masks hardly need them
    return f"bounds::exactly({c_const(node)})"


def _cpp_load(node: Expr, indices: list[str]) -> str:
    slot, element = node.value
    return f"bounds::load<{CPP_ELEMENTS[element]}>({', '.join(['in', str(slot), *indices])})"


def _metal_load(node: Expr, indices: list[str]) -> str:
    name = f"array{node.value[0]}"
    if not indices:
        return f"bounds::exactly({node.dtype}({name}))"
    return f"bounds::load_{node.dtype}({', '.join([name, f'{name}_shape', f'{name}_strides', *indices])})"


CPP_RANGES = Language(
    ops=_ops(),
    const=_const,
    param=lambda node: f"bounds::exactly({CPP.param(node)})",
    load=_cpp_load,
    score=UNKNOWN,
)
METAL_RANGES = Language(
    ops=_ops(),
    const=_const,
    param=lambda node: f"bounds::exactly({METAL.param(node)})",
    load=_metal_load,
    score=UNKNOWN,
    heads="bounds::range(head, last_head)",
)


def range_lines(expr: Expr, language: Language) -> tuple[list[str], str]:
    """Statements that take the bounds of a bool or int expression, and the text of the result: a Truth or a Range."""
    related = bounds_of(expr).related
    emitted, leaves = emit(related, language), _LEAF | {"h": language.heads}
    ranges = [f"const bounds::Range {name} = {leaves[name]};" for name in INDICES if name in related.varies]
    return [*ranges, *emitted.statements], emitted.result


def tile_state_body(expr: Expr, language: Language) -> str:
    """What stands in `tile_state` for the expression of a mask, a statement per line; `CPP_RANGES` or `METAL_RANGES`.

    Example:
        >>> from flextrace.tracer.expr.node import Q_IDX, KV_IDX, apply
        >>> print(tile_state_body(apply("le", KV_IDX, Q_IDX), CPP_RANGES))
        const bounds::Range q_idx = bounds::range(q_first, q_last);
        const bounds::Range kv_idx = bounds::range(kv_first, kv_last);
        return bounds::state(bounds::le(kv_idx, q_idx));
    """
    lines, result = range_lines(expr, language)
    return "\n".join([*lines, f"return bounds::state({result});"])


def tile_state_parts(expr: Expr, language: Language) -> tuple[str, str]:
    """The body of `tile_state` in two parts: what is the same for all keys, and the rest, which needs the first.

    Example:
        >>> from flextrace.tracer.expr.node import Q_IDX, KV_IDX, apply, const
        >>> row, keys = tile_state_parts(apply("eq", KV_IDX, apply("abs", Q_IDX)), CPP_RANGES)
        >>> print(row)
        const bounds::Range q_idx = bounds::range(q_first, q_last);
        const auto u0 = bounds::abs(q_idx);
        >>> print(keys)
        const bounds::Range kv_idx = bounds::range(kv_first, kv_last);
        return bounds::state(bounds::eq(kv_idx, u0));
    """
    related = bounds_of(expr).related
    emitted, leaves = emit(related, language, is_uniform), _LEAF | {"h": language.heads}
    leaf = {name: f"const bounds::Range {name} = {leaves[name]};" for name in INDICES if name in related.varies}
    keys = [*filter(None, [leaf.pop("kv_idx", None)]), *emitted.statements, f"return bounds::state({emitted.result});"]
    return "\n".join([*leaf.values(), *emitted.outer]), "\n".join(keys)
