"""Containers and captured objects -> values: elements, items, lengths and truth, each read again through its path."""

from __future__ import annotations

import collections
import inspect
import operator
import types
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..captures.paths import as_number_array
from ..errors import Untraceable, with_article
from ..expr import build
from ..expr.node import IN_KERNEL, Expr
from ..porting import advice as porting
from . import changes, numbers
from .outside import capture, exact, is_container, is_settled, like
from .tracing import Tracing
from .values import (
    MUTABLE,
    NUMBERS,
    ArrayView,
    Callback,
    UnknownSet,
    UnknownText,
    is_data,
    is_in_kernel,
    is_same_data,
    is_symbolic,
    number,
    parts_of,
    run,
)

MAX_UNROLLED = 10_000
MAX_CHOICES = 256


def known(t: Tracing, value: Any) -> Any:
    """A captured container as one of the mod's own, its elements read through their paths."""
    if not is_container(value) or not t.recorder.is_captured(value) or isinstance(value, frozenset):
        return value
    copy: Any
    if isinstance(value, set):
        copy = set(iterate(t, value))
    elif isinstance(value, dict):
        copy = {key: item(t, value, key) for key in iterate(t, value)}
    else:
        copy = like(value, list(iterate(t, value)))
    if isinstance(copy, MUTABLE):
        changes.keep(t, copy, "that the mod captures")
    return copy


def concrete(t: Tracing, value: Any, why: str) -> Any:
    """The Python value of what depends on captured numbers only, also inside containers."""
    value = number(value)
    if isinstance(value, Expr):
        return numbers.settle(t, value, why)
    if isinstance(value, (UnknownText, UnknownSet)):
        raise value.refuse()
    if isinstance(value, slice):
        return slice(*(concrete(t, part, why) for part in (value.start, value.stop, value.step)))
    if is_container(value):
        if isinstance(value, (set, frozenset)):
            list(iterate(t, value))  # this binds the trace to its elements
            return value
        keys = list(iterate(t, value)) if isinstance(value, dict) else []
        items = [item(t, value, key) for key in keys] if isinstance(value, dict) else list(iterate(t, value))
        settled = [concrete(t, element, why) for element in items]
        if not t.recorder.is_captured(value) and all(a is b for a, b in zip(items, settled, strict=True)):
            return value
        return dict(zip(keys, settled, strict=True)) if isinstance(value, dict) else like(value, settled)
    if is_symbolic(value) and not isinstance(value, (ArrayView, Callback)):
        parts = list(parts_of(value))
        if any(a is not b for a, b in zip(parts, [concrete(t, part, why) for part in parts], strict=True)):
            raise Untraceable(
                f"plain Python would look inside a {type(value).__name__} that holds symbolic numbers",
                "pass the numbers themselves",
            )
    if t.recorder.is_captured(value) and not is_settled(value):
        t.recorder.volatile = True  # Python looks inside an object that may change unseen
    return value


def iterate(t: Tracing, value: Any) -> Iterator[Any]:
    """What a `for` over `value` yields."""
    if isinstance(value, ArrayView) and value.rank:
        size = concrete(t, shape(t, value)[0], "a loop bound")
        if size > MAX_UNROLLED:
            raise Untraceable(f"a loop over the {size} elements of {value.path}", "index the array instead")
        return (item(t, value, index) for index in range(size))
    value = number(value)
    if isinstance(value, Expr):
        raise Untraceable(f"the number {value!r} cannot be looped over", "loop over range(...) or a container")
    if isinstance(value, (UnknownText, UnknownSet)):
        raise value.refuse()
    if is_container(value):
        return _elements(t, value) if t.recorder.is_captured(value) else iter(value)
    if t.recorder.is_captured(value) and not is_settled(value):
        t.recorder.volatile = True
    method = special(t, value, "__iter__") if is_symbolic(value) else None
    return _steps(t, value) if method is None else iterate(t, t.call(t, method, [], {}))


def _elements(t: Tracing, value: Any) -> Iterator[Any]:
    """What a loop over a captured container yields; the trace is bound to how many there are, and to what keys."""
    path = t.recorder.origin(value)
    if isinstance(value, (dict, set, frozenset)):
        keys = tuple(value)
        if not all(map(is_data, keys)):
            t.recorder.volatile = True  # what they hold may change unseen
        if isinstance(value, dict):
            path.check("keys", lambda now: len(now) == len(keys) and all(map(_is_same, now, keys)))
        else:
            held = {exact(key) for key in keys}
            path.check("elements", lambda now: len(now) == len(held) and held.issuperset(map(exact, now)))
        return iter(keys)
    size = len(value)
    path.check("length", lambda now: len(now) == size)
    return (item(t, value, index) for index in range(size))


def _steps(t: Tracing, value: Any) -> Iterator[Any]:
    """What Python's iter() gives; an iterator of the mod is checked at every step, whether it may be read on."""
    done = object()
    iterator = run(iter, value)
    while True:
        if iterator is value:
            changes.check_read(t, value)
        element = run(next, iterator, done)
        if element is done:
            return
        yield element


def length(t: Tracing, value: Any) -> Any:
    """`len(value)`."""
    if isinstance(value, ArrayView) and value.rank:
        return shape(t, value)[0]
    value = number(value)
    if isinstance(value, Expr):
        raise Untraceable(f"len() of the number {value!r}", "take the len() of an array or container")
    if isinstance(value, (UnknownText, UnknownSet)):
        raise value.refuse()
    method = special(t, value, "__len__") if is_symbolic(value) else None
    if method is not None:
        return t.call(t, method, [], {})
    size = run(len, value)
    if t.recorder.is_captured(value):
        t.recorder.origin(value).check("length", lambda now: len(now) == size)
    return size


def truth(t: Tracing, value: Any) -> bool | Expr:
    """The truth value: a Python bool where it is known now, else a bool Expr."""
    if is_container(value):
        return bool(length(t, value))
    if isinstance(value, (UnknownText, UnknownSet)):
        raise value.refuse()
    if is_symbolic(value):
        method = special(t, value, "__bool__") or special(t, value, "__len__")
        if method is not None:
            return truth(t, t.call(t, method, [], {}))
    if t.recorder.is_captured(value) and (hasattr(type(value), "__bool__") or hasattr(type(value), "__len__")):
        t.recorder.volatile = t.recorder.volatile or not is_settled(value)
    return numbers.truth(t, value)


def shape(t: Tracing, view: ArrayView) -> tuple[Any, ...]:
    """The sizes of the axes that are left of an array: captured numbers, read at every call."""
    path = view.path.step("attr", "shape")
    return tuple(
        capture(t, int(size), path.step("item", axis))
        for axis, size in list(enumerate(view.array.shape))[len(view.indices) :]
    )


def item(t: Tracing, value: Any, key: Any) -> Any:
    if isinstance(value, ArrayView):
        return _element(value, key)
    key = number(key)
    if porting.is_module(value) and is_in_kernel(key):
        raise porting.module_advice(value, str(t.recorder.origin(value)))
    if isinstance(number(value), Expr):
        raise Untraceable(f"{value!r} is a number and cannot be indexed", "index a captured array")
    if isinstance(key, Expr) and key.stage == IN_KERNEL and not isinstance(value, dict):
        return _choose(t, value, key)
    if isinstance(value, (UnknownText, UnknownSet)):
        raise value.refuse()
    method = special(t, value, "__getitem__") if is_symbolic(value) else None
    if method is not None:
        return t.call(t, method, [key], {})
    key = concrete(t, key, "a dictionary key" if isinstance(value, dict) else "a container index")
    if isinstance(value, collections.defaultdict) and key not in value:
        raise Untraceable(f"looking up {key!r} adds it to a defaultdict", "give it the key before, or use .get()")
    if isinstance(key, slice):
        return changes.made(t, run(operator.getitem, known(t, value), key))
    result = run(operator.getitem, value, key)
    if t.recorder.is_captured(value):
        return capture(t, result, t.recorder.origin(value).step("item", key))
    return result


def _element(view: ArrayView, key: Any) -> ArrayView:
    indices = list(view.indices)
    for part in key if isinstance(key, tuple) else (key,):
        part = number(part)
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
            raise Untraceable(f"too many indices: {view.path} has {view.ndim} dimensions", "leave out what is too much")
        if isinstance(part, int):
            _check_inside(view, len(indices), part)
        indices.append(build.lift(part))
    return ArrayView(view.slot, view.element, view.ndim, view.path, view.array, tuple(indices))


def _check_inside(view: ArrayView, axis: int, index: int) -> None:
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


def _choose(t: Tracing, items: Any, key: Expr) -> Any:
    """A list of numbers indexed by a symbol: a captured one is read as an array, a local one selects."""
    if not isinstance(items, (list, tuple)):
        raise Untraceable(
            f"{with_article(type(items).__name__)} is indexed by {key!r}, which is known only inside the kernel",
            "capture an mx.array instead (mx.array(x)) and index that",
        )
    if key.dtype != "int":
        raise Untraceable(f"a list is indexed with {with_article(key.dtype)}", "convert the index with int(...)")
    if t.recorder.is_captured(items) and items and all(isinstance(x, (*NUMBERS, np.generic)) for x in items):
        path = t.recorder.origin(items).step("table")
        return number(_element(capture(t, as_number_array(items), path), key))
    elements = [x if isinstance(x, ArrayView) and x.rank else number(x) for x in iterate(t, items)]
    if not elements or len(elements) > MAX_CHOICES or not all(isinstance(x, (Expr, *NUMBERS)) for x in elements):
        raise Untraceable(
            f"this list of {len(elements)} elements cannot be indexed by a symbolic number",
            "make it one array outside the mod (mx.array or mx.stack) and index that",
        )
    key = build.where(build.compare("lt", key, 0), build.arithmetic("add", key, len(elements)), key)
    result = elements[-1]
    for index in reversed(range(len(elements) - 1)):
        result = build.where(build.compare("le", key, index), elements[index], result)
    return numbers.one_of(t, result, *elements) if isinstance(result, Expr) else result


def stored(t: Tracing, value: Any, name: str) -> Any:
    """What Python finds as an attribute of an object; a captured object has it through its path."""
    result = run(getattr, value, name)
    if isinstance(result, types.MethodWrapperType):
        raise Untraceable(f"{name} is what an operator does", "write the operator itself")
    if t.recorder.is_captured(value):
        if isinstance(result, types.BuiltinMethodType):
            t.recorder.held(result)
            return result
        return capture(t, result, t.recorder.origin(value).step("attr", name))
    return result


def special(t: Tracing, value: Any, name: str) -> Any:
    """The method that a class written in Python has for an operation on `value`, or None."""
    if isinstance(value, (Expr, ArrayView, Callback)):
        return None
    found = inspect.getattr_static(type(value), name, None)
    return stored(t, value, name) if isinstance(found, types.FunctionType) else None


def _is_same(a: Any, b: Any) -> bool:
    return a is b or is_same_data(a, b)


# ---- what a mod does with containers ---------------------------------------------------------------------------


def set_item(t: Tracing, container: Any, key: Any, value: Any) -> None:
    """`container[key] = value`, for a list or dict that the mod made."""
    if isinstance(container, ArrayView) or not isinstance(container, (list, dict)):
        kind = "a captured array"
        if not isinstance(container, ArrayView):
            kind = with_article(type(container).__name__)
        raise Untraceable(
            f"an element of {kind} is set",
            "a mod must not change what it captures: keep intermediate values in local variables",
        )
    changes.check_change(t, container, "setting an element")
    wanted = "a dictionary key" if isinstance(container, dict) else "a container index"
    run(container.__setitem__, concrete(t, key, wanted), value)


def unpack(t: Tracing, value: Any, count: int, star: int | None = None) -> list[Any]:
    """The values of `a, b, *c = value`, for `count` names of which the one at `star` takes what the others leave."""
    items = list(iterate(t, value))
    if (star is None and len(items) != count) or (star is not None and len(items) < count - 1):
        raise Untraceable(f"{len(items)} values cannot be unpacked into {count} names", "match the counts")
    if star is not None:
        end = len(items) - (count - star - 1)
        items = [*items[:star], changes.made(t, items[star:end]), *items[end:]]
    return items


def set_of(t: Tracing, elements: list[Any]) -> Any:
    """`{*elements}`, where only the kernel may know which elements are equal."""
    if is_in_kernel(elements):
        return UnknownSet(tuple(elements))
    return changes.made(t, {concrete(t, element, "an element of a set") for element in elements})


def dict_key(t: Tracing, key: Any) -> Any:
    """The key of an element that a mod puts into a dict, which must be known while tracing."""
    return concrete(t, key, "a dictionary key")
