"""Step -> verbs: what each thing that a block does means on the stack of values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ... import semantics as verbs
from ...errors import Untraceable
from ...semantics import Conflict, UnknownText
from .. import refusals
from ..frames import Frame, absolute_name, assign_in_expression, lookup, outside, super_arguments
from .decode import NULL, VERSION
from .frame import INLINE, NOTHING, CodeFrame, Converted, Failure, FunctionInMaking, InMaking, Saved


def _pop(frame: CodeFrame, _: Any) -> None:
    value = frame.stack.pop()
    if isinstance(value, Conflict):
        raise value.refuse()


def _rotate(frame: CodeFrame, count: int) -> None:
    frame.stack.insert(-(count - 1), frame.stack.pop())


def _swap(frame: CodeFrame, depth: int) -> None:
    stack = frame.stack
    stack[-1], stack[-depth] = stack[-depth], stack[-1]


def _copy(frame: CodeFrame, depth: int) -> None:
    frame.push(frame.top(depth))


def _store(frame: CodeFrame, name: str) -> None:
    value = frame.pop()
    if isinstance(value, Saved):
        if value.has_scope:
            frame.scopes.pop()
        frame.variables.pop(name, None)
        if value.value is not NOTHING:
            frame.variables[name] = value.value
    elif frame.scopes and name in frame.scope.names:
        frame.scope.variables[name] = value
    elif name in frame.names:
        frame.variables[name] = value
    elif frame.code.co_name in INLINE and name in frame.home.names:
        assign_in_expression(frame, name, value)
    else:
        raise refusals.statement("nonlocal")


def _take_name(frame: CodeFrame, name: str) -> None:
    """A comprehension in line begins: its variable is its own."""
    has_scope = name in frame.code.co_cellvars
    if has_scope:
        frame.scopes.append(
            Frame(
                frame.tracing, frame.name, frame.parameters, frozenset((name,)), parent=frame.scope, entry=frame.entry
            )
        )
    frame.push(Saved(frame.variables.pop(name, NOTHING), has_scope))


def _load(frame: CodeFrame, name: str) -> None:
    frame.push(lookup(frame.scope, name))


def _global(frame: CodeFrame, name: str) -> None:
    frame.push(outside(frame, name))


def _set_item(frame: CodeFrame, _: Any) -> None:
    value, container, key = frame.pop_many(3)
    verbs.set_item(frame.tracing, container, key, value)


def _call(frame: CodeFrame, count: int, names: tuple[str, ...] = ()) -> None:
    args, kwargs = _arguments(frame, count, names)
    second, first = frame.pop(), frame.pop()
    function, own = (second, []) if first is NULL else (first, [] if second is NULL else [second])
    _do_call(frame, function, [*own, *args], kwargs)


def _call_310(frame: CodeFrame, count: int, names: tuple[str, ...] = ()) -> None:
    args, kwargs = _arguments(frame, count, names)
    _do_call(frame, frame.pop(), args, kwargs)


def _arguments(frame: CodeFrame, count: int, names: tuple[str, ...]) -> tuple[list[Any], dict[str, Any]]:
    """The topmost values as arguments, of which the last have names."""
    values = frame.pop_many(count)
    positional = count - len(names)
    return values[:positional], dict(zip(names, values[positional:], strict=True))


def _do_call(frame: CodeFrame, function: Any, args: list[Any], kwargs: dict[str, Any]) -> None:
    if function is super and not args and not kwargs:
        args = super_arguments(frame)
    frame.push(verbs.call(frame.tracing, function, args, kwargs))


def _call_ex(frame: CodeFrame, has_kwargs: bool) -> None:
    t = frame.tracing
    kwargs = frame.pop() if has_kwargs else NULL
    args = list(verbs.iterate(t, frame.pop()))
    function = frame.pop()
    if VERSION >= (3, 13):
        function = frame.pop()
    elif VERSION >= (3, 11):
        frame.pop()
    _do_call(frame, function, args, {} if kwargs is NULL else dict(verbs.known(t, kwargs)))


def _map(frame: CodeFrame, count: int) -> None:
    pairs = frame.pop_many(2 * count)
    keys = [verbs.dict_key(frame.tracing, key) for key in pairs[::2]]
    frame.push(InMaking(frame.tracing, dict(zip(keys, pairs[1::2], strict=True))))


def _const_key_map(frame: CodeFrame, count: int) -> None:
    keys = frame.pop()
    frame.push(InMaking(frame.tracing, dict(zip(keys, frame.pop_many(count), strict=True))))


def _in_making(frame: CodeFrame, depth: int) -> InMaking:
    found = frame.stack[-depth]
    if not isinstance(found, InMaking):
        is_set = not isinstance(found, (list, dict))
        found = frame.stack[-depth] = InMaking(frame.tracing, list(found) if is_set else found, is_set)
    return found


def _append(frame: CodeFrame, depth: int) -> None:
    value = frame.pop()
    found = _in_making(frame, depth)
    _check_added(frame, found)
    found.held.append(value)


def _map_add(frame: CodeFrame, depth: int) -> None:
    key, value = frame.pop_many(2)
    found = _in_making(frame, depth)
    _check_added(frame, found)
    found.held[verbs.dict_key(frame.tracing, key)] = value


def _check_added(frame: CodeFrame, found: InMaking) -> None:
    if found.since < frame.tracing.since:
        raise some_kept(frame)


def some_kept(frame: CodeFrame) -> Untraceable:
    """A comprehension adds an element for some lanes only."""
    error = refusals.kept_in_kernel()
    if frame.asked is not None:
        error.places.append(frame.asked[1])
    return error


def _extend(frame: CodeFrame, depth: int) -> None:
    values = list(verbs.iterate(frame.tracing, frame.pop()))
    _in_making(frame, depth).held.extend(values)


def _update(frame: CodeFrame, depth: int) -> None:
    value = verbs.known(frame.tracing, frame.pop())
    _in_making(frame, depth).held.update(value)


def _merge(frame: CodeFrame, depth: int) -> None:
    given = verbs.known(frame.tracing, frame.pop())
    held = _in_making(frame, depth).held
    for name in given:
        if name in held:
            raise refusals.given_twice(name)
    held.update(given)


def _unpack(frame: CodeFrame, counts: tuple[int, int | None]) -> None:
    before, after = counts
    count, star = (before, None) if after is None else (before + 1 + after, before)
    frame.stack += verbs.unpack(frame.tracing, frame.pop(), count, star)[::-1]


def _format(frame: CodeFrame, how: tuple[str | None, bool]) -> None:
    conversion, has_spec = how
    spec = frame.pop() if has_spec else ""
    value = frame.pop()
    if isinstance(value, Converted):
        value, conversion = value.value, value.conversion
    text = verbs.text(frame.tracing, value)
    frame.push(text if isinstance(text, UnknownText) else verbs.formatted(text, conversion or "", spec))


def _make_function(frame: CodeFrame, attributes: list[str]) -> None:
    function = FunctionInMaking(frame, frame.pop())
    for attribute in reversed(attributes):
        function.give(attribute, frame.pop())
    frame.push(function)


def _function_attribute(frame: CodeFrame, attribute: str) -> None:
    function = frame.stack.pop()
    function.give(attribute, frame.pop())
    frame.push(function)


def _import(frame: CodeFrame, name: str) -> None:
    t = frame.tracing
    level, wanted = frame.pop_many(2)
    name = absolute_name(frame, name, level)
    module = verbs.imported(t, name)
    frame.push(module if wanted else verbs.imported(t, name.split(".")[0]))


def _import_from(frame: CodeFrame, name: str) -> None:
    module = frame.top(1)
    if not hasattr(module, name):
        verbs.imported(frame.tracing, f"{module.__name__}.{name}")
    frame.push(verbs.attribute(frame.tracing, module, name))


def _super(frame: CodeFrame, _: Any) -> None:
    function, *args = frame.pop_many(3)
    _do_call(frame, function, args, {})


def _push(make: Callable[[CodeFrame, Any], Any]) -> Callable[[CodeFrame, Any], None]:
    def does(frame: CodeFrame, value: Any) -> None:
        frame.push(make(frame, value))

    return does


def _operator(verb: Callable[..., Any]) -> Callable[[CodeFrame, Any], None]:
    """A verb of a symbol and two values."""

    def does(frame: CodeFrame, symbol: str) -> None:
        a, b = frame.pop_many(2)
        frame.push(verb(frame.tracing, symbol, a, b))

    return does


STEPS: dict[str, Callable[[CodeFrame, Any], None]] = {
    "null": _push(lambda frame, _: NULL),
    "cell": _push(lambda frame, _: NULL),
    "const": _push(lambda frame, value: value),
    "assertion": _push(lambda frame, _: Failure(lambda *message: Failure(str, ": " + str(message[0])))),
    "pop": _pop,
    "copy": _copy,
    "swap": _swap,
    "rotate": _rotate,
    "load": _load,
    "take": _take_name,
    "global": _global,
    "store": _store,
    "unary": _push(lambda frame, symbol: verbs.unary(frame.tracing, symbol, frame.pop())),
    "not": _push(lambda frame, _: verbs.invert_truth(frame.tracing, frame.pop())),
    "truth": _push(lambda frame, _: verbs.invert_truth(frame.tracing, verbs.invert_truth(frame.tracing, frame.pop()))),
    "binary": _operator(verbs.binary),
    "inplace": _operator(verbs.augmented),
    "compare": _operator(verbs.compare),
    "attribute": _push(lambda frame, name: verbs.attribute(frame.tracing, frame.pop(), name)),
    "item": _push(lambda frame, _: verbs.item(frame.tracing, *frame.pop_many(2))),
    "set_item": _set_item,
    "super": _super,
    "call": _call,
    "call_named": lambda frame, value: _call(frame, *value),
    "call_kw": lambda frame, count: _call(frame, count, frame.pop()),
    "call_310": _call_310,
    "call_kw_310": lambda frame, count: _call_310(frame, count, frame.pop()),
    "call_ex": _call_ex,
    "tuple": _push(lambda frame, count: tuple(frame.pop_many(count))),
    "list": _push(lambda frame, count: InMaking(frame.tracing, frame.pop_many(count))),
    "set": _push(lambda frame, count: InMaking(frame.tracing, frame.pop_many(count), is_set=True)),
    "map": _map,
    "const_key_map": _const_key_map,
    "slice": _push(lambda frame, count: slice(*frame.pop_many(count))),
    "string": _push(lambda frame, count: verbs.joined(frame.pop_many(count))),
    "append": _append,
    "add": _append,
    "map_add": _map_add,
    "extend": _extend,
    "set_update": _extend,
    "dict_update": _update,
    "dict_merge": _merge,
    "to_tuple": _push(lambda frame, _: tuple(frame.pop())),
    "unpack": _unpack,
    "convert": _push(lambda frame, conversion: Converted(frame.pop(), conversion)),
    "format": _format,
    "function": _make_function,
    "function_attribute": _function_attribute,
    "import": _import,
    "import_from": _import_from,
    "iterate": _push(lambda frame, _: iter(verbs.iterate(frame.tracing, frame.pop()))),
}
