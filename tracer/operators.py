"""Operators on values: Python's own where all is concrete, an Expr where a symbol is involved."""

from __future__ import annotations

import collections
import functools
import inspect
import operator
from collections.abc import Callable, Iterator
from typing import Any

from . import build
from .errors import Untraceable, with_article
from .expr import AT_CALL, FALSE, IN_KERNEL, TRUE, Expr
from .items import Items
from .objects import FIXED, is_container
from .reads import is_same
from .values import MUTABLE, NUMBERS, VIEWS, ArrayView, Callback, UnknownSet, UnknownText

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


class Operators(Items):
    """What Python's operators mean on values."""

    def binary(self, symbol: str, a: Any, b: Any) -> Any:
        if symbol not in BINARY:
            raise Untraceable("matrix multiplication inside a mod", "write the sum of products over a fixed range")
        python, symbolic = BINARY[symbol]
        if isinstance(a, UnknownText) or (isinstance(a, str) and (symbol == "%" or isinstance(b, UnknownText))):
            return self._written(symbol, a, b)
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
            result = self.computed(lambda: symbolic(a, b), python, (a, b))
            if (
                symbol == "**"
                and isinstance(result, Expr)
                and result.op == "pow"
                and self._is_int(a)
                and self._is_int(b)
            ):
                return self.one_of(result, 1, 1.0)
            return result
        if all(is_container(x) and isinstance(x, (list, tuple, dict)) for x in (a, b)):
            return self.made(self.run(python, self.known(a), self.known(b)))
        if symbol == "*" and any(is_container(x) and isinstance(x, (list, tuple)) for x in (a, b)):
            return self.made(self.run(python, self.known(a), self.known(b)))
        if self.is_symbolic([a, b]) and (special := self.special(a, f"__{python.__name__.strip('_')}__")) is not None:
            answer = self.call(special, [b], {})
            if answer is not NotImplemented:
                return answer
        return self.made(self.run_on_known(python, [a, b], {}, f"{symbol} between objects"))

    def augmented(self, symbol: str, old: Any, operand: Any) -> Any:
        """`old symbol= operand`; what can change changes in place."""
        if isinstance(old, MUTABLE):
            self.check_change(old, f"{symbol}=")
        if symbol not in IN_PLACE or isinstance(self.number(old), (Expr, *NUMBERS, str, bytes, tuple, UnknownText)):
            return self.binary(symbol, old, operand)
        if isinstance(old, list) and is_container(old) and symbol in ("+", "*"):
            old[:] = [*old, *self.iterate(operand)] if symbol == "+" else self.binary("*", old, operand)
            return old
        if isinstance(old, dict) and is_container(old) and symbol == "|" and isinstance(operand, dict):
            old.update(self.known(operand))
            return old
        return self.made(self.run_on_known(IN_PLACE[symbol], [old, operand], {}, f"{symbol}="))

    def _written(self, symbol: str, a: Any, b: Any) -> Any:
        """`text + text`, and `template % values`."""
        if symbol == "+" and isinstance(b, (str, UnknownText)):
            return UnknownText(f"{a}{b}")
        if symbol == "%" and not self.is_in_kernel([a, b]):
            return self.run(operator.mod, a, self.concrete(b, "an argument"))
        if symbol == "%" and not isinstance(a, UnknownText):
            return UnknownText(f"{a} % {self.shown(b)}")
        raise UnknownText(str(a)).refuse()

    def shown(self, value: Any) -> str:
        """What only the kernel knows, as a message shows it: the text of its expression."""
        if isinstance(value, (list, tuple)):
            inside = ", ".join(map(self.shown, self.iterate(value)))
            return f"[{inside}]" if isinstance(value, list) else f"({inside})"
        if isinstance(value, ArrayView):
            return str(value.path) if value.rank else repr(self.number(value))
        return str(value) if isinstance(value, (Expr, UnknownText, str)) else repr(value)

    def run_on_known(self, function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], what: str) -> Any:
        """Plain Python on values that it may look into."""
        raise NotImplementedError("running says what Python runs now")

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
                return self._compare_object(symbol, a if other is b else b, other)
            return self.computed(lambda: build.compare(op, a, b), python, (a, b))
        for value in (a, b):
            if isinstance(value, (UnknownText, UnknownSet)):
                raise value.refuse()
        if all(is_container(x) and isinstance(x, (list, tuple)) for x in (a, b)):
            a, b = self.known(a), self.known(b)
            if self.is_symbolic([a, b]):
                return self._compare_sequences(symbol, a, b)
        if self.is_symbolic([a, b]):
            raise Untraceable(f"{symbol} between objects that hold symbolic values", "compare their fields")
        return self.made(self.run_on_known(python, [a, b], {}, f"{symbol} between objects"))

    def _compare_object(self, symbol: str, number: Any, other: Any) -> Any:
        """A symbolic number == or != what is no number: what the object's class says, else they are unequal."""
        if isinstance(other, (UnknownText, UnknownSet)):
            raise other.refuse()
        equal = self.special(other, "__eq__")
        unequal = self.special(other, "__ne__") if symbol == "!=" else None
        if unequal is not None or equal is not None:
            answer = self.call(unequal or equal, [number], {})
            if answer is NotImplemented:
                return symbol == "!="
            return answer if symbol == "==" or unequal is not None else self.invert_truth(answer)
        if isinstance(other, (Callback, *FIXED)) or inspect.getattr_static(type(other), "__eq__") is _UNEQUAL:
            return symbol == "!="
        if is_container(other) or type(other).__module__ in ("builtins", "collections", "types", "functools"):
            return symbol == "!="
        raise Untraceable(
            f"{symbol} between a symbolic number and a {type(other).__name__}, whose == may be anything",
            "compare with a number that it holds",
        )

    def _is_same(self, a: Any, b: Any) -> bool:
        same = a is b
        for value in (a, b):
            if isinstance(value, UnknownText) or (not same and isinstance(value, (str, bytes)) and type(a) is type(b)):
                raise Untraceable("`is` between two texts", "write `==`")
            reason = self.why_kept(value)
            if not same and reason is not None and type(a) is type(b):
                raise Untraceable(
                    f"`is` on a {type(value).__name__} {reason}", "compare with ==, or keep a flag beside it"
                )
        if not same and isinstance(a, ArrayView) and isinstance(b, ArrayView):
            raise Untraceable("`is` between two arrays", "keep a flag beside the array")
        for value, other in ((a, b), (b, a)):
            if isinstance(value, Expr) and isinstance(other, (Expr, *NUMBERS)):
                raise Untraceable("`is` between two numbers", "write `==`")
            if self.is_captured(value) and not isinstance(value, FIXED):
                # Against None, a class or an enum member, only the answer must stay; else the object itself.
                wanted, answer = (other, same) if isinstance(other, FIXED) else (value, True)
                self.recorder.origin(value).check(("is", id(wanted)), is_same(wanted, answer))
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
        if isinstance(container, UnknownSet):
            container = container.elements
        special = self.special(container, "__contains__")
        if special is not None:
            return self.truth(self.call(special, [item], {}))
        if isinstance(container, range) and isinstance(item, Expr):
            return self._in_range(container, item)
        if isinstance(container, (str, bytes)) or (isinstance(container, dict) and is_container(container)):
            keys = tuple(self.iterate(container)) if isinstance(container, dict) else container
            return self.run(operator.contains, keys, self.concrete(item, "a dictionary key"))
        if isinstance(container, (UnknownText, Callback)):
            raise (
                UnknownText(str(container)).refuse()
                if isinstance(container, UnknownText)
                else Untraceable("`in` on a function", "call it, and look in what it returns")
            )
        if not is_container(container) and not isinstance(container, ArrayView):
            is_iterable = isinstance(container, (*VIEWS, Iterator, collections.deque))
            if not is_iterable and (not isinstance(item, Expr) or _contains_in_c(container)):
                return self.run_on_known(operator.contains, [container, item], {}, "`in`")
        found: Any = FALSE
        with self.for_some() as decides:
            for x in self.iterate(container):
                match = True if item is x else self.compare("==", item, x)
                match = match if isinstance(match, Expr) else self.truth(match)
                found = match if found is FALSE and isinstance(match, Expr) else build.logical("or", found, match)
                if match is True:
                    break
                if isinstance(match, Expr):
                    decides()
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


_UNEQUAL = vars(object)["__eq__"]


def _contains_in_c(container: Any) -> bool:
    """Whether a class of another language says what it contains."""
    return hasattr(type(container), "__contains__")
