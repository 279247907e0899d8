"""Operations on the values of a trace: plain Python where all is concrete, an Expr where a symbol is involved.

This is what every reader of a function (of its `ast` today) shares: the meaning of an operator, an attribute,
an item, a call and a join of two branches. Nothing here knows how the function was read.
"""

from __future__ import annotations

import builtins
import functools
import inspect
import math
import operator
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from . import build, calls
from .captures import ARRAY_TYPES, ArrayCapture, Held, Path, Recorder, as_number_array, element_of
from .errors import Untraceable
from .evaluate import fold
from .expr import Expr, apply, const, leaves, rebuild

BINARY: dict[str, tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Expr]]] = {
    "+": (operator.add, functools.partial(build.arithmetic, "add")),
    "-": (operator.sub, functools.partial(build.arithmetic, "sub")),
    "*": (operator.mul, functools.partial(build.arithmetic, "mul")),
    "/": (operator.truediv, build.divide),
    "//": (operator.floordiv, functools.partial(build.arithmetic, "floor_div")),
    "%": (operator.mod, functools.partial(build.arithmetic, "mod")),
    "**": (operator.pow, build.power),
    "&": (operator.and_, functools.partial(build.bitwise, "and")),
    "|": (operator.or_, functools.partial(build.bitwise, "or")),
    "^": (operator.xor, functools.partial(build.bitwise, "xor")),
    "<<": (operator.lshift, functools.partial(build.bitwise, "shl")),
    ">>": (operator.rshift, functools.partial(build.bitwise, "shr")),
}
UNARY: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Expr]]] = {
    "-": (operator.neg, build.negate),
    "+": (operator.pos, build.lift),
    "~": (operator.invert, build.invert),
}
COMPARE: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "<": (operator.lt, "lt"),
    "<=": (operator.le, "le"),
    ">": (operator.gt, "gt"),
    ">=": (operator.ge, "ge"),
    "==": (operator.eq, "eq"),
    "!=": (operator.ne, "ne"),
}
NUMBERS = (bool, int, float)
# Concrete callables whose result depends on nothing but their arguments.
PURE = frozenset(
    {range, len, isinstance, issubclass, list, tuple, dict, set, frozenset, zip, enumerate, reversed, sorted, slice}
    | {map, filter, print, repr, str, format, type, callable, hasattr, ord, chr, hash, iter, next, complex}
    | {id, float, int, bool, abs, min, max, sum, any, all, round, pow, divmod, functools.reduce, functools.partial}
    | {value for value in vars(math).values() if callable(value)}
)
HOLDS_SYMBOLS = frozenset(  # of those, the ones that only carry values and never look at them
    {list, tuple, dict, zip, enumerate, reversed, map, filter, print, repr, str, functools.reduce, iter, next}
    | {functools.partial, type}
)
TRUSTED = frozenset({math, builtins, operator, mx, np, functools, types})
IMMUTABLE = (str, bytes, type(None), type(Ellipsis), types.ModuleType, type, types.BuiltinFunctionType, mx.Dtype)


@dataclass(frozen=True)
class ArrayView:
    """A captured array with its leading axes indexed: `a`, `a[b]`, `a[b][h]`."""

    slot: int
    element: str
    shape: tuple[int, ...]
    path: Path
    indices: tuple[Expr, ...] = ()

    @property
    def rest(self) -> tuple[int, ...]:
        return self.shape[len(self.indices) :]


@dataclass(frozen=True)
class Conflict:
    """What a variable holds after an `if` whose branches disagree about it in a way no number can express."""

    name: str
    reason: str


class Values:
    """The values of one trace. `inline(function, path, args, kwargs)` is the reader's: it traces a call."""

    def __init__(self, inline: Callable[[types.FunctionType, Path, list[Any], dict[str, Any]], Any]) -> None:
        self.recorder = Recorder()
        self.inline = inline

    # ---- numbers -------------------------------------------------------------------------------------------

    def number(self, value: Any) -> Any:
        """`value` as an operand: a fully indexed array becomes the number it holds."""
        if isinstance(value, Conflict):
            raise Untraceable(value.reason, f"give {value.name} one kind of value in both branches")
        if isinstance(value, ArrayView):
            if value.rest:
                more = ", ".join(["..."] * len(value.rest))
                raise Untraceable(
                    f"{value.path} is an array of shape {value.rest} here, not a number",
                    f"index it down to one element: {value.path}[{more}]",
                )
            return apply("load", *value.indices, value=(value.slot, value.element))
        if isinstance(value, np.generic):
            return value.item()
        return value

    def is_symbolic(self, value: Any) -> bool:
        """Whether a symbol is in `value`, also inside its lists and tuples."""
        if isinstance(value, (list, tuple)):
            return any(self.is_symbolic(item) for item in value)
        return isinstance(value, (Expr, ArrayView, Conflict))

    def concrete(self, value: Any, why: str) -> Any:
        """The Python value of a number that depends on captured numbers only; the trace is then bound to it."""
        value = self.number(value)
        if isinstance(value, tuple):
            return tuple(self.concrete(item, why) for item in value)
        if isinstance(value, slice):
            return slice(*(self.concrete(part, why) for part in (value.start, value.stop, value.step)))
        if not isinstance(value, Expr):
            return value
        if value.op == "param":
            return self.recorder.specialise(value.value)
        if leaves(value, ("index", "score", "load")):
            raise Untraceable(f"{why} depends on {value!r}, which is known only inside the kernel", _REMEDY[why])
        known = {
            node: const(self.recorder.specialise(node.value)) for node in leaves(value, ("param",))
        }  # fold needs constants only
        return fold(rebuild(value, lambda node, args: known.get(node) or _with_args(node, args))).value

    def truth(self, value: Any) -> bool | Expr:
        """The truth value: a Python bool where it is known now, else a bool Expr."""
        value = self.number(value)
        if not isinstance(value, Expr):
            return bool(self.run(bool, value))
        if leaves(value, ("index", "score", "load")):
            return build.cast(value, "bool")
        return bool(value.value if value.op == "const" else self.concrete(value, "a condition"))

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Plain Python on concrete values; what it raises is reported at the user's line."""
        try:
            return function(*args, **kwargs)
        except Untraceable:
            raise
        except Exception as error:
            name = getattr(function, "__name__", repr(function))
            raise Untraceable(
                f"Python raised {type(error).__name__} in {name}: {error}",
                "fix the expression; it runs as plain Python while the mod is traced",
            ) from error

    # ---- operators -----------------------------------------------------------------------------------------

    def binary(self, symbol: str, a: Any, b: Any) -> Any:
        python, symbolic = BINARY[symbol]
        a, b = self.number(a), self.number(b)
        if not isinstance(a, Expr) and not isinstance(b, Expr):
            return self.run(python, self.known(a), self.known(b))
        if isinstance(a, (list, tuple, str)) or isinstance(b, (list, tuple, str)):
            return self.run(python, self.concrete(a, "a repeat count"), self.concrete(b, "a repeat count"))
        return symbolic(a, b)

    def unary(self, symbol: str, a: Any) -> Any:
        python, symbolic = UNARY[symbol]
        a = self.number(a)
        return symbolic(a) if isinstance(a, Expr) else self.run(python, a)

    def compare(self, symbol: str, a: Any, b: Any) -> Any:
        if symbol in ("is", "is not"):
            return self._identity(a, b) is (symbol == "is")
        if symbol in ("in", "not in"):
            found = self._contains(b, a)
            if symbol == "in":
                return found
            return build.logical_not(found) if isinstance(found, Expr) else not found
        python, op = COMPARE[symbol]
        a, b = self.number(a), self.number(b)
        if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and self.is_symbolic([a, b]):
            return self._compare_sequences(symbol, a, b)
        if isinstance(a, Expr) or isinstance(b, Expr):
            other = b if isinstance(a, Expr) else a
            if symbol in ("==", "!=") and not isinstance(other, (Expr, *NUMBERS)):
                return symbol == "!="
            return build.compare(op, a, b)
        return self.run(python, a, b)

    def _identity(self, a: Any, b: Any) -> bool:
        for value, other in ((a, b), (b, a)):
            if isinstance(value, (Expr, ArrayView)) and isinstance(other, bool):
                raise Untraceable("`is` between a symbolic value and a bool", "write `==`, or the value itself")
        return a is b

    def _contains(self, container: Any, item: Any) -> Any:
        if isinstance(container, dict) or not (self.is_symbolic(item) or self.is_symbolic(container)):
            if isinstance(item, Expr):
                item = self.concrete(item, "a dictionary key")
            return bool(self.run(operator.contains, self.known(container), item))
        if isinstance(container, range):
            inside = build.logical(
                "and", build.compare("ge", item, container.start), build.compare("lt", item, container.stop)
            )
            offset = build.arithmetic("sub", item, container.start)
            on_step = build.compare("eq", build.arithmetic("mod", offset, container.step), 0)
            if container.step < 1:
                raise Untraceable("`in` a range with a negative step", "write the comparison out")
            return inside if container.step == 1 else build.logical("and", inside, on_step)
        matches = [self.compare("==", item, candidate) for candidate in self.iterate(container)]
        return functools.reduce(functools.partial(build.logical, "or"), matches, const(False))

    def _compare_sequences(self, symbol: str, a: Any, b: Any) -> Any:
        if symbol not in ("==", "!="):
            raise Untraceable(f"{symbol} between sequences of symbolic values", "compare their elements")
        if len(a) != len(b) or type(a) is not type(b):
            return symbol == "!="
        equal = [self.compare("==", x, y) for x, y in zip(a, b, strict=True)]
        both = functools.reduce(functools.partial(build.logical, "and"), equal, const(True))
        return both if symbol == "==" else build.logical_not(both)

    # ---- captured objects ----------------------------------------------------------------------------------

    def capture(self, value: Any, path: Path) -> Any:
        """What the mod sees of an outside object: arrays and numbers become kernel inputs, the rest is itself."""
        recorder = self.recorder
        if isinstance(value, ARRAY_TYPES):
            return ArrayView(recorder.array_slot(value, path), element_of(value), tuple(value.shape), path)
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, NUMBERS):
            if isinstance(value, int):
                build.lift(int(value))
            slot, dtype = recorder.number_slot(value, path)
            return Expr("param", dtype, value=slot)
        if isinstance(value, types.FunctionType):
            code = value.__code__
            recorder.guard(path, lambda now: getattr(now, "__code__", None) is code)
        elif isinstance(value, types.MethodType):
            function = value.__func__
            recorder.guard(path, lambda now: getattr(now, "__func__", None) is function)
        elif isinstance(value, (str, bytes)):
            recorder.guard(path, lambda now: bool(now == value))
            return value
        elif isinstance(value, IMMUTABLE):
            recorder.guard(path, lambda now: now is value)
            if value is None or value is Ellipsis:
                return value
        else:
            kind = type(value)
            recorder.guard(path, lambda now: type(now) is kind)
        recorder.origins.setdefault(id(value), (value, path))
        return value

    def is_captured(self, value: Any) -> bool:
        return id(value) in self.recorder.origins

    def known(self, value: Any) -> Any:
        """A captured list, tuple or dict with its elements read through their paths, for code that looks inside."""
        if isinstance(value, (list, tuple, dict)) and self.is_captured(value):
            if isinstance(value, dict):
                return {key: self.item(value, key) for key in self.iterate(value)}
            return type(value)(self.iterate(value)) if type(value) in (list, tuple) else list(self.iterate(value))
        return value

    def iterate(self, value: Any) -> Iterator[Any]:
        """What a `for` over `value` yields."""
        if isinstance(value, ArrayView) and value.rest:
            size = self.shape(value)[0]
            return (self.item(value, index) for index in range(size))
        value = self.number(value)
        if isinstance(value, Expr):
            raise Untraceable("a symbolic number cannot be looped over", _REMEDY["a loop bound"])
        if self.is_captured(value):
            path = self.recorder.origin(value)
            if isinstance(value, (list, tuple)):
                size = len(value)
                self.recorder.guard(path, lambda now: len(now) == size)
                return (self.item(value, index) for index in range(size))
            if isinstance(value, dict):
                keys = tuple(value)
                self.recorder.guard(path, lambda now: tuple(now) == keys)
                return iter(keys)
            self.recorder.volatile = True
        return iter(self.run(iter, value))

    def shape(self, view: ArrayView) -> tuple[int, ...]:
        """The shape of what is left of an array; the trace is then bound to the array's shape."""
        shape = view.shape
        capture: ArrayCapture = self.recorder.arrays[view.slot]
        if view.path.kind != "opaque":
            self.recorder.guard(view.path, lambda now: tuple(np.shape(now)) == shape)
        assert capture.ndim == len(shape)
        return view.rest

    # ---- attributes and items ------------------------------------------------------------------------------

    def attribute(self, value: Any, name: str) -> Any:
        if isinstance(value, Expr):
            return self._number_attribute(value, name)
        if isinstance(value, ArrayView):
            return self._array_attribute(value, name)
        result = self.run(getattr, value, name)
        if isinstance(value, types.ModuleType) and (value in TRUSTED or _is_trusted(value)):
            return result
        if self.is_captured(value):
            if isinstance(result, (types.BuiltinMethodType, types.MethodWrapperType)):
                self.recorder.origins[id(result)] = (result, Path("opaque"))
                return result
            return self.capture(result, Path("attr", self.recorder.origin(value), name))
        return result

    def _number_attribute(self, value: Expr, name: str) -> Any:
        if name in calls.METHODS:
            return functools.partial(calls.METHODS[name], value)
        if name in ("item", "tolist"):
            raise Untraceable(
                f".{name}() needs the value of {value!r}, which is known only inside the kernel",
                f"leave out .{name}(): a mod computes with the symbolic number itself",
            )
        fixed = {"ndim": 0, "shape": (), "size": 1}
        if name in fixed:
            return fixed[name]
        if name == "dtype":
            return {"float": mx.float32, "int": mx.int32, "bool": mx.bool_}[value.dtype]
        raise Untraceable(f"a number in a mod has no attribute {name}", "use operators and mx functions on it")

    def _array_attribute(self, view: ArrayView, name: str) -> Any:
        if not view.rest and name not in ("shape", "ndim", "size", "dtype"):
            return self._number_attribute(self.number(view), name)
        if name == "shape":
            return self.shape(view)
        if name == "ndim":
            return len(view.rest)
        if name == "size":
            return math.prod(self.shape(view))
        if name == "dtype":
            return getattr(mx, "bool_" if view.element == "bool" else view.element)
        if name in calls.REDUCTIONS:
            raise Untraceable(
                f"{view.path}.{name}() reduces a captured array, and a mod sees one score at a time",
                f"compute it once outside, row_{name} = {view.path}.{name}(...), and index row_{name} in the mod",
            )
        raise Untraceable(
            f"{view.path}.{name} works on the whole captured array",
            f"prepare the array outside the mod and index it here: {view.path}[...]",
        )

    def item(self, value: Any, key: Any) -> Any:
        if isinstance(value, ArrayView):
            return self._element(value, key)
        if isinstance(self.number(value), Expr):
            raise Untraceable(f"{value!r} is a number and cannot be indexed", "index a captured array")
        key = self.number(key)
        symbolic = isinstance(key, Expr) and bool(leaves(key, ("index", "score", "load")))
        if symbolic and isinstance(value, (list, tuple)):
            return self._choose(value, key)
        key = self.concrete(key, "a dictionary key" if isinstance(value, dict) else "a container index")
        if isinstance(key, slice):
            return self.run(operator.getitem, self.known(value), key)
        result = self.run(operator.getitem, value, key)
        if self.is_captured(value):
            return self.capture(result, Path("item", self.recorder.origin(value), key))
        return result

    def _element(self, view: ArrayView, key: Any) -> ArrayView:
        indices = list(view.indices)
        for part in key if isinstance(key, tuple) else (key,):
            part = self.number(part)
            if isinstance(part, slice) or part is None or part is Ellipsis:
                raise Untraceable(
                    f"{view.path} is indexed with {part!r}, which gives an array",
                    "index every axis with a number; slice the array outside the mod",
                )
            if isinstance(part, bool) or not isinstance(part, (int, Expr)):
                raise Untraceable(f"{view.path} is indexed with {part!r}", "array indices are integers")
            if isinstance(part, Expr) and part.dtype != "int":
                raise Untraceable(f"{view.path} is indexed with a {part.dtype}", "convert the index with int(...)")
            if len(indices) == len(view.shape):
                raise Untraceable(
                    f"too many indices: {view.path} has {len(view.shape)} dimensions", "leave some out"
                )
            size = view.shape[len(indices)]
            if isinstance(part, int) and not -size <= part < size:
                raise Untraceable(
                    f"index {part} is out of range for axis {len(indices)} of {view.path}, of size {size}",
                    "stay inside the array",
                )
            if isinstance(part, int):
                self.shape(view)
            indices.append(build.lift(part))
        return ArrayView(view.slot, view.element, view.shape, view.path, tuple(indices))

    def _choose(self, items: list[Any] | tuple[Any, ...], key: Expr) -> Any:
        """A list of numbers indexed by a symbol: a captured one is read as an array, a local one selects."""
        if key.dtype != "int":
            raise Untraceable(f"a list is indexed with a {key.dtype}", "convert the index with int(...)")
        if self.is_captured(items) and items and all(isinstance(x, (*NUMBERS, np.generic)) for x in items):
            path = self.recorder.origin(items)
            reader = path.reader()
            table = as_number_array(items)
            slot = self.recorder.array_slot(table, Path("table", path), lambda fn: as_number_array(reader(fn)))
            return apply("load", key, value=(slot, element_of(table)))
        elements = [self.number(x) for x in self.iterate(items)]
        if not elements or len(elements) > 256 or not all(isinstance(x, (Expr, *NUMBERS)) for x in elements):
            raise Untraceable(
                f"a list of {len(elements)} elements cannot be indexed by a symbolic number",
                "make it one array outside the mod (mx.array or mx.stack) and index that",
            )
        key = build.where(build.compare("lt", key, 0), build.arithmetic("add", key, len(elements)), key)
        result = elements[-1]
        for index in reversed(range(len(elements) - 1)):
            result = build.where(build.compare("le", key, index), elements[index], result)
        return result

    # ---- calls ---------------------------------------------------------------------------------------------

    def call(self, function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if isinstance(function, (Expr, ArrayView)):
            raise Untraceable("a number or array is called like a function", "remove the call parentheses")
        if isinstance(function, functools.partial) and not self.is_captured(function):
            return self.call(function.func, [*function.args, *args], {**function.keywords, **kwargs})
        rule = calls.rule_for(function)
        if rule is not None:
            return self._call_rule(function, rule, args, kwargs)
        target = self._python_function(function, args)
        if target is not None:
            python, path, args = target
            if self.is_symbolic([args, list(kwargs.values())]) or hasattr(function, "__flextrace_function__"):
                return self.inline(python, path, args, kwargs)
        return self._call_python(function, args, kwargs)

    def _call_rule(self, function: Any, rule: calls.Rule, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if function in (sum, any, all, min, max) and len(args) >= 1:
            reduced = isinstance(args[0], ArrayView) and args[0].rest
            if reduced:
                raise Untraceable(
                    f"{function.__name__}({args[0].path}) reduces a captured array, and a mod sees one score at a time",
                    f"compute mx.{function.__name__}({args[0].path}) outside the mod and capture the result",
                )
            if len(args) == 1 or function is sum:
                args = [[self.number(item) for item in self.iterate(args[0])], *args[1:]]
        args = [self.number(arg) if not isinstance(arg, ArrayView) or not arg.rest else arg for arg in args]
        kwargs = {name: self.number(value) for name, value in kwargs.items()}
        whole = next((arg for arg in args if isinstance(arg, ArrayView)), None)
        if whole is not None:
            self.number(whole)
        if self.is_symbolic([args, list(kwargs.values())]) or _module_of(function) == "mlx":
            result = self.run(rule, *args, **kwargs)
            return fold(result).value if isinstance(result, Expr) and not self.is_symbolic(args) else result
        return self.run(function, *args, **kwargs)

    def _python_function(self, function: Any, args: list[Any]) -> tuple[Any, Path, list[Any]] | None:
        """The function written in Python behind a callable, its path, and its full arguments."""
        recorder = self.recorder
        while True:
            if isinstance(function, types.FunctionType):
                if not self.is_captured(function):
                    recorder.origins[id(function)] = (function, _outside(function))
                return function, recorder.origins[id(function)][1], args
            if isinstance(function, functools.partial):
                path = recorder.origin(function)
                bound = self.capture(function.args, Path("attr", path, "args"))
                args = [*self.iterate(bound), *args]
                if function.keywords:
                    return None
                function = self.capture(function.func, Path("attr", path, "func"))
            elif isinstance(function, types.MethodType):
                path = recorder.origin(function)
                args = [self.capture(function.__self__, Path("attr", path, "__self__")), *args]
                function = self.capture(function.__func__, Path("attr", path, "__func__"))
            elif hasattr(function, "__flextrace_function__"):
                path = Path("attr", recorder.origin(function), "__flextrace_function__")
                function = self.capture(function.__flextrace_function__, path)
            elif not isinstance(function, type) and isinstance(
                inspect.getattr_static(type(function), "__call__", None), types.FunctionType
            ):
                path = Path("attr", recorder.origin(function), "__call__")
                function = self.capture(function.__call__, path)
            else:
                return None

    def _call_python(self, function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """A call that runs now, on concrete values."""
        hashable = isinstance(function, (type, types.BuiltinFunctionType)) or function in (print, format)
        if function is isinstance and isinstance(args[0], Expr):
            return issubclass({"bool": bool, "int": int, "float": float}[args[0].dtype], args[1])
        if function is len and isinstance(args[0], ArrayView) and args[0].rest:
            return self.shape(args[0])[0]
        if hashable and function in PURE:
            if function in HOLDS_SYMBOLS:
                args = [list(self.iterate(arg)) if isinstance(arg, ArrayView) else self.known(arg) for arg in args]
            else:
                args = [self._argument(function, self.known(arg)) for arg in args]
            return self.run(function, *args, **kwargs)
        owner = getattr(function, "__self__", None)
        local = isinstance(function, types.BuiltinMethodType) and not isinstance(owner, types.ModuleType)
        if local and not self.is_captured(owner) and not self.is_captured(function):
            return self.run(function, *args, **kwargs)  # a method of a container that the mod made itself
        if isinstance(function, type) and self.is_symbolic([args, list(kwargs.values())]):
            return self.run(function, *args, **kwargs)  # a record made inside the mod may hold symbols
        args = [self._argument(function, arg) for arg in args]
        kwargs = {name: self._argument(function, value) for name, value in kwargs.items()}
        result = self.run(function, *args, **kwargs)
        return self.capture(result, self.recorder.opaque_path(result))

    def _argument(self, function: Any, value: Any) -> Any:
        if isinstance(value, ArrayView) and value.rest:
            raise calls.advice(function)
        value = self.number(value)
        if isinstance(value, Expr) and leaves(value, ("index", "score", "load")):
            if function is range:
                raise Untraceable(f"range({value!r}) is not known while tracing", _REMEDY["a loop bound"])
            raise calls.advice(function)
        return self.concrete(value, "an argument")

    # ---- branches ------------------------------------------------------------------------------------------

    def merge(self, condition: Expr, a: Any, b: Any, name: str) -> Any:
        """What `name` holds after `if condition: a else: b`."""
        if a is b:
            return a
        if isinstance(a, Conflict) or isinstance(b, Conflict):
            return a if isinstance(a, Conflict) else b
        if isinstance(a, ArrayView) and isinstance(b, ArrayView) and a.rest and a.rest == b.rest and a.slot == b.slot:
            indices = tuple(build.where(condition, x, y) for x, y in zip(a.indices, b.indices, strict=True))
            return ArrayView(a.slot, a.element, a.shape, a.path, indices)
        if not (isinstance(a, ArrayView) and a.rest) and not (isinstance(b, ArrayView) and b.rest):
            a, b = self.number(a), self.number(b)
        if isinstance(a, (Expr, *NUMBERS)) and isinstance(b, (Expr, *NUMBERS)):
            return build.where(condition, a, b)
        if isinstance(a, (list, tuple)) and type(a) is type(b) and len(a) == len(b):
            return type(a)(self.merge(condition, x, y, name) for x, y in zip(a, b, strict=True))
        if type(a) is type(b) and isinstance(a, IMMUTABLE) and a == b:
            return a
        return Conflict(
            name,
            f"{name} is {_describe(a)} or {_describe(b)}, depending on a condition known only inside the kernel",
        )


_REMEDY = {
    "a condition": "use `x if c else y`, mx.where or and/or",
    "a loop bound": "loop over a fixed range and leave out the rest with `if`: for i in range(8): if i < n: ...",
    "a repeat count": "use a fixed length",
    "a container index": "capture an mx.array and index that, or select with `x if c else y`",
    "a dictionary key": "replace the dict by an mx.array indexed with the number",
    "an argument": "pass plain numbers, or write the function with arithmetic and mx functions",
    "a format": "print the expression after tracing: mod.expr",
    "a loop condition": "loop over a fixed range with `for` and stop with `if ...: break`",
}


def _with_args(node: Expr, args: tuple[Expr, ...]) -> Expr:
    return Expr(node.op, node.dtype, args, node.value)


def _describe(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, (Expr, *NUMBERS)):
        return "a number"
    return f"a {type(value).__name__}" if not isinstance(value, ArrayView) else f"the array {value.path}"


def _module_of(function: Any) -> str:
    return str(getattr(function, "__module__", "") or type(function).__module__).split(".")[0]


def _is_trusted(module: types.ModuleType) -> bool:
    return module.__name__.split(".")[0] in ("mlx", "numpy", "math", "typing", "dataclasses", "collections")


def _outside(function: types.FunctionType) -> Path:
    """A function reached through a trusted module (a helper of a library): read where it is."""
    return Path("opaque", None, Held(function))


