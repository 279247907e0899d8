"""Two branches -> one value: what a variable holds where an `if` on a symbol comes together again."""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Any

from ..errors import with_article
from ..expr import build
from ..expr.node import Expr
from . import changes, numbers, objects
from .outside import IMMUTABLE, is_container, like
from .tracing import Tracing
from .values import NUMBERS, ArrayView, Conflict, UnknownSet, UnknownText, is_same_data, number


@dataclass(frozen=True)
class Pair:
    """Two containers of which a condition chose one, and the container that stands for the chosen one."""

    a: Any
    b: Any
    chosen: Any


Pairs = dict[tuple[int, int], Pair]
CHOSEN = "that a condition known only inside the kernel chose"


def choose(t: Tracing, condition: Expr, a: Any, b: Any, name: str) -> Any:
    """What `name` holds after `if condition: a else: b`; nothing in it, nor in a and b, may change any more."""
    pairs: Pairs = {}
    value = merge(t, condition, a, b, name, pairs)
    settle_pairs(t, pairs)
    return value


def merge(t: Tracing, condition: Expr, a: Any, b: Any, name: str, pairs: Pairs) -> Any:
    """What `choose` gives; `pairs` collects the containers that were chosen, for `settle_pairs`."""
    if a is b:
        return a
    if isinstance(a, Conflict) or isinstance(b, Conflict):
        return a if isinstance(a, Conflict) else b
    if isinstance(a, ArrayView) and isinstance(b, ArrayView) and a.rank == b.rank > 0 and a.slot == b.slot:
        indices = tuple(build.where(condition, x, y) for x, y in zip(a.indices, b.indices, strict=True))
        return ArrayView(a.slot, a.element, a.ndim, a.path, a.array, indices)
    if not any(isinstance(x, ArrayView) and x.rank for x in (a, b)):
        a, b = number(a), number(b)
    if isinstance(a, (Expr, *NUMBERS)) and isinstance(b, (Expr, *NUMBERS)):
        return numbers.one_of(t, build.where(condition, a, b), a, b)
    if type(a) is type(b) and is_container(a):
        pair = pairs.get((id(a), id(b)))
        chosen = pair.chosen if pair is not None else _merge_containers(t, condition, a, b, name, pairs)
        if chosen is not None:
            if not isinstance(a, tuple):
                pairs[id(a), id(b)] = Pair(a, b, chosen)
            return chosen
    if isinstance(a, (types.ModuleType, *IMMUTABLE)) and is_same_data(a, b):
        return a
    return Conflict(
        name,
        f"{name} is {_describe(a)} or {_describe(b)}, depending on a condition known only inside the kernel",
        f"give {name} one kind of value in both branches",
    )


def _merge_containers(t: Tracing, condition: Expr, a: Any, b: Any, name: str, pairs: Pairs) -> Any:
    """A list, tuple or dict with the elements of one or the other, where these belong together; else None."""
    if type(a) in (list, dict) or isinstance(a, tuple):
        if not isinstance(a, dict):
            if len(a) != len(b):
                return None
            two = zip(objects.known(t, a), objects.known(t, b), strict=True)
            return like(a, [merge(t, condition, x, y, f"{name}[{i}]", pairs) for i, (x, y) in enumerate(two)])
        if len(a) == len(b) and all(map(is_same_data, a, b)):
            a, b = objects.known(t, a), objects.known(t, b)
            return {key: merge(t, condition, a[key], b[key], f"{name}[{key!r}]", pairs) for key in a}
    return None


def settle_pairs(t: Tracing, pairs: Pairs, since: int | None = None) -> None:
    """Say what of the chosen containers may still change: those of two that no other variable can hold.

    since: when the branches began, where all that can hold what was made in them was joined, with these `pairs`.
    """
    for pair in pairs.values():
        changes.made(t, pair.chosen)
        times = [sum(x is y for other in pairs.values() for y in (other.a, other.b)) for x in (pair.a, pair.b)]
        if since is None or times != [1, 1] or not all(changes.birth(t, x) > since for x in (pair.a, pair.b)):
            for container in (pair.a, pair.b, pair.chosen):
                changes.keep(t, container, CHOSEN)


def _describe(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, (Expr, *NUMBERS)):
        return "a number"
    if isinstance(value, (UnknownText, UnknownSet)):
        return "a text" if isinstance(value, UnknownText) else "a set"
    if isinstance(value, ArrayView):
        return f"the array {value.path}"
    if isinstance(value, (list, tuple, dict)):
        return f"{with_article(type(value).__name__)} of {len(value)}"
    return repr(value) if isinstance(value, str) else with_article(type(value).__name__)
