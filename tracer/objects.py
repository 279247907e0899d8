"""Outside objects -> values: captures, attributes, items and iteration, each read again through its path."""

from __future__ import annotations

import collections
import enum
import functools
import inspect
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import numpy as np

from . import porting
from .captures import ARRAY_TYPES
from .errors import Untraceable, with_article
from .expr import Expr
from .paths import Path
from .reads import is_same
from .values import (
    MUTABLE,
    NUMBERS,
    ArrayView,
    Callback,
    UnknownSet,
    UnknownText,
    Values,
    is_data,
    is_same_data,
    parts_of,
)

IMMUTABLE = (str, bytes, range, frozenset, type(None), type(Ellipsis), type, types.BuiltinFunctionType, mx.Dtype)
FIXED = (types.ModuleType, enum.Enum, *IMMUTABLE)  # captured ones are checked by identity or value
CONTAINERS = (list, tuple, dict, set, frozenset)
MAX_UNROLLED = 10_000
TRUSTED_PACKAGES = frozenset({"mlx", "numpy", "math", "operator", "functools", "itertools", "typing", "builtins"})


class Objects(Values):
    """What a mod sees of objects."""

    def item(self, value: Any, key: Any) -> Any:
        """`value[key]`."""
        raise NotImplementedError("items say what is in a container")

    def attribute(self, value: Any, name: str) -> Any:
        """`value.name`."""
        raise NotImplementedError("items say what an attribute is")

    def call(self, function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """`function(*args, **kwargs)`."""
        raise NotImplementedError("calls say what runs now")

    def capture(self, value: Any, path: Path) -> Any:
        """What the mod sees of an outside object: arrays and numbers become kernel inputs, the rest is itself."""
        if not path.is_read:
            path.seen = self._capture(value, path)
        return path.seen

    def _capture(self, value: Any, path: Path) -> Any:
        if isinstance(value, ARRAY_TYPES):
            slot = self.recorder.array_slot(value, path)
            return ArrayView(slot, self.recorder.arrays[slot][0].element, value.ndim, path, value)
        porting.refuse_array(value, path)
        kind: type = type(value)
        if isinstance(value, np.generic) and isinstance(value.item(), NUMBERS):
            value = value.item()
        if isinstance(value, NUMBERS) and not isinstance(value, enum.Enum):
            if type(value) not in NUMBERS and _has_operators(kind):
                plain = "int" if isinstance(value, int) else "float"
                raise Untraceable(
                    f"{path} is a {kind.__name__}, {with_article(plain)} that may mean something else by an operator",
                    f"capture the plain number, {plain}({path})",
                )
            slot, dtype = self.recorder.number_slot(value, path, kind)
            return Expr("param", dtype, value=slot)
        if isinstance(value, types.ModuleType) and is_trusted(value):
            return value
        if kind in (str, bytes, range, mx.Dtype) or (kind is frozenset and is_data(value)):
            path.check("value", lambda now: is_same_data(now, value))
            return value
        if isinstance(value, FIXED):
            path.check("identity", is_same(value))
            if value is not None and value is not Ellipsis:
                self.recorder.remember(value, path, fixed=True)
            return value
        if isinstance(value, types.FunctionType):
            code = weakref.ref(value.__code__)
            path.check("code", lambda now: getattr(now, "__code__", "none") is code())
        elif isinstance(value, types.MethodType):
            same = is_same(value.__func__)
            path.check("function", lambda now: same(getattr(now, "__func__", None)))
        else:
            owner = weakref.ref(kind)
            path.check("type", lambda now: type(now) is owner())
        self.recorder.remember(value, path)
        return value

    # ---- containers ----------------------------------------------------------------------------------------

    def known(self, value: Any) -> Any:
        """A captured container as one of the mod's own, its elements read through their paths."""
        if not is_container(value) or not self.is_captured(value) or isinstance(value, frozenset):
            return value
        copy: Any
        if isinstance(value, set):
            copy = set(self.iterate(value))
        elif isinstance(value, dict):
            copy = {key: self.item(value, key) for key in self.iterate(value)}
        else:
            copy = like(value, list(self.iterate(value)))
        if isinstance(copy, MUTABLE):
            self.keep(copy, "that the mod captures")
        return copy

    def concrete(self, value: Any, why: str) -> Any:
        """The Python value of what depends on captured numbers only, also inside containers."""
        value = self.number(value)
        if isinstance(value, Expr):
            return self.settle(value, why)
        if isinstance(value, (UnknownText, UnknownSet)):
            raise value.refuse()
        if isinstance(value, slice):
            return slice(*(self.concrete(part, why) for part in (value.start, value.stop, value.step)))
        if is_container(value):
            if isinstance(value, (set, frozenset)):
                list(self.iterate(value))  # binds the trace to its elements
                return value
            keys = list(self.iterate(value)) if isinstance(value, dict) else []
            items = [self.item(value, key) for key in keys] if isinstance(value, dict) else list(self.iterate(value))
            settled = [self.concrete(item, why) for item in items]
            if not self.is_captured(value) and all(a is b for a, b in zip(items, settled, strict=True)):
                return value
            return dict(zip(keys, settled, strict=True)) if isinstance(value, dict) else like(value, settled)
        if self.is_symbolic(value) and not isinstance(value, (ArrayView, Callback)):
            parts = list(parts_of(value))
            if any(a is not b for a, b in zip(parts, [self.concrete(part, why) for part in parts], strict=True)):
                raise Untraceable(
                    f"plain Python would look inside a {type(value).__name__} that holds symbolic numbers",
                    "pass the numbers themselves",
                )
        if self.is_captured(value) and not is_settled(value):
            self.recorder.volatile = True  # Python looks inside an object that may change unseen
        return value

    def iterate(self, value: Any) -> Iterator[Any]:
        """What a `for` over `value` yields."""
        if isinstance(value, ArrayView) and value.rank:
            size = self.concrete(self.shape(value)[0], "a loop bound")
            if size > MAX_UNROLLED:
                raise Untraceable(f"a loop over the {size} elements of {value.path}", "index the array instead")
            return (self.item(value, index) for index in range(size))
        value = self.number(value)
        if isinstance(value, Expr):
            raise Untraceable(f"the number {value!r} cannot be looped over", "loop over range(...) or a container")
        if isinstance(value, (UnknownText, UnknownSet)):
            raise value.refuse()
        if is_container(value):
            return self._elements(value) if self.is_captured(value) else iter(value)
        if self.is_captured(value) and not is_settled(value):
            self.recorder.volatile = True
        special = self.special(value, "__iter__") if self.is_symbolic(value) else None
        return self._steps(value) if special is None else self.iterate(self.call(special, [], {}))

    def _elements(self, value: Any) -> Iterator[Any]:
        """What a loop over a captured container yields; the trace is bound to how many there are, and to what keys."""
        path = self.recorder.origin(value)
        if isinstance(value, (dict, set, frozenset)):
            keys = tuple(value)
            if not all(map(is_data, keys)):
                self.recorder.volatile = True  # what they hold may change unseen
            if isinstance(value, dict):
                path.check("keys", lambda now: len(now) == len(keys) and all(map(_is_same, now, keys)))
            else:
                held = {exact(key) for key in keys}
                path.check("elements", lambda now: len(now) == len(held) and held.issuperset(map(exact, now)))
            return iter(keys)
        size = len(value)
        path.check("length", lambda now: len(now) == size)
        return (self.item(value, index) for index in range(size))

    def _steps(self, value: Any) -> Iterator[Any]:
        """What Python's iter() gives; where that is an iterator of the mod, at every step it may be read on."""
        done = object()
        iterator = self.run(iter, value)
        while True:
            if iterator is value:
                self.check_read(value)
            item = self.run(next, iterator, done)
            if item is done:
                return
            yield item

    def special(self, value: Any, name: str) -> Any:
        """The method that a class written in Python has for an operation on `value`, or None."""
        if isinstance(value, (Expr, ArrayView, Callback)):
            return None
        found = inspect.getattr_static(type(value), name, None)
        return self.attribute(value, name) if isinstance(found, types.FunctionType) else None

    def length(self, value: Any) -> Any:
        """`len(value)`."""
        if isinstance(value, ArrayView) and value.rank:
            return self.shape(value)[0]
        value = self.number(value)
        if isinstance(value, Expr):
            raise Untraceable(f"len() of the number {value!r}", "take the len() of an array or container")
        if isinstance(value, (UnknownText, UnknownSet)):
            raise value.refuse()
        special = self.special(value, "__len__") if self.is_symbolic(value) else None
        if special is not None:
            return self.call(special, [], {})
        size = self.run(len, value)
        if self.is_captured(value):
            self.recorder.origin(value).check("length", lambda now: len(now) == size)
        return size

    def truth(self, value: Any) -> bool | Expr:
        """The truth value: a Python bool where it is known now, else a bool Expr."""
        if is_container(value):
            return bool(self.length(value))
        if isinstance(value, (UnknownText, UnknownSet)):
            raise value.refuse()
        if self.is_symbolic(value):
            special = self.special(value, "__bool__") or self.special(value, "__len__")
            if special is not None:
                return self.truth(self.call(special, [], {}))
        if self.is_captured(value) and (hasattr(type(value), "__bool__") or hasattr(type(value), "__len__")):
            self.recorder.volatile = self.recorder.volatile or not is_settled(value)
        return super().truth(value)

    def shape(self, view: ArrayView) -> tuple[Any, ...]:
        """The sizes of the axes that are left of an array: captured numbers, read at every call."""
        path = view.path.step("attr", "shape")
        return tuple(
            self.capture(int(size), path.step("item", axis))
            for axis, size in list(enumerate(view.array.shape))[len(view.indices) :]
        )


def is_trusted(module: types.ModuleType) -> bool:
    """Whether what a module holds never changes."""
    return module.__name__.split(".")[0] in TRUSTED_PACKAGES


def is_settled(value: Any) -> bool:
    """Whether the checks on a captured object already fix all that Python may see of it."""
    return isinstance(value, (types.FunctionType, types.MethodType, *FIXED)) or is_container(value)


def is_container(value: Any) -> bool:
    """Whether a value is one of Python's containers, or of a class that means the same by every operation."""
    return isinstance(value, CONTAINERS) and _is_plain(type(value))


@functools.lru_cache(maxsize=256)
def _is_plain(kind: type) -> bool:
    if kind in CONTAINERS or kind in (collections.OrderedDict, collections.defaultdict, collections.Counter):
        return True
    base = next(known for known in CONTAINERS if issubclass(kind, known))
    own = [owner for owner in kind.__mro__[: kind.__mro__.index(base)] if issubclass(owner, base)]
    return not any(name in vars(owner) for owner in own for name in _PROTOCOL)


@functools.lru_cache(maxsize=256)
def _has_operators(kind: type) -> bool:
    """Whether a kind of number says itself what operators do."""
    own = {name for owner in kind.__mro__ if owner not in (*NUMBERS, object) for name in vars(owner)}
    return any(name in own for base in (int, float) for name in vars(base) if name not in _OF_EVERY_CLASS)


_OF_EVERY_CLASS = frozenset("__doc__ __new__ __repr__ __getattribute__ __getnewargs__ __format__ __sizeof__".split())
_PROTOCOL = frozenset(
    "__iter__ __next__ __reversed__ __getitem__ __missing__ __len__ __bool__ __contains__ __eq__ __ne__ __lt__ __le__ "
    "__gt__ __ge__ __add__ __radd__ __mul__ __rmul__ __or__ __ror__ __and__ __sub__ __xor__ __iadd__ __imul__ __ior__ "
    "__getattr__ __getattribute__ __setitem__".split()
)


def _is_same(a: Any, b: Any) -> bool:
    return a is b or is_same_data(a, b)


def exact(value: Any) -> Any:
    """A key that tells 1, True and 1.0 apart."""
    return (type(value), repr(value)) if isinstance(value, NUMBERS) else value


def like(value: Any, items: list[Any]) -> Any:
    """A container of the type of `value`, a list, a tuple or a named tuple."""
    if hasattr(value, "_make"):
        make: Callable[[list[Any]], Any] = value._make
        return make(items)
    return tuple(items) if isinstance(value, tuple) else items
