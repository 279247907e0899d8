"""Python objects and Exprs -> the values of a trace: what a number, an array, a truth value is while tracing.

Anything concrete stays a plain Python object; what depends on a position, the score or a captured number is an
`Expr`. Nothing here knows which trace a value belongs to, nor how the function was read.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import types
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, ValuesView
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ..captures.paths import Path, plain
from ..errors import Untraceable
from ..expr.node import IN_KERNEL, Expr, apply
from ..source.signature import name_of

NUMBERS = (bool, int, float)
PYTHON_TYPES: dict[str, type] = {"bool": bool, "int": int, "float": float}
MLX_DTYPES = {"bool": mx.bool_, "int": mx.int32, "float": mx.float32}

# What a value is needed for while tracing -> what to write when only the kernel knows it.
REMEDIES = {
    "a condition": "use `x if c else y`, mx.where or and/or",
    "a loop bound": "loop over a fixed range and leave out the rest with `if`: for i in range(8): if i < n: ...",
    "a container index": "capture an mx.array and index that, or select with `x if c else y`",
    "an element of a set": "use a list, or compare with each element",
    "a dictionary key": "replace the dict by an mx.array indexed with the number",
    "a repeat count": "use a fixed length",
    "an order": "compare the elements one by one",
    "an argument": "pass plain numbers, or write the function with arithmetic and mx functions",
}


@dataclass(frozen=True)
class ArrayView:
    """A captured array with its leading axes indexed: `a`, `a[b]`, `a[b][h]`."""

    slot: int
    element: str
    ndim: int
    path: Path
    array: Any  # as the trace saw it; only its shape and type may be looked at
    indices: tuple[Expr, ...] = ()

    @property
    def rank(self) -> int:
        """How many axes are left."""
        return self.ndim - len(self.indices)


@dataclass(frozen=True)
class Conflict:
    """What a variable holds after an `if` whose branches disagree about it in a way no number can express."""

    name: str
    reason: str
    remedy: str

    def refuse(self) -> Untraceable:
        return Untraceable(self.reason, self.remedy)


@dataclass(eq=False)
class Callback:
    """A callable that belongs to the trace: a function defined inside a mod, a method of a traced value.

    function: what it does with the values of the trace.
    """

    function: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


@dataclass(frozen=True, eq=False)
class UnknownText:
    """A text in which a number stands that only the kernel knows: it can be shown, and nothing may depend on it."""

    text: str

    def __str__(self) -> str:
        return self.text

    def refuse(self) -> Untraceable:
        return Untraceable(
            f"the text {self.text!r} holds a number that is known only inside the kernel",
            "use such a text in messages only, and compare the number itself",
        )


@dataclass(frozen=True, eq=False)
class UnknownSet:
    """A set of which only the kernel knows what elements are equal: it can be asked whether it holds something."""

    elements: tuple[Any, ...]

    def refuse(self) -> Untraceable:
        return Untraceable(
            "only the kernel knows which elements of this set are equal",
            "use a list, or `x in {...}`, which is what such a set can tell",
        )


# The trace keeps watch on containers that change in place, and on views that show how.
MUTABLE = (list, dict, set, collections.deque, bytearray, Iterator)
VIEWS = (KeysView, ValuesView, ItemsView)
MAX_WATCHED = 10_000


# ---- what a value is -------------------------------------------------------------------------------------------


def number(value: Any) -> Any:
    """`value` as an operand: a fully indexed array becomes the number it holds."""
    if isinstance(value, ArrayView):
        if value.rank:
            more = ", ".join(["..."] * value.rank)
            raise Untraceable(
                f"{value.path} still has {value.rank} of its {value.ndim} dimensions here and is not a number",
                f"index it down to one element: {value.path}[{more}]",
            )
        return apply("load", *value.indices, value=(value.slot, value.element))
    return plain(value)


def is_symbolic(value: Any) -> bool:
    """Whether a symbol is in `value`, also inside its lists, tuples, dicts and records."""
    if isinstance(value, (Expr, ArrayView, Callback, UnknownText, UnknownSet)):
        return True
    return any(map(is_symbolic, parts_of(value)))


def is_in_kernel(value: Any) -> bool:
    """Whether only the kernel knows `value`, or something in it."""
    if isinstance(value, Expr):
        return value.stage == IN_KERNEL
    if isinstance(value, (ArrayView, Callback, UnknownText, UnknownSet)):
        return True
    return any(map(is_in_kernel, parts_of(value)))


def run(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Plain Python on concrete values; what it raises is reported at the user's line."""
    try:
        return function(*args, **kwargs)
    except (Untraceable, RecursionError):
        raise
    except Exception as error:
        raise Untraceable(
            f"Python raised {type(error).__name__} in {name_of(function)}: {error}",
            "fix the expression; it runs as plain Python while the mod is traced",
        ) from error


def is_record(kind: type) -> bool:
    """Whether objects of this class only keep what they are given, so that symbols may be in them."""
    return hasattr(kind, "__dataclass_fields__") or (issubclass(kind, tuple) and hasattr(kind, "_fields"))


def stores_only(kind: type) -> bool:
    """Whether making a record of this class runs nothing that its author wrote."""
    if hasattr(kind, "__dataclass_fields__"):
        names = ("__init__", "__new__", "__post_init__", "__setattr__", "__getattribute__")
        made = [vars(owner)[name] for owner in kind.__mro__[:-1] for name in names if name in vars(owner)]
        return all(getattr(method, "__code__", None) and method.__code__.co_filename == "<string>" for method in made)
    owner = next(owner for owner in kind.__mro__ if "__new__" in vars(owner))
    return "_fields" in vars(owner) and not any("__init__" in vars(base) for base in kind.__mro__[:-2])


_DATA = (str, bytes, bool, int, float, complex, range, type(None), type(Ellipsis), mx.Dtype)
WITHOUT_STATE = (
    Expr,
    str,
    bytes,
    bool,
    int,
    float,
    complex,
    range,
    type(None),
    type,
    Callback,
    ArrayView,
    UnknownText,
    UnknownSet,
    Conflict,
)


def parts_of(value: Any) -> Iterable[Any]:
    """What a container or record of the mod holds, except the keys of a dict, which are known."""
    if isinstance(value, WITHOUT_STATE):
        return ()
    if isinstance(value, (list, tuple, set, frozenset, collections.deque, *VIEWS)):
        return tuple(value)
    if isinstance(value, dict):
        return tuple(value.values())
    if isinstance(value, slice):
        return value.start, value.stop, value.step
    if isinstance(value, BaseException):
        return value.args
    if isinstance(value, functools.partial):
        return *value.args, *value.keywords.values()
    if dataclasses.is_dataclass(value):
        return [getattr(value, name, None) for name in value.__dataclass_fields__]
    return ()


def is_same_data(a: Any, b: Any) -> bool:
    """Whether two immutable values are equal in all that Python can see of them: 1, True and 1.0 are three."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return repr(a) == repr(b)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(is_same_data, a, b))
    if isinstance(a, frozenset):
        return a == b and {(type(x), repr(x)) for x in a} == {(type(x), repr(x)) for x in b}
    if isinstance(a, range):
        return (a.start, a.stop, a.step) == (b.start, b.stop, b.step)
    return isinstance(a, _DATA) and bool(a == b)


def is_data(value: Any) -> bool:
    """Whether a value is immutable through and through, so that `is_same_data` tells all about it."""
    if isinstance(value, (tuple, frozenset)):
        return type(value) in (tuple, frozenset) and all(map(is_data, value))
    return type(value) in _DATA or isinstance(value, (enum.Enum, type, types.BuiltinFunctionType))


def held_by(value: Any) -> tuple[Any, ...] | None:
    """All that an object holds and that Python may exchange; None where nothing is known to."""
    if isinstance(value, (list, tuple, set, frozenset, collections.deque, bytearray)):
        inside = tuple(value)
    elif isinstance(value, dict):
        inside = (*value, *value.values())
    elif isinstance(value, np.ndarray):
        return (value.tobytes(),) if value.size <= MAX_WATCHED and value.dtype != object else None
    else:
        inside = ()
    own = getattr(value, "__dict__", None)
    if isinstance(own, dict) and not isinstance(value, types.ModuleType):
        return (*inside, *own, *own.values())
    return inside if isinstance(value, (*MUTABLE, tuple, frozenset)) and not isinstance(value, Iterator) else None
