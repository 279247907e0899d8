"""Numbers of a trace -> what Python knows of them: float32 in a kernel, but what they decide Python itself decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..captures.paths import Result, plain
from ..errors import Untraceable
from ..expr import build
from ..expr.evaluate import fold
from ..expr.node import AT_CALL, IN_KERNEL, NOW, Expr, const, leaves, rebuild, walk
from .outside import capture
from .tracing import Tracing
from .values import NUMBERS, PYTHON_TYPES, REMEDIES, number, run

_PLAIN_NUMBERS: frozenset[type] = frozenset(NUMBERS)
_ANY_NUMBERS: frozenset[type] = frozenset({*NUMBERS, np.int64, np.float32})


def one_of(t: Tracing, node: Expr, *choices: Any) -> Expr:
    """Note that `node` is one of `choices`, which may be of several Python types."""
    t.choices[node] = choices
    return node


def kinds(t: Tracing, value: Expr) -> frozenset[type]:
    """The Python types that a number can have: several where a condition known only inside the kernel chose it."""
    known: dict[Any, frozenset[type]] = {}
    for node in walk(value):
        own = frozenset({PYTHON_TYPES[node.dtype]})
        if node in t.choices:
            several = [known.get(x, own) if isinstance(x, Expr) else {type(x)} for x in t.choices[node]]
            known[node] = frozenset().union(*several)
        elif node.op == "param":
            known[node] = frozenset({t.recorder.kind_of(node.value)})
        elif node.op in ("to_float", "to_int", "load") or node.dtype == "bool":
            known[node] = own
        else:
            is_plain = all(len(known[arg]) == 1 and known[arg] <= _PLAIN_NUMBERS for arg in node.args)
            known[node] = own if is_plain else _ANY_NUMBERS
    return known[value]


def computed(t: Tracing, make: Callable[[], Any], function: Callable[..., Any], operands: tuple[Any, ...]) -> Any:
    """What `make` makes; where all operands are captured numbers, Python has its exact value, `function(*operands)`.

    A kernel computes float from float and int from int. A comparison, or an int from floats, would hang on the
    last bits of float32, so Python computes it and it becomes a number of the call itself.
    """
    stages = [x.stage for x in operands if isinstance(x, Expr)]
    if max(stages, default=NOW) != AT_CALL:
        return make()
    try:
        result = make()
    except Untraceable:  # Python has no bounds for integers
        exact = _by_python(t, function, operands)
        if exact is None:
            raise
        return exact
    if not isinstance(result, Expr) or any(result is x for x in operands):
        return result
    t.recipes[result] = (function, operands)
    of_floats = any(isinstance(x, Expr) and x.dtype == "float" for x in operands)
    if result.dtype == "bool" or (result.dtype == "int" and of_floats):
        exact = _by_python(t, function, operands)
        return result if exact is None else exact
    return result


def by_python(t: Tracing, node: Expr) -> Expr | None:
    """A captured number, or what Python computes from captured numbers, as a number of its own."""
    if node.op == "param":
        return node
    if node not in t.computed and node in t.recipes:
        t.computed[node] = _by_python(t, *t.recipes[node])
    return t.computed.get(node)


def _by_python(t: Tracing, function: Callable[..., Any], operands: tuple[Any, ...]) -> Expr | None:
    sources: list[Any] = []  # Python numbers, and the paths of captured ones
    values: list[Any] = []
    for operand in operands:
        known = by_python(t, operand) if isinstance(operand, Expr) and operand.op != "const" else operand
        if known is None:
            return None
        if isinstance(known, Expr) and known.op == "param":
            sources.append(t.recorder.numbers[known.value][1])
            values.append(t.recorder.number_values[known.value])
        else:
            sources.append(known.value if isinstance(known, Expr) else known)
            values.append(sources[-1])
    result = plain(run(function, *values))
    if not isinstance(result, NUMBERS):
        return None
    captured: Expr = capture(t, result, t.recorder.root.step("result", Result(function, tuple(sources))))
    return captured


def settle(t: Tracing, node: Expr, why: str) -> bool | int | float:
    """The number that an expression of captured numbers has now; the trace is then bound to it."""
    if node.stage == IN_KERNEL:
        raise Untraceable(f"{why} depends on {node!r}, which is known only inside the kernel", REMEDIES[why])
    exact = by_python(t, node)
    if exact is not None:
        return t.recorder.specialise(exact.value)
    if node.stage == AT_CALL:
        known = {param: const(t.recorder.specialise(param.value)) for param in leaves(node, ("param",))}
        node = rebuild(node, lambda old, args: known.get(old, Expr(old.op, old.dtype, args, old.value)))
    value: bool | int | float = fold(node).value
    return value


def truth(t: Tracing, value: Any) -> bool | Expr:
    """The truth value of a number: a Python bool where it is known now, else a bool Expr."""
    value = number(value)
    if isinstance(value, Expr):
        known = computed(t, lambda: build.cast(value, "bool"), bool, (value,))
        return known if known.stage == IN_KERNEL else bool(settle(t, known, "a condition"))
    return bool(run(bool, value))
