"""Calls on values: a function of the table builds an Expr, one written in Python is traced, the rest runs now."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import os.path
import types
from collections.abc import Callable
from typing import Any

from . import functions, once, porting
from .errors import Untraceable
from .expr import Expr
from .formulas import Rule
from .paths import Path
from .running import Running
from .signature import name_of
from .values import ArrayView, Callback, UnknownSet

PLAIN = (Expr, bool, int, float, str, bytes, tuple, range, type(None))
LIBRARIES = frozenset({"numpy", "mlx", "scipy", *porting.FOREIGN})
STANDARD_LIBRARY = os.path.dirname(inspect.__file__)


class Calls(Running):
    """What a call means on values. `inline(function, path, args, kwargs)` is the reader's: it traces a call."""

    def __init__(self, inline: Callable[[types.FunctionType, Path, list[Any], dict[str, Any]], Any]) -> None:
        super().__init__()
        self.inline = inline

    def call(self, function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if isinstance(function, Callback):
            return function.traced(args, kwargs)
        if isinstance(function, (Expr, ArrayView)):
            raise Untraceable("a number or array is called like a function", "remove the call parentheses")
        if isinstance(function, functools.partial) and not self.is_captured(function):
            return self.call(function.func, [*function.args, *args], {**function.keywords, **kwargs})
        once.check(function)
        special = SPECIAL.get(id(function))
        if special is not None:
            return self._built(function, functools.partial(special, self), args, kwargs)
        rule = functions.rule_for(function)
        if rule is not None:
            return self._call_rule(function, rule, args, kwargs)
        if porting.is_foreign(function, args):
            raise porting.advice(function)
        python = self._python_function(function, args, kwargs)
        if python is not None:
            return self._call_traced(function, *python)
        return self.run_now(function, args, kwargs)

    # ---- functions of the table ----------------------------------------------------------------------------

    def _call_rule(self, function: Any, rule: Rule, args: list[Any], kwargs: dict[str, Any]) -> Any:
        reduces = function in (sum, any, all, math.prod) or (function in (min, max) and len(args) == 1)
        if reduces and args:
            if isinstance(args[0], ArrayView) and args[0].rank:
                raise Untraceable(
                    f"{name_of(function)}({args[0].path}) reduces a captured array, and a mod sees one score at a time",
                    f"compute it outside the mod, total = mx.{name_of(function)}({args[0].path}), and capture total",
                )
            args = [self._operands(function, args[0]), *args[1:]]
        args = [self.number(arg) for arg in args]
        kwargs = {name: self.number(value) for name, value in kwargs.items()}
        values = [*args, *kwargs.values()]
        ordered = ("key" in kwargs or "default" in kwargs) and not any(map(self.is_in_kernel, values))
        if ordered or not self.is_symbolic(values):
            if functions.package_of(function) != "mlx":
                return self.run_now(function, args, kwargs)
            result = self._built(function, rule, args, kwargs)
            return self.settle(result, "an argument") if isinstance(result, Expr) else result
        if functions.package_of(function) == "mlx" or kwargs:
            return self._built(function, rule, args, kwargs)
        python, operands = (_spread(function, args[1:]), args[0]) if reduces else (function, args)
        result = self.computed(lambda: self._built(function, rule, args, kwargs), python, tuple(operands))
        if function in (min, max) and isinstance(result, Expr) and result not in operands:
            return self.one_of(result, *operands)
        return result

    def _operands(self, function: Any, items: Any) -> list[Any]:
        """The numbers to reduce; any() and all() stop at the first that decides."""
        operands = []
        items = items.elements if isinstance(items, UnknownSet) and function in (any, all, min, max) else items
        with self.for_some() as decides:
            for item in self.iterate(items):
                operands.append(self.number(item))
                if function not in (any, all):
                    continue
                if self.is_symbolic(item):
                    decides()
                elif bool(self.truth(item)) is (function is any):
                    break
        return operands

    def _built(self, function: Any, rule: Rule, args: list[Any], kwargs: dict[str, Any]) -> Any:
        try:
            return rule(*args, **kwargs)
        except TypeError as error:
            given = ", ".join([*("..." for _ in args), *(f"{name}=..." for name in kwargs)])
            raise Untraceable(
                f"{name_of(function)}({given}) has no kernel form: {error}", "pass the numbers alone, by position"
            ) from error

    # ---- functions written in Python -----------------------------------------------------------------------

    def _python_function(
        self, function: Any, args: list[Any], kwargs: dict[str, Any]
    ) -> tuple[types.FunctionType, Path, list[Any], dict[str, Any]] | None:
        """The function written in Python behind a callable, its path, and its full arguments."""
        recorder = self.recorder
        while not isinstance(function, types.FunctionType):
            once.check(function)
            path = recorder.origin(function) if self.is_captured(function) else None
            if isinstance(function, functools.partial):
                path = path or recorder.held(function)
                bound = self.capture(function.args, path.step("attr", "args"))
                args = [*self.iterate(bound), *args]
                kwargs = {**self.known(self.capture(function.keywords, path.step("attr", "keywords"))), **kwargs}
                function = self.capture(function.func, path.step("attr", "func"))
            elif isinstance(function, types.MethodType):
                path = path or recorder.held(function)
                owner = function.__self__
                known = self.is_captured(owner)
                args = [owner if known else self.capture(owner, path.step("attr", "__self__")), *args]
                function = self.capture(function.__func__, path.step("attr", "__func__"))
            else:
                name = _python_attribute(function)
                if name is None:
                    return None
                path = path or recorder.held(function)
                function = self.capture(getattr(function, name), path.step("attr", name))
        return function, recorder.origin(function), args, kwargs

    def _call_traced(
        self, called: Any, function: types.FunctionType, path: Path, args: list[Any], kwargs: dict[str, Any]
    ) -> Any:
        values = [*args, *kwargs.values()]
        in_kernel = any(self.is_in_kernel(value) for value in values)
        if _is_library(function):
            if in_kernel:
                raise porting.advice(called)
            return self.run_now(function, args, kwargs)
        try:
            return self.inline(function, path, args, kwargs)
        except once.Once:
            raise
        except Untraceable:
            # On plain values Python itself can run what has no meaning in a kernel, unless it was half done.
            started = any(not isinstance(value, PLAIN) and not self.is_captured(value) for value in values)
            if in_kernel or started or hasattr(called, "__flextrace_function__"):
                raise
            with contextlib.suppress(Untraceable):
                return self.run_now(function, args, kwargs)
            raise


def _spread(function: Any, more: list[Any]) -> Callable[..., Any]:
    """sum(a, b, ...) for sum([a, b, ...])."""

    def reduce(*items: Any) -> Any:
        return function(items, *more)

    reduce.__name__ = name_of(function)
    return reduce


def _is_library(function: types.FunctionType) -> bool:
    """Whether a function is no code of the user's: then it runs as plain Python or not at all."""
    if str(function.__globals__.get("__name__", "")).split(".")[0] in LIBRARIES:
        return True
    filename = function.__code__.co_filename
    return filename.startswith("<frozen") or (
        filename.startswith(STANDARD_LIBRARY) and "-packages" not in filename[len(STANDARD_LIBRARY) :]
    )


def _partial(values: Calls, function: Any, *args: Any, **kwargs: Any) -> Any:
    return functools.partial(function, *args, **kwargs)


SPECIAL: dict[int, Callable[..., Any]] = {
    id(len): Calls.length,
    id(isinstance): Calls.call_isinstance,
    id(type): Calls.call_type,
    id(getattr): Calls.call_getattr,
    id(hasattr): Calls.call_hasattr,
    id(filter): Calls.call_filter,
    id(functools.partial): _partial,
}


def _python_attribute(function: Any) -> str | None:
    """The attribute of a callable object that holds the function it runs."""
    if hasattr(function, "__flextrace_function__"):
        return "__flextrace_function__"
    if isinstance(function, functools._lru_cache_wrapper):
        return "__wrapped__"
    found = None if isinstance(function, type) else inspect.getattr_static(type(function), "__call__", None)
    return "__call__" if isinstance(found, types.FunctionType) else None
