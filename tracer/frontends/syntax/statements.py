"""ast statements -> value: runs a function body over symbols, following both sides of a symbolic `if`."""

from __future__ import annotations

import ast
import types
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from ... import semantics as verbs
from ...captures.paths import Path
from ...errors import Untraceable
from ...expr.node import Expr
from ...semantics import Tracing
from ...source.find import source_of
from .. import refusals
from ..branches import RETURN, Lanes, Way, go_on, keep_returned, merged, returned, then, waiting
from ..frames import Call, Closure, absolute_name, defaults_of
from .expressions import (
    BINARY_SYMBOLS,
    NO,
    YES,
    SourceFrame,
    assign,
    defaults_in,
    inner_frame,
    scope_of,
    test_of,
    value_of,
)

FALL, BREAK, CONTINUE = "fall", "break", "continue"
UNSUPPORTED: dict[str, str] = {  # statement that is refused -> its keyword
    "Try": "try",
    "TryStar": "try",
    "With": "with",
    "AsyncWith": "async with",
    "Global": "global",
    "Nonlocal": "nonlocal",
    "Delete": "del",
    "ClassDef": "class",
    "Match": "match",
    "AsyncFor": "async for",
    "AsyncFunctionDef": "async def",
    "TypeAlias": "type",
}


def follow(t: Tracing, function: types.FunctionType, path: Path, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """A call of a function that has source: what it returns on these values."""
    source = source_of(function.__code__)
    names, parameters = scope_of(source.node)
    defaults = defaults_of(t, function, path, parameters, args, kwargs)
    frame = SourceFrame(t, source.function, parameters, names, function=function, path=path, source=source)
    with Call(frame, args, kwargs, defaults):
        if isinstance(source.node, ast.Lambda):
            return value_of(source.node.body, frame)
        return returned(frame, block(source.node.body, frame))


def block(statements: list[ast.stmt], frame: SourceFrame) -> Way:
    """Run statements; where their lanes go on: at `FALL` behind the last."""
    t, base = frame.tracing, frame.tracing.since
    whole: Way | None = None
    here: Way | None = None  # where the lanes parted that the next statement joins
    entering: list[Lanes] = []
    for statement in statements:
        if here is not None:
            lanes = waiting(here)
            entering = [some for some in lanes if some.to == FALL]
            if not entering:
                break
            t.since = max([t.since, *(some.since for some in lanes if some.to != FALL)])
            frame.variables = merged(t, here, entering)
            here = None
        way = _run(statement, frame)
        if way is not None:
            go_on(entering, way)
            whole, here, entering = whole or way, way, []
    if here is None:
        way = Lanes(FALL, frame.variables, verbs.tick(t))
        go_on(entering, way)
        whole = whole or way
    t.since = base
    assert whole is not None
    return whole


def _run(statement: ast.stmt, frame: SourceFrame) -> Way | None:
    try:
        run = STATEMENTS.get(type(statement))
        if run is None:
            kind = type(statement).__name__
            raise refusals.statement(UNSUPPORTED.get(kind, kind.lower()))
        way = run(statement, frame)
        if way is not None:
            lanes = waiting(way)
            keep_returned(frame, lanes, lanes)
        return way
    except Untraceable as error:
        if not error.places:
            error.places.append(frame.source.place(statement))
        raise


def _expression(node: ast.Expr, frame: SourceFrame) -> None:
    value_of(node.value, frame)


def _pass(node: ast.Pass, frame: SourceFrame) -> None:
    pass


def _assign(node: ast.Assign, frame: SourceFrame) -> None:
    value = value_of(node.value, frame)
    for target in node.targets:
        assign(target, value, frame)


def _annotated(node: ast.AnnAssign, frame: SourceFrame) -> None:
    if node.value is not None:
        assign(node.target, value_of(node.value, frame), frame)


def _augmented(node: ast.AugAssign, frame: SourceFrame) -> None:
    t, target, symbol = frame.tracing, node.target, BINARY_SYMBOLS[type(node.op)]
    if isinstance(target, ast.Subscript):
        container, key = value_of(target.value, frame), value_of(target.slice, frame)
        old = verbs.item(t, container, key)
        verbs.set_item(t, container, key, verbs.augmented(t, symbol, old, value_of(node.value, frame)))
        return
    if not isinstance(target, ast.Name):
        raise refusals.changed_object()
    old = value_of(target, frame)
    frame.variables[target.id] = verbs.augmented(t, symbol, old, value_of(node.value, frame))


def _function(node: ast.FunctionDef, frame: SourceFrame) -> None:
    decorators = [value_of(decorator, frame) for decorator in node.decorator_list]
    defaults = defaults_in(node, frame)

    def called(*args: Any, **kwargs: Any) -> Any:
        inner = inner_frame(node, node.name, frame)
        with Call(inner, list(args), kwargs, defaults):
            return returned(inner, block(node.body, inner))

    function: Any = Closure(called, node.name, frame)
    for decorator in reversed(decorators):
        function = verbs.call(frame.tracing, decorator, [function], {})
    frame.variables[node.name] = function


def _import(node: ast.Import, frame: SourceFrame) -> None:
    for alias in node.names:
        module = verbs.imported(frame.tracing, alias.name)
        top = verbs.imported(frame.tracing, alias.name.split(".")[0])
        frame.variables[alias.asname or alias.name.split(".")[0]] = module if alias.asname else top


def _import_from(node: ast.ImportFrom, frame: SourceFrame) -> None:
    t, name = frame.tracing, absolute_name(frame, node.module or "", node.level)
    module = verbs.imported(t, name)
    for alias in node.names:
        if not hasattr(module, alias.name):
            verbs.imported(t, f"{name}.{alias.name}")
        frame.variables[alias.asname or alias.name] = verbs.attribute(t, module, alias.name)


def _assert(node: ast.Assert, frame: SourceFrame) -> None:
    truth = verbs.truth(frame.tracing, value_of(node.test, frame))
    if isinstance(truth, Expr):
        raise refusals.assert_in_kernel()
    if not truth:
        message = "" if node.msg is None else f": {value_of(node.msg, frame)}"
        raise refusals.assertion_failed(message)


def _raise(node: ast.Raise, frame: SourceFrame) -> None:
    verbs.check_raise(frame.tracing)
    raise verbs.raised(None if node.exc is None else value_of(node.exc, frame))


# ---- leaving a block, branches, loops ------------------------------------------------------------------------------


def _return(node: ast.Return, frame: SourceFrame) -> Way:
    value = None if node.value is None else value_of(node.value, frame)
    return Lanes(RETURN, {}, frame.entry, value, frame.source.place(node))


def _break(node: ast.Break, frame: SourceFrame) -> Way:
    return Lanes(BREAK, frame.variables, verbs.tick(frame.tracing))


def _continue(node: ast.Continue, frame: SourceFrame) -> Way:
    return Lanes(CONTINUE, frame.variables, verbs.tick(frame.tracing))


def _if(node: ast.If, frame: SourceFrame) -> Way:
    way = test_of(node.test, frame)
    body = partial(block, node.body, frame)
    if node.orelse:
        then(frame, way, (YES, body), (NO, partial(block, node.orelse, frame)))
        return way
    then(frame, way, (YES, body))
    for some in waiting(way):
        if some.to == NO:
            some.to = FALL
    return way


def _for(node: ast.For, frame: SourceFrame) -> Way:
    return _loop(node, frame, verbs.iterate(frame.tracing, value_of(node.iter, frame)))


def _while(node: ast.While, frame: SourceFrame) -> Way:
    return _loop(node, frame, _tests(node, frame))


def _tests(node: ast.While, frame: SourceFrame) -> Iterable[None]:
    """Goes on for as long as the condition of a `while` holds."""
    while True:
        truth = verbs.truth(frame.tracing, value_of(node.test, frame))
        if isinstance(truth, Expr):
            raise refusals.while_on(truth)
        if not truth:
            return
        yield


def _loop(node: ast.For | ast.While, frame: SourceFrame, items: Iterable[Any]) -> Way:
    t, base = frame.tracing, frame.tracing.since
    whole = Lanes(FALL, frame.variables, verbs.tick(t))
    entering = [whole]
    breaks: list[Lanes] = []
    for count, item in enumerate(items):
        if count == refusals.MAX_ITERATIONS:
            raise refusals.endless()
        if isinstance(node, ast.For):
            assign(node.target, item, frame)
        way = block(node.body, frame)
        go_on(entering, way)
        lanes = waiting(way)
        entering = [some for some in lanes if some.to in (FALL, CONTINUE)]
        for some in entering:
            some.to = FALL
        breaks += [some for some in lanes if some.to == BREAK]
        if not entering:
            break
        t.since = max([t.since, *(some.since for some in lanes if some.to != FALL)])
        frame.variables = merged(t, way, entering)
    if entering:
        end = block(node.orelse, frame) if node.orelse else Lanes(FALL, frame.variables, verbs.tick(t))
        go_on(entering, end)
    for some in breaks:
        some.to = FALL
    t.since = base
    return whole


STATEMENTS: dict[type[ast.AST], Callable[[Any, SourceFrame], Way | None]] = {
    ast.Expr: _expression,
    ast.Pass: _pass,
    ast.Assign: _assign,
    ast.AnnAssign: _annotated,
    ast.AugAssign: _augmented,
    ast.FunctionDef: _function,
    ast.Import: _import,
    ast.ImportFrom: _import_from,
    ast.Assert: _assert,
    ast.Raise: _raise,
    ast.Return: _return,
    ast.Break: _break,
    ast.Continue: _continue,
    ast.If: _if,
    ast.For: _for,
    ast.While: _while,
}
