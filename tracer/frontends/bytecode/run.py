"""Blocks -> value: runs the flow of a function over symbols, following both ways of a branch on one."""

from __future__ import annotations

import types
from collections.abc import Callable, Generator
from typing import Any

from ... import semantics as verbs
from ...captures.paths import Path
from ...errors import Place, Untraceable
from ...expr.node import Expr
from ...semantics import Tracing
from .. import refusals
from ..branches import RETURN, Lanes, Way, go_on, keep_returned, merged, part, returned, waiting
from ..frames import Call, defaults_of
from .decode import NULL, REFUSED, VERSION, WITH_SOURCE, Step
from .flow import Block, Loop, flow_of
from .frame import NOTHING, CodeFrame, Failure, local_names, parameters_of
from .steps import STEPS, some_kept

MAX_ASKED = 500  # iterations of a `while` on a condition known only inside the kernel, which may end for another reason


def follow(t: Tracing, function: types.FunctionType, path: Path, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """A call of a function from outside: what it returns on these values."""
    code = function.__code__
    parameters = parameters_of(code)
    defaults = defaults_of(t, function, path, parameters, args, kwargs)
    names = local_names(code)
    frame = CodeFrame(t, code.co_name, parameters, names, function=function, path=path, code=code, run=_run)
    with Call(frame, args, kwargs, defaults):
        return _run(frame)


def _run(frame: CodeFrame) -> Any:
    ways = _ways(frame)
    if frame.code.co_name == "<genexpr>":
        return verbs.made(frame.tracing, ways)
    try:
        next(ways)
    except StopIteration as stop:
        return returned(frame, stop.value)
    raise AssertionError("only a generator expression yields")


# ---- ways through the blocks ----------------------------------------------------------------------------------------

Ways = Generator[Any, None, Way]  # runs blocks, yields what a generator yields, and gives the way of the lanes


def _ways(frame: CodeFrame) -> Ways:
    entry = flow_of(frame.code)
    frame.since = frame.tracing.since
    start = Lanes(entry, frame.variables, frame.entry)
    return (yield from _through(frame, start, None))


def _through(frame: CodeFrame, start: Way, level: set[Block] | None) -> Ways:
    """Lanes go on until they have left a level: a function (None), or the blocks of a loop but its head."""
    t = frame.tracing
    here, live = start, waiting(start)
    while True:
        blocks = {some.to for some in live if isinstance(some.to, Block) and (level is None or some.to in level)}
        if not blocks:
            return start
        block = min(blocks, key=lambda block: block.order)
        coming = [some for some in live if some.to is block]
        others = [some for some in live if some.to is not block]
        base, raised = t.since, max((some.since for some in others), default=0)
        t.since = max(base, raised)
        frame.take(merged(t, here, coming))
        if block.loop is not None:
            way: Way = yield from _loop(frame, block.loop)
        else:
            way = _block(frame, block)
        if block.last is not None and block.last.do == "yield":
            if t.since > frame.since:
                raise some_kept(frame)
            yield frame.yielded
            frame.since = t.since  # whoever asked may have gone on for some lanes only
        elif raised > base:
            t.since = base
        go_on(coming, way)
        left = waiting(way)
        live = others + left
        keep_returned(frame, live, left)
        if not others:
            here = way


def _loop(frame: CodeFrame, loop: Loop) -> Ways:
    t, head = frame.tracing, loop.head
    whole = frame.lanes(head)
    entering, inside = [whole], loop.blocks - {head}
    gone = 0  # containers made before must not change, for the lanes that left the loop
    is_for = head.last is not None and head.last.do == "next"
    first: tuple[Expr, Place] | None = None  # what the first iteration asked first, if lanes left the loop by it
    for count in range(refusals.MAX_ITERATIONS):
        base, frame.asked = t.since, None
        t.since = max(base, gone)
        way = _block(frame, head)
        if count == 0 and not is_for:
            first = frame.asked
        way = yield from _through(frame, way, inside)
        if gone > base:
            t.since = base
        go_on(entering, way)
        left = waiting(way)
        entering = [some for some in left if some.to is head]
        if len(entering) == len(left):
            first = None
        gone = max([gone, *(some.since for some in left if some.to is not head)])
        if not entering:
            return whole
        frame.take(merged(t, way, entering))
        if first is not None and count == MAX_ASKED:
            error = refusals.while_on(first[0])
            error.places.append(first[1])
            raise error
    raise refusals.endless()


def _block(frame: CodeFrame, block: Block) -> Way:
    """Do the steps of a block; where its lanes go on."""
    for step in block.steps:
        try:
            end = ENDS.get(step.do)
            if end is not None:
                return end(frame, step, block)
            STEPS[step.do](frame, step.value)
        except Untraceable as error:
            place = frame.place(step)
            first = error.places[0] if error.places else None
            if first is None or (
                step.do.startswith("call") and (first.filename, first.function) != (place.filename, place.function)
            ):
                error.places.insert(0, place)
            raise
    return frame.lanes(block.after[0])


# ---- steps that end a block -----------------------------------------------------------------------------------------


def _jump_if(frame: CodeFrame, step: Step, block: Block) -> Way:
    """Go on at the first block where the value is as the step says, else at the second."""
    t = frame.tracing
    (wanted, keeps), value = step.value, frame.pop()
    truth = verbs.truth(t, value)
    target, following = block.after
    if not isinstance(truth, Expr):
        jumps = truth is wanted
        if jumps and keeps:
            frame.push(value)
        return frame.lanes(target if jumps else following)
    if any(block.steps and block.steps[0].do == "assertion" for block in block.after):
        raise refusals.assert_in_kernel()
    since = t.clock
    frame.asked = truth, frame.place(step)
    sides = []
    for to, holds in ((target, wanted), (following, not wanted)):
        kept = [holds if isinstance(value, Expr) and value.dtype == "bool" else value] if keeps and to is target else []
        sides.append(frame.lanes_with([*frame.stack, *kept], to))
    yes, no = sides if wanted else sides[::-1]
    return part(truth, yes, no, since)


def _next(frame: CodeFrame, step: Step, block: Block) -> Way:
    """The next element of the iterator on top of the stack, or on behind the loop."""
    end, body = block.after
    item = next(frame.top(), NOTHING)
    if item is not NOTHING:
        frame.push(item)
        return frame.lanes(body)
    if VERSION < (3, 12):
        frame.stack.pop()
    else:
        frame.push(NULL)
    return frame.lanes(end)


def _return(frame: CodeFrame, step: Step, block: Block) -> Way:
    value = frame.pop()
    return Lanes("end" if value is None else RETURN, {}, frame.entry, value, frame.place(step))


def _raise(frame: CodeFrame, step: Step, block: Block) -> Way:
    error, *_ = [*frame.pop_many(step.value), None]
    if isinstance(error, Failure):
        raise refusals.assertion_failed(error.message)
    verbs.check_raise(frame.tracing)
    raise verbs.raised(error)


def _refuse(frame: CodeFrame, step: Step, block: Block) -> Way:
    raise Untraceable(*REFUSED.get(step.value, (f"the instruction {step.value} has no meaning in a mod", WITH_SOURCE)))


def _yield(frame: CodeFrame, step: Step, block: Block) -> Way:
    if frame.code.co_name != "<genexpr>":
        raise Untraceable("Yield expressions have no meaning in a mod", "use plain arithmetic on numbers")
    frame.yielded = frame.pop()
    frame.push(None)
    return frame.lanes(block.after[0])


ENDS: dict[str, Callable[[CodeFrame, Step, Block], Way]] = {
    "branch": _jump_if,
    "next": _next,
    "return": _return,
    "raise": _raise,
    "refused": _refuse,
    "yield": _yield,
}
