"""Concrete calls -> values: plain Python that runs while tracing.

A result that could be another one tomorrow makes the trace volatile: it is then made anew at every call.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import operator
import types
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import numpy as np

from . import functions, porting
from .errors import Untraceable
from .expr import IN_KERNEL, Expr
from .functions import rule_for
from .objects import is_settled
from .operators import Operators
from .signature import name_of
from .values import (
    PYTHON_TYPES,
    ArrayView,
    Callback,
    Changed,
    UnknownSet,
    UnknownText,
    is_record,
    is_same_data,
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
WRITERS = (print, repr, str)  # what they write of a symbol is its expression
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


class Running(Operators):
    """What a call of a function means that a kernel does not compute."""

    def call(self, function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """`function(*args, **kwargs)`."""
        raise NotImplementedError("calls say what runs now")

    def _callback(self, value: Any) -> Any:
        """A function as an argument of one that carries what it gives."""
        if callable(value) and not isinstance(value, (Callback, type)):
            return lambda *args, **kwargs: self.call(value, list(args), kwargs)
        return value

    def _asked(self, function: Any, value: Any) -> Any:
        """A function as an argument of one that looks at what it gives."""
        if not callable(value) or (isinstance(value, type) and rule_for(value) is None):
            return value

        def answer(*args: Any, **kwargs: Any) -> Any:
            result = self.call(value, list(args), kwargs)
            if self.is_in_kernel(result):
                raise porting.advice(function)
            return self.concrete(result, "an argument")

        return answer

    def run_now(self, function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        hashable = isinstance(function, (type, types.BuiltinFunctionType)) or id(function) in functions.TABLE
        if (function is str or function is repr) and len(args) == 1 and not kwargs:
            known = self.text(args[0])
            return known if isinstance(known, UnknownText) else self.run(function, known)
        if function is print:
            args = [self.shown(arg) if self.is_in_kernel(arg) else self.concrete(arg, "an argument") for arg in args]
            return self.run(print, *args, **{name: self._argument(print, value) for name, value in kwargs.items()})
        if id(function) in REFUSED or ((function is vars or function is dir) and not args):
            remedy = REFUSED.get(id(function), "name the variable")
            raise Untraceable(f"{function.__name__}() has no meaning in a mod", remedy)
        if hashable and function in CARRIERS and not (function is iter and len(args) > 1):
            self._check_read(args)
            args = [self._carried(arg) for arg in args]
            kwargs = {name: self._carried(value) for name, value in kwargs.items()}
            result = self.run(function, *args, **kwargs)
            return self.made(self._with_known_keys(result) if function is dict else result)
        owner = getattr(function, "__self__", None)
        is_method = isinstance(function, types.BuiltinMethodType) and not isinstance(owner, (type, types.ModuleType))
        if is_method and type(owner).__module__ in PLAIN_MODULES and not self.is_captured(function):
            return self._method_of_made(function, owner, args, kwargs)
        if isinstance(function, type) and is_record(function):
            if self.is_symbolic([*args, *kwargs.values()]) and not stores_only(function):
                raise Untraceable(
                    f"{function.__name__} looks at what it is made of, which is symbolic here",
                    "leave out __post_init__ and __new__, or compute with plain numbers",
                )
            return self.run(function, *args, **kwargs)
        result = self.run_on_known(function, args, kwargs, f"{name_of(function)}()")
        if hashable and function in PURE:
            return self.made(result)
        return self.capture(result, self.recorder.held(result))

    def _method_of_made(self, function: Any, owner: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """A method, of another language, of a value made in the mod: of a text, a deque, an iterator."""
        name = function.__name__
        if isinstance(owner, (str, bytes)):
            if self.is_in_kernel([args, list(kwargs.values())]):
                if name not in ("format", "join"):
                    raise porting.advice(function)
                return UnknownText(f"{owner!r}.{name}({', '.join(map(self.shown, args))})")
            args = [self.concrete(arg, "an argument") for arg in args]
            kwargs = {key: self.concrete(value, "an argument") for key, value in kwargs.items()}
            return self.made(self.run(function, *args, **kwargs))
        if name not in CARRYING_NAMES:
            return self.made(self.run_on_known(function, args, kwargs, f".{name}()"))
        if name in CHANGES:
            self.check_change(owner, f".{name}()")
        self._check_read(args)
        return self.made(self.run(function, *map(self._carried, args), **kwargs))

    def run_on_known(self, function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], what: str) -> Any:
        """Plain Python, which may look into the values and change them."""
        self._check_read([*args, *kwargs.values()])
        args = [self._argument(function, arg) for arg in args]
        kwargs = {name: self._argument(function, value) for name, value in kwargs.items()}
        owner = getattr(function, "__self__", None)
        if isinstance(owner, Iterator):
            self.check_change(owner, what)
        elif owner is not None and not isinstance(owner, types.ModuleType) and not self.is_captured(owner):
            owner = self._argument(function, owner)
        if isinstance(function, (type, types.BuiltinFunctionType)) and function in PURE:
            return self.run(function, *args, **kwargs)
        watched = [owner, *args, *kwargs.values(), *_reached(function)]
        state = self.state(*watched)
        result = self.run(function, *args, **kwargs)
        try:
            self.check_unchanged(state, what)
        except Changed:  # unless it notes what it has found, and gives it again: a cache
            state = self.state(*watched)
            again = self.run(function, *args, **kwargs)
            self.check_unchanged(state, what)
            if again is not result and not is_same_data(again, result):
                raise
        return result

    def _check_read(self, values: list[Any]) -> None:
        """An iterator is read on by whoever gets it."""
        for value in values:
            if isinstance(value, Iterator):
                self.check_read(value)

    def _with_known_keys(self, made: dict[Any, Any]) -> dict[Any, Any]:
        """A dict whose keys Python has compared as objects, compared as the numbers that they are."""
        if not any(map(self.is_symbolic, made)):
            return made
        return {self.concrete(key, "a dictionary key"): value for key, value in made.items()}

    def _carried(self, value: Any) -> Any:
        if isinstance(value, ArrayView):
            return list(self.iterate(value)) if value.rank else self.number(value)
        if isinstance(value, (UnknownText, UnknownSet)):
            raise value.refuse()
        if self.is_captured(value) and not is_settled(value):
            self.recorder.volatile = True
        return self._callback(self.known(value))

    def text(self, value: Any) -> Any:
        """`value` to be written as text: what only the kernel knows is written as its expression."""
        return UnknownText(self.shown(value)) if self.is_in_kernel(value) else self.concrete(value, "an argument")

    def _argument(self, function: Any, value: Any) -> Any:
        """A value that plain Python may look at."""
        if function is range and self.is_in_kernel(value):
            return self.concrete(value, "a loop bound")
        if isinstance(value, (UnknownText, UnknownSet)):
            raise value.refuse()
        if isinstance(value, Callback):
            return self._asked(function, value)
        if self.is_in_kernel(value):
            raise porting.advice(function)
        return self._asked(function, self.concrete(value, "an argument"))

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
            known = self.concrete(owner, "an argument")
            if known is not owner and name in CHANGES:
                owner[:] = known  # of a list: its captured numbers as they are now, so that Python can compare them
            return self.made(
                self.run_on_known(getattr(owner if name in CHANGES else known, name), list(args), kwargs, name)
            )
        self._check_read(list(args))
        keys = carrying[name]
        wanted = "a dictionary key" if isinstance(owner, dict) else "a container index"
        values = [self.concrete(arg, wanted) for arg in args[:keys]]
        if name == "get" and self.is_captured(owner):
            found = values[0] in tuple(self.iterate(owner))
            return self.item(owner, values[0]) if found else (args[1] if len(args) > 1 else None)
        values += [self._carried(arg) if name in ("extend", "update") else arg for arg in args[keys:]]
        if name == "update":
            values = [self._with_known_keys(dict(*values))] if values else values
        return self.made(self.run(getattr(self.known(owner), name), *values, **kwargs))

    # ---- builtins about a value ----------------------------------------------------------------------------

    def call_isinstance(self, value: Any, kinds: Any) -> bool:
        if isinstance(value, Expr):
            answers = {bool(self.run(issubclass, kind, self.known(kinds))) for kind in self.kinds(value)}
            if len(answers) > 1:
                raise self._unknown_type(value)
            return answers.pop()
        if isinstance(value, (ArrayView, UnknownText, UnknownSet, Callback)):
            return bool(self.run(issubclass, self.call_type(value), self.known(kinds)))
        return bool(self.run(isinstance, value, self.known(kinds)))

    def call_type(self, value: Any) -> Any:
        if isinstance(value, ArrayView):
            kind = type(value.array)
            value.path.check("library", lambda now: type(now) is kind)
            return kind
        if isinstance(value, Expr):
            kinds = self.kinds(value)
            if len(kinds) > 1:
                raise self._unknown_type(value)
            return next(iter(kinds))
        if isinstance(value, Callback):
            return types.FunctionType
        if isinstance(value, (UnknownText, UnknownSet)):
            return str if isinstance(value, UnknownText) else set
        if self.is_captured(value):
            return self.capture(type(value), self.recorder.origin(value).step("attr", "__class__"))
        return type(value)

    def _unknown_type(self, value: Expr) -> Untraceable:
        return Untraceable(
            f"the Python type of {value!r} depends on a condition known only inside the kernel",
            "give both sides of the condition one type: float(...) or int(...)",
        )

    def call_getattr(self, value: Any, name: str, *default: Any) -> Any:
        name = self.concrete(name, "an argument")
        self.run(operator.attrgetter, name)  # raises unless it is a string
        return default[0] if default and not self.call_hasattr(value, name) else self.attribute(value, name)

    def call_hasattr(self, value: Any, name: str) -> bool:
        name = self.concrete(name, "an argument")
        self.run(operator.attrgetter, name)
        if isinstance(value, (ArrayView, UnknownText, UnknownSet, Callback)):
            return hasattr(self.call_type(value), name)
        if isinstance(value, Expr):
            known = value.stage != IN_KERNEL and hasattr(PYTHON_TYPES[value.dtype], name)
            return known or name in functions.METHODS
        found = hasattr(value, name)
        if self.is_captured(value):
            self.recorder.origin(value).check(("has", name), lambda now: hasattr(now, name) is found)
        return found

    def call_filter(self, test: Any, items: Any) -> Any:
        return self.made(self._filtered(test, self.iterate(items)))

    def _filtered(self, test: Any, items: Iterator[Any]) -> Iterator[Any]:
        """The elements that filter() keeps, asked for one by one."""
        for item in items:
            truth = self.truth(item if test is None else self.call(test, [item], {}))
            if isinstance(truth, Expr):
                raise Untraceable(
                    "filter() keeps elements by a condition known only inside the kernel",
                    "keep every element and make the unwanted ones neutral: sum(x if c else 0 for ...)",
                )
            if truth:
                yield item


def _reached(function: Any) -> list[Any]:
    """The outside objects that a function written in Python may change: in its cells and its globals."""
    function = getattr(function, "__func__", function)
    if not isinstance(function, types.FunctionType):
        return []
    reached = [function.__globals__.get(name) for name in function.__code__.co_names]
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # an empty one
            reached.append(cell.cell_contents)
    return reached
