"""ast expression -> value: each kind of expression said in verbs (see `verbs` for what each operation means)."""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ... import semantics as verbs
from ...errors import Untraceable
from ...expr.node import Expr
from ...porting.advice import Ported, WrittenCall
from ...semantics import Conflict, UnknownText
from ...source.find import FunctionNode, Source
from .. import refusals
from ..branches import Lanes, Variables, Way, merged, part, then, waiting
from ..frames import Call, Closure, Frame, Parameters, assign_in_expression, lookup, super_arguments

YES, NO, GO, DECIDED, ASKED = "yes", "no", "go", "decided", "asked"  # where lanes wait within an expression
VALUE = 0  # the same; and what its value is called among the variables: no name, as on a stack
BINARY_SYMBOLS: dict[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.Pow: "**",
    ast.BitAnd: "&",
    ast.BitOr: "|",
    ast.BitXor: "^",
    ast.LShift: "<<",
    ast.RShift: ">>",
    ast.MatMult: "@",
}
UNARY_SYMBOLS: dict[type[ast.unaryop], str] = {ast.USub: "-", ast.UAdd: "+", ast.Invert: "~"}
COMPARE_SYMBOLS: dict[type[ast.cmpop], str] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Is: "is",
    ast.IsNot: "is not",
    ast.In: "in",
    ast.NotIn: "not in",
}


@dataclass(eq=False)
class SourceFrame(Frame):
    """A frame of a function that is read from its source."""

    source: Source = field(kw_only=True)


def value_of(node: ast.expr, frame: SourceFrame) -> Any:
    """The value of an expression; what cannot be traced is reported at its innermost node."""
    try:
        read = EXPRESSIONS.get(type(node))
        if read is None:
            kind = type(node).__name__
            raise Untraceable(f"{kind} expressions have no meaning in a mod", "use plain arithmetic on numbers")
        value = read(node, frame)
        if isinstance(value, Conflict):
            raise value.refuse()
        return value
    except Untraceable as error:
        if not error.places:
            error.places.append(frame.source.place(node))
        raise


def _constant(node: ast.Constant, frame: SourceFrame) -> Any:
    return node.value


def _name(node: ast.Name, frame: SourceFrame) -> Any:
    return lookup(frame, node.id)


# ---- operators -----------------------------------------------------------------------------------------------------


def _binary(node: ast.BinOp, frame: SourceFrame) -> Any:
    chain = [node]  # a + b + c + ... nests to the left: a loop, so that a long sum is no deep recursion
    while isinstance(left := chain[-1].left, ast.BinOp):
        chain.append(left)
    value = value_of(chain[-1].left, frame)
    while chain:
        link = chain.pop()
        right = value_of(link.right, frame)
        try:
            value = verbs.binary(frame.tracing, BINARY_SYMBOLS[type(link.op)], value, right)
        except Untraceable as error:
            error.places = error.places or [frame.source.place(link)]
            raise
    return value


def _unary(node: ast.UnaryOp, frame: SourceFrame) -> Any:
    value = value_of(node.operand, frame)
    if isinstance(node.op, ast.Not):
        return verbs.invert_truth(frame.tracing, value)
    return verbs.unary(frame.tracing, UNARY_SYMBOLS[type(node.op)], value)


def _chosen(node: ast.BoolOp | ast.IfExp | ast.Compare, frame: SourceFrame) -> Any:
    """The value of an expression that evaluates only some of its operands."""
    t, home = frame.tracing, frame.home
    way = _ways(node, frame)
    lanes = waiting(way)
    if len(lanes) == 1:
        home.variables = lanes[0].variables
        return lanes[0].value
    for some in lanes:
        some.variables = {**some.variables, VALUE: some.value}
    variables = dict(merged(t, way, lanes))
    value = variables.pop(VALUE)
    home.variables = variables
    return value


def _ways(node: ast.expr, frame: SourceFrame) -> Way:
    """Lanes that wait at `VALUE`, each with its value, as Python comes there."""
    if isinstance(node, ast.BoolOp):
        *first, last = _compiled(node)
        operands = [*(partial(_operand, operand, frame) for operand in first), partial(_ways, last, frame)]
        return _until_decided(operands, isinstance(node.op, ast.And), frame)
    if isinstance(node, ast.IfExp):
        way = test_of(node.test, frame)
        then(frame, way, (YES, partial(_ways, node.body, frame)), (NO, partial(_ways, node.orelse, frame)))
        return way
    if isinstance(node, ast.Compare) and len(node.ops) > 1:
        links = _links(node, frame)
        way = _until_decided([partial(_next_link, links, frame)] * len(node.ops), True, frame)
        for some in waiting(way):  # Python clears up behind a chain, and then asks for its truth again
            some.known = None
        return way
    return _leaf(value_of(node, frame), frame)


def _compiled(node: ast.BoolOp) -> list[ast.expr]:
    """The operands without those that a literal leaves out: of `x and 1 and y or 2 or z` that is `x and y or 2`."""
    operands = []
    for operand in node.values[:-1]:
        truth = _literal_truth(operand)
        if truth is not isinstance(node.op, ast.And):
            operands.append(operand)
        if truth is isinstance(node.op, ast.Or):
            return operands
    return [*operands, node.values[-1]]


def _literal_truth(node: ast.expr) -> bool | None:
    if isinstance(node, ast.Constant):
        return bool(node.value)
    if not isinstance(node, ast.UnaryOp) or (truth := _literal_truth(node.operand)) is None:
        return None
    if isinstance(node.op, ast.Not):
        return not truth
    is_number = isinstance(node.operand, ast.Constant) and isinstance(node.operand.value, (int, float))
    return truth if is_number and isinstance(node.op, (ast.USub, ast.UAdd)) else None


def _operand(node: ast.expr, frame: SourceFrame) -> Way:
    """The lanes of an operand that another follows. Those of which it is known whether they decide are kept apart: of
    an `and` within an `or`, also in an arm of `if`. The others come together, and are asked for their truth once."""
    try:
        way = _ways(node, frame)
        unknown = [some for some in waiting(way) if some.known is None]
        if len(unknown) > 1:
            for some in unknown:
                some.to, some.variables = ASKED, {**some.variables, VALUE: some.value}
            then(frame, way, (ASKED, partial(_together, frame)))
        return way
    except Untraceable as error:
        error.places = error.places or [frame.source.place(node)]
        raise


def _together(frame: SourceFrame) -> Way:
    variables: Variables = dict(frame.home.variables)
    value = variables.pop(VALUE)
    if isinstance(value, Conflict):
        raise value.refuse()
    frame.home.variables = variables
    return _leaf(value, frame)


def _next_link(links: Iterator[Any], frame: SourceFrame) -> Way:
    return _leaf(next(links), frame)


def _leaf(value: Any, frame: SourceFrame) -> Way:
    return Lanes(VALUE, frame.home.variables, verbs.tick(frame.tracing), value)


def _until_decided(operands: Sequence[Callable[[], Way]], is_and: bool, frame: SourceFrame) -> Way:
    first, *rest = operands
    way = first()
    for operand in rest:
        for some in waiting(way):
            if some.to == VALUE:
                _decide(some, is_and, frame)
        then(frame, way, (GO, operand))
        for some in waiting(way):
            if some.to == DECIDED:
                some.to = VALUE
    return way


def _decide(some: Lanes, is_and: bool, frame: SourceFrame) -> None:
    """Whether the value of these lanes decides `and` (where it is false) or `or` (where it is true)."""
    t, value = frame.tracing, some.value
    truth = some.known if some.known is not None else verbs.truth(t, value)
    if not isinstance(truth, Expr):
        some.to, some.known = (GO, None) if truth is is_and else (DECIDED, truth)
        return
    is_bool = isinstance(value, Expr) and value.dtype == "bool"
    decided = Lanes(DECIDED, some.variables, verbs.tick(t), not is_and if is_bool else value, known=not is_and)
    going = Lanes(GO, some.variables, decided.since)
    some.then = part(truth, going, decided, some.since) if is_and else part(truth, decided, going, some.since)


def _links(node: ast.Compare, frame: SourceFrame) -> Iterator[Any]:
    """The links of a comparison chain, one after the other."""
    left = value_of(node.left, frame)
    for op, operand in zip(node.ops, node.comparators, strict=True):
        right = value_of(operand, frame)
        yield verbs.compare(frame.tracing, COMPARE_SYMBOLS[type(op)], left, right)
        left = right


def test_of(node: ast.expr, frame: SourceFrame) -> Way:
    """Lanes that wait at `YES` and `NO`: where a condition leads."""
    if isinstance(node, ast.BoolOp):
        on, operands = YES if isinstance(node.op, ast.And) else NO, node.values
        way = test_of(operands[0], frame)
        for operand in operands[1:]:
            then(frame, way, (on, partial(test_of, operand, frame)))
        return way
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        way = test_of(node.operand, frame)
        for some in waiting(way):
            some.to = NO if some.to == YES else YES
        return way
    if isinstance(node, ast.IfExp):
        way = test_of(node.test, frame)
        for some in waiting(way):
            some.to = (some.to, "first")
        yes, no = partial(test_of, node.body, frame), partial(test_of, node.orelse, frame)
        then(frame, way, ((YES, "first"), yes), ((NO, "first"), no))
        return way
    if isinstance(node, ast.Compare) and len(node.ops) > 1:
        links = _links(node, frame)
        way = _tested(next(links), frame)
        for _ in node.ops[1:]:
            then(frame, way, (YES, partial(_next_test, links, frame)))
        return way
    return _tested(value_of(node, frame), frame)


def _next_test(links: Iterator[Any], frame: SourceFrame) -> Way:
    return _tested(next(links), frame)


def _tested(value: Any, frame: SourceFrame) -> Way:
    t = frame.tracing
    truth, variables, since = verbs.truth(t, value), frame.home.variables, t.clock
    if not isinstance(truth, Expr):
        return Lanes(YES if truth else NO, variables, verbs.tick(t))
    now = verbs.tick(t)
    return part(truth, Lanes(YES, variables, now), Lanes(NO, variables, now), since)


def _compare(node: ast.Compare, frame: SourceFrame) -> Any:
    return next(_links(node, frame)) if len(node.ops) == 1 else _chosen(node, frame)


def _named(node: ast.NamedExpr, frame: SourceFrame) -> Any:
    return assign_in_expression(frame, node.target.id, value_of(node.value, frame))


# ---- attributes, items ---------------------------------------------------------------------------------------------


def _attribute(node: ast.Attribute, frame: SourceFrame) -> Any:
    return verbs.attribute(frame.tracing, value_of(node.value, frame), frame.mangled(node.attr))


def _item(node: ast.Subscript, frame: SourceFrame) -> Any:
    return verbs.item(frame.tracing, value_of(node.value, frame), value_of(node.slice, frame))


def _slice(node: ast.Slice, frame: SourceFrame) -> slice:
    parts = [None if part is None else value_of(part, frame) for part in (node.lower, node.upper, node.step)]
    return slice(*parts)


# ---- containers ----------------------------------------------------------------------------------------------------


def _elements(nodes: list[ast.expr], frame: SourceFrame) -> list[Any]:
    """The values of expressions, of which some may be `*starred`."""
    out: list[Any] = []
    for node in nodes:
        if isinstance(node, ast.Starred):
            out.extend(verbs.iterate(frame.tracing, value_of(node.value, frame)))
        else:
            out.append(value_of(node, frame))
    return out


def _tuple(node: ast.Tuple, frame: SourceFrame) -> tuple[Any, ...]:
    return tuple(_elements(node.elts, frame))


def _list(node: ast.List, frame: SourceFrame) -> Any:
    return verbs.made(frame.tracing, _elements(node.elts, frame))


def _set(node: ast.Set, frame: SourceFrame) -> Any:
    return verbs.set_of(frame.tracing, _elements(node.elts, frame))


def _dict(node: ast.Dict, frame: SourceFrame) -> Any:
    t = frame.tracing
    out: dict[Any, Any] = {}
    for key, value in zip(node.keys, node.values, strict=True):
        if key is None:
            out.update(verbs.known(t, value_of(value, frame)))
        else:
            known = verbs.dict_key(t, value_of(key, frame))
            out[known] = value_of(value, frame)
    return verbs.made(t, out)


def _inner_frames(generators: list[ast.comprehension], outer: SourceFrame) -> Iterator[SourceFrame]:
    """The frame of a comprehension, once for every element that it makes; the first iterable is taken at once."""
    first, *rest = generators
    frame = SourceFrame(
        outer.tracing,
        outer.name,
        outer.parameters,
        frozenset(),
        parent=outer,
        entry=outer.entry,
        source=outer.source,
    )
    frame.home = outer.home
    items = verbs.iterate(outer.tracing, value_of(first.iter, outer))
    return _targets(first, items, rest, frame)


def _targets(
    first: ast.comprehension, items: Iterable[Any], rest: list[ast.comprehension], frame: SourceFrame
) -> Iterator[SourceFrame]:
    for item in items:
        assign(first.target, item, frame)
        if not all(_keeps(test, frame) for test in first.ifs):
            continue
        if rest:
            inner = verbs.iterate(frame.tracing, value_of(rest[0].iter, frame))
            yield from _targets(rest[0], inner, rest[1:], frame)
        else:
            yield frame


def _keeps(test: ast.expr, frame: SourceFrame) -> bool:
    truth = verbs.truth(frame.tracing, value_of(test, frame))
    if isinstance(truth, Expr):
        error = refusals.kept_in_kernel()
        error.places.append(frame.source.place(test))
        raise error
    return truth


def _generator(node: ast.GeneratorExp | ast.ListComp | ast.SetComp, frame: SourceFrame) -> Iterator[Any]:
    frames = _inner_frames(node.generators, frame)
    made: Iterator[Any] = verbs.made(frame.tracing, (value_of(node.elt, inner) for inner in frames))
    return made


def _list_comprehension(node: ast.ListComp, frame: SourceFrame) -> Any:
    return verbs.made(frame.tracing, list(_generator(node, frame)))


def _set_comprehension(node: ast.SetComp, frame: SourceFrame) -> Any:
    return verbs.set_of(frame.tracing, list(_generator(node, frame)))


def _dict_comprehension(node: ast.DictComp, frame: SourceFrame) -> Any:
    out: dict[Any, Any] = {}
    for inner in _inner_frames(node.generators, frame):
        key = verbs.dict_key(frame.tracing, value_of(node.key, inner))
        out[key] = value_of(node.value, inner)
    return verbs.made(frame.tracing, out)


# ---- f-strings -----------------------------------------------------------------------------------------------------


def _text(node: ast.JoinedStr, frame: SourceFrame) -> Any:
    return verbs.joined([value_of(part, frame) for part in node.values])


def _formatted(node: ast.FormattedValue, frame: SourceFrame) -> Any:
    text = verbs.text(frame.tracing, value_of(node.value, frame))
    if isinstance(text, UnknownText):
        return text
    spec = "" if node.format_spec is None else value_of(node.format_spec, frame)
    return verbs.formatted(text, "" if node.conversion == -1 else chr(node.conversion), spec)


# ---- calls and functions -------------------------------------------------------------------------------------------


def _call(node: ast.Call, frame: SourceFrame) -> Any:
    t = frame.tracing
    function = _called(node, frame)
    args = _elements(node.args, frame)
    kwargs: dict[str, Any] = {}
    for keyword in node.keywords:
        value = value_of(keyword.value, frame)
        given = verbs.known(t, value) if keyword.arg is None else {keyword.arg: value}
        for name in given:
            if name in kwargs:
                raise refusals.given_twice(name)
        kwargs.update(given)
    if function is super and not args and not kwargs:
        args = super_arguments(frame)
    try:
        return verbs.call(t, function, args, kwargs)
    except Untraceable as error:
        if error.places and not frame.source.holds(error.places[0]):
            error.places.insert(0, frame.source.place(node))
        if isinstance(error, Ported) and error.called is function:
            error.rewrite(_written(node, node.args, frame))
        raise


def _called(node: ast.Call, frame: SourceFrame) -> Any:
    """What a call calls; a method that numbers do not have is reported with the whole call."""
    try:
        return value_of(node.func, frame)
    except Ported as error:
        if isinstance(node.func, ast.Attribute) and error.places == [frame.source.place(node.func)]:
            error.places = [frame.source.place(node)]
            error.rewrite(_written(node, [node.func.value, *node.args], frame))
        raise


def _written(node: ast.Call, args: list[ast.expr], frame: SourceFrame) -> WrittenCall:
    """A call as its author wrote it, with these arguments."""
    keywords = tuple((keyword.arg, ast.unparse(keyword.value)) for keyword in node.keywords)
    return WrittenCall(
        ast.unparse(node.func), tuple(map(ast.unparse, args)), keywords, _stands_alone(node, frame.source.node)
    )


def _stands_alone(node: ast.Call, function: FunctionNode) -> bool:
    """Whether a call is the whole value of its statement or lambda, where any expression can replace it."""
    owners = (ast.Return, ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Expr)
    return any(
        (isinstance(owner, owners) and owner.value is node) or (isinstance(owner, ast.Lambda) and owner.body is node)
        for owner in ast.walk(function)
    )


def _lambda(node: ast.Lambda, frame: SourceFrame) -> Closure:
    defaults = defaults_in(node, frame)

    def called(*args: Any, **kwargs: Any) -> Any:
        inner = inner_frame(node, "<lambda>", frame)
        with Call(inner, list(args), kwargs, defaults):
            return value_of(node.body, inner)

    return Closure(called, "<lambda>", frame)


def defaults_in(node: FunctionNode, frame: SourceFrame) -> dict[str, Any]:
    """The default arguments of a `def` or `lambda` inside a mod."""
    spec = node.args
    positional = [*spec.posonlyargs, *spec.args]
    defaults = {
        arg.arg: value_of(value, frame)
        for arg, value in zip(positional[len(positional) - len(spec.defaults) :], spec.defaults, strict=True)
    }
    for arg, keyword_default in zip(spec.kwonlyargs, spec.kw_defaults, strict=True):
        if keyword_default is not None:
            defaults[arg.arg] = value_of(keyword_default, frame)
    return defaults


def inner_frame(node: FunctionNode, name: str, frame: SourceFrame) -> SourceFrame:
    """The frame of a call of a `def` or `lambda` inside a mod."""
    names, parameters = scope_of(node)
    source = Source(frame.source.filename, name, node, frame.source.first, frame.source.lines)
    return SourceFrame(frame.tracing, name, parameters, names, parent=frame, source=source)


# ---- scopes --------------------------------------------------------------------------------------------------------

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@functools.lru_cache(maxsize=512)
def scope_of(node: FunctionNode) -> tuple[frozenset[str], Parameters]:
    """The names that a function binds (parameters, targets, imports, inner functions), and its parameters."""
    spec = node.args
    parameters = Parameters(
        tuple(arg.arg for arg in (*spec.posonlyargs, *spec.args)),
        len(spec.posonlyargs),
        tuple(arg.arg for arg in spec.kwonlyargs),
        None if spec.vararg is None else spec.vararg.arg,
        None if spec.kwarg is None else spec.kwarg.arg,
    )
    names = set(parameters.names)
    body: list[ast.AST] = [node.body] if isinstance(node, ast.Lambda) else list(node.body)
    for inner in (found for statement in body for found in _own_nodes(statement, in_comprehension=False)):
        if isinstance(inner, ast.Name):
            names.add(inner.id)
        elif isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(inner.name)
        elif isinstance(inner, ast.alias):
            names.add(inner.asname or inner.name.split(".")[0])
    return frozenset(names), parameters


def _own_nodes(node: ast.AST, in_comprehension: bool) -> Iterator[ast.AST]:
    """Nodes of one scope that bind a name; of a comprehension only its walruses bind one here."""
    if isinstance(node, ast.Name):
        if isinstance(node.ctx, ast.Store) and not in_comprehension:
            yield node
        return
    if isinstance(node, ast.NamedExpr):
        yield node.target
        yield from _own_nodes(node.value, in_comprehension)
        return
    yield node
    if isinstance(node, _SCOPES):
        return
    inside = in_comprehension or isinstance(node, _COMPREHENSIONS)
    for child in ast.iter_child_nodes(node):
        yield from _own_nodes(child, inside)


# ---- targets -------------------------------------------------------------------------------------------------------


def assign(target: ast.expr, value: Any, frame: SourceFrame) -> None:
    """`target = value`."""
    if isinstance(target, ast.Name):
        frame.variables[target.id] = value
    elif isinstance(target, (ast.Tuple, ast.List)):
        names = target.elts
        star = next((i for i, name in enumerate(names) if isinstance(name, ast.Starred)), None)
        items = verbs.unpack(frame.tracing, value, len(names), star)
        for name, item in zip(names, items, strict=True):
            assign(name.value if isinstance(name, ast.Starred) else name, item, frame)
    elif isinstance(target, ast.Subscript):
        container = value_of(target.value, frame)
        verbs.set_item(frame.tracing, container, value_of(target.slice, frame), value)
    else:
        raise refusals.changed_object()


EXPRESSIONS: dict[type[ast.AST], Callable[[Any, SourceFrame], Any]] = {
    ast.Constant: _constant,
    ast.Name: _name,
    ast.BinOp: _binary,
    ast.UnaryOp: _unary,
    ast.BoolOp: _chosen,
    ast.Compare: _compare,
    ast.IfExp: _chosen,
    ast.NamedExpr: _named,
    ast.Attribute: _attribute,
    ast.Subscript: _item,
    ast.Slice: _slice,
    ast.Tuple: _tuple,
    ast.List: _list,
    ast.Set: _set,
    ast.Dict: _dict,
    ast.GeneratorExp: _generator,
    ast.ListComp: _list_comprehension,
    ast.SetComp: _set_comprehension,
    ast.DictComp: _dict_comprehension,
    ast.JoinedStr: _text,
    ast.FormattedValue: _formatted,
    ast.Call: _call,
    ast.Lambda: _lambda,
}
