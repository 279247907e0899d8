"""Two branches -> one value: what a variable holds where an `if` on a symbol comes together again."""

from __future__ import annotations

import types
from typing import Any

from . import build
from .calls import Calls
from .errors import with_article
from .expr import Expr
from .objects import IMMUTABLE
from .values import NUMBERS, ArrayView, Conflict


class Semantics(Calls):
    """The meaning of Python's operations on the values of a trace: what every reader of a function shares."""

    def merge(self, condition: Expr, a: Any, b: Any, name: str) -> Any:
        """What `name` holds after `if condition: a else: b`."""
        if a is b:
            return a
        if isinstance(a, Conflict) or isinstance(b, Conflict):
            return a if isinstance(a, Conflict) else b
        if isinstance(a, ArrayView) and isinstance(b, ArrayView) and a.rank == b.rank > 0 and a.slot == b.slot:
            indices = tuple(build.where(condition, x, y) for x, y in zip(a.indices, b.indices, strict=True))
            return ArrayView(a.slot, a.element, a.ndim, a.path, a.array, indices)
        if not any(isinstance(x, ArrayView) and x.rank for x in (a, b)):
            a, b = self.number(a), self.number(b)
        if isinstance(a, (Expr, *NUMBERS)) and isinstance(b, (Expr, *NUMBERS)):
            return build.where(condition, a, b)
        if type(a) is type(b):
            if isinstance(a, (list, tuple)) and len(a) == len(b):
                pairs = zip(self.known(a), self.known(b), strict=True)
                items = [self.merge(condition, x, y, f"{name}[{i}]") for i, (x, y) in enumerate(pairs)]
                return items if isinstance(a, list) else tuple(items)
            if isinstance(a, dict) and list(a) == list(b):
                a, b = self.known(a), self.known(b)
                return {key: self.merge(condition, a[key], b[key], f"{name}[{key!r}]") for key in a}
            if isinstance(a, (types.ModuleType, *IMMUTABLE)) and a == b:
                return a
        return Conflict(
            name,
            f"{name} is {_describe(a)} or {_describe(b)}, depending on a condition known only inside the kernel",
            f"give {name} one kind of value in both branches",
        )


def _describe(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, (Expr, *NUMBERS)):
        return "a number"
    if isinstance(value, ArrayView):
        return f"the array {value.path}"
    if isinstance(value, (list, tuple, dict)):
        return f"{with_article(type(value).__name__)} of {len(value)}"
    return repr(value) if isinstance(value, str) else with_article(type(value).__name__)
