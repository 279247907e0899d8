"""ast names -> values: reading local, captured and builtin names, and assigning to targets."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable
from typing import Any

from .errors import Untraceable, with_article
from .frames import Frame
from .joins import Semantics
from .paths import Cell
from .values import ArrayView, Conflict

IMPORTS = {"mx": "import mlx.core as mx", "np": "import numpy as np", "math": "import math"}  # what remedies use


class NameReader:
    """Evaluates names and assigns to them; `values` says what every operation means."""

    values: Semantics

    def eval(self, node: ast.expr, frame: Frame) -> Any:
        """The value of an expression; what cannot be traced is reported at its innermost node."""
        method: Callable[[Any, Frame], Any] | None = getattr(self, f"eval_{type(node).__name__}", None)
        try:
            if method is None:
                kind = type(node).__name__
                raise Untraceable(f"{kind} expressions have no meaning in a mod", "use plain arithmetic on numbers")
            value = method(node, frame)
            if isinstance(value, Conflict):
                raise value.refuse()
            return value
        except Untraceable as error:
            if not error.places:
                error.places.append(frame.source.place(node))
            raise

    def eval_Constant(self, node: ast.Constant, frame: Frame) -> Any:
        return node.value

    def eval_Name(self, node: ast.Name, frame: Frame) -> Any:
        return self.lookup(node.id, frame)

    def lookup(self, name: str, frame: Frame) -> Any:
        scope: Frame | None = frame
        while scope is not None:
            if name in scope.variables:
                return scope.variables[name]
            if name in scope.names:
                raise Untraceable(f"{name} has no value here", f"give {name} a value on every path that leads here")
            scope = scope.parent
        return self._outside(frame.mangled(name), frame)

    def _outside(self, name: str, frame: Frame) -> Any:
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
            return self.values.capture(value, step)
        if name in function.__globals__:
            return self.values.capture(function.__globals__[name], path.step("global", name))
        if hasattr(builtins, name):
            value = getattr(builtins, name)
            path.check(
                ("builtin", name),
                lambda now: name not in now.__globals__ and getattr(builtins, name, None) is value,
            )
            return value
        remedy = f"add `{IMPORTS[name]}`" if name in IMPORTS else "check the spelling, or define it before the call"
        raise Untraceable(f"name {name!r} is not defined", remedy)

    # ---- targets -------------------------------------------------------------------------------------------

    def assign(self, target: ast.expr, value: Any, frame: Frame) -> None:
        if isinstance(target, ast.Name):
            frame.variables[target.id] = value
        elif isinstance(target, (ast.Tuple, ast.List)):
            self._unpack(target, list(self.values.iterate(value)), frame)
        elif isinstance(target, ast.Subscript):
            self.set_item(self.eval(target.value, frame), self.eval(target.slice, frame), value)
        else:
            raise Untraceable("a mod must not change objects", "keep intermediate values in local variables")

    def _unpack(self, target: ast.Tuple | ast.List, items: list[Any], frame: Frame) -> None:
        names = target.elts
        star = next((i for i, name in enumerate(names) if isinstance(name, ast.Starred)), None)
        if (star is None and len(items) != len(names)) or (star is not None and len(items) < len(names) - 1):
            raise Untraceable(f"{len(items)} values cannot be unpacked into {len(names)} names", "match the counts")
        if star is not None:
            end = len(items) - (len(names) - star - 1)
            items = [*items[:star], self.values.made(items[star:end]), *items[end:]]
        for name, item in zip(names, items, strict=True):
            self.assign(name.value if isinstance(name, ast.Starred) else name, item, frame)

    def set_item(self, container: Any, key: Any, value: Any) -> None:
        """`container[key] = value`, for a list or dict that the mod made."""
        if isinstance(container, ArrayView) or not isinstance(container, (list, dict)):
            kind = "a captured array"
            if not isinstance(container, ArrayView):
                kind = with_article(type(container).__name__)
            raise Untraceable(
                f"an element of {kind} is set",
                "a mod must not change what it captures: keep intermediate values in local variables",
            )
        self.values.check_change(container, "setting an element")
        wanted = "a dictionary key" if isinstance(container, dict) else "a container index"
        self.values.run(container.__setitem__, self.values.concrete(key, wanted), value)
