"""Python function -> Trace: the expression of a mod, what it captures, and whether it still holds.

A trace belongs to a function's code. Before each use its captures are read afresh through their paths; it is
made anew when a guard (a type, a length, a number that decided a branch) no longer holds.
"""

from __future__ import annotations

import functools
import inspect
import threading
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .build import INT32, cast
from .captures import ROOT, ArrayCapture, Guard, NumberCapture, Path
from .errors import Place, TraceError, Untraceable
from .expr import H, KV_IDX, Q_IDX, SCORE, B, Expr, const, leaves, rebuild, walk
from .read_statements import StatementReader
from .simplify import simplify
from .source import source_of

Kind = Literal["score_mod", "mask_mod"]
ARGUMENTS: dict[Kind, tuple[str, ...]] = {
    "score_mod": ("score", "b", "h", "q_idx", "kv_idx"),
    "mask_mod": ("b", "h", "q_idx", "kv_idx"),
}


@dataclass(frozen=True)
class Trace:
    """A mod as an expression. `expr` is float for a score_mod, bool for a mask_mod.

    arrays, numbers: the captures by slot, as `load` and `param` nodes number them.
    volatile: the mod calls Python code whose result may change, so it is traced anew at every call.
    """

    kind: Kind
    name: str
    expr: Expr
    arrays: tuple[ArrayCapture, ...]
    numbers: tuple[NumberCapture, ...]
    guards: tuple[Guard, ...]
    divisors: tuple[int, ...]
    volatile: bool

    def holds_for(self, function: Any) -> bool:
        """Whether every fact that the trace relied on is still so for `function`."""
        try:
            return all(guard.holds(guard.read(function)) for guard in self.guards)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError):
            return False  # a path that led to a capture is gone

    def read_arrays(self, function: Any) -> list[Any]:
        """The captured mlx and numpy arrays as they are now, by slot."""
        return [capture.read(function) for capture in self.arrays]

    def read_numbers(self, function: Any) -> list[bool | int | float]:
        """The captured numbers as they are now, by slot.

        Raises:
            OverflowError: an integer does not fit int32.
            ZeroDivisionError: a number that the mod divides by with // or % is 0.
        """
        values = []
        for capture in self.numbers:
            value = capture.read(function)
            if isinstance(value, np.generic):
                value = value.item()
            if capture.dtype == "int" and value not in INT32:
                raise OverflowError(f"{self.name}: {capture.name} = {value} does not fit int32; make it a float")
            values.append(value)
        for slot in self.divisors:
            if values[slot] == 0:
                raise ZeroDivisionError(f"{self.name}: integer division or modulo by {self.numbers[slot].name} = 0")
        return values


def trace(function: Callable[..., Any], kind: Kind) -> Trace:
    """Read `function` and evaluate it over symbols.

    Raises:
        TraceError: it cannot become a kernel; the message shows line, reason and remedy.

    Example:
        >>> def causal(b, h, q_idx, kv_idx):
        ...     return q_idx >= kv_idx
        >>> trace(causal, "mask_mod").expr
        kv_idx <= q_idx
    """
    name = name_of(function)
    try:
        check_parameters(function, kind)
        return _trace(function, kind, name)
    except Untraceable as error:
        places = error.places or _definition(function)
        raise TraceError(name, error.reason, error.remedy, places) from error.__cause__
    except RecursionError:
        raise TraceError(
            name, "the expression nests too deeply for Python", "split it over several assignments", _definition(function)
        ) from None


def _trace(function: Any, kind: Kind, name: str) -> Trace:
    reader = StatementReader()
    recorder = reader.values.recorder
    recorder.origins[id(function)] = (function, ROOT)
    symbols: list[Any] = [SCORE, B, H, Q_IDX, KV_IDX]
    result = reader.values.number(reader.values.call(function, symbols[-len(ARGUMENTS[kind]) :], {}))
    expr = _result(result, kind, name)
    fixed = {slot: recorder.number_values[slot] for slot in recorder.specialised}
    expr = rebuild(expr, lambda node, args: _specialised(node, args, fixed))
    expr = simplify(expr)
    used_arrays = sorted({node.value[0] for node in leaves(expr, ("load",))})
    used_numbers = sorted({node.value for node in leaves(expr, ("param",))})
    expr = rebuild(expr, lambda node, args: _renumbered(node, args, used_arrays, used_numbers))
    divisors = {
        node.args[1].value
        for node in walk(expr)
        if node.op in ("floor_div", "mod") and node.dtype == "int" and node.args[1].op == "param"
    }
    return Trace(
        kind,
        name,
        expr,
        tuple(recorder.arrays[slot] for slot in used_arrays),
        tuple(recorder.numbers[slot] for slot in used_numbers),
        tuple(recorder.guards),
        tuple(sorted(divisors)),
        recorder.volatile,
    )


def _result(result: Any, kind: Kind, name: str) -> Expr:
    if result is None:
        raise Untraceable(f"{name} returns nothing", "end it with a `return`")
    if not isinstance(result, (Expr, bool, int, float)):
        raise Untraceable(f"{name} returns a {type(result).__name__}", "return one number")
    if kind == "score_mod":
        return cast(result, "float")
    if isinstance(result, float) or isinstance(result, Expr) and result.dtype == "float":
        raise Untraceable(
            f"the mask_mod {name} returns a float, where True or False is expected",
            "return a comparison, or decorate it with @flex.score_mod if it computes a score",
        )
    return cast(result, "bool")


def _specialised(node: Expr, args: tuple[Expr, ...], fixed: dict[int, bool | int | float]) -> Expr:
    if node.op == "param" and node.value in fixed:
        return const(fixed[node.value])
    return Expr(node.op, node.dtype, args, node.value)


def _renumbered(node: Expr, args: tuple[Expr, ...], arrays: Sequence[int], numbers: Sequence[int]) -> Expr:
    value = node.value
    if node.op == "param":
        value = numbers.index(value)
    elif node.op == "load":
        value = (arrays.index(value[0]), value[1])
    return Expr(node.op, node.dtype, args, value)


# ---- what kind of function it is ---------------------------------------------------------------------------


def name_of(function: Any) -> str:
    """The name that messages, manifests and kernels use."""
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def underlying(function: Any) -> types.FunctionType | None:
    """The function written in Python that a call of `function` ends in, if there is one."""
    while isinstance(function, functools.partial):
        function = function.func
    if not isinstance(function, (types.FunctionType, types.MethodType)) and not isinstance(function, type):
        function = getattr(function, "__call__", function)  # noqa: B004 (the bound method itself is wanted)
    function = getattr(function, "__func__", function)
    return function if isinstance(function, types.FunctionType) else None


def check_parameters(function: Any, kind: Kind) -> None:
    """Raises Untraceable unless `function` is plain Python and takes the arguments of its kind."""
    wanted = ARGUMENTS[kind]
    python = underlying(function)
    if python is None:
        raise Untraceable(
            f"{name_of(function)} is not a function written in Python", f"wrap it: def mod({', '.join(wanted)}): ..."
        )
    if python.__code__.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
        source_of(python.__code__)  # says which, and what to write
    count = count_parameters(function)
    if count is not None and count != len(wanted):
        raise Untraceable(
            f"a {kind} takes {len(wanted)} arguments ({', '.join(wanted)}), {name_of(function)} takes {count}",
            f"write def {name_of(function).strip('<>')}({', '.join(wanted)}): ...",
        )


def count_parameters(function: Any) -> int | None:
    """How many positional parameters without default a call must give; None where *args takes any number."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.default is p.empty for p in parameters if p.kind in positional)


def _definition(function: Any) -> list[Place]:
    python = underlying(function)
    if python is None:
        return []
    code = python.__code__
    return [Place(code.co_filename, code.co_name, code.co_firstlineno)]


# ---- traces by code ------------------------------------------------------------------------------------------


class Traces:
    """The traces made in this process, by the code of the function: a factory that makes the same mod again with
    other captured values finds the trace of the first."""

    PER_CODE = 32

    def __init__(self) -> None:
        self._by_code: dict[Any, list[Trace]] = {}
        self._lock = threading.Lock()

    def get(self, function: Any, kind: Kind) -> Trace:
        """A trace that holds for `function` now.

        Raises:
            TraceError: as `trace`.
        """
        python = underlying(function)
        key = (kind, type(function), None if python is None else python.__code__)
        known = self._by_code.get(key, ())
        for found in known:
            if found.holds_for(function):
                return found
        made = trace(function, kind)
        if not made.volatile:
            with self._lock:
                self._by_code[key] = [made, *self._by_code.get(key, ())][: self.PER_CODE]
        return made
