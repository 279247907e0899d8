"""One trace -> its state: what was captured, what was computed from it, what was made when, and what may change.

Every function of the meaning of Python (the verbs, and what lies below them) takes it as its first argument, `t`.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from ..captures.recorder import Recorder
from ..expr.node import Expr


@dataclass(eq=False, slots=True)
class Tracing:
    """The state of one trace.

    call: what a call means, `call(t, function, args, kwargs)`. It is handed in, because an attribute, an operator or
        an iteration may be a call of what the user's class says, and a call may do any of these.
    clock: counts what may have to be told apart as earlier or later.
    since: containers made before this time must not change now: only some lanes go here.
    depth: how many calls of functions written in Python are under way.
    unmerged: since then, what is evaluated counts for some lanes only, and nothing is merged (`changes.for_some`).
    settled_since: `since` as it was when the outermost `for_some` began.
    half_assigned, half_read: (frame, name), and iterators, that have no known state after `for_some`.
    births: when the mod made a container, by its id; the container stands beside it, so that the id stays its own.
    kept: containers that must not change any more, and what they are.
    choices: numbers that are one of several, which may be of several Python types.
    recipes: how Python computes a number from captured ones, `function(*operands)`.
    computed: such numbers as captures of their own, None where Python gives no number.
    readers: what each function is read from, by its code and its file: equal functions of two cells are equal codes.
    """

    call: Callable[[Tracing, Any, list[Any], dict[str, Any]], Any]
    recorder: Recorder = field(default_factory=Recorder)
    clock: int = 0
    since: int = 0
    depth: int = 0
    unmerged: int = 0
    settled_since: int = 0
    half_assigned: list[tuple[Any, str]] = field(default_factory=list)
    half_read: list[Any] = field(default_factory=list)
    births: dict[int, tuple[Any, int]] = field(default_factory=dict)
    kept: dict[int, tuple[Any, str]] = field(default_factory=dict)
    choices: dict[Expr, tuple[Any, ...]] = field(default_factory=dict)
    recipes: dict[Expr, tuple[Callable[..., Any], tuple[Any, ...]]] = field(default_factory=dict)
    computed: dict[Expr, Expr | None] = field(default_factory=dict)
    readers: dict[tuple[types.CodeType, str], Literal["source", "bytecode"]] = field(default_factory=dict)
