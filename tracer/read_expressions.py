"""ast expression -> value: Python evaluated over symbols (see `joins.Semantics` for what each operation means)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from . import build
from .errors import Untraceable
from .expr import Expr
from .frames import Closure, Frame
from .porting import Ported
from .read_containers import ContainerReader
from .source import FunctionNode
from .values import Conflict

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


class ExpressionReader(ContainerReader):
    """Evaluates every kind of expression; `StatementReader` adds statements and calls of traced functions."""

    # ---- operators -----------------------------------------------------------------------------------------

    def eval_BinOp(self, node: ast.BinOp, frame: Frame) -> Any:
        chain = [node]  # a + b + c + ... nests to the left: a loop, so that a long sum is no deep recursion
        while isinstance(left := chain[-1].left, ast.BinOp):
            chain.append(left)
        value = self.eval(chain[-1].left, frame)
        while chain:
            link = chain.pop()
            right = self.eval(link.right, frame)
            try:
                value = self.values.binary(BINARY_SYMBOLS[type(link.op)], value, right)
            except Untraceable as error:
                error.places = error.places or [frame.source.place(link)]
                raise
        return value

    def eval_UnaryOp(self, node: ast.UnaryOp, frame: Frame) -> Any:
        value = self.eval(node.operand, frame)
        if isinstance(node.op, ast.Not):
            return self.values.invert_truth(value)
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
            with self._lanes(continues, frame):
                other = self.values.number(self.eval(operand, frame))
            value = self.values.number(value)
            if value.dtype == "bool" and self._is_bool(other):
                value = build.logical("and" if is_and else "or", value, other)
            else:
                value = self._joined(continues, other, value)
        return value

    @staticmethod
    def _is_bool(value: Any) -> bool:
        return isinstance(value, bool) or (isinstance(value, Expr) and value.dtype == "bool")

    def _joined(self, condition: Expr, a: Any, b: Any) -> Any:
        value = self.values.choose(condition, a, b, "this expression")
        if isinstance(value, Conflict):
            raise Untraceable(value.reason, "make both sides numbers")
        return self.values.made(value)

    @contextmanager
    def _lanes(self, condition: Expr, frame: Frame) -> Iterator[None]:
        """Evaluate an operand for some lanes only: a walrus inside assigns there, no container may change."""
        home = frame.home
        before, floor = dict(home.variables), self.values.floor
        self.values.floor = self.values.tick()
        yield
        self.values.floor = floor
        for name, after in home.variables.items():
            # A name new here is read only where it was assigned: elsewhere Python itself would fail.
            if name in before and before[name] is not after:
                home.variables[name] = self.values.choose(condition, after, before[name], name)

    def eval_Compare(self, node: ast.Compare, frame: Frame) -> Any:
        left = self.eval(node.left, frame)
        result: Any = True
        for op, operand in zip(node.ops, node.comparators, strict=True):
            if isinstance(result, Expr):
                with self._lanes(result, frame):
                    right = self.eval(operand, frame)
            else:
                right = self.eval(operand, frame)
            step = self.values.compare(COMPARE_SYMBOLS[type(op)], left, right)
            if len(node.ops) == 1:
                return step
            step = step if isinstance(step, Expr) else self.values.truth(step)
            result = step if result is True else build.logical("and", result, step)
            if result is False:
                return False
            left = right
        return result

    def eval_IfExp(self, node: ast.IfExp, frame: Frame) -> Any:
        truth = self.values.truth(self.eval(node.test, frame))
        if not isinstance(truth, Expr):
            return self.eval(node.body if truth else node.orelse, frame)
        with self._lanes(truth, frame):
            yes = self.eval(node.body, frame)
        with self._lanes(build.logical_not(truth), frame):
            no = self.eval(node.orelse, frame)
        return self._joined(truth, yes, no)

    def eval_NamedExpr(self, node: ast.NamedExpr, frame: Frame) -> Any:
        value = self.eval(node.value, frame)
        frame.home.variables[node.target.id] = value
        if self.values.unmerged > frame.home.entry:
            self.values.half_assigned.append((frame.home, node.target.id))
        return value

    # ---- attributes, items, calls, functions ---------------------------------------------------------------

    def eval_Attribute(self, node: ast.Attribute, frame: Frame) -> Any:
        return self.values.attribute(self.eval(node.value, frame), frame.mangled(node.attr))

    def eval_Subscript(self, node: ast.Subscript, frame: Frame) -> Any:
        return self.values.item(self.eval(node.value, frame), self.eval(node.slice, frame))

    def eval_Slice(self, node: ast.Slice, frame: Frame) -> slice:
        parts = [None if part is None else self.eval(part, frame) for part in (node.lower, node.upper, node.step)]
        return slice(*parts)

    def eval_Call(self, node: ast.Call, frame: Frame) -> Any:
        function = self._called(node, frame)
        args = self.elements(node.args, frame)
        kwargs: dict[str, Any] = {}
        for keyword in node.keywords:
            value = self.eval(keyword.value, frame)
            given = self.values.known(value) if keyword.arg is None else {keyword.arg: value}
            for name in given:
                if name in kwargs:
                    raise Untraceable(f"a call gives {name} twice", "pass it once")
            kwargs.update(given)
        if function is super and not args and not kwargs:
            args = self._super_arguments(frame)
        try:
            return self.values.call(function, args, kwargs)
        except Untraceable as error:
            if error.places and not frame.source.holds(error.places[0]):
                error.places.insert(0, frame.source.place(node))
            if isinstance(error, Ported) and error.called is function:
                error.rewrite(node, node.args, _stands_alone(node, frame))
            raise

    def _super_arguments(self, frame: Frame) -> list[Any]:
        """What Python takes for `super()`: the class that the method stands in, and its first argument."""
        spec = frame.source.node.args
        first = next((arg.arg for arg in (*spec.posonlyargs, *spec.args)), None)
        if frame.home.parent is not None or first is None:
            raise Untraceable("super() stands in a function inside the method", "call super() in the method itself")
        return [self.lookup("__class__", frame), frame.home.variables[first]]

    def _called(self, node: ast.Call, frame: Frame) -> Any:
        """What a call calls; a method that numbers do not have is reported with the whole call."""
        try:
            return self.eval(node.func, frame)
        except Ported as error:
            if isinstance(node.func, ast.Attribute) and error.places == [frame.source.place(node.func)]:
                error.places = [frame.source.place(node)]
                error.rewrite(node, [node.func.value, *node.args], _stands_alone(node, frame))
            raise

    def eval_Lambda(self, node: ast.Lambda, frame: Frame) -> Closure:
        return self.close(node, frame)

    def close(self, node: FunctionNode, frame: Frame) -> Closure:
        """The function that a `def` or `lambda` inside a mod makes."""
        spec = node.args
        positional = [*spec.posonlyargs, *spec.args]
        defaults = {
            arg.arg: self.eval(value, frame)
            for arg, value in zip(positional[len(positional) - len(spec.defaults) :], spec.defaults, strict=True)
        }
        for arg, keyword_default in zip(spec.kwonlyargs, spec.kw_defaults, strict=True):
            if keyword_default is not None:
                defaults[arg.arg] = self.eval(keyword_default, frame)
        return Closure(node, frame, defaults, self.call_closure)

    def call_closure(self, closure: Closure, args: list[Any], kwargs: dict[str, Any]) -> Any:
        raise NotImplementedError("StatementReader traces calls")


def _stands_alone(node: ast.Call, frame: Frame) -> bool:
    """Whether a call is the whole value of its statement or lambda, where any expression can replace it."""
    owners = (ast.Return, ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Expr)
    return any(
        (isinstance(owner, owners) and owner.value is node) or (isinstance(owner, ast.Lambda) and owner.body is node)
        for owner in ast.walk(frame.source.node)
    )
