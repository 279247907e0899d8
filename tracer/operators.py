"""Operators on values: Python's own where all is concrete, an Expr where a symbol is involved."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

from . import build
from .errors import Untraceable, with_article
from .expr import AT_CALL, FALSE, IN_KERNEL, TRUE, Expr
from .items import Items
from .objects import FIXED
from .values import NUMBERS, ArrayView

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


class Operators(Items):
    """What Python's operators mean on values."""

    def binary(self, symbol: str, a: Any, b: Any) -> Any:
        if symbol not in BINARY:
            raise Untraceable("matrix multiplication inside a mod", "write the sum of products over a fixed range")
        python, symbolic = BINARY[symbol]
        a, b = self.number(a), self.number(b)
        if isinstance(a, Expr) or isinstance(b, Expr):
            sequence, other = (a, b) if isinstance(b, Expr) else (b, a)
            if isinstance(sequence, (list, tuple, str, bytes)):
                if symbol != "*":
                    raise Untraceable(
                        f"{symbol} between {with_article(type(sequence).__name__)} and the number {other!r}",
                        "use numbers on both sides",
                    )
                times = self.concrete(other, "a repeat count")
                return self.made(self.run(operator.mul, self.known(sequence), times))
            if symbol == "**" and isinstance(b, Expr) and b.stage < IN_KERNEL and self._is_int(a) and self._is_int(b):
                b = self.concrete(b, "an argument")  # its sign decides between an int and a float
            return self.computed(lambda: symbolic(a, b), python, (a, b))
        if isinstance(a, (list, tuple, dict)) or isinstance(b, (list, tuple, dict)):
            return self.made(self.run(python, self.known(a), self.known(b)))
        return self.made(self.run(python, self.concrete(a, "an argument"), self.concrete(b, "an argument")))

    @staticmethod
    def _is_int(value: Any) -> bool:
        return value.dtype != "float" if isinstance(value, Expr) else isinstance(value, int)

    def unary(self, symbol: str, a: Any) -> Any:
        python, symbolic = UNARY[symbol]
        a = self.number(a)
        if isinstance(a, Expr):
            return self.computed(lambda: symbolic(a), python, (a,))
        return self.run(python, self.concrete(a, "an argument"))

    def invert_truth(self, value: Any) -> bool | Expr:
        """`not value`."""
        truth = self.truth(value)
        return build.logical_not(truth) if isinstance(truth, Expr) else not truth

    # ---- comparisons ---------------------------------------------------------------------------------------

    def compare(self, symbol: str, a: Any, b: Any) -> Any:
        if symbol in ("is", "is not"):
            return self._is_same(a, b) is (symbol == "is")
        if symbol in ("in", "not in"):
            found = self.contains(b, a)
            if symbol == "in":
                return found
            return build.logical_not(found) if isinstance(found, Expr) else not found
        python, op = COMPARE[symbol]
        a, b = self.number(a), self.number(b)
        if isinstance(a, Expr) or isinstance(b, Expr):
            other = b if isinstance(a, Expr) else a
            if symbol in ("==", "!=") and not isinstance(other, (Expr, *NUMBERS)):
                return symbol == "!="
            return self.computed(lambda: build.compare(op, a, b), python, (a, b))
        if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
            a, b = self.known(a), self.known(b)
            if self.is_symbolic([a, b]):
                return self._compare_sequences(symbol, a, b)
        if self.is_symbolic([a, b]):
            raise Untraceable(f"{symbol} between objects that hold symbolic values", "compare their fields")
        return self.run(python, self.concrete(a, "an argument"), self.concrete(b, "an argument"))

    def _is_same(self, a: Any, b: Any) -> bool:
        same = a is b
        for value, other in ((a, b), (b, a)):
            if isinstance(value, Expr) and isinstance(other, (Expr, *NUMBERS)):
                raise Untraceable("`is` between two numbers", "write `==`")
            if self.is_captured(value) and not isinstance(value, FIXED):
                # Against None, a class or an enum member, only the answer must stay; else the object itself.
                wanted, answer = (other, same) if isinstance(other, FIXED) else (value, True)
                self.recorder.origin(value).check(("is", id(wanted)), _is(wanted, answer))
        return same

    def _compare_sequences(self, symbol: str, a: Any, b: Any) -> Any:
        if symbol not in ("==", "!="):
            python = COMPARE[symbol][0]
            return self.run(python, self.concrete(a, "an order"), self.concrete(b, "an order"))
        if len(a) != len(b) or isinstance(a, tuple) is not isinstance(b, tuple):
            return symbol == "!="
        equal = [self.compare("==", x, y) for x, y in zip(a, b, strict=True)]
        same = functools.reduce(functools.partial(build.logical, "and"), equal, TRUE)
        if same.stage != IN_KERNEL:
            return bool(self.settle(same, "a condition")) is (symbol == "==")
        return same if symbol == "==" else build.logical_not(same)

    def contains(self, container: Any, item: Any) -> Any:
        """`item in container`."""
        item = self.number(item)
        if isinstance(container, range) and isinstance(item, Expr):
            return self._in_range(container, item)
        if isinstance(container, (dict, str, bytes)):
            keys = tuple(self.iterate(container)) if isinstance(container, dict) else container
            return self.run(operator.contains, keys, self.concrete(item, "a dictionary key"))
        if not isinstance(container, (list, tuple, set, frozenset, ArrayView)):
            container = self.concrete(container, "an argument")
            if not isinstance(item, Expr):
                return self.run(operator.contains, container, self.concrete(item, "an argument"))
        matches = [item is x or self.compare("==", item, x) for x in self.iterate(container)]
        found = functools.reduce(functools.partial(build.logical, "or"), matches, FALSE)
        return found if found.stage >= AT_CALL else self.settle(found, "a condition")

    def _in_range(self, numbers: range, item: Expr) -> Expr:
        if not numbers:
            return FALSE
        numbers = numbers if numbers.step > 0 else numbers[::-1]
        inside = build.logical("and", build.compare("ge", item, numbers.start), build.compare("le", item, numbers[-1]))
        if numbers.step == 1 and item.dtype != "float":
            return inside
        offset = build.arithmetic("sub", item, numbers.start)
        on_step = build.compare("eq", build.arithmetic("mod", offset, numbers.step), 0)
        return build.logical("and", inside, on_step)


def _is(wanted: Any, answer: bool) -> Callable[[Any], bool]:
    return lambda now: (now is wanted) is answer
