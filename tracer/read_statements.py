"""ast statements -> value: runs a function body over symbols, following both sides of a symbolic `if`.

A block ends with the variables of those lanes (positions of the score matrix) that fall through, and a list of
exits: lanes that returned, broke or continued, each with its condition and value or variables. Branches join
by merging variables, so that N `if`s in a row cost N merges, not 2^N paths.
"""

from __future__ import annotations

import ast
import importlib
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from . import build
from .captures import Path
from .errors import Untraceable
from .expr import FALSE, TRUE, Expr
from .read_expressions import BINARY_SYMBOLS, Closure, ExpressionReader, Frame
from .source import Source, source_of
from .values import Conflict

MAX_DEPTH = 200
MAX_WHILE = 10_000


@dataclass(frozen=True)
class Exit:
    """Lanes that leave a block: `condition` holds for them among the lanes that no earlier exit took."""

    kind: Literal["return", "break", "continue"]
    condition: Expr
    value: Any  # of a return; the variables, for break and continue
    node: ast.stmt


def _and(a: Expr, b: Expr) -> Expr:
    if a is TRUE or b is FALSE:
        return b
    return a if b is TRUE or a is FALSE else build.logical("and", a, b)


def _and_not(a: Expr, b: Expr) -> Expr:
    return a if b is FALSE else _and(a, build.logical_not(b))


def _or(a: Expr, b: Expr) -> Expr:
    if a is FALSE or b is TRUE:
        return b
    return a if b is FALSE or a is TRUE else build.logical("or", a, b)


class StatementReader(ExpressionReader):
    """Runs statements; the whole reader of functions that have source."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = 0

    # ---- calls of traced functions -------------------------------------------------------------------------

    def call_function(
        self, function: types.FunctionType, path: Path, args: list[Any], kwargs: dict[str, Any]
    ) -> Any:
        source = source_of(function.__code__)
        spec = source.node.args
        names = [arg.arg for arg in (*spec.posonlyargs, *spec.args)]
        defaults: dict[str, Any] = {}
        given = function.__defaults__ or ()
        for index, name in enumerate(names[len(names) - len(given) :]):
            if name in kwargs or names.index(name) < len(args):
                continue
            item = Path("item", Path("attr", path, "__defaults__"), index)
            defaults[name] = self.values.capture(given[index], item)
        for name, value in (function.__kwdefaults__ or {}).items():
            if name not in kwargs:
                defaults[name] = self.values.capture(value, Path("item", Path("attr", path, "__kwdefaults__"), name))
        frame = Frame(source, {}, function, path)
        return self._call(frame, source.node, args, kwargs, defaults)

    def call_closure(self, closure: Closure, args: list[Any], kwargs: dict[str, Any]) -> Any:
        name = closure.node.name if isinstance(closure.node, ast.FunctionDef) else "<lambda>"
        source = Source(closure.frame.source.filename, name, closure.node)
        frame = Frame(source, {}, parent=closure.frame)
        return self._call(frame, closure.node, args, kwargs, closure.defaults)

    def _call(
        self,
        frame: Frame,
        node: ast.FunctionDef | ast.Lambda,
        args: list[Any],
        kwargs: dict[str, Any],
        defaults: dict[str, Any],
    ) -> Any:
        frame.variables.update(_bind(frame.source.function, node.args, args, kwargs, defaults))
        self.depth += 1
        try:
            if self.depth > MAX_DEPTH:
                raise Untraceable(
                    f"the recursion of {frame.source.function} does not end",
                    "recurse over a Python number with a concrete end, not over a symbolic one",
                )
            if isinstance(node, ast.Lambda):
                return self.eval(node.body, frame)
            exits = self.block(node.body, frame)
            return self._returned(exits, frame, node)
        finally:
            self.depth -= 1

    def _returned(self, exits: list[Exit], frame: Frame, node: ast.FunctionDef) -> Any:
        """The value of a call: the first exit whose condition holds; falling off the end gives None."""
        covered = any(exit.condition is TRUE for exit in exits)
        if not exits:
            return None
        if not covered:
            if all(exit.value is None for exit in exits):
                return None
            error = Untraceable(
                f"{frame.source.function} returns a value on some paths and None on others",
                "end the function with a `return` for the remaining positions",
            )
            error.places.append(frame.source.place(exits[-1].node))
            raise error
        result = exits[-1].value
        for exit in reversed(exits[:-1]):
            result = self.values.merge(exit.condition, exit.value, result, "the returned value")
            if isinstance(result, Conflict):
                error = Untraceable(result.reason, "return one kind of value on every path")
                error.places.append(frame.source.place(exit.node))
                raise error
        return result

    # ---- statements ----------------------------------------------------------------------------------------

    def block(self, statements: list[ast.stmt], frame: Frame) -> list[Exit]:
        """Run statements; the exits end with a condition TRUE when no lane falls through."""
        exits: list[Exit] = []
        for statement in statements:
            method: Callable[[Any, Frame], list[Exit] | None] | None = getattr(
                self, f"run_{type(statement).__name__}", None
            )
            try:
                if method is None:
                    raise Untraceable(*_unsupported(statement))
                exits += method(statement, frame) or []
            except Untraceable as error:
                if not error.places:
                    error.places.append(frame.source.place(statement))
                raise
            if exits and exits[-1].condition is TRUE:
                break
        return exits

    def run_Expr(self, node: ast.Expr, frame: Frame) -> None:
        self.eval(node.value, frame)

    def run_Pass(self, node: ast.Pass, frame: Frame) -> None:
        pass

    def run_Assign(self, node: ast.Assign, frame: Frame) -> None:
        value = self.eval(node.value, frame)
        for target in node.targets:
            self.assign(target, value, frame)

    def run_AnnAssign(self, node: ast.AnnAssign, frame: Frame) -> None:
        if node.value is not None:
            self.assign(node.target, self.eval(node.value, frame), frame)

    def run_AugAssign(self, node: ast.AugAssign, frame: Frame) -> None:
        target = node.target
        if isinstance(target, ast.Name):
            old = self.eval_Name(ast.Name(target.id, ast.Load()), frame)
        else:
            old = self.eval(target, frame)
        symbol = BINARY_SYMBOLS.get(type(node.op))
        if symbol is None:
            raise Untraceable("matrix multiplication inside a mod", "write the sum of products over a fixed range")
        self.assign(target, self.values.binary(symbol, old, self.eval(node.value, frame)), frame)

    def run_FunctionDef(self, node: ast.FunctionDef, frame: Frame) -> None:
        function: Any = self.close(node, frame)
        for decorator in reversed(node.decorator_list):
            function = self.values.call(self.eval(decorator, frame), [function], {})
        frame.variables[node.name] = function

    def run_Import(self, node: ast.Import, frame: Frame) -> None:
        for alias in node.names:
            module = self.values.run(importlib.import_module, alias.name)
            top = self.values.run(importlib.import_module, alias.name.split(".")[0])
            frame.variables[alias.asname or alias.name.split(".")[0]] = module if alias.asname else top

    def run_ImportFrom(self, node: ast.ImportFrom, frame: Frame) -> None:
        package = "" if frame.function is None else frame.function.__globals__.get("__package__") or ""
        name = "." * node.level + (node.module or "")
        module = self.values.run(importlib.import_module, name, package or None)
        for alias in node.names:
            frame.variables[alias.asname or alias.name] = self.values.attribute(module, alias.name)

    def run_Assert(self, node: ast.Assert, frame: Frame) -> None:
        truth = self.values.truth(self.eval(node.test, frame))
        if isinstance(truth, Expr):
            raise Untraceable(
                "an assert on a value known only inside the kernel", "check captured values outside the mod"
            )
        if not truth:
            message = "" if node.msg is None else f": {self.eval(node.msg, frame)}"
            raise Untraceable(f"assertion failed{message}", "call the mod with values that satisfy it")

    def run_Return(self, node: ast.Return, frame: Frame) -> list[Exit]:
        value = None if node.value is None else self.eval(node.value, frame)
        return [Exit("return", TRUE, value, node)]

    def run_Break(self, node: ast.Break, frame: Frame) -> list[Exit]:
        return [Exit("break", TRUE, dict(frame.variables), node)]

    def run_Continue(self, node: ast.Continue, frame: Frame) -> list[Exit]:
        return [Exit("continue", TRUE, dict(frame.variables), node)]

    def run_If(self, node: ast.If, frame: Frame) -> list[Exit]:
        truth = self.values.truth(self.eval(node.test, frame))
        if not isinstance(truth, Expr):
            return self.block(node.body if truth else node.orelse, frame)
        before = frame.variables
        yes, yes_exits = self._branch(node.body, before, frame)
        no, no_exits = self._branch(node.orelse, before, frame)
        otherwise = build.logical_not(truth)
        exits = [Exit(e.kind, _and(truth, e.condition), e.value, e.node) for e in yes_exits]
        yes_ends = bool(yes_exits) and yes_exits[-1].condition is TRUE
        no_ends = bool(no_exits) and no_exits[-1].condition is TRUE
        for exit in no_exits:
            # Where every lane of the `if` side has left, "otherwise" is implied by the order of the exits.
            condition = exit.condition if yes_ends else _and(otherwise, exit.condition)
            exits.append(Exit(exit.kind, condition, exit.value, exit.node))
        frame.variables = yes if no_ends else no if yes_ends else self.join(truth, yes, no)
        if yes_ends and no_ends:
            exits[-1] = Exit(exits[-1].kind, TRUE, exits[-1].value, exits[-1].node)
        return exits

    def _branch(
        self, statements: list[ast.stmt], before: dict[str, Any], frame: Frame
    ) -> tuple[dict[str, Any], list[Exit]]:
        """Run one side of a symbolic `if` on its own copy of the variables."""
        made, self.made = self.made, []
        frame.variables = dict(before)
        self.branch_depth += 1
        try:
            exits = self.block(statements, frame)
            return frame.variables, exits
        finally:
            self.branch_depth -= 1
            self.made = made
            frame.variables = before

    def join(self, condition: Expr, yes: dict[str, Any], no: dict[str, Any]) -> dict[str, Any]:
        joined: dict[str, Any] = {}
        for name in [*yes, *(name for name in no if name not in yes)]:
            if name in yes and name in no:
                joined[name] = self.values.merge(condition, yes[name], no[name], name)
            else:
                joined[name] = Conflict(name, f"{name} has a value on one side of an `if` only")
        return joined

    # ---- loops ---------------------------------------------------------------------------------------------

    def run_For(self, node: ast.For, frame: Frame) -> list[Exit]:
        loop = _Loop(self, frame)
        for item in self.values.iterate(self.eval(node.iter, frame)):
            self.assign(node.target, item, frame)
            if not loop.step(node.body):
                break
        return loop.finish(node.orelse)

    def run_While(self, node: ast.While, frame: Frame) -> list[Exit]:
        loop = _Loop(self, frame)
        for _ in range(MAX_WHILE):
            truth = self.values.truth(self.eval(node.test, frame))
            if isinstance(truth, Expr):
                raise Untraceable(
                    f"`while` on {truth!r}, which is known only inside the kernel",
                    "loop over a fixed range and stop with `if`: for _ in range(8): if not (...): break",
                )
            if not truth or not loop.step(node.body):
                return loop.finish(node.orelse)
        raise Untraceable(f"a `while` loop ran {MAX_WHILE} times", "give it an end that plain Python can reach")


class _Loop:
    """Keeps apart, over the iterations of a loop, the lanes that left it."""

    def __init__(self, reader: StatementReader, frame: Frame) -> None:
        self.reader, self.frame = reader, frame
        self.broken = FALSE  # lanes that broke in an earlier iteration
        self.breaks: list[tuple[Expr, dict[str, Any]]] = []
        self.returns: list[Exit] = []
        self.ended = False  # no lane is left in the loop

    def step(self, body: list[ast.stmt]) -> bool:
        """One iteration; False when no lane goes on.

        A lane that left counts no more, so an exit must exclude only those earlier ones that it would override:
        a break those that continued in this iteration, a return also those that broke.
        """
        exits = self.reader.block(body, self.frame)
        continued = FALSE
        continues: list[tuple[Expr, dict[str, Any]]] = []
        for exit in exits:
            condition = _and_not(exit.condition, continued)
            if exit.kind == "continue":
                continues.append((exit.condition, exit.value))
                continued = _or(continued, exit.condition)
            elif exit.kind == "break":
                self.breaks.append((condition, exit.value))
                self.broken = _or(self.broken, condition)
            else:
                self.returns.append(Exit("return", _and_not(condition, self.broken), exit.value, exit.node))
        self.ended = bool(exits) and exits[-1].condition is TRUE
        for condition, at_continue in reversed(continues):
            if self.ended:
                self.frame.variables, self.ended = at_continue, False
            else:
                self.frame.variables = self.reader.join(condition, at_continue, self.frame.variables)
        return not self.ended

    def finish(self, orelse: list[ast.stmt]) -> list[Exit]:
        """The exits of the whole loop; the frame gets the variables after it."""
        frame = self.frame
        if orelse and any(condition is not TRUE for condition, _ in self.breaks):
            raise Untraceable("`else` of a loop with a symbolic break", "set a flag variable in the loop instead")
        if orelse and not self.ended:
            self.returns += self.reader.block(orelse, frame)
        after = None if self.ended else frame.variables
        for condition, at_break in reversed(self.breaks):
            after = at_break if after is None else self.reader.join(condition, at_break, after)
        if after is not None:
            frame.variables = after
        elif self.returns:  # every lane returned: nothing falls through
            last = self.returns[-1]
            self.returns[-1] = Exit(last.kind, TRUE, last.value, last.node)
        return self.returns


def _bind(
    name: str, spec: ast.arguments, args: list[Any], kwargs: dict[str, Any], defaults: dict[str, Any]
) -> dict[str, Any]:
    """Python's binding of arguments to parameters."""
    positional = [arg.arg for arg in (*spec.posonlyargs, *spec.args)]
    bound = dict(zip(positional, args, strict=False))
    extra = args[len(positional) :]
    if spec.vararg is not None:
        bound[spec.vararg.arg] = tuple(extra)
    elif extra:
        raise Untraceable(f"{name}() takes {len(positional)} arguments, not {len(args)}", "match the parameters")
    names = {*positional[len(spec.posonlyargs) :], *(arg.arg for arg in spec.kwonlyargs)}
    unknown: dict[str, Any] = {}
    for key, value in kwargs.items():
        if key in bound:
            raise Untraceable(f"{name}() got {key} twice", "pass it once")
        (bound if key in names else unknown)[key] = value
    if spec.kwarg is not None:
        bound[spec.kwarg.arg] = unknown
    elif unknown:
        raise Untraceable(f"{name}() has no parameter {next(iter(unknown))}", "match the parameters")
    for parameter in (*positional, *(arg.arg for arg in spec.kwonlyargs)):
        if parameter not in bound:
            if parameter not in defaults:
                raise Untraceable(f"{name}() misses the argument {parameter}", "pass it, or give it a default")
            bound[parameter] = defaults[parameter]
    return bound


def _unsupported(node: ast.stmt) -> tuple[str, str]:
    kind = type(node).__name__
    remedies = {
        "Try": "a kernel raises nothing: test the condition with `if`",
        "Raise": "a kernel raises nothing: check captured values outside the mod",
        "With": "open resources outside the mod and capture what they give",
        "Global": "a mod must not change outside variables: return the value instead",
        "Nonlocal": "a mod must not change outside variables: return the value instead",
        "Delete": "just stop using the name",
        "ClassDef": "define the class outside the mod",
        "Match": "write if/elif",
        "AsyncFor": "write a plain for",
        "AsyncFunctionDef": "write a plain def",
    }
    return f"the statement `{kind.lower()}` has no meaning in a mod", remedies.get(kind, "use if, for, assignments and return")
