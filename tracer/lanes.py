"""Branches and loops -> exits: which lanes (positions of the score matrix) leave a block where, and with what.

A block ends with the variables of the lanes that fall through, and a list of exits. Branches join by merging
variables, so that N `if`s in a row cost N merges, not 2^N paths.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from . import build
from .expr import FALSE, TRUE, Expr
from .joins import Pairs, Semantics
from .values import Conflict

Variables = dict[str, Any]


@dataclass(frozen=True)
class Exit:
    """Lanes that leave a block: `condition` holds for them among the lanes that no earlier exit took.

    value: what a return gives; the variables at a break or continue.
    floor: containers made before this time must not change in the lanes that stay.
    """

    kind: Literal["return", "break", "continue"]
    condition: Expr
    value: Any
    node: ast.stmt
    floor: int

    def where(self, condition: Expr) -> Exit:
        """The lanes for which also `condition` holds."""
        return replace(self, condition=both(condition, self.condition))

    def excluding(self, condition: Expr) -> Exit:
        return self if condition is FALSE else self.where(build.logical_not(condition))


def both(a: Expr, b: Expr) -> Expr:
    if a is TRUE or b is FALSE:
        return b
    return a if b is TRUE or a is FALSE else build.logical("and", a, b)


def either(a: Expr, b: Expr) -> Expr:
    if a is FALSE or b is TRUE:
        return b
    return a if b is FALSE or a is TRUE else build.logical("or", a, b)


def all_left(exits: list[Exit]) -> bool:
    """Whether no lane falls through."""
    return bool(exits) and exits[-1].condition is TRUE


def ending(exits: list[Exit]) -> list[Exit]:
    """The exits of a block that no lane falls through: the last takes all that are left."""
    return [*exits[:-1], replace(exits[-1], condition=TRUE)]


def join(values: Semantics, condition: Expr, yes: Variables, no: Variables, since: int | None = None) -> Variables:
    """The variables after `if condition: yes else: no`.

    since: when the branches began, where `yes` and `no` are all that holds what was made in them.
    """
    joined: Variables = {}
    pairs: Pairs = {}
    for name in [*yes, *(name for name in no if name not in yes)]:
        if name in yes and name in no:
            joined[name] = values.made(values.merge(condition, yes[name], no[name], name, pairs))
        else:
            reason = f"{name} has a value on some paths only, depending on a condition known inside the kernel"
            joined[name] = Conflict(name, reason, f"give {name} a value before the `if`")
    values.settle_pairs(pairs, since)
    return joined


class Loop:
    """Keeps apart, over the iterations of a loop, the lanes that left it.

    block: runs statements on given variables and returns the variables after them and the exits.
    """

    def __init__(
        self,
        values: Semantics,
        variables: Variables,
        block: Callable[[list[ast.stmt], Variables], tuple[Variables, list[Exit]]],
    ) -> None:
        self.values: Semantics = values
        self.variables: Variables = variables
        self.block: Callable[[list[ast.stmt], Variables], tuple[Variables, list[Exit]]] = block
        self.broken: Expr = FALSE  # lanes that broke in an earlier iteration
        self.breaks: list[Exit] = []
        self.returns: list[Exit] = []
        self.ended: bool = False  # no lane is left in the loop

    def step(self, body: list[ast.stmt]) -> bool:
        """One iteration; False when no lane goes on.

        A lane that left counts no more, so an exit must exclude only those earlier ones that it would override:
        a break those that continued in this iteration, a return also those that broke.
        """
        floor = self.values.floor
        self.variables, exits = self.block(body, self.variables)
        self.values.floor = max([floor, *(exit.floor for exit in exits if exit.kind != "continue")])
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
                self.variables, self.ended = exit.value, False
            else:
                self.variables = join(self.values, exit.condition, exit.value, self.variables)
        return not self.ended

    def finish(self, orelse: list[ast.stmt]) -> tuple[Variables, list[Exit]]:
        """The variables after the loop, and its exits. `orelse` runs in the lanes that did not break."""
        exits = self.returns
        ended = self.ended
        if orelse and not ended:
            floor = self.values.floor
            if self.breaks:
                self.values.floor = self.values.tick()
            self.variables, left = self.block(orelse, self.variables)
            self.values.floor = floor
            ended = all_left(left)
            exits = exits + [exit.excluding(self.broken) for exit in left]
        after = None if ended else self.variables
        for exit in reversed(self.breaks):
            after = exit.value if after is None else join(self.values, exit.condition, exit.value, after)
        if after is None:
            return self.variables, ending(exits)
        return after, exits
