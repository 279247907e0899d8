"""Code object -> frame: its names and parameters, the stack of values, and what lies on it half made."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from ... import semantics as verbs
from ...errors import Place
from ...expr.node import Expr
from ...semantics import Callback, Conflict, Tracing
from .. import refusals
from ..branches import Lanes, Variables
from ..frames import Call, Closure, Frame, Parameters
from .decode import Step, decode
from .flow import Block

INLINE = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")  # functions that stand for an expression
NOTHING = object()


@dataclass(eq=False)
class CodeFrame(Frame):
    """A frame whose function is read from its code.

    The stack lies among the variables of the lanes, under numbers from the bottom up, so that both come together alike.

    run: gives what a call of a frame's function returns, or the iterator of a generator expression.
    stack: the values on the stack, in the block at hand.
    scopes: the frames of comprehensions that the compiler has put in line here, whose names functions take along.
    asked: the condition, known only inside the kernel, that parted lanes last, and where it stands.
    yielded: what a generator expression gives next.
    since: `Tracing.since` as it was when that was asked for.
    """

    code: types.CodeType = field(kw_only=True)
    run: Callable[[CodeFrame], Any] = field(kw_only=True)
    stack: list[Any] = field(default_factory=list)
    scopes: list[Frame] = field(default_factory=list)
    asked: tuple[Expr, Place] | None = None
    yielded: Any = None
    since: int = 0

    @property
    def scope(self) -> Frame:
        return self.scopes[-1] if self.scopes else self

    # ---- the stack -------------------------------------------------------------------------------------------------

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        return _whole(self.stack.pop())

    def pop_many(self, count: int) -> list[Any]:
        """The topmost values, the lowest first."""
        return [self.pop() for _ in range(count)][::-1]

    def top(self, depth: int = 1) -> Any:
        """The value that lies `depth` from above, left there."""
        value = self.stack[-depth] = _whole(self.stack[-depth])
        return value

    # ---- lanes -----------------------------------------------------------------------------------------------------

    def take(self, variables: Variables) -> None:
        """Lanes come here with these variables and this stack."""
        named: dict[str, Any] = {name: value for name, value in variables.items() if isinstance(name, str)}
        self.variables = named
        self.stack = [variables[index] for index in range(len(variables) - len(self.variables))]

    def lanes(self, to: Block) -> Lanes:
        """The lanes that run this block, going on at another."""
        if self.stack and isinstance(self.stack[-1], (InMaking, FunctionInMaking)):
            self.top()
        return self.lanes_with(self.stack, to)

    def lanes_with(self, stack: list[Any], to: Block) -> Lanes:
        """Lanes with this stack. What a block only takes off it is off at once, for lanes that meet behind it."""
        for index, value in enumerate(stack):
            if isinstance(value, FunctionInMaking):  # one for all lanes
                stack[index] = value.whole()
        while len(to.after) == 1 and to.loop is None and all(step.do == "pop" for step in to.steps):
            stack = stack[: len(stack) - len(to.steps)]
            to = to.after[0]
        return Lanes(to, {**self.variables, **dict(enumerate(stack))}, verbs.tick(self.tracing))

    def place(self, step: Step) -> Place:
        """Where a step comes from. There is no text: the instructions of its line stand for it, as `dis` shows them."""
        shown = "; ".join(_shown_lines(self.code)[step.span.line])
        start = shown.index(step.shown)
        first, column, last, end_column = step.span
        columns = (column, end_column) if column is not None and end_column is not None and first == last else None
        line = first or self.code.co_firstlineno
        return Place(self.code.co_filename, self.name, line, start, start + len(step.shown), shown, columns)


@lru_cache(maxsize=512)
def _shown_lines(code: types.CodeType) -> dict[int | None, list[str]]:
    """The instructions that every line of the source became."""
    lines: dict[int | None, list[str]] = {}
    for step in decode(code):
        line = lines.setdefault(step.span.line, [])
        if not line or line[-1] != step.shown:
            line.append(step.shown)
    return lines


def parameters_of(code: types.CodeType) -> Parameters:
    names = code.co_varnames
    positional, named = code.co_argcount, code.co_argcount + code.co_kwonlyargcount
    has_rest, has_named_rest = code.co_flags & inspect.CO_VARARGS, code.co_flags & inspect.CO_VARKEYWORDS
    return Parameters(
        names[:positional],
        code.co_posonlyargcount,
        names[positional:named],
        names[named] if has_rest else None,
        names[named + bool(has_rest)] if has_named_rest else None,
    )


def local_names(code: types.CodeType) -> frozenset[str]:
    return frozenset((*code.co_varnames, *code.co_cellvars))


# ---- what lies on the stack half made -------------------------------------------------------------------------------


@dataclass(eq=False)
class InMaking:
    """A list, set or dict to which elements are added one by one.

    since: when it was begun.
    """

    tracing: Tracing
    held: Any
    is_set: bool = False
    since: int = 0

    def __post_init__(self) -> None:
        self.since = verbs.tick(self.tracing)

    def whole(self) -> Any:
        return verbs.set_of(self.tracing, self.held) if self.is_set else verbs.made(self.tracing, self.held)


@dataclass(eq=False)
class FunctionInMaking:
    """A function that a `def`, a `lambda` or (before 3.12) a comprehension inside a mod makes."""

    frame: CodeFrame
    code: types.CodeType
    defaults: dict[str, Any] = field(default_factory=dict)
    made: Closure | None = None

    def give(self, attribute: str, value: Any) -> None:
        """One of the things that instructions add to it."""
        if attribute == "kwdefaults":
            self.defaults.update(value)
        elif attribute == "defaults":
            names = self.code.co_varnames[: self.code.co_argcount]
            self.defaults.update(zip(names[len(names) - len(value) :], value, strict=True))

    def whole(self) -> Closure:
        if self.made is None:
            self.made = self._make()
        return self.made

    def _make(self) -> Closure:
        outer, code = self.frame, self.code
        if code.co_flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
            raise refusals.statement("async def")
        parent, parameters, names = outer.scope, parameters_of(code), local_names(code)

        def called(*args: Any, **kwargs: Any) -> Any:
            inner = CodeFrame(outer.tracing, code.co_name, parameters, names, parent=parent, code=code, run=outer.run)
            if code.co_name in INLINE:
                inner.home, inner.entry, inner.name = outer.home, outer.entry, outer.name
                inner.variables = {".0": args[0]}
                return outer.run(inner)
            with Call(inner, list(args), kwargs, self.defaults):
                return outer.run(inner)

        return Closure(called, code.co_name, outer)


@dataclass(frozen=True)
class Saved:
    """A local variable that a comprehension in line uses for its own, as it was before."""

    value: Any
    has_scope: bool


@dataclass(frozen=True)
class Converted:
    """A value of an f-string, to be written as `conversion` says."""

    value: Any
    conversion: str | None


@dataclass(eq=False)
class Failure(Callback):
    """What `assert` raises: called, it takes its message."""

    message: str = ""


def _whole(value: Any) -> Any:
    """A value that is used: a container or function is made whole, one that lanes disagree about is refused."""
    if isinstance(value, Conflict):
        raise value.refuse()
    return value.whole() if isinstance(value, (InMaking, FunctionInMaking)) else value
