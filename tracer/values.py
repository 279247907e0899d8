"""Python objects and Exprs -> the values of a trace: what a number, an array, a truth value is while tracing.

Anything concrete stays a plain Python object; what depends on a position, the score or a captured number is an
`Expr`. `Values` is the ground that every reader of a function (of its `ast` today) stands on; `objects`,
`operators`, `calls` and `joins` build the meaning of Python's operations on it. Nothing there knows how the
function was read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from . import build
from .captures import Recorder
from .errors import Untraceable, with_article
from .evaluate import fold
from .expr import AT_CALL, IN_KERNEL, NOW, Expr, apply, const, leaves, rebuild
from .paths import Path, Result, plain
from .signature import name_of

NUMBERS = (bool, int, float)
PYTHON_TYPES: dict[str, type] = {"bool": bool, "int": int, "float": float}
MLX_DTYPES = {"bool": mx.bool_, "int": mx.int32, "float": mx.float32}

# What a value is needed for while tracing -> what to write when only the kernel knows it.
REMEDIES = {
    "a condition": "use `x if c else y`, mx.where or and/or",
    "a loop bound": "loop over a fixed range and leave out the rest with `if`: for i in range(8): if i < n: ...",
    "a container index": "capture an mx.array and index that, or select with `x if c else y`",
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


class Values:
    """The values of one trace, and what may be changed in it."""

    def __init__(self) -> None:
        self.recorder: Recorder = Recorder()
        self.clock: int = 0
        self.floor: int = 0  # containers made before this time must not change now: only some lanes go here
        self._births: dict[int, tuple[Any, int]] = {}
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
        """Whether a symbol is in `value`, also inside its lists, tuples and dicts."""
        if isinstance(value, (list, tuple)):
            return any(self.is_symbolic(item) for item in value)
        if isinstance(value, dict):
            return any(self.is_symbolic(item) for item in value.values())
        if isinstance(value, (Expr, ArrayView, Callback)):
            return True
        return is_record(type(value)) and any(map(self.is_symbolic, vars_of(value)))

    def is_in_kernel(self, value: Any) -> bool:
        """Whether only the kernel knows `value`, or something in it."""
        if isinstance(value, (list, tuple)):
            return any(self.is_in_kernel(item) for item in value)
        if isinstance(value, dict):
            return any(self.is_in_kernel(item) for item in value.values())
        if isinstance(value, Expr):
            return value.stage == IN_KERNEL
        return isinstance(value, (ArrayView, Callback))

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

    def made(self, container: Any) -> Any:
        """Note when the mod made a container."""
        if isinstance(container, (list, dict, set)) and not self.is_captured(container):
            self._births.setdefault(id(container), (container, self.clock))
        return container

    def check_change(self, container: Any, what: str) -> None:
        """A container must not change from outside, nor where only some lanes go."""
        if self.is_captured(container):
            raise Untraceable(
                f"{what} changes a captured {type(container).__name__}",
                "a mod must not change what it captures: copy it first, xs = list(xs)",
            )
        born = self._births.get(id(container), (None, 0))[1]
        if born < self.floor:
            kind = with_article(type(container).__name__)
            raise Untraceable(
                f"{what} changes {kind} under a condition known only inside the kernel",
                "change it on every path, with an element chosen by the condition: xs[i] = x if c else xs[i]",
            )


def is_record(kind: type) -> bool:
    """Whether objects of this class only keep what they are given: symbols may be in them."""
    return hasattr(kind, "__dataclass_fields__") or (issubclass(kind, tuple) and hasattr(kind, "_fields"))


def vars_of(record: Any) -> list[Any]:
    return [getattr(record, name, None) for name in getattr(record, "__dataclass_fields__", ())]
