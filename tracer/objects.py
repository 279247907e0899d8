"""Outside objects -> values: captures, attributes, items and iteration, each read again through its path."""

from __future__ import annotations

import enum
import types
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import numpy as np

from . import porting
from .captures import ARRAY_TYPES
from .errors import Untraceable
from .expr import Expr
from .paths import Path
from .values import NUMBERS, ArrayView, Values

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
        if isinstance(value, np.generic) and isinstance(value.item(), NUMBERS):
            value = value.item()
        if isinstance(value, NUMBERS) and not isinstance(value, enum.Enum):
            slot, dtype = self.recorder.number_slot(value, path)
            return Expr("param", dtype, value=slot)
        if isinstance(value, types.ModuleType) and is_trusted(value):
            return value
        if isinstance(value, (str, bytes, range, frozenset, mx.Dtype)) and not isinstance(value, enum.Enum):
            path.check("value", lambda now: type(now) is type(value) and bool(now == value))
            return value
        if isinstance(value, FIXED):
            path.check("identity", lambda now: now is value)
            if value is not None and value is not Ellipsis:
                self.recorder.remember(value, path, fixed=True)
            return value
        if isinstance(value, types.FunctionType):
            code = value.__code__
            path.check("code", lambda now: getattr(now, "__code__", None) is code)
        elif isinstance(value, types.MethodType):
            function = value.__func__
            path.check("function", lambda now: getattr(now, "__func__", None) is function)
        else:
            kind = type(value)
            path.check("type", lambda now: type(now) is kind)
        self.recorder.remember(value, path)
        return value

    # ---- containers ----------------------------------------------------------------------------------------

    def known(self, value: Any) -> Any:
        """A captured container as one of the mod's own, its elements read through their paths."""
        if not isinstance(value, CONTAINERS) or not self.is_captured(value):
            return value
        if isinstance(value, set):
            return self.made(set(self.iterate(value)))
        if isinstance(value, dict):
            return self.made({key: self.item(value, key) for key in self.iterate(value)})
        assert isinstance(value, (list, tuple))
        return self.made(_like(value, list(self.iterate(value))))

    def concrete(self, value: Any, why: str) -> Any:
        """The Python value of what depends on captured numbers only, also inside containers."""
        value = self.number(value)
        if isinstance(value, Expr):
            return self.settle(value, why)
        if isinstance(value, slice):
            return slice(*(self.concrete(part, why) for part in (value.start, value.stop, value.step)))
        if isinstance(value, dict):
            return {key: self.concrete(item, why) for key, item in self.known(value).items()}
        if isinstance(value, (list, tuple)):
            items = list(self.iterate(value))
            settled = [self.concrete(item, why) for item in items]
            changed = self.is_captured(value) or any(a is not b for a, b in zip(items, settled, strict=True))
            return _like(value, settled) if changed else value
        if isinstance(value, (set, frozenset)):
            list(self.iterate(value))  # binds the trace to its elements
        elif self.is_captured(value) and not is_settled(value):
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
        if isinstance(value, CONTAINERS) and self.is_captured(value):
            path = self.recorder.origin(value)
            if isinstance(value, dict):
                keys = tuple(value)
                path.check("keys", lambda now: tuple(now) == keys)
                return iter(keys)
            if isinstance(value, (set, frozenset)):
                elements = frozenset(value)
                path.check("elements", lambda now: now == elements)
                return iter(value)
            size = len(value)
            path.check("length", lambda now: len(now) == size)
            return (self.item(value, index) for index in range(size))
        if self.is_captured(value) and not is_settled(value):
            self.recorder.volatile = True
        return iter(value) if isinstance(value, CONTAINERS) else self._steps(iter(self.run(iter, value)))

    def _steps(self, iterator: Iterator[Any]) -> Iterator[Any]:
        done = object()
        while (item := self.run(next, iterator, done)) is not done:
            yield item

    def length(self, value: Any) -> Any:
        """`len(value)`."""
        if isinstance(value, ArrayView) and value.rank:
            return self.shape(value)[0]
        value = self.number(value)
        if isinstance(value, Expr):
            raise Untraceable(f"len() of the number {value!r}", "take the len() of an array or container")
        size = self.run(len, value)
        if self.is_captured(value):
            self.recorder.origin(value).check("length", lambda now: len(now) == size)
        return size

    def truth(self, value: Any) -> bool | Expr:
        """The truth value: a Python bool where it is known now, else a bool Expr."""
        if isinstance(value, CONTAINERS):
            return bool(self.length(value))
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
    return isinstance(value, (types.FunctionType, types.MethodType, *FIXED, *CONTAINERS))


def _like(value: list[Any] | tuple[Any, ...], items: list[Any]) -> Any:
    """A container of the type of `value`."""
    if hasattr(value, "_make"):  # a named tuple
        make: Callable[[list[Any]], Any] = value._make
        return make(items)
    return tuple(items) if isinstance(value, tuple) else items
