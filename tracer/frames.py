"""ast function -> frame: its names, its parameters bound to arguments, the frame it was defined in."""

from __future__ import annotations

import ast
import functools
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .errors import Untraceable
from .paths import Path
from .source import FunctionNode, Source
from .values import Callback

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass(eq=False)
class Frame:
    """One function (or comprehension) being read.

    names: the names that are local to it, assigned yet or not.
    function, path: what globals and closure cells are read from; None for a function defined inside a mod.
    parent: the lexically enclosing frame.
    home: the frame of the function that a comprehension stands in.
    entry: when the call began, on the clock of `Values`.
    """

    source: Source
    names: frozenset[str]
    variables: dict[str, Any] = field(default_factory=dict)
    function: Any = None  # a types.FunctionType
    path: Path | None = None
    parent: Frame | None = None
    entry: int = 0

    def __post_init__(self) -> None:
        self.home = self

    def comprehension(self) -> Frame:
        inner = Frame(self.source, frozenset(), parent=self, entry=self.entry)
        inner.home = self.home
        return inner

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
    """A function or lambda defined inside a mod; `run` is the reader's."""

    node: FunctionNode
    frame: Frame
    defaults: dict[str, Any]
    run: Callable[[Closure, list[Any], dict[str, Any]], Any]

    def traced(self, args: list[Any], kwargs: dict[str, Any]) -> Any:
        return self.run(self, args, kwargs)

    @property
    def name(self) -> str:
        return self.node.name if isinstance(self.node, ast.FunctionDef) else "<lambda>"


@functools.lru_cache(maxsize=512)
def local_names(node: FunctionNode) -> frozenset[str]:
    """The names that a function binds: parameters, targets, imports, inner functions; as Python decides it."""
    spec = node.args
    names = {arg.arg for arg in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs)}
    names |= {arg.arg for arg in (spec.vararg, spec.kwarg) if arg is not None}
    body: list[ast.AST] = [node.body] if isinstance(node, ast.Lambda) else list(node.body)
    for inner in (found for statement in body for found in _own_nodes(statement, in_comprehension=False)):
        if isinstance(inner, ast.Name):
            names.add(inner.id)
        elif isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(inner.name)
        elif isinstance(inner, ast.alias):
            names.add(inner.asname or inner.name.split(".")[0])
    return frozenset(names)


def _own_nodes(node: ast.AST, in_comprehension: bool) -> Iterator[ast.AST]:
    """Nodes of one scope that bind a name; of a comprehension only its walruses bind one here."""
    if isinstance(node, ast.Name):
        if isinstance(node.ctx, ast.Store) and not in_comprehension:
            yield node
        return
    if isinstance(node, ast.NamedExpr):
        yield node.target
        yield from _own_nodes(node.value, in_comprehension)
        return
    yield node
    if isinstance(node, _SCOPES):
        return
    inside = in_comprehension or isinstance(node, _COMPREHENSIONS)
    for child in ast.iter_child_nodes(node):
        yield from _own_nodes(child, inside)


def bind(
    name: str, spec: ast.arguments, args: list[Any], kwargs: dict[str, Any], defaults: dict[str, Any]
) -> dict[str, Any]:
    """Python's binding of arguments to parameters."""
    positional = [arg.arg for arg in (*spec.posonlyargs, *spec.args)]
    bound = dict(zip(positional, args, strict=False))
    extra = args[len(positional) :]
    if spec.vararg is not None:
        bound[spec.vararg.arg] = tuple(extra)
    elif extra:
        raise Untraceable(f"{name}() takes {len(positional)} arguments, not {len(args)}", "match the parameters")
    names = {*positional[len(spec.posonlyargs) :], *(arg.arg for arg in spec.kwonlyargs)}
    unknown: dict[str, Any] = {}
    for key, value in kwargs.items():
        if key in bound:
            raise Untraceable(f"{name}() got {key} twice", "pass it once")
        (bound if key in names else unknown)[key] = value
    if spec.kwarg is not None:
        bound[spec.kwarg.arg] = unknown
    elif unknown:
        raise Untraceable(f"{name}() has no parameter {next(iter(unknown))}", "match the parameters")
    for parameter in (*positional, *(arg.arg for arg in spec.kwonlyargs)):
        if parameter not in bound:
            if parameter not in defaults:
                raise Untraceable(f"{name}() misses the argument {parameter}", "pass it, or give it a default")
            bound[parameter] = defaults[parameter]
    return bound
