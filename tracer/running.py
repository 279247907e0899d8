"""Concrete calls -> values: plain Python that runs while tracing.

A result that could be another one tomorrow makes the trace volatile: it is then made anew at every call.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
import types
from typing import Any

import mlx.core as mx
import numpy as np

from . import functions, porting
from .errors import Untraceable
from .expr import IN_KERNEL, Expr
from .objects import is_settled
from .operators import Operators
from .values import PYTHON_TYPES, ArrayView, Callback, is_record

# Concrete callables whose result depends on nothing but their arguments ...
PURE: frozenset[Any] = frozenset(
    {range, set, frozenset, sorted, slice, callable, format, ord, chr, hash, complex, bytes, issubclass, bin, hex}
    | {mx.finfo, mx.iinfo, np.finfo, np.iinfo}
    | {value for value in vars(math).values() if callable(value)}
    | {known for known, _ in functions.TABLE.values() if functions.package_of(known) != "mlx"}
)
# ... and those that only carry values and never look at them.
CARRIERS: frozenset[Any] = frozenset(
    {list, tuple, dict, zip, enumerate, reversed, map, print, repr, str, iter, next}
    | {itertools.product, itertools.chain, itertools.combinations, itertools.permutations, itertools.islice}
    | {itertools.repeat, itertools.cycle, itertools.count, itertools.zip_longest, itertools.starmap}
    | {itertools.combinations_with_replacement, functools.reduce}
)
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
PLAIN_MODULES = frozenset({"builtins", "collections", "itertools", "functools"})


class Running(Operators):
    """What a call of a function means that a kernel does not compute."""

    def call(self, function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """`function(*args, **kwargs)`."""
        raise NotImplementedError("calls say what runs now")

    def _callback(self, value: Any) -> Any:
        """A function as an argument of one that runs now, which may call it with symbols."""
        if callable(value) and not isinstance(value, (Callback, type)):
            return lambda *args, **kwargs: self.call(value, list(args), kwargs)
        return value

    def run_now(self, function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        hashable = isinstance(function, (type, types.BuiltinFunctionType)) or id(function) in functions.TABLE
        if hashable and function in CARRIERS:
            carry = self.text if function in (print, repr, str) else self._carried
            args = [carry(arg) for arg in args]
            kwargs = {name: carry(value) for name, value in kwargs.items()}
            return self.made(self.run(function, *args, **kwargs))
        owner = getattr(function, "__self__", None)
        is_method = isinstance(function, types.BuiltinMethodType) and not isinstance(owner, (type, types.ModuleType))
        if is_method and type(owner).__module__ in PLAIN_MODULES and not self.is_captured(function):
            # A method of a value made in the mod: text looks at its arguments, all else carries them.
            convert = self.text if isinstance(owner, (str, bytes)) else self._carried
            return self.made(self.run(function, *map(convert, args), **kwargs))
        if isinstance(function, type) and is_record(function):
            return self.run(function, *args, **kwargs)
        args = [self._argument(function, arg) for arg in args]
        kwargs = {name: self._argument(function, value) for name, value in kwargs.items()}
        result = self.run(function, *args, **kwargs)
        if hashable and function in PURE:
            return self.made(result)
        return self.capture(result, self.recorder.held(result))

    def _carried(self, value: Any) -> Any:
        if isinstance(value, ArrayView):
            return list(self.iterate(value)) if value.rank else self.number(value)
        if self.is_captured(value) and not is_settled(value):
            self.recorder.volatile = True
        return self._callback(self.known(value))

    def text(self, value: Any) -> Any:
        """`value` to be written as text: what only the kernel knows is written as its expression."""
        return self._carried(value) if self.is_in_kernel(value) else self.concrete(value, "an argument")

    def _argument(self, function: Any, value: Any) -> Any:
        """A value that plain Python may look at."""
        if function is range and self.is_in_kernel(value):
            return self.concrete(value, "a loop bound")
        if isinstance(value, Callback):
            return value
        if self.is_in_kernel(value):
            raise porting.advice(function)
        return self._callback(self.concrete(value, "an argument"))

    def container_method(self, owner: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A method of a list, tuple, dict or set."""
        if name in CHANGES:
            self.check_change(owner, f".{name}()")
        carrying = next((table for kind, table in CARRYING_METHODS.items() if isinstance(owner, kind)), {})
        if name not in carrying:
            if self.is_in_kernel([owner, *args]):
                raise Untraceable(
                    f".{name}() compares values that are known only inside the kernel",
                    "compare them one by one: `x if c else y`, min, max, or `in`",
                )
            owner = owner if name in CHANGES else self.concrete(owner, "an argument")
            return self.made(self.run(getattr(owner, name), *(self._argument(None, arg) for arg in args), **kwargs))
        keys = carrying[name]
        wanted = "a dictionary key" if isinstance(owner, dict) else "a container index"
        values = [self.concrete(arg, wanted) for arg in args[:keys]]
        if name == "get" and self.is_captured(owner):
            found = values[0] in tuple(self.iterate(owner))
            return self.item(owner, values[0]) if found else (args[1] if len(args) > 1 else None)
        values += [self._carried(arg) if name in ("extend", "update") else arg for arg in args[keys:]]
        return self.made(self.run(getattr(self.known(owner), name), *values, **kwargs))

    # ---- builtins about a value ----------------------------------------------------------------------------

    def call_isinstance(self, value: Any, kinds: Any) -> bool:
        if isinstance(value, (Expr, ArrayView)):
            return bool(self.run(issubclass, self.call_type(value), self.known(kinds)))
        return bool(self.run(isinstance, value, self.known(kinds)))

    def call_type(self, value: Any) -> Any:
        if isinstance(value, ArrayView):
            return type(value.array)
        return PYTHON_TYPES[value.dtype] if isinstance(value, Expr) else type(value)

    def call_getattr(self, value: Any, name: str, *default: Any) -> Any:
        self.run(operator.attrgetter, name)  # raises unless it is a string
        return default[0] if default and not self.call_hasattr(value, name) else self.attribute(value, name)

    def call_hasattr(self, value: Any, name: str) -> bool:
        self.run(operator.attrgetter, name)
        if isinstance(value, ArrayView):
            return hasattr(value.array, name)
        if isinstance(value, Expr):
            known = value.stage != IN_KERNEL and hasattr(PYTHON_TYPES[value.dtype], name)
            return known or name in functions.METHODS
        found = hasattr(value, name)
        if self.is_captured(value):
            self.recorder.origin(value).check(("has", name), lambda now: hasattr(now, name) is found)
        return found

    def call_filter(self, test: Any, items: Any) -> Any:
        kept = []
        for item in self.iterate(items):
            truth = self.truth(item if test is None else self.call(test, [item], {}))
            if isinstance(truth, Expr):
                raise Untraceable(
                    "filter() keeps elements by a condition known only inside the kernel",
                    "keep every element and make the unwanted ones neutral: sum(x if c else 0 for ...)",
                )
            if truth:
                kept.append(item)
        return self.made(kept)
