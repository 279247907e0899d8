"""Python function -> Trace: the expression of a mod, what it captures, and whether it still holds.

A trace belongs to a function's code. Before each use its captures are read afresh through their paths; it is
made anew when a check (a type, a length, a number that decided a branch) no longer holds.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import types
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from . import semantics as verbs
from .bounds.array_sizes import ArraySizes, Sizes, shapes_of
from .captures.guards import ArrayCapture, NumberCapture, Reads
from .captures.recorder import Recorder
from .emit.python import function_text
from .errors import Place, TraceError, Untraceable, with_article
from .expr.build import cast
from .expr.node import AT_CALL, KV_IDX, Q_IDX, SCORE, B, Expr, H, const, leaves, rebuild, walk
from .expr.simplify import simplify
from .locks import renew_at_fork
from .reader import Reader, follow, reader_in
from .semantics.numbers import by_python
from .semantics.tracing import Tracing
from .source.find import NoSource
from .source.render import canonical_source
from .source.signature import ARGUMENTS, Kind, check_parameters, name_of, underlying


@dataclass(frozen=True)
class Formula:
    """What a mod computes: its expression over indices and captures, with no captured value, nor where to read one.

    A kernel is made from it and may outlive the mod. Two formulas are equal where their expressions are.
    """

    expr: Expr
    kind: Kind = field(compare=False)
    name: str = field(compare=False)
    arrays: tuple[ArrayCapture, ...] = field(compare=False)
    numbers: tuple[NumberCapture, ...] = field(compare=False)
    code_ref: weakref.ref[types.CodeType] | None = field(default=None, compare=False)

    def source(self) -> str:
        """The user's function as canonical text; where its text is not known, its expression as a function."""
        code = None if self.code_ref is None else self.code_ref()
        if code is not None:
            with contextlib.suppress(NoSource):
                return canonical_source(code)
        return function_text(self.name, ARGUMENTS[self.kind], self.expr)


@dataclass(frozen=True)
class Trace:
    """A mod as an expression. `expr` is float for a score_mod, bool for a mask_mod.

    arrays, numbers: the captures by slot, as `load` and `param` nodes number them.
    volatile: the mod calls Python code whose result may change, so it is traced anew at every call.
    reader: what it was read from: the source of the function, or its bytecode where there is none.
    code_ref: refers to the code of the function, without keeping it alive: a cell that is run again makes another.
    """

    kind: Kind
    name: str
    expr: Expr
    arrays: tuple[ArrayCapture, ...]
    numbers: tuple[NumberCapture, ...]
    reads: Reads
    volatile: bool
    reader: Reader = "source"
    code_ref: weakref.ref[types.CodeType] | None = field(default=None, compare=False)

    @property
    def code(self) -> types.CodeType | None:
        """The code of the function, for showing its source; None where there is none any more."""
        return None if self.code_ref is None else self.code_ref()

    def source(self) -> str:
        """The user's function as canonical text."""
        return self.formula.source()

    @functools.cached_property
    def formula(self) -> Formula:
        """The trace without the way to its captures."""
        return Formula(self.expr, self.kind, self.name, self.arrays, self.numbers, self.code_ref)

    @functools.cached_property
    def array_sizes(self) -> ArraySizes:
        """Which sizes of a call the captured arrays are long enough for."""
        starts = [slot for slot, number in enumerate(self.numbers) if number.is_start]
        return ArraySizes(self.name, self.expr, self.arrays, starts)


class Bound(NamedTuple):
    """A trace with the captured arrays (mlx or numpy) and numbers of one moment, by slot."""

    trace: Trace
    arrays: list[Any]
    numbers: list[bool | int | float]

    def check_sizes(self, sizes: Sizes) -> None:
        """Raises ValueError where a captured array is too short for (batch, query heads, q_len, kv_len)."""
        self.trace.array_sizes.check(shapes_of(self.arrays), tuple(self.numbers), sizes)


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
        raise TraceError(name, error.reason, error.remedy, error.places or _definition(function)) from error.__cause__
    except RecursionError:
        raise TraceError(
            name, "an expression nests too deeply", "split it over several assignments", _definition(function)
        ) from None


def _trace(function: Any, kind: Kind, name: str) -> Trace:
    t, python = verbs.begin(follow), underlying(function)
    recorder = t.recorder
    recorder.remember(function, recorder.root)
    symbols: list[Any] = [SCORE, B, H, Q_IDX, KV_IDX]
    result = verbs.number(verbs.call(t, function, symbols[-len(ARGUMENTS[kind]) :], {}))
    whole = rebuild(_result(result, kind, name), lambda node, args: _by_numbers(node, args, t))
    divisors, counts = _right_numbers(whole, "floor_div", "mod"), _right_numbers(whole, "shl", "shr")
    _check_fixed(divisors, counts, recorder)
    expr = simplify(_with_constants(whole, recorder))
    arrays = sorted({node.value[0] for node in leaves(expr, ("load",))})
    numbers = sorted({node.value for node in leaves(expr, ("param",))})
    expr = rebuild(expr, lambda node, args: _renumbered(node, args, arrays, numbers))
    return Trace(
        kind,
        name,
        expr,
        tuple(recorder.arrays[slot][0] for slot in arrays),
        tuple(recorder.numbers[slot][0] for slot in numbers),
        recorder.reads(
            arrays,
            numbers,
            *([numbers.index(slot) for slot in slots if slot in numbers] for slots in (divisors, counts)),
        ),
        recorder.volatile,
        "source" if python is None else reader_in(t, python.__code__),
        None if python is None else weakref.ref(python.__code__),
    )


def _result(result: Any, kind: Kind, name: str) -> Expr:
    if result is None:
        raise Untraceable(f"{name} returns nothing", "end it with a `return`")
    if not isinstance(result, (Expr, bool, int, float)):
        remedy = "return one number"
        if callable(result):
            remedy += f"; where {name} makes the mod, call it and pass what it gives: {name}(...)"
        raise Untraceable(f"{name} returns {with_article(type(result).__name__)}", remedy)
    if kind == "score_mod":
        return cast(result, "float")
    if isinstance(result, float) or (isinstance(result, Expr) and result.dtype == "float"):
        raise Untraceable(
            f"the mask_mod {name} returns a float, where True or False is expected",
            "return a comparison, or decorate it with @flex.score_mod if it computes a score",
        )
    return cast(result, "bool")


def _by_numbers(node: Expr, args: tuple[Expr, ...], t: Tracing) -> Expr:
    """A divisor or shift count that Python computes from captured numbers as a number of its own, which is checked."""
    if node.dtype == "int" and node.op in ("floor_div", "mod", "shl", "shr") and node.args[1].stage == AT_CALL:
        number = by_python(t, node.args[1])
        args = args if number is None else (args[0], number)
    return Expr(node.op, node.dtype, args, node.value)


def _right_numbers(expr: Expr, *ops: str) -> list[int]:
    """The slots of the captured numbers that are the right operands of these ops on ints."""
    rights = [node.args[1] for node in walk(expr) if node.op in ops and node.dtype == "int"]
    return sorted({right.value for right in rights if right.op == "param"})


def _check_fixed(divisors: Sequence[int], counts: Sequence[int], recorder: Recorder) -> None:
    """What `Reads.numbers` checks at each call, for the numbers that the trace is bound to."""
    for slot, value in recorder.specialised.items():
        what = f"{recorder.numbers[slot][1]} = {value}"
        if slot in divisors and value == 0:
            raise Untraceable(f"an integer division or modulo by {what}", "divide by another number")
        if slot in counts and value < 0:
            raise Untraceable(f"a shift with the negative count {what}", "shift the other way")


def _with_constants(expr: Expr, recorder: Recorder) -> Expr:
    """The numbers that the trace is bound to as constants."""
    if not recorder.specialised:
        return expr

    def fixed(node: Expr, args: tuple[Expr, ...]) -> Expr:
        if node.op == "param" and node.value in recorder.specialised:
            return cast(const(recorder.specialised[node.value]), node.dtype)
        return Expr(node.op, node.dtype, args, node.value)

    return rebuild(expr, fixed)


def _renumbered(node: Expr, args: tuple[Expr, ...], arrays: Sequence[int], numbers: Sequence[int]) -> Expr:
    value = node.value
    if node.op == "param":
        value = numbers.index(value)
    elif node.op == "load":
        value = (arrays.index(value[0]), value[1])
    return Expr(node.op, node.dtype, args, value)


def _definition(function: Any) -> list[Place]:
    python = underlying(function)
    if python is None:
        return []
    code = python.__code__
    return [Place(code.co_filename, code.co_name, code.co_firstlineno)]


class Traces:
    """The traces made in this process, by the code of the function: a factory that makes the same mod again with
    other captured values finds the trace of the first. They go with that code."""

    PER_CODE = 32
    ATTEMPTS = 5  # another thread may change what a mod captures while it is traced

    def __init__(self) -> None:
        self._by_code: dict[Any, tuple[weakref.ref[types.CodeType], list[Trace]]] = {}
        self._lock = threading.RLock()
        renew_at_fork(self)

    def get(self, function: Any, kind: Kind) -> Trace:
        """A trace that holds for `function` now.

        Raises:
            TraceError: as `trace`.
        """
        return self._find(function, kind)[0]

    def bind(self, function: Any, kind: Kind) -> Bound:
        """A trace that holds for `function` now, with what it captures.

        Raises:
            TraceError: as `trace`.
            OverflowError, ZeroDivisionError, ValueError: a captured number cannot be used.
        """
        found, objects = self._find(function, kind)
        return Bound(found, found.reads.arrays(objects), found.reads.numbers(objects, found.name))

    def _forget(self, key: Any) -> Callable[[Any], None]:
        """A callback that ends the traces of a code with it. It takes no lock: a code may die at any line."""
        by_code = self._by_code

        def forget(_: Any) -> None:
            by_code.pop(key, None)

        return forget

    def _find(self, function: Any, kind: Kind) -> tuple[Trace, list[Any]]:
        code = getattr(underlying(function), "__code__", None)
        key = (kind, weakref.ref(type(function)), id(code))
        known = self._by_code.get(key)
        if known is not None:
            for found in known[1]:
                objects = found.reads.objects(function)
                if objects is not None:
                    return found, objects
        for _ in range(self.ATTEMPTS):
            made = trace(function, kind)
            objects = made.reads.objects(function)
            if objects is not None:
                if not made.volatile and code is not None:
                    with self._lock:
                        ref, others = self._by_code.get(key) or (weakref.ref(code, self._forget(key)), [])
                        self._by_code[key] = (ref, [made, *others][: self.PER_CODE])
                return made, objects
        raise TraceError(
            name_of(function),
            "what it captures is another object at every look",
            "let properties return a stored object instead of making one",
            _definition(function),
        )
