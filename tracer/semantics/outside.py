"""Outside objects -> values: a number or an array becomes an input of the kernel, the rest is itself, with checks."""

from __future__ import annotations

import collections
import enum
import functools
import types
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from ..captures.guards import has_code, has_type, is_method_of, is_same
from ..captures.paths import Path
from ..captures.recorder import ARRAY_TYPES
from ..errors import Untraceable, with_article
from ..expr import functions
from ..expr.node import Expr
from ..porting import advice as porting
from .tracing import Tracing
from .values import NUMBERS, ArrayView, is_data, is_same_data

IMMUTABLE = (str, bytes, range, frozenset, type(None), type(Ellipsis), type, types.BuiltinFunctionType, mx.Dtype)
FIXED = (types.ModuleType, enum.Enum, *IMMUTABLE)  # captured ones are checked by identity or value
CONTAINERS = (list, tuple, dict, set, frozenset)
TRUSTED_PACKAGES = frozenset({"mlx", "numpy", "math", "operator", "functools", "itertools", "typing", "builtins"})


def capture(t: Tracing, value: Any, path: Path) -> Any:
    """What the mod sees of an outside object: arrays and numbers become kernel inputs, the rest is itself."""
    if not path.is_read:
        path.seen = _capture(t, value, path)
    return path.seen


def _capture(t: Tracing, value: Any, path: Path) -> Any:
    if isinstance(value, ARRAY_TYPES):
        slot = t.recorder.array_slot(value, path)
        return ArrayView(slot, t.recorder.arrays[slot][0].element, value.ndim, path, value)
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
        slot, dtype = t.recorder.number_slot(value, path, kind)
        return Expr("param", dtype, value=slot)
    if isinstance(value, types.ModuleType) and is_trusted(value):
        return value
    if kind in (str, bytes, range, mx.Dtype) or (kind is frozenset and is_data(value)):
        path.check("value", lambda now: is_same_data(now, value))
        return value
    if isinstance(value, FIXED) or functions.rule_for(value) is not None:  # functions of mx and numpy share one type
        path.check("identity", is_same(value))
        if value is not None and value is not Ellipsis:
            t.recorder.remember(value, path, fixed=True)
        return value
    if isinstance(value, types.FunctionType):
        path.check("code", has_code(value.__code__))
    elif isinstance(value, types.MethodType):
        path.check("function", is_method_of(value.__func__))
    else:
        path.check("type", has_type(kind))
    t.recorder.remember(value, path)
    return value


def is_trusted(module: types.ModuleType) -> bool:
    """Whether what a module holds never changes."""
    return module.__name__.split(".")[0] in TRUSTED_PACKAGES


def is_settled(value: Any) -> bool:
    """Whether the checks on a captured object already fix all that Python may see of it."""
    return isinstance(value, (types.FunctionType, types.MethodType, *FIXED)) or is_container(value)


def is_container(value: Any) -> bool:
    """Whether a value is one of Python's containers, or its class means the same by every operation."""
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
    """Whether a subclass of a number gives operators another meaning."""
    own = {name for owner in kind.__mro__ if owner not in (*NUMBERS, object) for name in vars(owner)}
    return any(name in own for base in (int, float) for name in vars(base) if name not in _OF_EVERY_CLASS)


_OF_EVERY_CLASS = frozenset("__doc__ __new__ __repr__ __getattribute__ __getnewargs__ __format__ __sizeof__".split())
_PROTOCOL = frozenset(
    "__iter__ __next__ __reversed__ __getitem__ __missing__ __len__ __bool__ __contains__ __eq__ __ne__ __lt__ __le__ "
    "__gt__ __ge__ __add__ __radd__ __mul__ __rmul__ __or__ __ror__ __and__ __sub__ __xor__ __iadd__ __imul__ __ior__ "
    "__getattr__ __getattribute__ __setitem__".split()
)


def exact(value: Any) -> Any:
    """A key that tells 1, True and 1.0 apart."""
    return (type(value), repr(value)) if isinstance(value, NUMBERS) else value


def like(value: Any, items: list[Any]) -> Any:
    """A container of the type of `value`, a list, a tuple or a named tuple."""
    if hasattr(value, "_make"):
        make: Callable[[list[Any]], Any] = value._make
        return make(items)
    return tuple(items) if isinstance(value, tuple) else items
