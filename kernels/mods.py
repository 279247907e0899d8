"""Traces -> what the generators of all backends share: slots of two mods side by side, and what manifests say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flextrace.tracer import Expr, Trace
from flextrace.tracer.expr import rebuild


def shift_slots(expr: Expr, arrays: int, numbers: int) -> Expr:
    """The expression with its captures numbered from `arrays` and `numbers` on."""

    def shifted(node: Expr, args: Sequence[Expr]) -> Expr:
        value = node.value
        if node.op == "param":
            value = value + numbers
        elif node.op == "load":
            value = (value[0] + arrays, value[1])
        return Expr(node.op, node.dtype, tuple(args), value)

    return rebuild(expr, shifted)


def describe(mod: Trace) -> dict[str, Any]:
    """What a manifest says about a mod: name, source, expression, captured inputs."""
    return {
        "name": mod.name,
        "source": mod.source().split("\n"),
        "expression": repr(mod.expr).split("\n"),
        "arrays": [f"{a.name}: {a.element}, {a.ndim} dimensions" for a in mod.arrays],
        "numbers": [f"{n.name}: {n.dtype}" for n in mod.numbers],
    }
