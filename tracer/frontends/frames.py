"""Python function -> frame: its names, its parameters bound to arguments, the frame it was defined in.

Shared by all front ends: nothing here knows how a function is read.
"""

from __future__ import annotations

import builtins
import importlib.util
import types
from dataclasses import dataclass, field
from typing import Any

from .. import semantics as verbs
from ..captures.guards import is_builtin
from ..captures.paths import Cell, Path
from ..errors import Untraceable
from ..semantics import Callback, Tracing

MAX_DEPTH = 200
IMPORTS = {"mx": "import mlx.core as mx", "np": "import numpy as np", "math": "import math"}  # what remedies use


@dataclass(frozen=True)
class Parameters:
    """The names that a function gives to what it is called with.

    positional: those that an argument can be passed to by its position, the first `only_positional` by that alone.
    only_named: those behind the `*`.
    rest, named_rest: the names in `*rest` and `**named_rest`.
    """

    positional: tuple[str, ...]
    only_positional: int = 0
    only_named: tuple[str, ...] = ()
    rest: str | None = None
    named_rest: str | None = None

    @property
    def names(self) -> frozenset[str]:
        """All of them."""
        return frozenset(
            (*self.positional, *self.only_named, *(name for name in (self.rest, self.named_rest) if name is not None))
        )


@dataclass(eq=False)
class Frame:
    """One function (or comprehension) being read.

    name: what messages call the function.
    names: the names that are local to it, assigned yet or not.
    function, path: what globals and closure cells are read from; None for a function defined inside a mod.
    parent: the lexically enclosing frame.
    home: the frame of the function that a comprehension stands in.
    entry: when the call began, on the clock of the trace.
    """

    tracing: Tracing
    name: str
    parameters: Parameters
    names: frozenset[str]
    variables: dict[str, Any] = field(default_factory=dict)
    function: Any = None  # a types.FunctionType
    path: Path | None = None
    parent: Frame | None = None
    entry: int = 0

    def __post_init__(self) -> None:
        self.home: Frame = self

    def mangled(self, name: str) -> str:
        """The real name of an attribute or outside variable: inside a class, `__name` stands for `_Class__name`."""
        if not name.startswith("__") or name.endswith("__"):
            return name
        *scopes, _ = self.outermost()[0].__qualname__.split(".")
        while scopes and scopes[-1] == "<locals>":
            del scopes[-2:]
        return f"_{scopes[-1].lstrip('_')}{name}" if scopes else name

    def outermost(self) -> tuple[types.FunctionType, Path]:
        """The function from outside in which this frame lies, and its path."""
        frame = self
        while frame.parent is not None:
            frame = frame.parent
        assert frame.function is not None and frame.path is not None
        return frame.function, frame.path


@dataclass(eq=False)
class Closure(Callback):
    """A function or lambda defined inside a mod.

    name: its own, or "<lambda>".
    frame: where it was defined.
    """

    name: str
    frame: Frame


# ---- names -------------------------------------------------------------------------------------------------------


def lookup(frame: Frame, name: str) -> Any:
    """The value of a name: local, of an enclosing function, captured or builtin."""
    scope: Frame | None = frame
    while scope is not None:
        if name in scope.variables:
            return scope.variables[name]
        if name in scope.names:
            raise Untraceable(f"{name} has no value here", f"give {name} a value on every path that leads here")
        scope = scope.parent
    return outside(frame, frame.mangled(name))


def outside(frame: Frame, name: str) -> Any:
    """The value of a name that the outermost function takes from its closure, its globals or the builtins."""
    function, path = frame.outermost()
    free = function.__code__.co_freevars
    if name in free:
        step = path.step("cell", Cell(name, free.index(name)))
        if step.is_read:
            return step.seen
        try:
            value = (function.__closure__ or ())[step.key.index].cell_contents
        except ValueError:
            raise Untraceable(
                f"{name} has no value yet in the enclosing function", f"assign {name} before using the mod"
            ) from None
        return verbs.capture(frame.tracing, value, step)
    if name in function.__globals__:
        return verbs.capture(frame.tracing, function.__globals__[name], path.step("global", name))
    if hasattr(builtins, name):
        value = getattr(builtins, name)
        path.check(("builtin", name), is_builtin(name, value))
        return value
    remedy = f"add `{IMPORTS[name]}`" if name in IMPORTS else "check the spelling, or define it before the call"
    raise Untraceable(f"name {name!r} is not defined", remedy)


def assign_in_expression(frame: Frame, name: str, value: Any) -> Any:
    """`(name := value)`, which assigns in the function, also from a comprehension inside it."""
    home, t = frame.home, frame.tracing
    home.variables[name] = value
    if t.unmerged > home.entry:
        t.half_assigned.append((home, name))
    return value


def absolute_name(frame: Frame, name: str, level: int) -> str:
    """The name of a module that an `import` names with `level` dots before it."""
    if not level:
        return name
    package = str(frame.outermost()[0].__globals__.get("__package__") or "")
    resolved: str = verbs.run(importlib.util.resolve_name, "." * level + name, package)
    return resolved


def super_arguments(frame: Frame) -> list[Any]:
    """What Python takes for `super()`: the class that the method stands in, and its first argument."""
    positional = frame.parameters.positional
    if frame.home.parent is not None or not positional:
        raise Untraceable("super() stands in a function inside the method", "call super() in the method itself")
    return [lookup(frame, "__class__"), frame.home.variables[positional[0]]]


# ---- calls -------------------------------------------------------------------------------------------------------


def defaults_of(
    t: Tracing,
    function: types.FunctionType,
    path: Path,
    parameters: Parameters,
    args: list[Any],
    kwargs: dict[str, Any],
) -> dict[str, Any]:
    """The default arguments of a function from outside that a call leaves as they are."""
    names = parameters.positional
    defaults: dict[str, Any] = {}
    given = function.__defaults__ or ()
    for index, name in enumerate(names[len(names) - len(given) :]):
        if name not in kwargs and names.index(name) >= len(args):
            defaults[name] = verbs.capture(t, given[index], path.step("default", (index, name)))
    for name, value in (function.__kwdefaults__ or {}).items():
        if name not in kwargs:
            defaults[name] = verbs.capture(t, value, path.step("kwdefault", name))
    return defaults


def arguments_of(
    name: str, parameters: Parameters, args: list[Any], kwargs: dict[str, Any], defaults: dict[str, Any]
) -> dict[str, Any]:
    """Python's binding of arguments to parameters."""
    positional = parameters.positional
    bound = dict(zip(positional, args, strict=False))
    extra = args[len(positional) :]
    if parameters.rest is not None:
        bound[parameters.rest] = tuple(extra)
    elif extra:
        raise Untraceable(f"{name}() takes {len(positional)} arguments, not {len(args)}", "match the parameters")
    names = {*positional[parameters.only_positional :], *parameters.only_named}
    unknown: dict[str, Any] = {}
    for key, value in kwargs.items():
        if key in bound:
            raise Untraceable(f"{name}() got {key} twice", "pass it once")
        (bound if key in names else unknown)[key] = value
    if parameters.named_rest is not None:
        bound[parameters.named_rest] = unknown
    elif unknown:
        raise Untraceable(f"{name}() has no parameter {next(iter(unknown))}", "match the parameters")
    for parameter in (*positional, *parameters.only_named):
        if parameter not in bound:
            if parameter not in defaults:
                raise Untraceable(f"{name}() misses the argument {parameter}", "pass it, or give it a default")
            bound[parameter] = defaults[parameter]
    return bound


class Call:
    """One call of a function that a front end reads: a `with` around the running of its body."""

    def __init__(self, frame: Frame, args: list[Any], kwargs: dict[str, Any], defaults: dict[str, Any]) -> None:
        frame.variables = arguments_of(frame.name, frame.parameters, args, kwargs, defaults)
        self._frame = frame
        self._since = frame.tracing.since

    def __enter__(self) -> None:
        t = self._frame.tracing
        if t.depth >= MAX_DEPTH:
            raise self._too_deep()
        t.depth += 1
        self._frame.entry = verbs.tick(t)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        t = self._frame.tracing
        t.since = self._since
        t.depth -= 1
        if isinstance(error, RecursionError) and t.depth >= 19:
            raise self._too_deep() from None

    def _too_deep(self) -> Untraceable:
        return Untraceable(
            f"the recursion of {self._frame.name} goes too deep, or does not end",
            "recurse over a Python number with a near end, or write a loop",
        )
