"""Python objects and Exprs -> the values of a trace: what a number, an array, a truth value is while tracing.

Anything concrete stays a plain Python object; what depends on a position, the score or a captured number is an
`Expr`. `Values` is the ground that every reader of a function (of its `ast` today) stands on; `objects`,
`operators`, `calls` and `joins` build the meaning of Python's operations on it. Nothing there knows how the
function was read.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import enum
import functools
import types
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, ValuesView
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from . import build
from .captures import Recorder
from .errors import Untraceable, with_article
from .evaluate import fold
from .expr import AT_CALL, IN_KERNEL, NOW, Expr, apply, const, leaves, rebuild, walk
from .paths import Path, Result, plain
from .signature import name_of

NUMBERS = (bool, int, float)
PYTHON_TYPES: dict[str, type] = {"bool": bool, "int": int, "float": float}
_PLAIN_NUMBERS: frozenset[type] = frozenset(NUMBERS)
_ANY_NUMBERS: frozenset[type] = frozenset({*NUMBERS, np.int64, np.float32})
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


class Callback:
    """A callable that belongs to the trace: a function defined inside a mod, a method of a traced value."""

    def traced(self, args: list[Any], kwargs: dict[str, Any]) -> Any:
        raise NotImplementedError

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.traced(list(args), kwargs)


@dataclass(eq=False)
class Native(Callback):
    """A `Callback` that the tracer itself provides."""

    function: Callable[..., Any]

    def traced(self, args: list[Any], kwargs: dict[str, Any]) -> Any:
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


# Containers that change in place, and views that show how: what the trace keeps watch on.
MUTABLE = (list, dict, set, collections.deque, bytearray, Iterator)
VIEWS = (KeysView, ValuesView, ItemsView)
MAX_WATCHED = 10_000


class Values:
    """The values of one trace, and what may be changed in it."""

    def __init__(self) -> None:
        self.recorder: Recorder = Recorder()
        self.clock: int = 0
        self.floor: int = 0  # containers made before this time must not change now: only some lanes go here
        self.unmerged: int = 0  # since then, what is evaluated counts for some lanes only, and nothing is merged
        self.half_assigned: list[tuple[Any, str]] = []  # (frame, name)
        self._half_read: list[Any] = []
        self._settled_floor: int = 0
        self._births: dict[int, tuple[Any, int]] = {}
        self._kept: dict[int, tuple[Any, str]] = {}
        self._choices: dict[Expr, tuple[Any, ...]] = {}
        self._recipes: dict[Expr, tuple[Callable[..., Any], tuple[Any, ...]]] = {}
        self._computed: dict[Expr, Expr | None] = {}

    def is_captured(self, value: Any) -> bool:
        """Whether `value` is an object from outside, reached by a path."""
        return self.recorder.is_captured(value)

    # ---- numbers -------------------------------------------------------------------------------------------

    def number(self, value: Any) -> Any:
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

    def is_symbolic(self, value: Any) -> bool:
        """Whether a symbol is in `value`, also inside its lists, tuples, dicts and records."""
        if isinstance(value, (Expr, ArrayView, Callback, UnknownText, UnknownSet)):
            return True
        return any(map(self.is_symbolic, parts_of(value)))

    def is_in_kernel(self, value: Any) -> bool:
        """Whether only the kernel knows `value`, or something in it."""
        if isinstance(value, Expr):
            return value.stage == IN_KERNEL
        if isinstance(value, (ArrayView, Callback, UnknownText, UnknownSet)):
            return True
        return any(map(self.is_in_kernel, parts_of(value)))

    # ---- the Python type of a number, where a branch chose it -----------------------------------------------------

    def one_of(self, node: Expr, *choices: Any) -> Expr:
        """Note that `node` is one of `choices`, which may be of several Python types."""
        self._choices[node] = choices
        return node

    def kinds(self, value: Expr) -> frozenset[type]:
        """The Python types that a number can have: several where a condition known only inside the kernel chose it."""
        known: dict[Any, frozenset[type]] = {}
        for node in walk(value):
            own = frozenset({PYTHON_TYPES[node.dtype]})
            if node in self._choices:
                several = [known.get(x, own) if isinstance(x, Expr) else {type(x)} for x in self._choices[node]]
                known[node] = frozenset().union(*several)
            elif node.op == "param":
                known[node] = frozenset({self.recorder.kind_of(node.value)})
            elif node.op in ("to_float", "to_int", "load") or node.dtype == "bool":
                known[node] = own
            else:
                is_plain = all(len(known[arg]) == 1 and known[arg] <= _PLAIN_NUMBERS for arg in node.args)
                known[node] = own if is_plain else _ANY_NUMBERS
        return known[value]

    # ---- captured numbers: float32 in a kernel, but what they decide is decided by Python itself ---------------

    def capture(self, value: Any, path: Path) -> Any:
        raise NotImplementedError("objects say what a mod sees of a captured one")

    def computed(self, build: Callable[[], Any], function: Callable[..., Any], operands: tuple[Any, ...]) -> Any:
        """What `build` makes, of which Python gives the exact value as `function(*operands)` when these are known.

        A kernel computes float from float and int from int. A comparison, or an int from floats, would hang on the
        last bits of float32, so Python computes it and it becomes a number of the call itself.
        """
        stages = [x.stage for x in operands if isinstance(x, Expr)]
        if max(stages, default=NOW) != AT_CALL:
            return build()
        try:
            result = build()
        except Untraceable:  # integers beyond int32 are no matter for Python
            number = self._by_python(function, operands)
            if number is None:
                raise
            return number
        if not isinstance(result, Expr) or any(result is x for x in operands):
            return result
        self._recipes[result] = (function, operands)
        of_floats = any(isinstance(x, Expr) and x.dtype == "float" for x in operands)
        if result.dtype == "bool" or (result.dtype == "int" and of_floats):
            number = self._by_python(function, operands)
            return result if number is None else number
        return result

    def by_python(self, node: Expr) -> Expr | None:
        """A captured number, or what Python computes from captured numbers, as a number of its own."""
        if node.op == "param":
            return node
        if node not in self._computed and node in self._recipes:
            self._computed[node] = self._by_python(*self._recipes[node])
        return self._computed.get(node)

    def _by_python(self, function: Callable[..., Any], operands: tuple[Any, ...]) -> Expr | None:
        sources: list[Any] = []  # Python numbers, and paths of captured ones
        values: list[Any] = []
        for operand in operands:
            known = self.by_python(operand) if isinstance(operand, Expr) and operand.op != "const" else operand
            if known is None:
                return None
            if isinstance(known, Expr) and known.op == "param":
                sources.append(self.recorder.numbers[known.value][1])
                values.append(self.recorder.number_values[known.value])
            else:
                sources.append(known.value if isinstance(known, Expr) else known)
                values.append(sources[-1])
        result = plain(self.run(function, *values))
        if not isinstance(result, NUMBERS):
            return None
        number: Expr = self.capture(result, self.recorder.root.step("result", Result(function, tuple(sources))))
        return number

    def settle(self, node: Expr, why: str) -> bool | int | float:
        """The number that an expression of captured numbers has now; the trace is then bound to it."""
        if node.stage == IN_KERNEL:
            raise Untraceable(f"{why} depends on {node!r}, which is known only inside the kernel", REMEDIES[why])
        number = self.by_python(node)
        if number is not None:
            return self.recorder.specialise(number.value)
        if node.stage == AT_CALL:
            known = {param: const(self.recorder.specialise(param.value)) for param in leaves(node, ("param",))}
            node = rebuild(node, lambda old, args: known.get(old, Expr(old.op, old.dtype, args, old.value)))
        value: bool | int | float = fold(node).value
        return value

    def truth(self, value: Any) -> bool | Expr:
        """The truth value of a number: a Python bool where it is known now, else a bool Expr."""
        value = self.number(value)
        if isinstance(value, Expr):
            truth = self.computed(lambda: build.cast(value, "bool"), bool, (value,))
            return truth if truth.stage == IN_KERNEL else bool(self.settle(truth, "a condition"))
        return bool(self.run(bool, value))

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
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

    # ---- what may change -----------------------------------------------------------------------------------

    def tick(self) -> int:
        """A time later than that of everything made so far."""
        self.clock += 1
        return self.clock

    @contextlib.contextmanager
    def for_some(self) -> Iterator[Callable[[], None]]:
        """Elements are asked for until one decides; what this gives is called where only the kernel knows whether.

        Names that were assigned from there on, and iterators that were read, have no known state afterwards.
        """
        floor, unmerged, settled = self.floor, self.unmerged, self._settled_floor
        if not unmerged:
            self._settled_floor = floor

        def decide() -> None:
            self.floor = self.unmerged = self.tick()

        yield decide
        self.floor, self.unmerged, self._settled_floor = floor, unmerged, settled
        if unmerged:
            return
        for frame, name in self.half_assigned:
            reason = f"{name} was assigned where only the kernel knows whether Python came as far"
            frame.variables[name] = Conflict(name, reason, "assign it in a loop: for x in xs: ...")
        for iterator in self._half_read:
            self.keep(iterator, "that was read as far as only the kernel knows")
        self.half_assigned, self._half_read = [], []

    def check_read(self, iterator: Any) -> None:
        """An iterator is about to be read on."""
        is_own = not self.is_captured(iterator) and self.why_kept(iterator) is None
        going_on = self.unmerged > 0 and self.floor == self.unmerged  # all that still ask have read as far
        if is_own and going_on and self.birth(iterator) >= self._settled_floor:
            self._half_read.append(iterator)
        else:
            self.check_change(iterator, "reading on")

    def made(self, container: Any) -> Any:
        """Note when the mod made a container or an iterator."""
        if isinstance(container, MUTABLE) and not self.is_captured(container):
            self._births.setdefault(id(container), (container, self.clock))
        return container

    def birth(self, container: Any) -> int:
        """When the mod made a container; 0 where it is not known."""
        return self._births.get(id(container), (None, 0))[1]

    def keep(self, container: Any, reason: str) -> None:
        """From now on a container must not change, nor be asked which object it is; `reason` says what it is."""
        self._kept.setdefault(id(container), (container, reason))

    def keep_all(self, value: Any, reason: str) -> None:
        """`keep` whatever can change inside `value`."""
        if isinstance(value, MUTABLE):
            if id(value) in self._kept:
                return
            self.keep(value, reason)
        for part in parts_of(value):
            self.keep_all(part, reason)

    def why_kept(self, container: Any) -> str | None:
        """What a container is that must not change; None for any other."""
        known = self._kept.get(id(container))
        return None if known is None else known[1]

    def check_change(self, container: Any, what: str) -> None:
        """A container must not change from outside, nor where only some lanes go."""
        kind = type(container).__name__
        if self.is_captured(container):
            raise Untraceable(
                f"{what} changes a captured {kind}",
                "a mod must not change what it captures: copy it first, xs = list(xs)",
            )
        reason = self.why_kept(container)
        if reason is not None:
            raise Untraceable(f"{what} changes {with_article(kind)} {reason}", "copy it first: xs = list(xs)")
        if self.birth(container) < self.floor:
            raise Untraceable(
                f"{what} changes {with_article(kind)} under a condition known only inside the kernel",
                "change it on every path, with an element chosen by the condition: xs[i] = x if c else xs[i]",
            )

    def state(self, *values: Any) -> dict[int, tuple[Any, Any]]:
        """What can change inside values, each with what it holds now; `check_unchanged` compares."""
        found: dict[int, tuple[Any, Any]] = {}
        for value in values:
            self._add_state(value, found)
        return found

    def _add_state(self, value: Any, found: dict[int, tuple[Any, Any]]) -> None:
        if id(value) in found or isinstance(value, _WITHOUT_STATE) or len(found) > MAX_WATCHED:
            return
        held = held_by(value)
        if held is not None:
            found[id(value)] = value, held
            for part in held:
                self._add_state(part, found)

    def check_unchanged(self, state: dict[int, tuple[Any, Any]], what: str) -> None:
        """What Python changed since `state` was taken must be the mod's own, and be allowed to change."""
        for value, before in state.values():
            now = held_by(value)
            assert now is not None
            if len(now) == len(before) and all(a is b or is_same_data(a, b) for a, b in zip(now, before, strict=True)):
                continue
            if not isinstance(value, MUTABLE) or id(value) not in self._births:
                raise Changed(
                    f"{what} changes a {type(value).__name__} from outside",
                    "a mod must not change what it captures: it is called once, and not for every score",
                )
            self.check_change(value, what)


class Changed(Untraceable):
    """Python changed what belongs to others while it ran for the mod."""


def is_record(kind: type) -> bool:
    """Whether objects of this class only keep what they are given: symbols may be in them."""
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
_WITHOUT_STATE = (
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
    if isinstance(value, _WITHOUT_STATE):
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
