"""Operators on values: Python's own where all is concrete, an Expr where a symbol is involved."""

from __future__ import annotations

import collections
import functools
import inspect
import operator
from collections.abc import Callable, Iterator
from typing import Any

from ..captures.guards import is_same
from ..errors import Untraceable, with_article
from ..expr import build
from ..expr.node import AT_CALL, FALSE, IN_KERNEL, TRUE, Expr
from . import changes, numbers, objects, running
from .outside import FIXED, is_container
from .tracing import Tracing
from .values import (
    MUTABLE,
    NUMBERS,
    VIEWS,
    ArrayView,
    Callback,
    UnknownSet,
    UnknownText,
    is_in_kernel,
    is_symbolic,
    number,
    run,
)

Binary = Callable[[Any, Any], Any]
BINARY: dict[str, tuple[Binary, Binary]] = {
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
IN_PLACE: dict[str, Binary] = {
    "+": operator.iadd,
    "-": operator.isub,
    "*": operator.imul,
    "/": operator.itruediv,
    "//": operator.ifloordiv,
    "%": operator.imod,
    "**": operator.ipow,
    "&": operator.iand,
    "|": operator.ior,
    "^": operator.ixor,
    "<<": operator.ilshift,
    ">>": operator.irshift,
}
UNARY: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "-": (operator.neg, build.negate),
    "+": (operator.pos, build.positive),
    "~": (operator.invert, build.invert),
}
COMPARE: dict[str, tuple[Binary, str]] = {
    "<": (operator.lt, "lt"),
    "<=": (operator.le, "le"),
    ">": (operator.gt, "gt"),
    ">=": (operator.ge, "ge"),
    "==": (operator.eq, "eq"),
    "!=": (operator.ne, "ne"),
}


def binary(t: Tracing, symbol: str, a: Any, b: Any) -> Any:
    """`a symbol b`."""
    if symbol not in BINARY:
        raise Untraceable("matrix multiplication inside a mod", "write the sum of products over a fixed range")
    python, symbolic = BINARY[symbol]
    if isinstance(a, UnknownText) or (isinstance(a, str) and (symbol == "%" or isinstance(b, UnknownText))):
        return _written(t, symbol, a, b)
    a, b = number(a), number(b)
    if isinstance(a, Expr) or isinstance(b, Expr):
        sequence, other = (a, b) if isinstance(b, Expr) else (b, a)
        if isinstance(sequence, (list, tuple, str, bytes)):
            if symbol != "*":
                raise Untraceable(
                    f"{symbol} between {with_article(type(sequence).__name__)} and the number {other!r}",
                    "use numbers on both sides",
                )
            times = objects.concrete(t, other, "a repeat count")
            return changes.made(t, run(operator.mul, objects.known(t, sequence), times))
        if symbol == "**" and isinstance(b, Expr) and b.stage < IN_KERNEL and _is_int(a) and _is_int(b):
            b = objects.concrete(t, b, "an argument")  # the sign of the exponent decides between an int and a float
        result = numbers.computed(t, lambda: symbolic(a, b), python, (a, b))
        if symbol == "**" and isinstance(result, Expr) and result.op == "pow" and _is_int(a) and _is_int(b):
            return numbers.one_of(t, result, 1, 1.0)
        return result
    if all(is_container(x) and isinstance(x, (list, tuple, dict)) for x in (a, b)):
        return changes.made(t, run(python, objects.known(t, a), objects.known(t, b)))
    if symbol == "*" and any(is_container(x) and isinstance(x, (list, tuple)) for x in (a, b)):
        return changes.made(t, run(python, objects.known(t, a), objects.known(t, b)))
    if is_symbolic([a, b]) and (special := objects.special(t, a, f"__{python.__name__.strip('_')}__")) is not None:
        answer = t.call(t, special, [b], {})
        if answer is not NotImplemented:
            return answer
    return changes.made(t, running.run_on_known(t, python, [a, b], {}, f"{symbol} between objects"))


def augmented(t: Tracing, symbol: str, old: Any, operand: Any) -> Any:
    """`old symbol= operand`; a container changes in place."""
    if isinstance(old, MUTABLE):
        changes.check_change(t, old, f"{symbol}=")
    if symbol not in IN_PLACE or isinstance(number(old), (Expr, *NUMBERS, str, bytes, tuple, UnknownText)):
        return binary(t, symbol, old, operand)
    if isinstance(old, list) and is_container(old) and symbol in ("+", "*"):
        old[:] = [*old, *objects.iterate(t, operand)] if symbol == "+" else binary(t, "*", old, operand)
        return old
    if isinstance(old, dict) and is_container(old) and symbol == "|" and isinstance(operand, dict):
        old.update(objects.known(t, operand))
        return old
    return changes.made(t, running.run_on_known(t, IN_PLACE[symbol], [old, operand], {}, f"{symbol}="))


def _written(t: Tracing, symbol: str, a: Any, b: Any) -> Any:
    """`text + text`, and `template % values`."""
    if symbol == "+" and isinstance(b, (str, UnknownText)):
        return UnknownText(f"{a}{b}")
    if symbol == "%" and not is_in_kernel([a, b]):
        return run(operator.mod, a, objects.concrete(t, b, "an argument"))
    if symbol == "%" and not isinstance(a, UnknownText):
        return UnknownText(f"{a} % {running.shown(t, b)}")
    raise UnknownText(str(a)).refuse()


def _is_int(value: Any) -> bool:
    return value.dtype != "float" if isinstance(value, Expr) else isinstance(value, int)


def unary(t: Tracing, symbol: str, a: Any) -> Any:
    """`symbol a`."""
    python, symbolic = UNARY[symbol]
    a = number(a)
    if isinstance(a, Expr):
        return numbers.computed(t, lambda: symbolic(a), python, (a,))
    return run(python, objects.concrete(t, a, "an argument"))


def invert_truth(t: Tracing, value: Any) -> bool | Expr:
    """`not value`."""
    known = objects.truth(t, value)
    return build.logical_not(known) if isinstance(known, Expr) else not known


def compare(t: Tracing, symbol: str, a: Any, b: Any) -> Any:
    """`a symbol b`, one comparison of a chain."""
    if symbol in ("is", "is not"):
        return _is_same(t, a, b) is (symbol == "is")
    if symbol in ("in", "not in"):
        found = contains(t, b, a)
        if symbol == "in":
            return found
        return build.logical_not(found) if isinstance(found, Expr) else not found
    python, op = COMPARE[symbol]
    a, b = number(a), number(b)
    if isinstance(a, Expr) or isinstance(b, Expr):
        other = b if isinstance(a, Expr) else a
        if symbol in ("==", "!=") and not isinstance(other, (Expr, *NUMBERS)):
            return _compare_object(t, symbol, a if other is b else b, other)
        return numbers.computed(t, lambda: build.compare(op, a, b), python, (a, b))
    for value in (a, b):
        if isinstance(value, (UnknownText, UnknownSet)):
            raise value.refuse()
    if all(is_container(x) and isinstance(x, (list, tuple)) for x in (a, b)):
        a, b = objects.known(t, a), objects.known(t, b)
        if is_symbolic([a, b]):
            return _compare_sequences(t, symbol, a, b)
    if is_symbolic([a, b]):
        raise Untraceable(f"{symbol} between objects that hold symbolic values", "compare their fields")
    return changes.made(t, running.run_on_known(t, python, [a, b], {}, f"{symbol} between objects"))


def _compare_object(t: Tracing, symbol: str, number: Any, other: Any) -> Any:
    """A symbolic number == or != what is no number: what the object's class says, else they are unequal."""
    if isinstance(other, (UnknownText, UnknownSet)):
        raise other.refuse()
    equal = objects.special(t, other, "__eq__")
    unequal = objects.special(t, other, "__ne__") if symbol == "!=" else None
    if unequal is not None or equal is not None:
        answer = t.call(t, unequal or equal, [number], {})
        if answer is NotImplemented:
            return symbol == "!="
        return answer if symbol == "==" or unequal is not None else invert_truth(t, answer)
    if isinstance(other, (Callback, *FIXED)) or inspect.getattr_static(type(other), "__eq__") is _UNEQUAL:
        return symbol == "!="
    if is_container(other) or type(other).__module__ in ("builtins", "collections", "types", "functools"):
        return symbol == "!="
    raise Untraceable(
        f"{symbol} between a symbolic number and a {type(other).__name__}, whose == may be anything",
        "compare with a number that it holds",
    )


def _is_same(t: Tracing, a: Any, b: Any) -> bool:
    same = a is b
    for value in (a, b):
        if isinstance(value, UnknownText) or (not same and isinstance(value, (str, bytes)) and type(a) is type(b)):
            raise Untraceable("`is` between two texts", "write `==`")
        reason = changes.why_kept(t, value)
        if not same and reason is not None and type(a) is type(b):
            raise Untraceable(f"`is` on a {type(value).__name__} {reason}", "compare with ==, or keep a flag beside it")
    if not same and isinstance(a, ArrayView) and isinstance(b, ArrayView):
        raise Untraceable("`is` between two arrays", "keep a flag beside the array")
    for value, other in ((a, b), (b, a)):
        if isinstance(value, Expr) and isinstance(other, (Expr, *NUMBERS)):
            raise Untraceable("`is` between two numbers", "write `==`")
        if t.recorder.is_captured(value) and not isinstance(value, FIXED):
            # Against None, a class or an enum member, only the answer must stay; else the object itself.
            wanted, answer = (other, same) if isinstance(other, FIXED) else (value, True)
            t.recorder.origin(value).check(("is", id(wanted)), is_same(wanted, answer))
    return same


def _compare_sequences(t: Tracing, symbol: str, a: Any, b: Any) -> Any:
    if symbol not in ("==", "!="):
        python = COMPARE[symbol][0]
        return run(python, objects.concrete(t, a, "an order"), objects.concrete(t, b, "an order"))
    if len(a) != len(b) or isinstance(a, tuple) is not isinstance(b, tuple):
        return symbol == "!="
    equal = [compare(t, "==", x, y) for x, y in zip(a, b, strict=True)]
    same = functools.reduce(functools.partial(build.logical, "and"), equal, TRUE)
    if same.stage != IN_KERNEL:
        return bool(numbers.settle(t, same, "a condition")) is (symbol == "==")
    return same if symbol == "==" else build.logical_not(same)


def contains(t: Tracing, container: Any, item: Any) -> Any:
    """`item in container`."""
    item = number(item)
    if isinstance(container, UnknownSet):
        container = container.elements
    special = objects.special(t, container, "__contains__")
    if special is not None:
        return objects.truth(t, t.call(t, special, [item], {}))
    if isinstance(container, range) and isinstance(item, Expr):
        return _in_range(container, item)
    if isinstance(container, (str, bytes)) or (isinstance(container, dict) and is_container(container)):
        keys = tuple(objects.iterate(t, container)) if isinstance(container, dict) else container
        return run(operator.contains, keys, objects.concrete(t, item, "a dictionary key"))
    if isinstance(container, (UnknownText, Callback)):
        raise (
            UnknownText(str(container)).refuse()
            if isinstance(container, UnknownText)
            else Untraceable("`in` on a function", "call it, and look in what it returns")
        )
    if not is_container(container) and not isinstance(container, ArrayView):
        is_iterable = isinstance(container, (*VIEWS, Iterator, collections.deque))
        if not is_iterable and (not isinstance(item, Expr) or _contains_in_c(container)):
            return running.run_on_known(t, operator.contains, [container, item], {}, "`in`")
    found: Any = FALSE
    with changes.for_some(t) as decides:
        for x in objects.iterate(t, container):
            match = True if item is x else compare(t, "==", item, x)
            match = match if isinstance(match, Expr) else objects.truth(t, match)
            found = match if found is FALSE and isinstance(match, Expr) else build.logical("or", found, match)
            if match is True:
                break
            if isinstance(match, Expr):
                decides()
    return found if found.stage >= AT_CALL else numbers.settle(t, found, "a condition")


def _in_range(numbers: range, item: Expr) -> Expr:
    if not numbers:
        return FALSE
    numbers = numbers if numbers.step > 0 else numbers[::-1]
    inside = build.logical("and", build.compare("ge", item, numbers.start), build.compare("le", item, numbers[-1]))
    if numbers.step == 1 and item.dtype != "float":
        return inside
    offset = build.arithmetic("sub", item, numbers.start)
    on_step = build.compare("eq", build.arithmetic("mod", offset, numbers.step), 0)
    return build.logical("and", inside, on_step)


_UNEQUAL = vars(object)["__eq__"]


def _contains_in_c(container: Any) -> bool:
    """Whether a class that is not written in Python says what it contains."""
    return hasattr(type(container), "__contains__")
