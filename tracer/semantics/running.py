"""Concrete calls -> values: plain Python that runs while tracing.

A result that could be another one tomorrow makes the trace volatile: it is then made anew at every call.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import math
import types
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import Untraceable
from ..expr import functions
from ..expr.functions import rule_for
from ..expr.node import Expr
from ..porting import advice as porting
from ..source.signature import name_of
from . import changes, objects
from .changes import Changed
from .outside import capture, is_settled
from .tracing import Tracing
from .values import (
    ArrayView,
    Callback,
    UnknownSet,
    UnknownText,
    is_in_kernel,
    is_record,
    is_same_data,
    is_symbolic,
    number,
    run,
    stores_only,
)

# Concrete callables whose result depends on nothing but their arguments ...
PURE: frozenset[Any] = frozenset(
    {range, set, frozenset, sorted, slice, callable, format, ord, chr, hash, complex, bytes, issubclass, bin, hex}
    | {mx.finfo, mx.iinfo, np.finfo, np.iinfo}
    | {value for value in vars(math).values() if callable(value)}
    | {known for known, _ in functions.TABLE.values() if functions.package_of(known) != "mlx"}
)
# ... and those that only carry values and never look at them.
CARRIERS: frozenset[Any] = frozenset(
    {list, tuple, dict, zip, enumerate, reversed, map, iter, next}
    | {itertools.product, itertools.chain, itertools.combinations, itertools.permutations, itertools.islice}
    | {itertools.repeat, itertools.cycle, itertools.count, itertools.zip_longest, itertools.starmap}
    | {itertools.combinations_with_replacement, functools.reduce}
)
WRITERS = (print, repr, str)  # they write a symbol as its expression
CHANGES = frozenset(
    "append extend insert pop popitem remove clear update add discard sort reverse setdefault difference_update "
    "intersection_update symmetric_difference_update".split()
)
# Methods of containers that carry their arguments, and how many of these, from the first on, are keys.
CARRYING_METHODS: dict[type, dict[str, int]] = {
    list: {"append": 0, "extend": 0, "insert": 1, "pop": 1, "reverse": 0, "clear": 0, "copy": 0},
    dict: {"get": 1, "pop": 1, "setdefault": 1, "items": 0, "keys": 0, "values": 0, "update": 0, "copy": 0}
    | {"clear": 0, "popitem": 0},
}
# Methods of deques, views and iterators that only carry, besides those of containers.
CARRYING_NAMES = frozenset(
    "append appendleft extend extendleft pop popleft rotate clear copy items keys values insert reverse __len__ "
    "__next__ __iter__ __getitem__".split()
)
CHANGES |= {"appendleft", "extendleft", "popleft", "rotate", "__next__"}
_LOCAL = "a mod must not change objects: keep intermediate values in local variables"
REFUSED: dict[int, str] = {  # id of a builtin -> remedy
    **{id(function): _LOCAL for function in (setattr, delattr)},
    **{id(function): "name the variable" for function in (globals, locals)},
    **{id(function): "write the expression or the statements themselves" for function in (eval, exec, compile)},
    id(id): "compare objects with `is`",
}
PLAIN_MODULES = frozenset({"builtins", "collections", "itertools", "functools"})


def run_now(t: Tracing, function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """A call that plain Python runs while tracing: its function only carries values, or looks at known ones."""
    hashable = isinstance(function, (type, types.BuiltinFunctionType)) or id(function) in functions.TABLE
    if (function is str or function is repr) and len(args) == 1 and not kwargs:
        known = text(t, args[0])
        return known if isinstance(known, UnknownText) else run(function, known)
    if function is print:
        args = [shown(t, arg) if is_in_kernel(arg) else objects.concrete(t, arg, "an argument") for arg in args]
        return run(print, *args, **{name: _argument(t, print, value) for name, value in kwargs.items()})
    if id(function) in REFUSED or ((function is vars or function is dir) and not args):
        remedy = REFUSED.get(id(function), "name the variable")
        raise Untraceable(f"{function.__name__}() has no meaning in a mod", remedy)
    if hashable and function in CARRIERS and not (function is iter and len(args) > 1):
        _check_read(t, args)
        args = [_carried(t, arg) for arg in args]
        kwargs = {name: _carried(t, value) for name, value in kwargs.items()}
        result = run(function, *args, **kwargs)
        return changes.made(t, _with_known_keys(t, result) if function is dict else result)
    owner = getattr(function, "__self__", None)
    is_method = isinstance(function, types.BuiltinMethodType) and not isinstance(owner, (type, types.ModuleType))
    if is_method and type(owner).__module__ in PLAIN_MODULES and not t.recorder.is_captured(function):
        return _method_of_made(t, function, owner, args, kwargs)
    if isinstance(function, type) and is_record(function):
        if is_symbolic([*args, *kwargs.values()]) and not stores_only(function):
            raise Untraceable(
                f"{function.__name__} looks at what it is made of, which is symbolic here",
                "leave out __post_init__ and __new__, or compute with plain numbers",
            )
        return run(function, *args, **kwargs)
    result = run_on_known(t, function, args, kwargs, f"{name_of(function)}()")
    if hashable and function in PURE:
        return changes.made(t, result)
    return capture(t, result, t.recorder.held(result))


def _method_of_made(t: Tracing, function: Any, owner: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """A method of a value made in the mod whose class is not written in Python: a text, a deque, an iterator."""
    name = function.__name__
    if isinstance(owner, (str, bytes)):
        if is_in_kernel([args, list(kwargs.values())]):
            if name not in ("format", "join"):
                raise porting.advice(function)
            return UnknownText(f"{owner!r}.{name}({', '.join(map(functools.partial(shown, t), args))})")
        args = [objects.concrete(t, arg, "an argument") for arg in args]
        kwargs = {key: objects.concrete(t, value, "an argument") for key, value in kwargs.items()}
        return changes.made(t, run(function, *args, **kwargs))
    if name not in CARRYING_NAMES:
        return changes.made(t, run_on_known(t, function, args, kwargs, f".{name}()"))
    if name in CHANGES:
        changes.check_change(t, owner, f".{name}()")
    _check_read(t, args)
    return changes.made(t, run(function, *map(functools.partial(_carried, t), args), **kwargs))


def run_on_known(t: Tracing, function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], what: str) -> Any:
    """Plain Python, which may look into the values and change them."""
    _check_read(t, [*args, *kwargs.values()])
    args = [_argument(t, function, arg) for arg in args]
    kwargs = {name: _argument(t, function, value) for name, value in kwargs.items()}
    owner = getattr(function, "__self__", None)
    if isinstance(owner, Iterator):
        changes.check_change(t, owner, what)
    elif owner is not None and not isinstance(owner, types.ModuleType) and not t.recorder.is_captured(owner):
        owner = _argument(t, function, owner)
    if isinstance(function, (type, types.BuiltinFunctionType)) and function in PURE:
        return run(function, *args, **kwargs)
    watched = [owner, *args, *kwargs.values(), *_reached(function)]
    before = changes.state(*watched)
    result = run(function, *args, **kwargs)
    try:
        changes.check_unchanged(t, before, what)
    except Changed:  # a cache may: it notes what it has found, and gives it again
        before = changes.state(*watched)
        again = run(function, *args, **kwargs)
        changes.check_unchanged(t, before, what)
        if again is not result and not is_same_data(again, result):
            raise
    return result


def _reached(function: Any) -> list[Any]:
    """The outside objects that a function written in Python may change: in its cells and its globals."""
    function = getattr(function, "__func__", function)
    if not isinstance(function, types.FunctionType):
        return []
    reached = [function.__globals__.get(name) for name in function.__code__.co_names]
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # the cell is empty
            reached.append(cell.cell_contents)
    return reached


# ---- what Python may look at, and what it only carries ------------------------------------------------------


def _argument(t: Tracing, function: Any, value: Any) -> Any:
    """A value that plain Python may look at."""
    if function is range and is_in_kernel(value):
        return objects.concrete(t, value, "a loop bound")
    if isinstance(value, (UnknownText, UnknownSet)):
        raise value.refuse()
    if isinstance(value, Callback):
        return _asked(t, function, value)
    if is_in_kernel(value):
        raise porting.advice(function)
    return _asked(t, function, objects.concrete(t, value, "an argument"))


def _asked(t: Tracing, function: Any, value: Any) -> Any:
    """An argument of a function that looks at it: what a function among them gives is made known."""
    if not callable(value) or (isinstance(value, type) and rule_for(value) is None):
        return value

    def answer(*args: Any, **kwargs: Any) -> Any:
        result = t.call(t, value, list(args), kwargs)
        if is_in_kernel(result):
            raise porting.advice(function)
        return objects.concrete(t, result, "an argument")

    return answer


def _carried(t: Tracing, value: Any) -> Any:
    if isinstance(value, ArrayView):
        return list(objects.iterate(t, value)) if value.rank else number(value)
    if isinstance(value, (UnknownText, UnknownSet)):
        raise value.refuse()
    if t.recorder.is_captured(value) and not is_settled(value):
        t.recorder.volatile = True
    return _callback(t, objects.known(t, value))


def _callback(t: Tracing, value: Any) -> Any:
    """An argument of a function that carries it: a function among them is called on values of the trace."""
    if callable(value) and not isinstance(value, (Callback, type)):
        return lambda *args, **kwargs: t.call(t, value, list(args), kwargs)
    return value


def _check_read(t: Tracing, values: list[Any]) -> None:
    """Raises Untraceable unless the iterators among the arguments, which the function reads, may be read on now."""
    for value in values:
        if isinstance(value, Iterator):
            changes.check_read(t, value)


def _with_known_keys(t: Tracing, given: dict[Any, Any]) -> dict[Any, Any]:
    """A dict that Python has made of symbols as keys: their numbers are its keys instead."""
    if not any(map(is_symbolic, given)):
        return given
    return {objects.concrete(t, key, "a dictionary key"): value for key, value in given.items()}


# ---- methods of containers ------------------------------------------------------------------------------------


def container_method(t: Tracing, owner: Any, name: str, /, *args: Any, **kwargs: Any) -> Any:
    """A method of a list, tuple, dict or set."""
    if name in CHANGES:
        changes.check_change(t, owner, f".{name}()")
    carrying = next((table for kind, table in CARRYING_METHODS.items() if isinstance(owner, kind)), {})
    if name not in carrying:
        if is_in_kernel([owner, *args]):
            raise Untraceable(
                f".{name}() compares values that are known only inside the kernel",
                "compare them one by one: `x if c else y`, min, max, or `in`",
            )
        known = objects.concrete(t, owner, "an argument")
        if known is not owner and name in CHANGES:
            owner[:] = known  # a list has its captured numbers as they are now, so that Python can compare them
        method = getattr(owner if name in CHANGES else known, name)
        return changes.made(t, run_on_known(t, method, list(args), kwargs, name))
    _check_read(t, list(args))
    keys = carrying[name]
    wanted = "a dictionary key" if isinstance(owner, dict) else "a container index"
    values = [objects.concrete(t, arg, wanted) for arg in args[:keys]]
    if name == "get" and t.recorder.is_captured(owner):
        found = values[0] in tuple(objects.iterate(t, owner))
        return objects.item(t, owner, values[0]) if found else (args[1] if len(args) > 1 else None)
    values += [_carried(t, arg) if name in ("extend", "update") else arg for arg in args[keys:]]
    if name == "update":
        values = [_with_known_keys(t, dict(*values))] if values else values
    return changes.made(t, run(getattr(objects.known(t, owner), name), *values, **kwargs))


def filtered(t: Tracing, test: Any, items: Any) -> Any:
    return changes.made(t, _kept(t, test, objects.iterate(t, items)))


def _kept(t: Tracing, test: Any, items: Iterator[Any]) -> Iterator[Any]:
    """The elements that filter() keeps, asked for one by one."""
    for item in items:
        truth = objects.truth(t, item if test is None else t.call(t, test, [item], {}))
        if isinstance(truth, Expr):
            raise Untraceable(
                "filter() keeps elements by a condition known only inside the kernel",
                "keep every element and make the unwanted ones neutral: sum(x if c else 0 for ...)",
            )
        if truth:
            yield item


# ---- texts ----------------------------------------------------------------------------------------------------


def text(t: Tracing, value: Any) -> Any:
    """A value to be written as text: what only the kernel knows is written as its expression."""
    return UnknownText(shown(t, value)) if is_in_kernel(value) else objects.concrete(t, value, "an argument")


def shown(t: Tracing, value: Any) -> str:
    """What only the kernel knows, as a message shows it: the text of its expression."""
    if isinstance(value, (list, tuple)):
        inside = ", ".join(map(functools.partial(shown, t), objects.iterate(t, value)))
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    if isinstance(value, ArrayView):
        return str(value.path) if value.rank else repr(number(value))
    return str(value) if isinstance(value, (Expr, UnknownText, str)) else repr(value)


def formatted(known: Any, conversion: str, spec: str | UnknownText) -> str | UnknownText:
    """`{known!conversion:spec}` of an f-string; conversion: s, r, a, or "" for none."""
    if conversion:
        convert: dict[str, Callable[[Any], str]] = {"s": str, "r": repr, "a": ascii}
        known = convert[conversion](known)
    return spec if isinstance(spec, UnknownText) else str(run(format, known, spec))


def joined(parts: list[Any]) -> str | UnknownText:
    """The parts of an f-string as one text."""
    whole = "".join(map(str, parts))
    return UnknownText(whole) if any(isinstance(part, UnknownText) for part in parts) else whole


# ---- statements that Python runs while tracing ----------------------------------------------------------------


def imported(t: Tracing, name: str) -> Any:
    """The module that `import name` gives."""
    module = run(importlib.import_module, name)
    return capture(t, module, t.recorder.root.step("module", name))


def check_raise(t: Tracing) -> None:
    """Raises Untraceable where a `raise` is reached by some lanes only: a kernel raises nothing."""
    if t.since:
        raise Untraceable(
            "`raise` under a condition known only inside the kernel",
            "a kernel raises nothing: check captured values outside the mod",
        )


def raised(error: Any) -> Untraceable:
    """What `raise error` means: the trace fails."""
    shown = repr(error) if isinstance(error, BaseException) else getattr(error, "__name__", "an exception")
    return Untraceable(f"the mod raises {shown}", "call the mod with values that it accepts")
