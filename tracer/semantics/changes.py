"""Containers of a trace -> whether they may change now: who made them when, and which lanes go here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import Untraceable, with_article
from .tracing import Tracing
from .values import MAX_WATCHED, MUTABLE, WITHOUT_STATE, Conflict, held_by, is_same_data, parts_of


class Changed(Untraceable):
    """Python changed what belongs to others while it ran for the mod."""


def tick(t: Tracing) -> int:
    """A time later than that of everything made so far."""
    t.clock += 1
    return t.clock


@contextlib.contextmanager
def for_some(t: Tracing) -> Iterator[Callable[[], None]]:
    """Around a loop that asks for elements until one decides, as any() does; call what it gives after an element of
    which only the kernel knows whether it decides.

    Names that are assigned from there on, and iterators that are read, have no known state afterwards.
    """
    since, unmerged, settled = t.since, t.unmerged, t.settled_since
    if not unmerged:
        t.settled_since = since

    def decide() -> None:
        t.since = t.unmerged = tick(t)

    yield decide
    t.since, t.unmerged, t.settled_since = since, unmerged, settled
    if unmerged:
        return
    for frame, name in t.half_assigned:
        reason = f"{name} was assigned where only the kernel knows whether Python came as far"
        frame.variables[name] = Conflict(name, reason, "assign it in a loop: for x in xs: ...")
    for iterator in t.half_read:
        keep(t, iterator, "that was read as far as only the kernel knows")
    t.half_assigned, t.half_read = [], []


def check_read(t: Tracing, iterator: Any) -> None:
    """Raises Untraceable unless an iterator may be read on now."""
    is_own = not t.recorder.is_captured(iterator) and why_kept(t, iterator) is None
    going_on = t.unmerged > 0 and t.since == t.unmerged  # all lanes that still ask have read as far
    if is_own and going_on and birth(t, iterator) >= t.settled_since:
        t.half_read.append(iterator)
    else:
        check_change(t, iterator, "reading on")


def made(t: Tracing, container: Any) -> Any:
    """Note when the mod made a container or an iterator."""
    if isinstance(container, MUTABLE) and not t.recorder.is_captured(container):
        t.births.setdefault(id(container), (container, t.clock))
    return container


def birth(t: Tracing, container: Any) -> int:
    """When the mod made a container; 0 where it is not known."""
    return t.births.get(id(container), (None, 0))[1]


def keep(t: Tracing, container: Any, reason: str) -> None:
    """From now on a container must not change, nor be asked which object it is; `reason` says what it is."""
    t.kept.setdefault(id(container), (container, reason))


def keep_all(t: Tracing, value: Any, reason: str) -> None:
    """`keep` whatever can change inside `value`."""
    if isinstance(value, MUTABLE):
        if id(value) in t.kept:
            return
        keep(t, value, reason)
    for part in parts_of(value):
        keep_all(t, part, reason)


def why_kept(t: Tracing, container: Any) -> str | None:
    """What a container is that must not change; None for any other."""
    known = t.kept.get(id(container))
    return None if known is None else known[1]


def check_change(t: Tracing, container: Any, what: str) -> None:
    """Raises Untraceable where `what` changes a container that is not the mod's own, or that only some lanes change."""
    kind = type(container).__name__
    if t.recorder.is_captured(container):
        raise Untraceable(
            f"{what} changes a captured {kind}",
            "a mod must not change what it captures: copy it first, xs = list(xs)",
        )
    reason = why_kept(t, container)
    if reason is not None:
        raise Untraceable(f"{what} changes {with_article(kind)} {reason}", "copy it first: xs = list(xs)")
    if birth(t, container) < t.since:
        raise Untraceable(
            f"{what} changes {with_article(kind)} under a condition known only inside the kernel",
            "change it on every path, with an element chosen by the condition: xs[i] = x if c else xs[i]",
        )


def state(*values: Any) -> dict[int, tuple[Any, Any]]:
    """What can change inside values, each with what it holds now; `check_unchanged` compares."""
    found: dict[int, tuple[Any, Any]] = {}
    for value in values:
        _add_state(value, found)
    return found


def _add_state(value: Any, found: dict[int, tuple[Any, Any]]) -> None:
    if id(value) in found or isinstance(value, WITHOUT_STATE) or len(found) > MAX_WATCHED:
        return
    held = held_by(value)
    if held is not None:
        found[id(value)] = value, held
        for part in held:
            _add_state(part, found)


def check_unchanged(t: Tracing, before: dict[int, tuple[Any, Any]], what: str) -> None:
    """Raises Untraceable unless what Python changed since `before` is the mod's own, and may change."""
    for value, held in before.values():
        now = held_by(value)
        assert now is not None
        if len(now) == len(held) and all(a is b or is_same_data(a, b) for a, b in zip(now, held, strict=True)):
            continue
        if not isinstance(value, MUTABLE) or id(value) not in t.births:
            raise Changed(
                f"{what} changes a {type(value).__name__} from outside",
                "a mod must not change what it captures: it is called once, and not for every score",
            )
        check_change(t, value, what)
