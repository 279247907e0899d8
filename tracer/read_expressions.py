"""ast expression -> value: Python evaluated over symbols (see `values` for what each operation means)."""

from __future__ import annotations

import ast
import builtins
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import build
from .captures import Path
from .errors import Untraceable
from .expr import Expr
from .source import FunctionNode, Source
from .values import Conflict, Values

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


@dataclass
class Frame:
    """One function being read: its local variables, the frame it was defined in, and its outside."""

    source: Source
    variables: dict[str, Any]
    function: types.FunctionType | None = None  # what globals and closure cells are read from
    path: Path | None = None
    parent: Frame | None = None  # lexically enclosing frame, for functions defined inside a mod


@dataclass(eq=False)
class Closure:
    """A function or lambda defined inside a mod."""

    node: FunctionNode
    frame: Frame
    defaults: dict[str, Any]
    reader: ExpressionReader

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.reader.call_closure(self, list(args), kwargs)


class ExpressionReader:
    """Evaluates expression nodes; `StatementReader` adds statements and calls of traced functions."""

    def __init__(self) -> None:
        self.values = Values(self.call_function)
        self.branch_depth = 0  # how many symbolic `if`s the current statement is inside of
        self.made: list[Any] = []  # containers made in the innermost of them, which may change there

    def call_function(
        self, function: types.FunctionType, path: Path, args: list[Any], kwargs: dict[str, Any]
    ) -> Any:
        raise NotImplementedError("StatementReader traces calls")

    def call_closure(self, closure: Closure, args: list[Any], kwargs: dict[str, Any]) -> Any:
        raise NotImplementedError("StatementReader traces calls")

    def eval(self, node: ast.expr, frame: Frame) -> Any:
        method: Callable[[Any, Frame], Any] | None = getattr(self, f"eval_{type(node).__name__}", None)
        try:
            if method is None:
                kind = type(node).__name__
                raise Untraceable(f"{kind} expressions have no meaning in a mod", "use plain arithmetic on numbers")
            return method(node, frame)
        except Untraceable as error:
            if not error.places:
                error.places.append(frame.source.place(node))
            raise

    # ---- names and constants -------------------------------------------------------------------------------

    def eval_Constant(self, node: ast.Constant, frame: Frame) -> Any:
        return node.value

    def eval_Name(self, node: ast.Name, frame: Frame) -> Any:
        value = self.lookup(node.id, frame)
        if isinstance(value, Conflict):
            raise Untraceable(value.reason, f"give {node.id} one kind of value in both branches")
        return value

    def lookup(self, name: str, frame: Frame) -> Any:
        scope: Frame | None = frame
        while scope is not None:
            if name in scope.variables:
                return scope.variables[name]
            if scope.parent is None:
                break
            scope = scope.parent
        assert scope is not None
        function, path = scope.function, scope.path
        assert function is not None and path is not None
        if name in function.__code__.co_freevars:
            cell = (function.__closure__ or ())[function.__code__.co_freevars.index(name)]
            try:
                return self.values.capture(cell.cell_contents, Path("cell", path, name))
            except ValueError:
                raise Untraceable(
                    f"{name} has no value yet in the enclosing function", f"assign {name} before using the mod"
                ) from None
        if name in function.__globals__:
            return self.values.capture(function.__globals__[name], Path("global", path, name))
        if hasattr(builtins, name):
            return getattr(builtins, name)
        raise Untraceable(f"name {name!r} is not defined", "check the spelling, or define it before the call")

    # ---- operators -----------------------------------------------------------------------------------------

    def eval_BinOp(self, node: ast.BinOp, frame: Frame) -> Any:
        symbol = BINARY_SYMBOLS.get(type(node.op))
        left, right = self.eval(node.left, frame), self.eval(node.right, frame)
        if symbol is None:
            raise Untraceable("matrix multiplication inside a mod", "write the sum of products over a fixed range")
        return self.values.binary(symbol, left, right)

    def eval_UnaryOp(self, node: ast.UnaryOp, frame: Frame) -> Any:
        value = self.eval(node.operand, frame)
        if isinstance(node.op, ast.Not):
            truth = self.values.truth(value)
            return build.logical_not(truth) if isinstance(truth, Expr) else not truth
        return self.values.unary(UNARY_SYMBOLS[type(node.op)], value)

    def eval_BoolOp(self, node: ast.BoolOp, frame: Frame) -> Any:
        """`a and b` gives an operand, as in Python; later operands count only where the first did not decide."""
        is_and = isinstance(node.op, ast.And)
        first, *rest = node.values
        value = self.eval(first, frame)
        for operand in rest:
            truth = self.values.truth(value)
            if not isinstance(truth, Expr):
                if truth is not is_and:
                    return value
                value = self.eval(operand, frame)
                continue
            continues = truth if is_and else build.logical_not(truth)
            other = self.values.number(self._eval_where(continues, operand, frame))
            value = self.values.number(value)
            if isinstance(value, Expr) and value.dtype == "bool" and self._is_bool(other):
                value = build.logical("and" if is_and else "or", value, other)
            else:
                value = self._joined(continues, other, value)
        return value

    @staticmethod
    def _is_bool(value: Any) -> bool:
        return isinstance(value, bool) or (isinstance(value, Expr) and value.dtype == "bool")

    def _joined(self, condition: Expr, a: Any, b: Any) -> Any:
        value = self.values.merge(condition, a, b, "this expression")
        if isinstance(value, Conflict):
            raise Untraceable(value.reason, "make both sides numbers")
        return value

    def _eval_where(self, condition: Expr, node: ast.expr, frame: Frame) -> Any:
        """Evaluate a guarded operand: a walrus inside assigns only where the guard holds."""
        if not any(isinstance(inner, ast.NamedExpr) for inner in ast.walk(node)):
            return self.eval(node, frame)
        before = dict(frame.variables)
        value = self.eval(node, frame)
        for name, after in list(frame.variables.items()):
            if name not in before:
                frame.variables[name] = Conflict(name, f"{name} is assigned only under a condition")
            elif before[name] is not after:
                frame.variables[name] = self.values.merge(condition, after, before[name], name)
        return value

    def eval_Compare(self, node: ast.Compare, frame: Frame) -> Any:
        left = self.eval(node.left, frame)
        result: Any = True
        for op, operand in zip(node.ops, node.comparators, strict=True):
            right = self.eval(operand, frame)
            step = self.values.compare(COMPARE_SYMBOLS[type(op)], left, right)
            if result is True:
                result = step
            elif isinstance(result, Expr) or isinstance(step, Expr):
                result = build.logical("and", result, step)
            else:
                result = result and step
            if result is False:
                return False
            left = right
        return result

    def eval_IfExp(self, node: ast.IfExp, frame: Frame) -> Any:
        truth = self.values.truth(self.eval(node.test, frame))
        if not isinstance(truth, Expr):
            return self.eval(node.body if truth else node.orelse, frame)
        yes = self._eval_where(truth, node.body, frame)
        no = self._eval_where(build.logical_not(truth), node.orelse, frame)
        return self._joined(truth, yes, no)

    def eval_NamedExpr(self, node: ast.NamedExpr, frame: Frame) -> Any:
        value = self.eval(node.value, frame)
        frame.variables[node.target.id] = value
        return value

    # ---- attributes, items, calls --------------------------------------------------------------------------

    def eval_Attribute(self, node: ast.Attribute, frame: Frame) -> Any:
        return self.values.attribute(self.eval(node.value, frame), node.attr)

    def eval_Subscript(self, node: ast.Subscript, frame: Frame) -> Any:
        return self.values.item(self.eval(node.value, frame), self.eval(node.slice, frame))

    def eval_Slice(self, node: ast.Slice, frame: Frame) -> slice:
        parts = [None if part is None else self.eval(part, frame) for part in (node.lower, node.upper, node.step)]
        return slice(*parts)

    def eval_Call(self, node: ast.Call, frame: Frame) -> Any:
        function = self.eval(node.func, frame)
        args: list[Any] = []
        for arg in node.args:
            if isinstance(arg, ast.Starred):
                args.extend(self.values.iterate(self.eval(arg.value, frame)))
            else:
                args.append(self.eval(arg, frame))
        kwargs: dict[str, Any] = {}
        for keyword in node.keywords:
            value = self.eval(keyword.value, frame)
            kwargs.update(self.values.known(value) if keyword.arg is None else {keyword.arg: value})
        self.check_mutation(function)
        try:
            if isinstance(function, Closure):
                return self.call_closure(function, args, kwargs)
            return self.values.call(function, args, kwargs)
        except Untraceable as error:
            if error.places and error.places[0].function != frame.source.function:
                error.places.insert(0, frame.source.place(node))
            raise

    def check_mutation(self, function: Any) -> None:
        """A list or dict must not change where only some lanes go."""
        owner = getattr(function, "__self__", None)
        if not self.branch_depth or not isinstance(owner, (list, dict, set)):
            return
        name = getattr(function, "__name__", "")
        changes = name in ("append", "extend", "insert", "pop", "remove", "clear", "update", "add", "sort", "setdefault")
        if changes and not any(owner is made for made in self.made):
            raise Untraceable(
                f".{name}() changes a {type(owner).__name__} under a condition known only inside the kernel",
                "compute the element with `x if c else y` and change the container outside the `if`",
            )

    # ---- containers, strings, functions --------------------------------------------------------------------

    def _elements(self, nodes: list[ast.expr], frame: Frame) -> list[Any]:
        out: list[Any] = []
        for node in nodes:
            if isinstance(node, ast.Starred):
                out.extend(self.values.iterate(self.eval(node.value, frame)))
            else:
                out.append(self.eval(node, frame))
        return out

    def _made(self, container: Any) -> Any:
        if self.branch_depth:
            self.made.append(container)
        return container

    def eval_Tuple(self, node: ast.Tuple, frame: Frame) -> tuple[Any, ...]:
        return tuple(self._elements(node.elts, frame))

    def eval_List(self, node: ast.List, frame: Frame) -> Any:
        return self._made(self._elements(node.elts, frame))

    def eval_Set(self, node: ast.Set, frame: Frame) -> Any:
        elements = self._elements(node.elts, frame)
        return self._made(elements if self.values.is_symbolic(elements) else set(elements))

    def eval_Dict(self, node: ast.Dict, frame: Frame) -> Any:
        out: dict[Any, Any] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                out.update(self.values.known(self.eval(value, frame)))
            else:
                out[self.values.concrete(self.eval(key, frame), "a dictionary key")] = self.eval(value, frame)
        return self._made(out)

    def _comprehend(self, generators: list[ast.comprehension], frame: Frame, emit: Callable[[Frame], None]) -> None:
        if not generators:
            emit(frame)
            return
        first, *rest = generators
        for item in self.values.iterate(self.eval(first.iter, frame)):
            self.assign(first.target, item, frame)
            keep = True
            for test in first.ifs:
                truth = self.values.truth(self.eval(test, frame))
                if isinstance(truth, Expr):
                    error = Untraceable(
                        "a comprehension keeps elements by a condition known only inside the kernel",
                        "keep every element and make the unwanted ones neutral: sum(x if c else 0 for ...)",
                    )
                    error.places.append(frame.source.place(test))
                    raise error
                keep = keep and truth
            if keep:
                self._comprehend(rest, frame, emit)

    def _inner(self, frame: Frame) -> Frame:
        return Frame(frame.source, {}, parent=frame)

    def eval_ListComp(self, node: ast.ListComp | ast.GeneratorExp | ast.SetComp, frame: Frame) -> Any:
        out: list[Any] = []
        self._comprehend(node.generators, self._inner(frame), lambda inner: out.append(self.eval(node.elt, inner)))
        return self._made(out)

    eval_GeneratorExp = eval_ListComp
    eval_SetComp = eval_ListComp

    def eval_DictComp(self, node: ast.DictComp, frame: Frame) -> Any:
        out: dict[Any, Any] = {}

        def emit(inner: Frame) -> None:
            key = self.values.concrete(self.eval(node.key, inner), "a dictionary key")
            out[key] = self.eval(node.value, inner)

        self._comprehend(node.generators, self._inner(frame), emit)
        return self._made(out)

    def eval_JoinedStr(self, node: ast.JoinedStr, frame: Frame) -> str:
        return "".join(str(self.eval(part, frame)) for part in node.values)

    def eval_FormattedValue(self, node: ast.FormattedValue, frame: Frame) -> str:
        value = self.values.number(self.eval(node.value, frame))
        if isinstance(value, Expr):
            return repr(value)
        convert: Callable[[Any], Any] = {-1: lambda x: x, 115: str, 114: repr, 97: ascii}[node.conversion]
        spec = "" if node.format_spec is None else self.eval(node.format_spec, frame)
        return str(self.values.run(format, convert(value), spec))

    def eval_Lambda(self, node: ast.Lambda, frame: Frame) -> Closure:
        return self.close(node, frame)

    def close(self, node: FunctionNode, frame: Frame) -> Closure:
        spec = node.args
        positional = [*spec.posonlyargs, *spec.args]
        defaults = {
            arg.arg: self.eval(value, frame)
            for arg, value in zip(positional[len(positional) - len(spec.defaults) :], spec.defaults, strict=True)
        }
        for arg, keyword_default in zip(spec.kwonlyargs, spec.kw_defaults, strict=True):
            if keyword_default is not None:
                defaults[arg.arg] = self.eval(keyword_default, frame)
        return Closure(node, frame, defaults, self)

    # ---- targets -------------------------------------------------------------------------------------------

    def assign(self, target: ast.expr, value: Any, frame: Frame) -> None:
        if isinstance(target, ast.Name):
            frame.variables[target.id] = value
        elif isinstance(target, (ast.Tuple, ast.List)):
            self._unpack(target, list(self.values.iterate(value)), frame)
        elif isinstance(target, ast.Subscript):
            self._set_item(target, value, frame)
        else:
            raise Untraceable(
                "a mod must not change objects", "keep intermediate values in local variables"
            ) from None

    def _unpack(self, target: ast.Tuple | ast.List, items: list[Any], frame: Frame) -> None:
        names = target.elts
        star = next((i for i, name in enumerate(names) if isinstance(name, ast.Starred)), None)
        if star is None and len(items) != len(names) or star is not None and len(items) < len(names) - 1:
            raise Untraceable(f"{len(items)} values cannot be unpacked into {len(names)} names", "match the counts")
        if star is not None:
            tail = len(names) - star - 1
            starred = names[star]
            assert isinstance(starred, ast.Starred)
            middle = items[star : len(items) - tail]
            self.assign(starred.value, middle, frame)
            names = [*names[:star], *names[star + 1 :]]
            items = [*items[:star], *items[len(items) - tail :]]
        for name, item in zip(names, items, strict=True):
            self.assign(name, item, frame)

    def _set_item(self, target: ast.Subscript, value: Any, frame: Frame) -> None:
        container = self.eval(target.value, frame)
        key = self.values.concrete(self.eval(target.slice, frame), "a container index")
        if self.values.is_captured(container) or not isinstance(container, (list, dict)):
            raise Untraceable(
                "a mod must not change captured objects", "keep intermediate values in local variables"
            )
        if self.branch_depth and not any(container is made for made in self.made):
            raise Untraceable(
                f"an element of a {type(container).__name__} is set under a condition known only inside the kernel",
                "write xs[i] = x if c else xs[i]",
            )
        self.values.run(container.__setitem__, key, value)
