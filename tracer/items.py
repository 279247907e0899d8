"""Attributes and items -> values: `x.name`, `x[key]`, and the elements of captured arrays."""

from __future__ import annotations

import collections
import functools
import inspect
import operator
import types
from typing import Any

import numpy as np

from . import build, functions, porting
from .errors import Untraceable, with_article
from .expr import IN_KERNEL, Expr
from .nearest import nearest
from .objects import Objects, is_container, is_trusted
from .paths import as_number_array
from .values import MLX_DTYPES, NUMBERS, PYTHON_TYPES, ArrayView, Callback, Native, UnknownSet, UnknownText

MAX_CHOICES = 256
_METHODS = (types.MethodDescriptorType, types.ClassMethodDescriptorType)  # of classes of another language


class Items(Objects):
    """What a mod sees of attributes and items."""

    def binary(self, symbol: str, a: Any, b: Any) -> Any:
        """`a symbol b`."""
        raise NotImplementedError("operators say what an operator does")

    def container_method(self, owner: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of a method of a list, tuple, dict or set."""
        raise NotImplementedError("calls say what the methods of containers do")

    # ---- attributes ----------------------------------------------------------------------------------------

    def attribute(self, value: Any, name: str) -> Any:
        if isinstance(value, Expr):
            return self._number_attribute(value, name)
        if isinstance(value, ArrayView):
            return self._array_attribute(value, name)
        if isinstance(value, (UnknownText, UnknownSet)):
            raise value.refuse()
        if isinstance(value, Callback):
            raise Untraceable(f"the attribute {name} of a function that is defined in a mod", "keep it in a variable")
        if is_container(value) and isinstance(inspect.getattr_static(type(value), name, None), _METHODS):
            return Native(lambda *args, **kwargs: self.container_method(value, name, args, kwargs))
        if isinstance(value, types.ModuleType) and is_trusted(value):
            if not hasattr(value, name):
                raise Untraceable(f"{value.__name__} has no {name}", _closest(name))
            return getattr(value, name)
        if self.is_symbolic(value):
            found = inspect.getattr_static(type(value), name, None)
            if isinstance(found, property) and isinstance(found.fget, types.FunctionType):
                return self.call(types.MethodType(found.fget, value), [], {})
            is_stored = name in getattr(value, "__dict__", ())
            if not is_stored and (found is None or isinstance(found, functools.cached_property)):
                raise Untraceable(
                    f"plain Python would compute {name} of a {type(value).__name__} that holds symbolic numbers",
                    "write it as a method, and call it",
                )
        result = self.run(getattr, value, name)
        if isinstance(result, types.MethodWrapperType):
            raise Untraceable(f"{name} is what an operator does", "write the operator itself")
        if self.is_captured(value):
            if isinstance(result, types.BuiltinMethodType):
                self.recorder.held(result)
                return result
            return self.capture(result, self.recorder.origin(value).step("attr", name))
        return result

    def _number_attribute(self, value: Expr, name: str) -> Any:
        if name in functions.METHODS:
            rule = functions.METHODS[name]
            return Native(lambda *args: rule(value, *(self.number(arg) for arg in args)))
        if value.stage != IN_KERNEL and hasattr(PYTHON_TYPES[value.dtype], name):
            return getattr(self.settle(value, "an argument"), name)
        if name in ("item", "tolist"):
            if value.stage != IN_KERNEL:
                return Native(lambda: value)
            raise Untraceable(
                f".{name}() needs the value of {value!r}, which is known only inside the kernel",
                f"leave out .{name}(): a mod computes with the symbolic number itself",
            )
        fixed = {"ndim": 0, "shape": (), "size": 1, "dtype": MLX_DTYPES[value.dtype]}
        if name in fixed:
            return fixed[name]
        raise porting.method_advice(name)

    def _array_attribute(self, view: ArrayView, name: str) -> Any:
        if name == "shape":
            return self.shape(view)
        if name == "ndim":
            return view.rank
        if name == "size":
            sizes: Any = 1
            for size in self.shape(view):
                sizes = self.binary("*", sizes, size)
            return sizes
        if name == "dtype":
            return getattr(view.array, name)
        if not view.rank:
            return self._number_attribute(self.number(view), name)
        if name in functions.REDUCTIONS:
            raise Untraceable(
                f"{view.path}.{name}() reduces a captured array, and a mod sees one score at a time",
                f"compute it once outside, row_{name} = {view.path}.{name}(...), and index row_{name} in the mod",
            )
        raise Untraceable(
            f"{view.path}.{name} works on the whole captured array",
            f"prepare the array outside the mod and index it here: {view.path}[...]",
        )

    # ---- items ---------------------------------------------------------------------------------------------

    def item(self, value: Any, key: Any) -> Any:
        if isinstance(value, ArrayView):
            return self._element(value, key)
        key = self.number(key)
        if porting.is_module(value) and self.is_in_kernel(key):
            raise porting.module_advice(value, str(self.recorder.origin(value)))
        if isinstance(self.number(value), Expr):
            raise Untraceable(f"{value!r} is a number and cannot be indexed", "index a captured array")
        if isinstance(key, Expr) and key.stage == IN_KERNEL and not isinstance(value, dict):
            return self._choose(value, key)
        if isinstance(value, (UnknownText, UnknownSet)):
            raise value.refuse()
        special = self.special(value, "__getitem__") if self.is_symbolic(value) else None
        if special is not None:
            return self.call(special, [key], {})
        key = self.concrete(key, "a dictionary key" if isinstance(value, dict) else "a container index")
        if isinstance(value, collections.defaultdict) and key not in value:
            raise Untraceable(f"looking up {key!r} adds it to a defaultdict", "give it the key before, or use .get()")
        if isinstance(key, slice):
            return self.made(self.run(operator.getitem, self.known(value), key))
        result = self.run(operator.getitem, value, key)
        if self.is_captured(value):
            return self.capture(result, self.recorder.origin(value).step("item", key))
        return result

    def _element(self, view: ArrayView, key: Any) -> ArrayView:
        indices = list(view.indices)
        for part in key if isinstance(key, tuple) else (key,):
            part = self.number(part)
            if isinstance(part, slice) or part is None or part is Ellipsis:
                text = "a slice" if isinstance(part, slice) else "..." if part is Ellipsis else "None"
                raise Untraceable(
                    f"{view.path} is indexed with {text}, which gives an array",
                    "index every axis with a number; slice the array outside the mod",
                )
            dtype = part.dtype if isinstance(part, Expr) else type(part).__name__
            if dtype != "int":
                raise Untraceable(
                    f"{view.path} is indexed with {with_article(dtype)}, and array indices are integers",
                    "convert the index with int(...)",
                )
            if len(indices) == view.ndim:
                raise Untraceable(
                    f"too many indices: {view.path} has {view.ndim} dimensions", "leave out what is too much"
                )
            if isinstance(part, int):
                self._check_inside(view, len(indices), part)
            indices.append(build.lift(part))
        return ArrayView(view.slot, view.element, view.ndim, view.path, view.array, tuple(indices))

    def _check_inside(self, view: ArrayView, axis: int, index: int) -> None:
        """A constant index must exist; the trace is then bound to arrays where it does."""
        size = view.array.shape[axis]
        if not -size <= index < size:
            raise Untraceable(
                f"index {index} is out of range for axis {axis} of {view.path}, which has size {size}",
                "stay inside the array",
            )
        needed = index + 1 if index >= 0 else -index
        if needed > 1:
            view.path.check(("size", axis, needed), lambda now: now.shape[axis] >= needed)

    def _choose(self, items: Any, key: Expr) -> Any:
        """A list of numbers indexed by a symbol: a captured one is read as an array, a local one selects."""
        if not isinstance(items, (list, tuple)):
            raise Untraceable(
                f"{with_article(type(items).__name__)} is indexed by {key!r}, which is known only inside the kernel",
                "capture an mx.array instead (mx.array(x)) and index that",
            )
        if key.dtype != "int":
            raise Untraceable(f"a list is indexed with {with_article(key.dtype)}", "convert the index with int(...)")
        if self.is_captured(items) and items and all(isinstance(x, (*NUMBERS, np.generic)) for x in items):
            path = self.recorder.origin(items).step("table")
            return self.number(self._element(self.capture(as_number_array(items), path), key))
        elements = [x if isinstance(x, ArrayView) and x.rank else self.number(x) for x in self.iterate(items)]
        if not elements or len(elements) > MAX_CHOICES or not all(isinstance(x, (Expr, *NUMBERS)) for x in elements):
            raise Untraceable(
                f"this list of {len(elements)} elements cannot be indexed by a symbolic number",
                "make it one array outside the mod (mx.array or mx.stack) and index that",
            )
        key = build.where(build.compare("lt", key, 0), build.arithmetic("add", key, len(elements)), key)
        result = elements[-1]
        for index in reversed(range(len(elements) - 1)):
            result = build.where(build.compare("le", key, index), elements[index], result)
        return self.one_of(result, *elements) if isinstance(result, Expr) else result


def _closest(name: str) -> str:
    near = nearest(name, {**functions.ARRAY_FUNCTIONS, **functions.MLX_ONLY})
    return f"did you mean mx.{near}?" if near else "check the spelling"
