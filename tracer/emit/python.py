"""Expr -> Python's notation, for readers: how an expression shows itself."""

from __future__ import annotations

from collections.abc import Sequence

from ..expr.access import sites
from ..expr.derivative import derivative
from ..expr.node import SCORE, Expr, print_by
from .c_family import FUNCTIONS, INFIX
from .emit import Language, emit, emit_many


def _python_const(node: Expr) -> str:
    return repr(node.value)


PYTHON = Language(
    ops={
        **INFIX,
        **{name: f"{name}({{0}})" for name in FUNCTIONS},
        "floor_div": "({0} // {1})",
        "mod": "({0} % {1})",
        "stop_gradient": "stop_gradient({0})",
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


def function_text(name: str, arguments: Sequence[str], expr: Expr) -> str:
    """An expression as a Python function of its own, without a line break at its end.

    Example:
        >>> from flextrace.tracer.expr.node import KV_IDX, Q_IDX, apply
        >>> print(function_text("causal", ("b", "h", "q_idx", "kv_idx"), apply("le", KV_IDX, Q_IDX)))
        def causal(b, h, q_idx, kv_idx):
            return kv_idx <= q_idx
    """
    emitted = emit(expr, PYTHON)
    head = f"def {name if name.isidentifier() else 'mod'}({', '.join(arguments)}):"
    return "\n".join([head, *(f"    {line}" for line in emitted.statements), f"    return {emitted.result}"])


def gradient_lines(expr: Expr) -> list[str]:
    """The derivatives of a score_mod's expression: by the score, and by each read of a floating array with its pattern.

    Example:
        >>> from flextrace.tracer.expr.node import SCORE, H, apply
        >>> slope = apply("load", H, value=(0, "float32"))
        >>> print("\\n".join(gradient_lines(apply("tanh", apply("mul", SCORE, slope)))))
        e0 = array0[h]
        e1 = tanh((score * e0))
        e2 = 1.0 - (e1 * e1)
        by score: e0 * e2
        by array0[h] (row): score * e2
    """
    found = sites(expr)
    many = emit_many([derivative(expr, SCORE), *(site.slope for site in found)], PYTHON)
    names = ["by score", *(f"by {_in_one_line(site.load)} ({site.pattern.value})" for site in found)]
    return [*many.statements, *(f"{name}: {text}" for name, text in zip(names, many.results, strict=True))]


def _in_one_line(load: Expr) -> str:
    emitted = emit(load, PYTHON)
    return f"array{load.value[0]}[...]" if emitted.statements else emitted.result


print_by(show)
