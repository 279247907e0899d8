"""hypothesis -> random mods as Python source text, and what they must give: float32 and int32 in plain Python.

A `Program` is the text of one function. Its meaning is that text, run by Python itself on `I32`, `Bool` and `F32`:
numbers that wrap and round after every operation as a kernel does. Where kernels may differ in the last bits
(exp, sin, ...) an `F32` carries a bound on its error; a decision that the bound leaves open raises `Undecided`
and that point is not compared. All else is compared bit by bit.

What Python refuses in some lanes only is made total: int // and % by zero give 0, float division is IEEE's, a shift by
a negative count goes as far as any, float -> int saturates and maps nan to 0, array indices wrap once and are then
clamped.
"""

from __future__ import annotations

import ast
import contextlib
import itertools
import linecache
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from hypothesis import reject
from hypothesis import strategies as st

from flextrace import TraceError

INT_MIN, INT_MAX = -(2**31), 2**31 - 1
INT_CONSTANTS = (0, 1, 2, 3, 5, 7, 8, 31, 32, 33, 100, 255, 65535, 2**24 + 1, 2**30, INT_MAX)
INT_CONSTANTS += (-1, -2, -3, -7, -8, -32, -256, INT_MIN + 1, INT_MIN)
USUAL = (0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 3.7, -7.25, 0.1, 100.3, -88.0, 1e-3)
EXTREME = (-0.0, 2.0**24, 1e10, 2.0**31, -(2.0**31), 1e38, -1e38, 3.4e38, 1e-45, -1e-39, math.inf, -math.inf, math.nan)


# --- numbers as kernels hold them ---------------------------------------------------------------------


class Undecided(Exception):
    """A branch, rounding or overflow that depends on the last bits of an approximated function."""


class Number:
    """What I32, Bool and F32 share: Python's operators through the tables INT_OPS and FLOAT_OPS."""

    __slots__ = ("err", "value")
    __hash__ = None  # type: ignore[assignment]
    value: Any
    err: float

    def __abs__(self) -> Number:
        return I32(abs(self.value)) if isinstance(self, I32) else F32(abs(self.value), self.err)

    def __neg__(self) -> Number:
        return I32(-self.value) if isinstance(self, I32) else F32(-self.value, self.err)

    def __pos__(self) -> Number:
        return I32(self.value) if isinstance(self, I32) else self

    def __invert__(self) -> Number:
        return I32(~self.value)

    def __pow__(self, exponent: Any) -> Number:
        if isinstance(self, I32) and isinstance(exponent, int) and exponent >= 0:
            return I32(self.value**exponent)
        return power(to_float(self), to_float(exponent))

    def __rpow__(self, base: Any) -> Number:
        return power(to_float(base), to_float(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.value!r})"


class I32(Number):
    """int32: wraps after every operation."""

    __slots__ = ()

    def __init__(self, value: int) -> None:
        self.value = (int(value) + 2**31) % 2**32 - 2**31
        self.err = 0.0

    def __bool__(self) -> bool:
        return self.value != 0

    def __round__(self) -> I32:
        return I32(self.value)

    __floor__ = __ceil__ = __trunc__ = __round__


class Bool(I32):
    """A comparison's result: counts as 0 or 1; & | ^ of two stay bool."""

    __slots__ = ()

    def __init__(self, value: Any) -> None:
        super().__init__(1 if value else 0)


class F32(Number):
    """float32: rounds after every operation; `err` bounds the distance to the exact mathematical value."""

    __slots__ = ()

    def __init__(self, value: Any, err: float = 0.0) -> None:
        with np.errstate(all="ignore"):
            self.value = np.float32(value)
        self.err = err
        if err and not (math.isfinite(self.value) and abs(self.value) < 1e37):
            raise Undecided("an approximate value next to overflow")

    def __bool__(self) -> bool:
        return compare("!=", self, F32(0.0)).value != 0

    def exact(self) -> Any:
        if self.err:
            raise Undecided("a step of an approximate value")
        return self.value

    def __round__(self) -> I32:
        return saturate(np.rint(self.exact()))

    def __floor__(self) -> I32:
        return saturate(np.floor(self.exact()))

    def __ceil__(self) -> I32:
        return saturate(np.ceil(self.exact()))

    def __trunc__(self) -> I32:
        return saturate(np.trunc(self.exact()))


def lift(x: Any) -> Number:
    """A Python number as the kernel's; ints must fit."""
    if isinstance(x, Number):
        return x
    if isinstance(x, (bool, np.bool_)):
        return Bool(x)
    if isinstance(x, int):
        assert INT_MIN <= x <= INT_MAX, f"the generator wrote {x}"
        return I32(x)
    return F32(x)


def to_float(x: Any) -> F32:
    x = lift(x)
    return x if isinstance(x, F32) else F32(x.value)


def to_int(x: Any) -> I32:
    x = lift(x)
    return x.__trunc__() if isinstance(x, F32) else I32(x.value)


def to_bool(x: Any) -> Bool:
    return Bool(bool(lift(x)))


def saturate(x: np.float32) -> I32:
    return I32(0) if np.isnan(x) else I32(min(max(int(np.clip(np.float64(x), -3e9, 3e9)), INT_MIN), INT_MAX))


def promote(*xs: Any) -> list[Number]:
    numbers = [lift(x) for x in xs]
    return [to_float(x) for x in numbers] if any(isinstance(x, F32) for x in numbers) else numbers


def ulp(x: Any) -> float:
    return float(np.spacing(abs(np.float32(x)))) if np.isfinite(x) else 0.0


# Error of a float operation from those of its operands: (a, b, result) -> bound, without the final rounding.
ERRORS: dict[str, Callable[[F32, F32, float], float]] = {
    "+": lambda a, b, r: a.err + b.err,
    "-": lambda a, b, r: a.err + b.err,
    "*": lambda a, b, r: abs(float(a.value)) * b.err + abs(float(b.value)) * a.err + a.err * b.err,
    "/": lambda a, b, r: (a.err + abs(r) * b.err) / (abs(float(b.value)) - b.err),
}
FLOAT_OPS: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "//": lambda a, b: np.floor_divide(a, b),
    "%": lambda a, b: np.remainder(a, b),
}
WORD = 32  # bits of a kernel's int
INT_OPS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "//": lambda a, b: a // b if b else 0,
    "%": lambda a, b: a % b if b else 0,
    "&": lambda a, b: a & b,
    "|": lambda a, b: a | b,
    "^": lambda a, b: a ^ b,
    "<<": lambda a, b: a << b if 0 <= b < WORD else 0,  # a << 32 has no bits left that wrapping keeps
    ">>": lambda a, b: a >> b if b >= 0 else a >> WORD,
}
COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}


def operate(op: str, a: Any, b: Any) -> Number:
    """`a op b` after Python's promotion: bool < int < float; `/` always float."""
    x, y = promote(a, b)
    if op == "/":
        x, y = to_float(x), to_float(y)
    if isinstance(x, F32) and isinstance(y, F32):
        if (x.err or y.err) and (op not in ERRORS or (op == "/" and not abs(float(y.value)) > 2 * y.err)):
            raise Undecided(f"{op} of approximate values")
        value = FLOAT_OPS[op](x.value, y.value)
        if not (x.err or y.err):
            return F32(value)
        return F32(value, ERRORS[op](x, y, float(value)) + ulp(value) + 1e-44)
    result = INT_OPS[op](x.value, y.value)
    both_bool = isinstance(x, Bool) and isinstance(y, Bool) and op in "&|^"
    return Bool(result) if both_bool else I32(result)


def compare(op: str, a: Any, b: Any) -> Bool:
    """Python compares an int with a float constant exactly; two variables meet as float32."""
    for number, constant in ((a, b), (b, a)):
        if isinstance(number, I32) and isinstance(constant, float):
            left, right = (number.value, constant) if number is a else (constant, number.value)
            return Bool(COMPARISONS[op](left, right))
    x, y = promote(a, b)
    if (x.err or y.err) and abs(float(x.value) - float(y.value)) <= x.err + y.err:
        raise Undecided("a comparison of approximate values")
    return Bool(COMPARISONS[op](x.value, y.value))


def _install_operators() -> None:
    names = {"+": "add", "-": "sub", "*": "mul", "/": "truediv", "//": "floordiv", "%": "mod"}
    names |= {"&": "and", "|": "or", "^": "xor", "<<": "lshift", ">>": "rshift"}
    for op, name in names.items():
        setattr(Number, f"__{name}__", lambda a, b, op=op: operate(op, a, b))
        setattr(Number, f"__r{name}__", lambda a, b, op=op: operate(op, b, a))
    for op, name in {"<": "lt", "<=": "le", ">": "gt", ">=": "ge", "==": "eq", "!=": "ne"}.items():
        setattr(Number, f"__{name}__", lambda a, b, op=op: compare(op, a, b))


_install_operators()


# --- functions that kernels approximate -----------------------------------------------------------------

ULPS = 16  # what an approximated function may be off by, besides its absolute allowance below


def approximate(value: float, ulps: float = ULPS, absolute: float = 1e-37) -> F32:
    """A float64 result as float32 with its allowance; nan and infinity have none."""
    value = float(value)
    if abs(value) > 1e39 or math.isnan(value):
        return F32(math.copysign(math.inf, value) if not math.isnan(value) else math.nan)
    return F32(value, ulps * ulp(value) + absolute)


def power(a: F32, b: F32) -> F32:
    try:
        python = float(a.exact()) ** float(b.exact())
    except (ZeroDivisionError, OverflowError):  # a kernel goes on, with infinities
        python = np.power(np.float64(a.exact()), np.float64(b.exact()))
    value = np.float64(math.nan if isinstance(python, complex) else python)
    exponent = abs(float(np.log2(np.abs(value)))) if np.isfinite(value) and value else 0.0
    return approximate(value, ULPS * (1 + exponent))


class Approximated(NamedTuple):
    """f in float64; an argument outside `domain` is not compared; `slack(result)` is allowed absolutely."""

    f: Callable[[Any], Any]
    domain: tuple[float, float] = (-math.inf, math.inf)
    slack: Callable[[float], float] = lambda result: 1e-37


def _wave(limit: float, f: Callable[[Any], Any], slack: Callable[[float], float]) -> Approximated:
    return Approximated(f, (-limit, limit), slack)


APPROXIMATED: dict[str, Approximated] = {
    "exp": Approximated(np.exp),
    "expm1": Approximated(np.expm1),
    "log": Approximated(np.log, slack=lambda r: 2e-7),
    "log2": Approximated(np.log2, slack=lambda r: 2e-7),
    "log10": Approximated(np.log10, slack=lambda r: 2e-7),
    "log1p": Approximated(np.log1p),
    "sin": _wave(100.0, np.sin, lambda r: 1e-6),
    "cos": _wave(100.0, np.cos, lambda r: 1e-6),
    "tan": _wave(100.0, np.tan, lambda r: 1e-6 * (1 + r * r)),
    "asin": Approximated(np.arcsin, slack=lambda r: 2e-7),
    "acos": Approximated(np.arccos, slack=lambda r: 2e-7),
    "atan": Approximated(np.arctan, slack=lambda r: 2e-7),
    "sinh": Approximated(np.sinh),
    "cosh": Approximated(np.cosh),
    "tanh": Approximated(np.tanh),
    "asinh": Approximated(np.arcsinh, slack=lambda r: 2e-7),
    "acosh": Approximated(np.arccosh, (1.001, math.inf), slack=lambda r: 2e-7),
    "atanh": Approximated(np.arctanh, slack=lambda r: 2e-7),
    "erf": Approximated(np.vectorize(math.erf, otypes=[float]), slack=lambda r: 5e-7),
}


def approximated(row: Approximated, x: Any) -> F32:
    argument = float(to_float(x).exact())
    if math.isfinite(argument) and not row.domain[0] <= argument <= row.domain[1]:
        raise Undecided("outside what is compared")
    result = float(row.f(argument))
    return approximate(result, absolute=row.slack(result) if math.isfinite(result) else 0.0)


# --- the names a program may use, on these numbers -----------------------------------------------------------


def _extreme(keep: str) -> Callable[..., Number]:
    """min and max as Python's: the first one stays unless a later one compares better."""

    def extreme(*xs: Any) -> Number:
        best, *others = promote(*(xs if len(xs) > 1 else xs[0]))
        for other in others:
            best = other if compare(keep, other, best) else best
        return best

    return extreme


def _array_extreme(keep: str) -> Callable[[Any, Any], Number]:
    """mx.minimum and mx.maximum: nan where either is."""

    def extreme(a: Any, b: Any) -> Number:
        a, b = promote(a, b)
        if any(isinstance(x, F32) and np.isnan(x.value) for x in (a, b)):
            return F32(math.nan)
        return a if compare(keep, a, b) else b

    return extreme


def _where(condition: Any, a: Any, b: Any) -> Number:
    a, b = promote(a, b)
    return a if condition else b


def _rounded(f: Callable[[Any], Any]) -> Callable[[Any], Number]:
    return lambda x: F32(f(lift(x).exact())) if isinstance(lift(x), F32) else I32(lift(x).value)


def _names_of_functions(prefix: str) -> dict[str, Callable[[Any], F32]]:
    long = {"asin": "arcsin", "acos": "arccos", "atan": "arctan"}
    long |= {"asinh": "arcsinh", "acosh": "arccosh", "atanh": "arctanh"}
    return {
        (long.get(name, name) if prefix == "mx" else name): lambda x, row=row: approximated(row, x)
        for name, row in APPROXIMATED.items()
    }


MATH = SimpleNamespace(
    **_names_of_functions("math"),
    inf=math.inf,
    nan=math.nan,
    pi=math.pi,
    sqrt=lambda x: F32(np.sqrt(to_float(x).exact())),
    fabs=lambda x: abs(to_float(x)),
    floor=lambda x: lift(x).__floor__(),  # type: ignore[attr-defined]
    ceil=lambda x: lift(x).__ceil__(),  # type: ignore[attr-defined]
    trunc=to_int,
    isnan=lambda x: Bool(np.isnan(to_float(x).value)),
    isinf=lambda x: Bool(np.isinf(to_float(x).value)),
)
MLX = SimpleNamespace(
    **_names_of_functions("mx"),
    where=_where,
    minimum=_array_extreme("<"),
    maximum=_array_extreme(">"),
    abs=abs,
    floor=_rounded(np.floor),
    ceil=_rounded(np.ceil),
    logical_not=lambda x: Bool(not x),
)
REFERENCE_NAMES: dict[str, Any] = {
    "math": MATH,
    "mx": MLX,
    "int": to_int,
    "float": to_float,
    "bool": to_bool,
    "min": _extreme("<"),
    "max": _extreme(">"),
    "any": lambda xs: Bool(any(xs)),
    "all": lambda xs: Bool(all(xs)),
    "_not": lambda x: Bool(not x),
    "_lift": lift,
}


class Table:
    """A captured array: an index wraps once if negative, and is then clamped into the array."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __getitem__(self, indices: Any) -> Any:
        values = self.values
        for index in indices if isinstance(indices, tuple) else (indices,):
            i = lift(index).value
            i = i + len(values) if i < 0 else i
            values = values[min(max(i, 0), len(values) - 1)]
        return Table(values) if values.ndim else lift(values.item())


TABLES: dict[str, np.ndarray] = {
    "ints": np.array([3, -1, 0, INT_MAX, INT_MIN, 17, 2], np.int32),
    "grid": np.array([[0.5, -0.0, 3e38], [np.inf, -2.25, 1e-40]], np.float32),
    "flags": np.array([True, False, False, True, True]),
    "edges": np.resize(np.array(INT_CONSTANTS, np.int32), len(USUAL) + len(EXTREME)),  # as many as of the next
    "reals": np.array([*USUAL, *EXTREME], np.float32),
}


# --- programs -----------------------------------------------------------------------------------------

_numbers = itertools.count()


def define(source: str, name: str, names: dict[str, Any]) -> Callable[..., Any]:
    """exec `source` so that `inspect.getsource` finds it, as a notebook cell does; the function `name` of it."""
    filename = f"<program-{next(_numbers)}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    namespace = {"__name__": "generated_mods", **names}
    exec(compile(source, filename, "exec"), namespace)
    return namespace[name]


class _Kernelised(ast.NodeTransformer):
    """What operators cannot do: `not x` -> `_not(x)`, as Python's can only give a Python bool, and
    `5 if c else x` -> `_lift(5 if c else x)`, `x and 5` likewise, so that what comes out is a Number."""

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        self.generic_visit(node)
        return _call("_not", node.operand) if isinstance(node.op, ast.Not) else node

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        self.generic_visit(node)
        return _call("_lift", node)

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        self.generic_visit(node)
        return _call("_lift", node)


def _call(name: str, argument: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), [argument], [])


class Expected(NamedTuple):
    """What a program gives, by point. `margin`: 0 exactly that, > 0 within it, -1 not to be compared."""

    values: np.ndarray
    margin: np.ndarray


@dataclass(frozen=True)
class Program:
    """One generated function: kind "score" or "mask", result "float", "int" or "bool"; `numbers` it captures."""

    name: str
    kind: str
    result: str
    source: str
    numbers: tuple[tuple[str, bool | int | float], ...] = ()

    def captures(self, array: Callable[[np.ndarray], Any]) -> dict[str, Any]:
        """The global names of the source; `array` makes the captured arrays, such as mx.array."""
        import mlx.core as mx

        return {"math": math, "mx": mx, **dict(self.numbers), **{k: array(v) for k, v in TABLES.items()}}

    def function(self, array: Callable[[np.ndarray], Any]) -> Callable[..., Any]:
        """The function as a user would write it."""
        return define(self.source, self.name, self.captures(array))

    def expected(self, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Expected:
        """The source run by Python on I32 and F32 at every point; the arguments broadcast."""
        tree = ast.fix_missing_locations(_Kernelised().visit(ast.parse(self.source)))
        numbers = {name: lift(value) for name, value in self.numbers}
        namespace = {**REFERENCE_NAMES, **numbers, **{k: Table(v) for k, v in TABLES.items()}}
        exec(compile(tree, f"<reference of {self.name}>", "exec"), namespace)
        function = namespace[self.name]
        points = np.broadcast_arrays(score, b, h, q_idx, kv_idx)
        dtype = {"float": np.float32, "int": np.int32, "bool": np.bool_}[self.result]
        values, margin = np.zeros(points[0].shape, dtype), np.full(points[0].shape, -1.0, np.float32)
        convert = {"float": to_float, "int": to_int, "bool": to_bool}[self.result]
        with np.errstate(all="ignore"):
            for at in np.ndindex(*points[0].shape):
                arguments = [F32(points[0][at]), *(I32(p[at]) for p in points[1:])]
                try:
                    got = convert(function(*arguments[self.kind == "mask" :]))
                except Undecided:
                    continue
                values[at], margin[at] = got.value, got.err
        return Expected(values, margin)

    def __repr__(self) -> str:
        return f"{self.source}# captured: {dict(self.numbers)}, and expressions.TABLES"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(f"<program {self.name}>")  # hypothesis: the failure itself shows the text


KNOWN_ERRORS = "integer division or modulo by|negative shift count|shift with the negative count"
KNOWN_ERRORS += "|Python raised (OverflowError|ValueError|ZeroDivisionError) in"
KNOWN_ERRORS += "|entries along axis .* (outside of it|make it longer)"


@contextlib.contextmanager
def rejecting_known_errors() -> Iterator[None]:
    """Leaves out a program with a divisor, a shift count, an argument or an index that turns out to be known, and one
    for which Python raises."""
    try:
        yield
    except (TraceError, ValueError, ZeroDivisionError) as error:
        if not re.search(KNOWN_ERRORS, str(error)):
            raise
        reject()


def combine(group: Sequence[Program], name: str) -> str:
    """Source of one mod that is group[h] at head h."""
    arguments = ", ".join(parameters(group[0].kind))
    branches = [f"    if h == {h}:\n        return {p.name}({arguments})\n" for h, p in enumerate(group)]
    first = f"    return {group[0].name}({arguments})\n"
    return "\n".join([*(p.source for p in group), f"def {name}({arguments}):\n"]) + "".join(branches) + first


def parameters(kind: str) -> list[str]:
    return ["score", "b", "h", "q_idx", "kv_idx"][kind == "mask" :]


# --- writing them -------------------------------------------------------------------------------------

FLOAT_CONSTANTS = ("0.0", "(-0.0)", "0.5", "1.0", "(-1.0)", "2.0", "(-3.5)", "0.1", "7.25", "100.0", "1e-3")
FLOAT_CONSTANTS += ("1e38", "(-1e38)", "3.4e38", "1e39", "1e-39", "(-1e-45)", "1.1754944e-38", "16777217.0")
FLOAT_CONSTANTS += ("math.inf", "(-math.inf)", "math.nan", "2147483648.0", "math.pi")
SMALL = tuple(c for c in INT_CONSTANTS if abs(c) < 2**24)
ORDER = ("<", "<=", ">", ">=", "==", "!=")


class Writer:
    """Draws one program. Every method that returns text returns an expression in parentheses or an atom."""

    def __init__(self, draw: Callable[..., Any], name: str, kind: str, approximate: bool) -> None:
        self.draw, self.name, self.kind, self.approximate = draw, name, kind, approximate
        self.locals: dict[str, list[str]] = {"int": [], "float": [], "bool": []}
        self.numbers: list[tuple[str, bool | int | float]] = []
        self.count = itertools.count()

    def choose(self, options: Sequence[Any]) -> Any:
        return options[0] if len(options) == 1 else self.draw(st.sampled_from(options))

    def chance(self, of: int) -> bool:
        return self.draw(st.integers(0, of - 1)) == of - 1

    def fresh(self, prefix: str) -> str:
        return f"{prefix}{next(self.count)}"

    # ---- constants: literal, or captured under a name ------------------------------------------------------

    def captured(self, value: bool | int | float) -> str:
        name = f"{self.name}_{self.fresh('K')}"
        self.numbers.append((name, value))
        return name

    def int_constant(self, options: Sequence[int] = INT_CONSTANTS) -> str:
        value = self.choose(options)
        if value and self.chance(4):  # a captured 0 may end up as a divisor, which is refused when it is read
            return self.captured(value)
        return f"({value})" if value < 0 else str(value)

    def float_constant(self) -> str:
        text = self.choose(FLOAT_CONSTANTS)
        return self.captured(eval(text, {"math": math})) if self.chance(4) else text

    def constant(self, dtype: str) -> str:
        if dtype == "bool":
            value = self.choose((True, False))
            return self.captured(value) if self.chance(3) else str(value)
        return self.int_constant() if dtype == "int" else self.float_constant()

    # ---- expressions -----------------------------------------------------------------------------------

    def expr(self, dtype: str, depth: int) -> str:
        """A symbolic expression: never a constant alone, so that Python folds nothing in float64."""
        if depth <= 0:
            return self.leaf(dtype)
        return str(getattr(self, self.choose(RULES[dtype]))(depth - 1))

    def operand(self, dtype: str, depth: int) -> str:
        return self.constant(dtype) if self.chance(3) else self.expr(dtype, depth)

    def leaf(self, dtype: str) -> str:
        known = self.locals[dtype]
        if known and not self.chance(3):
            return self.choose(known)
        if dtype == "int":
            return self.choose(("q_idx", "kv_idx", "b", "h"))
        if dtype == "float":
            choices = ("score", "score", "(q_idx * 0.25)", "(kv_idx / 3)", "float(kv_idx)")
            return self.choose(choices[2 * (self.kind == "mask") :])
        return self.choose(("(q_idx >= kv_idx)", "(kv_idx < 3)", "(h == b)", "(q_idx != 2)"))

    def pair(self, dtype: str, depth: int, other: Sequence[str] = ()) -> tuple[str, str]:
        """A symbolic operand and any other, in either order; `other` are further dtypes for the second."""
        left, right = self.expr(dtype, depth), self.operand(self.choose((dtype, dtype, *other)), depth)
        return (left, right) if self.chance(2) else (right, left)

    def int_binary(self, depth: int) -> str:
        op = self.choose(("+", "-", "*", "//", "%", "//", "%", "&", "|", "^", "<<", ">>"))
        if self.chance(2):
            return f"({self.operand(self.choose(('int', 'int', 'bool')), depth)} {op} {self.expr('int', depth)})"
        if self.chance(3):
            return f"({self.expr('int', depth)} {op} {self.right_constant(op)})"
        return f"({self.expr('int', depth)} {op} {self.expr(self.choose(('int', 'int', 'bool')), depth)})"

    def right_constant(self, op: str) -> str:
        """A right operand that is known: no 0 as a divisor and no negative count, which are errors."""
        known = {"//": lambda c: c != 0, "%": lambda c: c != 0, "<<": lambda c: c >= 0, ">>": lambda c: c >= 0}
        return self.int_constant(tuple(filter(known.get(op), INT_CONSTANTS)))

    def int_unary(self, depth: int) -> str:
        return self.choose(("(-{})", "abs({})", "(~{})", "(+{})")).format(self.expr("int", depth))

    def int_from_float(self, depth: int) -> str:
        name = self.choose(("int", "round", "math.floor", "math.ceil", "math.trunc"))
        return f"{name}({self.expr('float', depth)})"

    def int_from_bool(self, depth: int) -> str:
        op = self.choose(("+", "-", "*", "//", "%", "<<"))
        left, right = self.expr("bool", depth), "True" if self.chance(5) else self.expr("bool", depth)
        return self.choose((f"int({left})", f"({left} {op} {right})", f"(-{left})"))

    def int_power(self, depth: int) -> str:
        return f"({self.expr('int', depth)} ** {self.choose(range(6))})"

    def int_sum(self, depth: int) -> str:
        if self.chance(2):
            return f"sum(({self.expr('int', depth)}, {self.operand('bool', depth)}, {self.operand('int', depth)}))"
        return f"sum(({self.expr('int', depth)}) * i + i for i in range({self.choose((1, 3, 4))}))"

    def place(self, depth: int) -> str:
        """An index of a captured array. One that is exactly q_idx, ... or a constant must be inside, as in Python; only
        what a mod computes is clamped."""
        return f"({self.expr('int', depth)} {self.choose('+-')} 1)"

    def int_load(self, depth: int) -> str:
        return f"ints[{self.place(depth)}]"

    def bool_load(self, depth: int) -> str:
        return f"flags[{self.place(depth)}]"

    def float_load(self, depth: int) -> str:
        row = self.place(depth)
        column = self.int_constant((0, 1, 2, -1, -3)) if self.chance(3) else self.place(depth)
        return self.choose((f"grid[{row}, {column}]", f"grid[{row}][{column}]"))

    def float_binary(self, depth: int) -> str:
        op = self.choose(("+", "-", "*", "/", "+", "-", "*", "/", "//", "%"))
        left, right = self.pair("float", depth, ("int", "bool"))
        return f"({left} {op} {right})"

    def float_division_of_ints(self, depth: int) -> str:
        left, right = self.pair("int", depth, ("bool",))
        return f"({left} / {right})"

    def float_and_int(self, depth: int) -> str:
        op = self.choose(("+", "-", "*", "/", "//", "%"))
        left, right = self.expr("int", depth), self.operand("float", depth)
        return f"({left} {op} {right})" if self.chance(2) else f"({right} {op} {left})"

    def float_unary(self, depth: int) -> str:
        forms = ("(-{})", "abs({})", "math.fabs({})", "math.sqrt({})", "mx.floor({})", "mx.ceil({})", "(+{})")
        return self.choose(forms).format(self.expr("float", depth))

    def float_cast(self, depth: int) -> str:
        return f"float({self.expr(self.choose(('int', 'bool')), depth)})"

    def float_join_of_two_types(self, depth: int) -> str:
        condition, other = self.expr("bool", depth), self.choose(("int", "bool"))
        ends = [self.expr(other, depth), self.operand("float", depth)]
        first, second = ends if self.chance(2) else ends[::-1]
        return f"(({first} if {condition} else {second}) + {self.expr('float', depth)})"

    def float_approximated(self, depth: int) -> str:
        if not self.approximate:
            return self.float_binary(depth)
        argument = self.expr("float", depth)
        if self.chance(5):
            return f"({argument} ** {self.choose((2, 3, -1, -2, 0, 0.5, 1.5, -0.75))})"
        return f"math.{self.choose(tuple(APPROXIMATED))}({argument})"

    def bool_comparison(self, depth: int) -> str:
        dtype = self.choose(("int", "float"))
        left, right = self.pair(dtype, depth)
        return f"({left} {self.choose(ORDER)} {right})"

    def bool_comparison_of_two_types(self, depth: int) -> str:
        op = self.choose(ORDER)
        if self.chance(2):  # any int against a literal is exact in Python
            left, right = self.expr("int", depth), self.choose([c for c in FLOAT_CONSTANTS if "nan" not in c])
        else:  # two variables meet in float32: exact for small ints only
            small = f"({self.expr('int', depth)} % {self.choose((2, 97, -13, 65535))})"
            left, right = self.choose((small, self.int_constant(SMALL))), self.expr("float", depth)
        return f"({left} {op} {right})" if self.chance(2) else f"({right} {op} {left})"

    def bool_chain(self, depth: int) -> str:
        dtype = self.choose(("int", "float"))
        terms = [self.operand(dtype, depth), self.expr(dtype, depth), self.operand(dtype, depth)]
        return f"({terms[0]} {self.choose(ORDER)} {terms[1]} {self.choose(ORDER)} {terms[2]})"

    def bool_not(self, depth: int) -> str:
        dtype = self.choose(("bool", "bool", "int", "float"))
        return self.choose(("(not {})", "(not {})", "mx.logical_not({})")).format(self.expr(dtype, depth))

    def bool_cast(self, depth: int) -> str:
        return f"bool({self.expr(self.choose(('int', 'float')), depth)})"

    def bool_bitwise(self, depth: int) -> str:
        left, right = self.pair("bool", depth)
        return f"({left} {self.choose('&|^')} {right})"

    def bool_any_all(self, depth: int) -> str:
        name = self.choose(("any", "all"))
        if self.chance(2):
            return f"{name}([{self.expr('bool', depth)}, {self.expr('int', depth)}])"
        return f"{name}({self.expr('int', depth)} {self.choose(ORDER)} i for i in range(3))"

    def bool_of_self(self, depth: int) -> str:
        same = self.expr("float", depth)
        return self.choose(("({0} != {0})", "({0} == {0})", "math.isnan({0})", "math.isinf({0})")).format(same)

    # Rules for every dtype take it first; RULES binds them.

    def conditional(self, dtype: str, depth: int) -> str:
        first, second = self.pair(dtype, depth)
        return f"({first} if {self.expr('bool', depth)} else {second})"

    def where(self, dtype: str, depth: int) -> str:
        first, second = self.pair(dtype, depth)
        return f"mx.where({self.expr('bool', depth)}, {first}, {second})"

    def and_or(self, dtype: str, depth: int) -> str:
        first, second = self.pair(dtype, depth)
        return f"({self.expr(dtype, depth)} {self.choose(('and', 'or'))} {first} {self.choose(('and', 'or'))} {second})"

    def extreme(self, dtype: str, depth: int) -> str:
        first, second = self.pair(dtype, depth)
        more = f", {self.operand(dtype, depth)}" if self.chance(3) else ""
        if self.chance(4):  # which zero a kernel's min gives is its own: adding 0.0 makes them one
            zero = " + 0.0" if dtype == "float" else ""
            return f"(mx.{self.choose(('minimum', 'maximum'))}({first}, {second}){zero})"
        return f"{self.choose(('min', 'max'))}({first}, {second}{more})"

    def walrus(self, dtype: str, depth: int) -> str:
        name, op = self.fresh("w"), {"int": "+", "float": "-", "bool": "^"}[dtype]
        return f"(({name} := {self.expr(dtype, depth)}) {op} {name})"

    def lambda_call(self, dtype: str, depth: int) -> str:
        name, argument = self.fresh("x"), self.expr(dtype, depth)
        self.locals[dtype].append(name)
        body = self.expr(dtype, depth)
        self.locals[dtype].remove(name)
        return f"(lambda {name}: {body})({argument})"

    # ---- statements --------------------------------------------------------------------------------------

    def block(self, result: str, depth: int, statements: int) -> list[str]:
        """Statements that may return early; what they define is known to the statements after them only."""
        lines: list[str] = []
        for _ in range(statements):
            lines += getattr(self, self.choose(STATEMENTS))(result, depth)
        return lines

    def inner(self, result: str, depth: int, statements: int) -> list[str]:
        """The body of an `if`: its new names end with it."""
        saved = {dtype: list(names) for dtype, names in self.locals.items()}
        lines = self.block(result, depth - 1, statements) if depth > 0 else []
        lines = lines or self.assignment(result, 1)
        self.locals = saved
        return ["    " + line for line in lines]

    def dtype(self) -> str:
        return self.choose(("int", "float", "float", "bool"))

    def assignment(self, result: str, depth: int) -> list[str]:
        dtype = self.dtype()
        text, known = self.expr(dtype, depth), self.locals[dtype]
        if known and self.chance(3):
            return [f"{self.choose(known)} = {text}"]
        known.append(self.fresh("v"))
        return [f"{known[-1]} = {text}"]

    def augmented(self, result: str, depth: int) -> list[str]:
        dtype = self.choose(("int", "float"))
        if not self.locals[dtype]:
            return self.assignment(result, depth)
        op = self.choose(("+", "-", "*", "//", "%") + (("&", "^", "<<", ">>") if dtype == "int" else ("/",)))
        if dtype == "int" and self.chance(3):
            return [f"{self.choose(self.locals[dtype])} {op}= {self.right_constant(op)}"]
        right = self.expr("int", depth) if dtype == "int" else self.operand(dtype, depth)
        return [f"{self.choose(self.locals[dtype])} {op}= {right}"]

    def swap(self, result: str, depth: int) -> list[str]:
        dtype = self.dtype()
        known = self.locals[dtype]
        if len(known) < 2:
            return self.assignment(result, depth)
        return [f"{known[-1]}, {known[-2]} = {known[-2]}, {self.expr(dtype, depth)}"]

    def branch(self, result: str, depth: int) -> list[str]:
        lines = [f"if {self.expr('bool', depth)}:", *self.inner(result, depth, 2)]
        if self.chance(3):
            lines += [
                f"elif {self.expr(self.choose(('bool', 'int')), depth)}:",
                *self.inner(result, depth, 1),
            ]
        if self.chance(2):
            lines += ["else:", *self.inner(result, depth, 1)]
        return lines

    def early_return(self, result: str, depth: int) -> list[str]:
        return [f"if {self.expr('bool', depth)}:", f"    {self.give_back(result, depth)}"]

    def loop(self, result: str, depth: int) -> list[str]:
        dtype = self.choose(("int", "float"))
        if not self.locals[dtype]:
            return self.assignment(result, depth)
        name = self.choose(self.locals[dtype])
        lines = [
            f"for i in range({self.choose((0, 1, 3))}):",
            f"    {name} = {self.expr(dtype, depth)} + i * {name}",
        ]
        return lines + (["    if i == 1:", "        break"] if self.chance(2) else [])

    def give_back(self, result: str, depth: int) -> str:
        dtype = self.choose(("float", "float", "float", "int", "bool")) if result == "float" else result
        return f"return {self.expr(dtype, depth)}"


SHARED = ("conditional", "where", "and_or", "extreme", "walrus", "lambda_call")
RULES: dict[str, list[str]] = {
    "int": ["int_binary"] * 6 + ["int_unary", "int_from_float", "int_from_bool", "int_power", "int_sum", "int_load"],
    "float": ["float_binary"] * 5
    + ["float_division_of_ints", "float_and_int", "float_unary", "float_unary", "float_cast", "float_load"]
    + ["float_join_of_two_types", "float_approximated", "float_approximated"],
    "bool": ["bool_comparison"] * 3
    + ["bool_comparison_of_two_types", "bool_chain", "bool_not", "bool_cast", "bool_bitwise", "bool_any_all"]
    + ["bool_of_self", "bool_load"],
}
for _dtype, _rules in RULES.items():
    for _rule in SHARED:
        if _dtype == "bool" and _rule == "extreme":
            continue
        _name = f"{_dtype}_{_rule}"
        setattr(Writer, _name, lambda self, depth, r=_rule, d=_dtype: getattr(self, r)(d, depth))
        _rules.append(_name)
STATEMENTS = ["assignment"] * 3 + ["augmented", "swap", "branch", "branch", "early_return", "loop"]


@st.composite
def programs(
    draw: Callable[..., Any],
    name: str = "mod",
    kind: str = "score",
    results: Iterable[str] = ("float", "float", "int", "bool"),
    approximate: bool = True,
) -> Program:
    """Random programs. `approximate`: whether exp, sin, ... may occur. Shrinks to `return <a leaf>`."""
    result = "bool" if kind == "mask" else draw(st.sampled_from(tuple(results)))
    writer = Writer(draw, name, kind, approximate)
    lines = writer.block(result, 2, draw(st.integers(0, 6)))
    lines.append(writer.give_back(result, draw(st.integers(1, 4))))
    source = "\n    ".join([f"def {name}({', '.join(parameters(kind))}):", *lines]) + "\n"
    return Program(name, kind, result, source, tuple(writer.numbers))
