"""Calls on values: a function of the table builds an Expr, one written in Python is followed, the rest runs now."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import os.path
import types
from collections.abc import Callable
from typing import Any

from ..captures.paths import Path
from ..errors import Untraceable
from ..expr import functions
from ..expr.formulas import Rule
from ..expr.node import Expr
from ..porting import advice as porting
from ..porting import once
from ..source.signature import WRAPPED, is_wrapped, name_of
from . import attributes, changes, numbers, objects, running
from .outside import capture
from .tracing import Tracing
from .values import ArrayView, Callback, UnknownSet, is_in_kernel, is_symbolic, number

# How a front end follows a call of a function written in Python: (t, function, its path, args, kwargs) -> value.
Inline = Callable[[Tracing, types.FunctionType, Path, list[Any], dict[str, Any]], Any]
PLAIN = (Expr, bool, int, float, str, bytes, tuple, range, type(None))
LIBRARIES = frozenset({"numpy", "mlx", "scipy", *porting.FOREIGN})
STANDARD_LIBRARY = os.path.dirname(inspect.__file__)


def begin(inline: Inline) -> Tracing:
    """A trace that has seen nothing yet; `inline` follows the functions written in Python that are called in it."""
    return Tracing(functools.partial(_call, inline))


def call(t: Tracing, function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """`function(*args, **kwargs)`."""
    return t.call(t, function, args, kwargs)


def _call(inline: Inline, t: Tracing, function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    if isinstance(function, Callback):
        return function.function(*args, **kwargs)
    if isinstance(function, (Expr, ArrayView)):
        raise Untraceable("a number or array is called like a function", "remove the call parentheses")
    if isinstance(function, functools.partial) and not t.recorder.is_captured(function):
        return t.call(t, function.func, [*function.args, *args], {**function.keywords, **kwargs})
    once.check(function)
    special = SPECIAL.get(id(function))
    if special is not None:
        return _built(function, functools.partial(special, t), args, kwargs)
    rule = functions.rule_for(function)
    if rule is not None:
        return _call_rule(t, function, rule, args, kwargs)
    if porting.is_foreign(function, args):
        raise porting.advice(function)
    python = _python_function(t, function, args, kwargs)
    if python is not None:
        return _call_traced(inline, t, function, *python)
    return running.run_now(t, function, args, kwargs)


# ---- functions of the table ------------------------------------------------------------------------------------


def _call_rule(t: Tracing, function: Any, rule: Rule, args: list[Any], kwargs: dict[str, Any]) -> Any:
    reduces = function in (sum, any, all, math.prod) or (function in (min, max) and len(args) == 1)
    if reduces and args:
        if isinstance(args[0], ArrayView) and args[0].rank:
            raise Untraceable(
                f"{name_of(function)}({args[0].path}) reduces a captured array, and a mod sees one score at a time",
                f"compute it outside the mod, total = mx.{name_of(function)}({args[0].path}), and capture total",
            )
        args = [_operands(t, function, args[0]), *args[1:]]
    args = [number(arg) for arg in args]
    kwargs = {name: number(value) for name, value in kwargs.items()}
    given = [*args, *kwargs.values()]
    ordered = ("key" in kwargs or "default" in kwargs) and not any(map(is_in_kernel, given))
    if ordered or not is_symbolic(given):
        if functions.package_of(function) != "mlx":
            return running.run_now(t, function, args, kwargs)
        result = _built(function, rule, args, kwargs)
        return numbers.settle(t, result, "an argument") if isinstance(result, Expr) else result
    if functions.package_of(function) == "mlx" or kwargs:
        return _built(function, rule, args, kwargs)
    python, operands = (_spread(function, args[1:]), args[0]) if reduces else (function, args)
    result = numbers.computed(t, lambda: _built(function, rule, args, kwargs), python, tuple(operands))
    if function in (min, max) and isinstance(result, Expr) and result not in operands:
        return numbers.one_of(t, result, *operands)
    return result


def _operands(t: Tracing, function: Any, items: Any) -> list[Any]:
    """The numbers to reduce; any() and all() stop at the first that decides."""
    operands = []
    items = items.elements if isinstance(items, UnknownSet) and function in (any, all, min, max) else items
    with changes.for_some(t) as decides:
        for item in objects.iterate(t, items):
            operands.append(number(item))
            if function not in (any, all):
                continue
            if is_symbolic(item):
                decides()
            elif bool(objects.truth(t, item)) is (function is any):
                break
    return operands


def _built(function: Any, rule: Rule, args: list[Any], kwargs: dict[str, Any]) -> Any:
    try:
        return rule(*args, **kwargs)
    except TypeError as error:
        given = ", ".join([*("..." for _ in args), *(f"{name}=..." for name in kwargs)])
        raise Untraceable(
            f"{name_of(function)}({given}) has no kernel form: {error}", "pass the numbers alone, by position"
        ) from error


# ---- functions written in Python -------------------------------------------------------------------------------


def _python_function(
    t: Tracing, function: Any, args: list[Any], kwargs: dict[str, Any]
) -> tuple[types.FunctionType, Path, list[Any], dict[str, Any]] | None:
    """The function written in Python behind a callable, its path, and its full arguments."""
    recorder = t.recorder
    while not isinstance(function, types.FunctionType):
        once.check(function)
        path = recorder.origin(function) if recorder.is_captured(function) else None
        if isinstance(function, functools.partial):
            path = path or recorder.held(function)
            bound = capture(t, function.args, path.step("attr", "args"))
            args = [*objects.iterate(t, bound), *args]
            kwargs = {**objects.known(t, capture(t, function.keywords, path.step("attr", "keywords"))), **kwargs}
            function = capture(t, function.func, path.step("attr", "func"))
        elif isinstance(function, types.MethodType):
            path = path or recorder.held(function)
            owner = function.__self__
            known = recorder.is_captured(owner)
            args = [owner if known else capture(t, owner, path.step("attr", "__self__")), *args]
            function = capture(t, function.__func__, path.step("attr", "__func__"))
        else:
            name = _python_attribute(function)
            if name is None:
                return None
            path = path or recorder.held(function)
            function = capture(t, getattr(function, name), path.step("attr", name))
    return function, recorder.origin(function), args, kwargs


def _call_traced(
    inline: Inline,
    t: Tracing,
    called: Any,
    function: types.FunctionType,
    path: Path,
    args: list[Any],
    kwargs: dict[str, Any],
) -> Any:
    given = [*args, *kwargs.values()]
    in_kernel = any(map(is_in_kernel, given))
    if _is_library(function):
        if in_kernel:
            raise porting.advice(called)
        return running.run_now(t, function, args, kwargs)
    try:
        return inline(t, function, path, args, kwargs)
    except once.Once:
        raise
    except Untraceable:
        # On plain values Python itself can run what has no meaning in a kernel, unless it was half done.
        started = any(not isinstance(value, PLAIN) and not t.recorder.is_captured(value) for value in given)
        if in_kernel or started or is_wrapped(called):
            raise
        with contextlib.suppress(Untraceable):
            return running.run_now(t, function, args, kwargs)
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


def _python_attribute(function: Any) -> str | None:
    """The attribute of a callable object that holds the function it runs."""
    if is_wrapped(function):
        return WRAPPED
    if isinstance(function, functools._lru_cache_wrapper):
        return "__wrapped__"
    found = None if isinstance(function, type) else inspect.getattr_static(type(function), "__call__", None)
    return "__call__" if isinstance(found, types.FunctionType) else None


def _partial(t: Tracing, function: Any, /, *args: Any, **kwargs: Any) -> Any:
    return functools.partial(function, *args, **kwargs)


SPECIAL: dict[int, Callable[..., Any]] = {
    id(len): objects.length,
    id(isinstance): attributes.is_instance,
    id(type): attributes.type_of,
    id(getattr): attributes.get_attribute,
    id(hasattr): attributes.has_attribute,
    id(filter): running.filtered,
    id(functools.partial): _partial,
}
