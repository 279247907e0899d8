"""Branches and loops -> ways: which lanes (positions of the score matrix) go where, and how they come together again.

Where only the kernel knows a condition, its lanes part (`Fork`), and each side is followed on variables of its own.
`Lanes` say where some go on; what is done there is done once, on variables merged from all lanes that come there, so
that N `if`s in a row cost N merges and not 2^N paths. Shared by all front ends: they name the places where lanes go on.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from .. import semantics as verbs
from ..errors import Place, Untraceable
from ..expr import build
from ..expr.node import FALSE, TRUE, Expr
from ..semantics import Conflict, Pairs, Tracing
from .frames import Closure, Frame

Variables = dict[Any, Any]
T = TypeVar("T")

RETURN = "return"  # where lanes go that leave the function; the other places are the front end's own


@dataclass(eq=False)
class Lanes:
    """Lanes that go on at one place.

    to: the place.
    variables: what they hold there.
    since: containers made before this time must not change while these lanes wait.
    value, origin: what a return gives, and where in the user's source; what an expression gives.
    known: the truth of `value`, where it is known in these lanes.
    then: what became of them, once they went on.
    """

    to: Hashable
    variables: Variables
    since: int
    value: Any = None
    origin: Place | None = None
    known: bool | None = None
    then: Way | None = None


@dataclass(eq=False)
class Fork:
    """Lanes that part: those for which `condition` holds go one way, the others another.

    since: when they parted.
    """

    condition: Expr
    yes: Way
    no: Way
    since: int


Way = Lanes | Fork


def waiting(way: Way) -> list[Lanes]:
    """The lanes that have not gone on, in the order of the source."""
    way = _now(way)
    if isinstance(way, Lanes):
        return [way]
    yes, no = _now(way.yes), _now(way.no)
    if isinstance(yes, Lanes) and isinstance(no, Lanes):  # as after most conditions
        return [yes] if yes is no else [yes, no]
    found: list[Lanes] = []
    seen: set[int] = set()
    stack: list[Way] = [no, yes]
    while stack:
        node = _now(stack.pop())
        if isinstance(node, Lanes):
            if id(node) not in seen:
                found.append(node)
        elif id(node) not in seen:
            stack += (node.no, node.yes)
        seen.add(id(node))
    return found


def go_on(lanes: Iterable[Lanes], way: Way) -> None:
    """Lanes went on, this way."""
    for some in lanes:
        some.then = way


def then(frame: Frame, way: Way, *goes_on: tuple[Hashable, Callable[[], Way]]) -> None:
    """The lanes that wait at these places go on with a block, on the variables of the function."""
    t, home, since = frame.tracing, frame.home, frame.tracing.since
    lanes = waiting(way)
    for to, block in goes_on:
        here = [some for some in lanes if some.to == to]
        if len(here) == len(lanes):
            home.variables = merged(t, way, here)
        elif here:
            home.variables = dict(merged(t, way, here))
            t.since = verbs.tick(t)  # the others wait, or have gone on elsewhere
        else:
            continue
        go_on(here, block())
    t.since = since


def part(condition: Expr, yes: Way, no: Way, since: int) -> Way:
    """Lanes part."""
    if condition.op == "not":
        return Fork(condition.args[0], no, yes, since)
    return Fork(condition, yes, no, since)


def keep_returned(frame: Frame, live: list[Lanes], left: list[Lanes]) -> None:
    """Where other lanes go on, what some have returned must stay as it is."""
    for some in left:
        if some.to == RETURN and any(other.to != RETURN for other in live):
            verbs.keep_all(frame.tracing, some.value, "that some positions have returned already")
            for function in _closures_in(some.value):
                if function.frame.home is frame:
                    raise Untraceable(
                        f"{function.name} is returned under a condition known only inside the kernel",
                        "call it and return what it gives",
                    )


def _closures_in(value: Any) -> list[Closure]:
    if isinstance(value, Closure):
        return [value]
    return [closure for part in verbs.parts_of(value) for closure in _closures_in(part)]


def returned(frame: Frame, way: Way) -> Any:
    """The value of a call: of the lanes that returned; falling off the end gives None."""
    t = frame.tracing
    ends = waiting(way)
    if len(ends) == 1:
        return verbs.made(t, ends[0].value)
    if all(some.value is None for some in ends):
        return None
    for some in ends:
        if some.to != RETURN:
            error = Untraceable(
                f"{frame.name} returns a value on some paths and None on others",
                "end the function with a `return` for the remaining positions",
            )
            error.places += [other.origin for other in ends if other.to == RETURN and other.origin is not None][-1:]
            raise error

    def chosen(fork: Fork, yes: tuple[Any, Place | None], no: tuple[Any, Place | None]) -> tuple[Any, Place | None]:
        value = verbs.choose(t, fork.condition, yes[0], no[0], "the returned value")
        if isinstance(value, Conflict):
            error = Untraceable(value.reason, "return one kind of value on every path")
            error.places += [place for place in (yes[1], no[1]) if place is not None][:1]
            raise error
        return value, yes[1]

    shape = _shape(way, *{some.to for some in ends})
    assert shape is not None
    return verbs.made(t, _fold(shape, lambda some: (some.value, some.origin), chosen)[0])


# ---- lanes come together ---------------------------------------------------------------------------------------------


def merged(t: Tracing, way: Way, lanes: Sequence[Lanes]) -> Variables:
    """The variables of lanes: of all that wait at one place, on a way that they came."""
    if len(lanes) == 1:
        return lanes[0].variables
    way = _now(way)
    assert isinstance(way, Fork)
    yes, no = _now(way.yes), _now(way.no)
    if isinstance(yes, Lanes) and isinstance(no, Lanes):  # an `if`, and nobody left
        return _joined(t, way, yes.variables, no.variables)
    shape = _shape(way, lanes[0].to)
    assert shape is not None
    return _fold(shape, lambda some: some.variables, lambda fork, yes, no: _joined(t, fork, yes, no))


def _shape(way: Way, *places: Hashable) -> Way | None:
    """The way without lanes that go elsewhere, and without forks that make no difference: two that lead to equal
    lanes are one fork with `and` or `or` between their conditions."""

    def kept(fork: Fork, yes: Way | None, no: Way | None) -> Way | None:
        if yes is None or no is None or yes is no:
            return no if yes is None else yes
        return fork if yes is fork.yes and no is fork.no else Fork(fork.condition, yes, no, fork.since)

    there = _fold(way, lambda some: some if some.to in places else None, kept)
    return None if there is None else _fold(there, lambda some: some, _simpler, _in_a_row)


def _in_a_row(fork: Fork) -> Fork:
    """A fork and those that follow, as long as they share a side: as `a and b and c` parts lanes."""
    c, yes, no = fork.condition, fork.yes, fork.no
    while True:
        if isinstance(yes, Fork) and _alike(yes.no, no):
            c, yes = both(c, yes.condition), _now(yes.yes)
        elif isinstance(yes, Fork) and _alike(yes.yes, no):
            c, yes = both(c, otherwise(yes.condition)), _now(yes.no)
        elif isinstance(no, Fork) and _alike(no.yes, yes):
            c, no = either(c, no.condition), _now(no.no)
        elif isinstance(no, Fork) and _alike(no.no, yes):
            c, no = either(c, otherwise(no.condition)), _now(no.yes)
        else:
            return fork if c is fork.condition else Fork(c, yes, no, fork.since)


def _simpler(fork: Fork, yes: Way, no: Way) -> Way:
    """A fork whose sides are as simple as they get."""
    if _alike(yes, no):
        return yes
    if isinstance(yes, Fork) and isinstance(no, Fork):
        if _alike(yes.yes, no.yes) and _alike(yes.no, no.no):
            return Fork(build.where(fork.condition, yes.condition, no.condition), yes.yes, yes.no, fork.since)
        if _alike(yes.yes, no.no) and _alike(yes.no, no.yes):
            condition = build.where(fork.condition, yes.condition, otherwise(no.condition))
            return Fork(condition, yes.yes, yes.no, fork.since)
    return _in_a_row(Fork(fork.condition, yes, no, fork.since))


def _alike(a: Way, b: Way) -> bool:
    """Whether lanes go on at one place with the same variables."""
    a, b = _now(a), _now(b)
    if a is b:
        return True
    if not (isinstance(a, Lanes) and isinstance(b, Lanes)) or a.to != b.to or a.to == RETURN:
        return False
    x, y = a.variables, b.variables
    return x is y or (x.keys() == y.keys() and all(_is_same(value, y[name]) for name, value in x.items()))


def _is_same(a: Any, b: Any) -> bool:
    """Whether two values are one. Of a literal that is written twice, code has one object and text has two."""
    if a is b or type(a) is not type(b):
        return a is b
    if type(a) is tuple:
        return len(a) == len(b) and all(map(_is_same, a, b))
    return type(a) in (int, float, str) and repr(a) == repr(b)


def _fold(
    way: Way, leaf: Callable[[Lanes], T], fork: Callable[[Fork, T, T], T], first: Callable[[Fork], Fork] | None = None
) -> T:
    """From the lanes that wait up to the first fork; what two forks lead to is looked at once.

    first: what a fork is taken for, before its sides are looked at.
    """
    known: dict[int, T] = {}
    taken: dict[int, Fork] = {}
    stack = [way]
    while stack:
        node = _now(stack[-1])
        if id(node) in known:
            stack.pop()
        elif isinstance(node, Lanes):
            known[id(node)] = leaf(node)
            stack.pop()
        else:
            if first is not None and id(node) not in taken:
                taken[id(node)] = first(node)
            as_taken = taken.get(id(node), node)
            sides = [_now(as_taken.yes), _now(as_taken.no)]
            missing = [side for side in sides if id(side) not in known]
            if missing:
                stack += reversed(missing)
            else:
                known[id(node)] = fork(as_taken, known[id(sides[0])], known[id(sides[1])])
                stack.pop()
    return known[id(_now(way))]


def _now(way: Way) -> Way:
    while isinstance(way, Lanes) and way.then is not None:
        way = way.then
    return way


def _joined(t: Tracing, fork: Fork, yes: Variables, no: Variables) -> Variables:
    """The variables after `if condition: yes else: no`; a value without a name is that of an expression."""
    if yes is no:
        return yes
    after: Variables = {}
    pairs: Pairs = {}
    for name in [*yes, *(name for name in no if name not in yes)]:
        if name in yes and name in no:
            if yes[name] is no[name]:
                after[name] = yes[name]
                continue
            shown = name if isinstance(name, str) else "this expression"
            value = verbs.made(t, verbs.merge(t, fork.condition, yes[name], no[name], shown, pairs))
            if isinstance(value, Conflict) and not isinstance(name, str):
                value = Conflict(shown, value.reason, "make both sides numbers")
            after[name] = value
        else:
            reason = f"{name} has a value on some paths only, depending on a condition known inside the kernel"
            after[name] = Conflict(name, reason, f"give {name} a value before the `if`")
    verbs.settle_pairs(t, pairs, fork.since)
    return after


# ---- conditions ------------------------------------------------------------------------------------------------------


def both(a: Expr, b: Expr) -> Expr:
    """`a and b`."""
    if a is TRUE or b is FALSE:
        return b
    return a if b is TRUE or a is FALSE else build.logical("and", a, b)


def either(a: Expr, b: Expr) -> Expr:
    """`a or b`."""
    if a is FALSE or b is TRUE:
        return b
    return a if b is FALSE or a is TRUE else build.logical("or", a, b)


def otherwise(condition: Expr) -> Expr:
    """The lanes for which a condition does not hold."""
    return condition.args[0] if condition.op == "not" else build.logical_not(condition)
