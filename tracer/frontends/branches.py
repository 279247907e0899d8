"""Branches and loops -> exits: which lanes (positions of the score matrix) leave a block where, and with what.

A block ends with the variables of the lanes that fall through, and a list of exits. Branches join by merging
variables, so that N `if`s in a row cost N merges, not 2^N paths. Shared by all front ends: a block is whatever runs on
the variables of a frame and says who left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from .. import semantics as verbs
from ..errors import Place, Untraceable
from ..expr import build
from ..expr.node import FALSE, TRUE, Expr
from ..semantics import Conflict, Pairs, Tracing
from .frames import Closure, Frame

Variables = dict[str, Any]


@dataclass(frozen=True)
class Exit:
    """Lanes that leave a block: `condition` holds for them among the lanes that no earlier exit took.

    value: what a return gives; the variables at a break or continue.
    place: where in the user's source they leave.
    since: containers made before this time must not change in the lanes that stay.
    """

    kind: Literal["return", "break", "continue"]
    condition: Expr
    value: Any
    place: Place
    since: int

    def where(self, condition: Expr) -> Exit:
        """The lanes for which also `condition` holds."""
        return replace(self, condition=both(condition, self.condition))

    def excluding(self, condition: Expr) -> Exit:
        return self if condition is FALSE else self.where(otherwise(condition))


Block = Callable[[], list[Exit]]  # runs on the variables of a frame, and leaves those of the lanes that stay


# ---- conditions --------------------------------------------------------------------------------------------------


def both(a: Expr, b: Expr) -> Expr:
    if a is TRUE or b is FALSE:
        return b
    return a if b is TRUE or a is FALSE else build.logical("and", a, b)


def either(a: Expr, b: Expr) -> Expr:
    if a is FALSE or b is TRUE:
        return b
    return a if b is FALSE or a is TRUE else build.logical("or", a, b)


def otherwise(condition: Expr) -> Expr:
    """The lanes for which a condition does not hold."""
    return build.logical_not(condition)


# ---- expressions that some lanes evaluate ---------------------------------------------------------------------------


@contextmanager
def only_where(condition: Expr, frame: Frame) -> Iterator[None]:
    """Evaluate an operand for some lanes only: a walrus inside assigns there, no container may change."""
    home, t = frame.home, frame.tracing
    before, since = dict(home.variables), t.since
    t.since = verbs.tick(t)
    yield
    t.since = since
    for name, after in home.variables.items():
        # A name new here is read only where it was assigned: elsewhere Python itself would fail.
        if name in before and before[name] is not after:
            home.variables[name] = verbs.choose(t, condition, after, before[name], name)


def joined(t: Tracing, condition: Expr, a: Any, b: Any) -> Any:
    """The value of `a if condition else b`."""
    value = verbs.choose(t, condition, a, b, "this expression")
    if isinstance(value, Conflict):
        raise Untraceable(value.reason, "make both sides numbers")
    return verbs.made(t, value)


def decided(t: Tracing, op: Literal["and", "or"], value: Any, going_on: Expr, other: Any) -> Any:
    """The value of `value op other`, where only the kernel knows `value`; `going_on`: it did not decide."""
    value = verbs.number(value)
    if value.dtype == "bool" and (isinstance(other, bool) or (isinstance(other, Expr) and other.dtype == "bool")):
        return build.logical(op, value, other)
    return joined(t, going_on, other, value)


def chained(a: Any, b: Any) -> Any:
    """`a and b` for the links of a comparison chain, of which `a` did not decide."""
    return b if a is True else build.logical("and", a, b)


# ---- blocks --------------------------------------------------------------------------------------------------------


def all_left(exits: list[Exit]) -> bool:
    """Whether no lane falls through."""
    return bool(exits) and exits[-1].condition is TRUE


def ending(exits: list[Exit]) -> list[Exit]:
    """The exits of a block that no lane falls through: the last takes all that are left."""
    return [*exits[:-1], replace(exits[-1], condition=TRUE)]


def leave(frame: Frame, exits: list[Exit], left: list[Exit]) -> bool:
    """Add those who left to the exits of a block; whether any lane stays in it."""
    exits += left
    is_empty = all_left(exits)
    if not (is_empty and all(exit.kind == "return" for exit in exits)):
        _keep_returned(frame, exits)
    if not is_empty:
        frame.tracing.since = max(frame.tracing.since, *(exit.since for exit in left))
    return not is_empty


def _keep_returned(frame: Frame, exits: list[Exit]) -> None:
    """Where other lanes go on, what some have returned must stay as it is."""
    for exit in exits:
        if exit.kind == "return":
            verbs.keep_all(frame.tracing, exit.value, "that some positions have returned already")
            for function in _closures_in(exit.value):
                if function.frame.home is frame:
                    raise Untraceable(
                        f"{function.name} is returned under a condition known only inside the kernel",
                        "call it and return what it gives",
                    )


def _closures_in(value: Any) -> list[Closure]:
    if isinstance(value, Closure):
        return [value]
    return [closure for part in verbs.parts_of(value) for closure in _closures_in(part)]


def returned(frame: Frame, exits: list[Exit]) -> Any:
    """The value of a call: the first exit whose condition holds; falling off the end gives None."""
    if not exits or (not all_left(exits) and all(exit.value is None for exit in exits)):
        return None
    if not all_left(exits):
        error = Untraceable(
            f"{frame.name} returns a value on some paths and None on others",
            "end the function with a `return` for the remaining positions",
        )
        error.places.append(exits[-1].place)
        raise error
    result = exits[-1].value
    for exit in reversed(exits[:-1]):
        result = verbs.choose(frame.tracing, exit.condition, exit.value, result, "the returned value")
        if isinstance(result, Conflict):
            error = Untraceable(result.reason, "return one kind of value on every path")
            error.places.append(exit.place)
            raise error
    return verbs.made(frame.tracing, result)


# ---- branches ------------------------------------------------------------------------------------------------------


def join(t: Tracing, condition: Expr, yes: Variables, no: Variables, since: int | None = None) -> Variables:
    """The variables after `if condition: yes else: no`.

    since: when the branches began, where `yes` and `no` are all that holds what was made in them.
    """
    merged: Variables = {}
    pairs: Pairs = {}
    for name in [*yes, *(name for name in no if name not in yes)]:
        if name in yes and name in no:
            merged[name] = verbs.made(t, verbs.merge(t, condition, yes[name], no[name], name, pairs))
        else:
            reason = f"{name} has a value on some paths only, depending on a condition known inside the kernel"
            merged[name] = Conflict(name, reason, f"give {name} a value before the `if`")
    verbs.settle_pairs(t, pairs, since)
    return merged


def fork(frame: Frame, condition: Expr, yes: Block, no: Block) -> list[Exit]:
    """Run both sides of an `if` whose condition only the kernel knows, each on its own copy of the variables."""
    before, since = frame.variables, frame.tracing.clock
    after_yes, yes_exits = _branch(frame, yes, before)
    after_no, no_exits = _branch(frame, no, before)
    exits = [exit.where(condition) for exit in yes_exits]
    # Where every lane of the `if` side has left, "otherwise" is implied by the order of the exits.
    exits += no_exits if all_left(yes_exits) else [exit.excluding(condition) for exit in no_exits]
    if all_left(yes_exits) and all_left(no_exits):
        return ending(exits)
    if all_left(no_exits):
        frame.variables = after_yes
    elif all_left(yes_exits):
        frame.variables = after_no
    else:
        frame.variables = join(frame.tracing, condition, after_yes, after_no, since)
    return exits


def _branch(frame: Frame, block: Block, before: Variables) -> tuple[Variables, list[Exit]]:
    t = frame.tracing
    since = t.since
    t.since = verbs.tick(t)
    frame.variables = dict(before)
    try:
        exits = block()
        return frame.variables, exits
    finally:
        t.since = since
        frame.variables = before


class Loop:
    """Keeps apart, over the iterations of a loop, the lanes that left it."""

    def __init__(self, frame: Frame) -> None:
        self.frame: Frame = frame
        self.broken: Expr = FALSE  # lanes that broke in an earlier iteration
        self.breaks: list[Exit] = []
        self.returns: list[Exit] = []
        self.ended: bool = False  # no lane is left in the loop

    def step(self, body: Block) -> bool:
        """One iteration; False when no lane goes on.

        A lane that left counts no more, so an exit must exclude only those earlier ones that it would override:
        a break those that continued in this iteration, a return also those that broke.
        """
        t = self.frame.tracing
        since = t.since
        exits = body()
        t.since = max([since, *(exit.since for exit in exits if exit.kind != "continue")])
        continued = FALSE
        continues: list[Exit] = []
        for exit in exits:
            if exit.kind == "continue":
                continues.append(exit)
                continued = either(continued, exit.condition)
            elif exit.kind == "break":
                self.breaks.append(exit.excluding(continued))
                self.broken = either(self.broken, self.breaks[-1].condition)
            else:
                self.returns.append(exit.excluding(continued).excluding(self.broken))
        self.ended = all_left(exits)
        for exit in reversed(continues):
            if self.ended:
                self.frame.variables, self.ended = exit.value, False
            else:
                self.frame.variables = join(t, exit.condition, exit.value, self.frame.variables)
        return not self.ended

    def finish(self, orelse: Block | None = None) -> list[Exit]:
        """The exits of the loop, after which the frame goes on. `orelse` runs in the lanes that did not break."""
        t = self.frame.tracing
        exits = self.returns
        ended = self.ended
        if orelse is not None and not ended:
            since = t.since
            if self.breaks:
                t.since = verbs.tick(t)
            left = orelse()
            t.since = since
            ended = all_left(left)
            exits = exits + [exit.excluding(self.broken) for exit in left]
        after = None if ended else self.frame.variables
        for exit in reversed(self.breaks):
            after = exit.value if after is None else join(t, exit.condition, exit.value, after)
        if after is None:
            return ending(exits)
        self.frame.variables = after
        return exits
