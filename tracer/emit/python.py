"""Expr -> Python's notation, for readers: how an expression shows itself."""

from __future__ import annotations

from collections.abc import Sequence

from ..expr.node import Expr, print_by
from .c_family import FUNCTIONS, INFIX
from .emit import Language, emit


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


print_by(show)
