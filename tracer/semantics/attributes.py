"""Attributes and types -> values: `x.name`, and what Python can ask about `x`: getattr, hasattr, type, isinstance."""

from __future__ import annotations

import functools
import inspect
import operator
import types
from typing import Any

from ..errors import Untraceable
from ..expr import build, functions
from ..expr.node import IN_KERNEL, Expr
from ..nearest import nearest
from ..porting import advice as porting
from . import numbers, objects, running
from .outside import capture, is_container, is_trusted
from .tracing import Tracing
from .values import MLX_DTYPES, PYTHON_TYPES, ArrayView, Callback, UnknownSet, UnknownText, is_symbolic, number, run

_METHODS = (types.MethodDescriptorType, types.ClassMethodDescriptorType)  # their classes are not written in Python


def attribute(t: Tracing, value: Any, name: str) -> Any:
    if isinstance(value, Expr):
        return _number_attribute(t, value, name)
    if isinstance(value, ArrayView):
        return _array_attribute(t, value, name)
    if isinstance(value, (UnknownText, UnknownSet)):
        raise value.refuse()
    if isinstance(value, Callback):
        raise Untraceable(f"the attribute {name} of a function that is defined in a mod", "keep it in a variable")
    if is_container(value) and isinstance(inspect.getattr_static(type(value), name, None), _METHODS):
        return Callback(functools.partial(running.container_method, t, value, name))
    if isinstance(value, types.ModuleType) and is_trusted(value):
        if not hasattr(value, name):
            raise Untraceable(f"{value.__name__} has no {name}", _closest(name))
        return getattr(value, name)
    if is_symbolic(value):
        found = inspect.getattr_static(type(value), name, None)
        if isinstance(found, property) and isinstance(found.fget, types.FunctionType):
            return t.call(t, types.MethodType(found.fget, value), [], {})
        is_stored = name in getattr(value, "__dict__", ())
        if not is_stored and (found is None or isinstance(found, functools.cached_property)):
            raise Untraceable(
                f"plain Python would compute {name} of a {type(value).__name__} that holds symbolic numbers",
                "write it as a method, and call it",
            )
    return objects.stored(t, value, name)


def _number_attribute(t: Tracing, value: Expr, name: str) -> Any:
    if name in functions.METHODS:
        rule = functions.METHODS[name]
        return Callback(lambda *args: rule(value, *(number(arg) for arg in args)))
    if value.stage != IN_KERNEL and hasattr(PYTHON_TYPES[value.dtype], name):
        return getattr(numbers.settle(t, value, "an argument"), name)
    if name in ("item", "tolist"):
        if value.stage != IN_KERNEL:
            return Callback(lambda: value)
        raise Untraceable(
            f".{name}() needs the value of {value!r}, which is known only inside the kernel",
            f"leave out .{name}(): a mod computes with the symbolic number itself",
        )
    fixed = {"ndim": 0, "shape": (), "size": 1, "dtype": MLX_DTYPES[value.dtype]}
    if name in fixed:
        return fixed[name]
    raise porting.method_advice(name)


def _array_attribute(t: Tracing, view: ArrayView, name: str) -> Any:
    if name == "shape":
        return objects.shape(t, view)
    if name == "ndim":
        return view.rank
    if name == "size":
        return functools.reduce(functools.partial(_times, t), objects.shape(t, view), 1)
    if name == "dtype":
        return getattr(view.array, name)
    if not view.rank:
        return _number_attribute(t, number(view), name)
    if name in functions.REDUCTIONS:
        raise Untraceable(
            f"{view.path}.{name}() reduces a captured array, and a mod sees one score at a time",
            f"compute it once outside, row_{name} = {view.path}.{name}(...), and index row_{name} in the mod",
        )
    raise Untraceable(
        f"{view.path}.{name} works on the whole captured array",
        f"prepare the array outside the mod and index it here: {view.path}[...]",
    )


def get_attribute(t: Tracing, value: Any, name: str, *default: Any) -> Any:
    name = objects.concrete(t, name, "an argument")
    run(operator.attrgetter, name)  # raises unless it is a string
    return default[0] if default and not has_attribute(t, value, name) else attribute(t, value, name)


def has_attribute(t: Tracing, value: Any, name: str) -> bool:
    name = objects.concrete(t, name, "an argument")
    run(operator.attrgetter, name)
    if isinstance(value, (ArrayView, UnknownText, UnknownSet, Callback)):
        return hasattr(type_of(t, value), name)
    if isinstance(value, Expr):
        known = value.stage != IN_KERNEL and hasattr(PYTHON_TYPES[value.dtype], name)
        return known or name in functions.METHODS
    found = hasattr(value, name)
    if t.recorder.is_captured(value):
        t.recorder.origin(value).check(("has", name), lambda now: hasattr(now, name) is found)
    return found


def _times(t: Tracing, a: Any, b: Any) -> Any:
    """A product of sizes."""
    return numbers.computed(t, lambda: build.arithmetic("mul", a, b), operator.mul, (a, b))


def _closest(name: str) -> str:
    near = nearest(name, {**functions.ARRAY_FUNCTIONS, **functions.MLX_ONLY})
    return f"did you mean mx.{near}?" if near else "check the spelling"


# ---- types ------------------------------------------------------------------------------------------------------


def is_instance(t: Tracing, value: Any, kinds: Any) -> bool:
    if isinstance(value, Expr):
        answers = {bool(run(issubclass, kind, objects.known(t, kinds))) for kind in numbers.kinds(t, value)}
        if len(answers) > 1:
            raise _unknown_type(value)
        return answers.pop()
    if isinstance(value, (ArrayView, UnknownText, UnknownSet, Callback)):
        return bool(run(issubclass, type_of(t, value), objects.known(t, kinds)))
    return bool(run(isinstance, value, objects.known(t, kinds)))


def type_of(t: Tracing, value: Any) -> Any:
    if isinstance(value, ArrayView):
        kind = type(value.array)
        value.path.check("library", lambda now: type(now) is kind)
        return kind
    if isinstance(value, Expr):
        kinds = numbers.kinds(t, value)
        if len(kinds) > 1:
            raise _unknown_type(value)
        return next(iter(kinds))
    if isinstance(value, Callback):
        return types.FunctionType
    if isinstance(value, (UnknownText, UnknownSet)):
        return str if isinstance(value, UnknownText) else set
    if t.recorder.is_captured(value):
        return capture(t, type(value), t.recorder.origin(value).step("attr", "__class__"))
    return type(value)


def _unknown_type(value: Expr) -> Untraceable:
    return Untraceable(
        f"the Python type of {value!r} depends on a condition known only inside the kernel",
        "give both sides of the condition one type: float(...) or int(...)",
    )
