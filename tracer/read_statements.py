"""ast statements -> value: runs a function body over symbols, following both sides of a symbolic `if`."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import types
from collections.abc import Callable, Iterable
from typing import Any

from .errors import Untraceable
from .expr import TRUE, Expr
from .frames import Closure, Frame, bind, local_names
from .joins import Semantics
from .lanes import Exit, Loop, Variables, all_left, ending, join
from .paths import Path
from .read_expressions import BINARY_SYMBOLS, ExpressionReader
from .source import FunctionNode, source_of
from .values import Conflict, parts_of

MAX_DEPTH = 200
MAX_ITERATIONS = 10_000
UNSUPPORTED: dict[str, tuple[str, str]] = {  # statement -> keyword, remedy
    "Try": ("try", "a kernel raises nothing: test the condition with `if`"),
    "TryStar": ("try", "a kernel raises nothing: test the condition with `if`"),
    "With": ("with", "open resources outside the mod and capture what they give"),
    "AsyncWith": ("async with", "open resources outside the mod and capture what they give"),
    "Global": ("global", "a mod must not change outside variables: return the value instead"),
    "Nonlocal": ("nonlocal", "a mod must not change outside variables: return the value instead"),
    "Delete": ("del", "just stop using the name"),
    "ClassDef": ("class", "define the class outside the mod"),
    "Match": ("match", "write if/elif"),
    "AsyncFor": ("async for", "write a plain for"),
    "AsyncFunctionDef": ("async def", "write a plain def"),
    "TypeAlias": ("type", "define the alias outside the mod"),
}


class StatementReader(ExpressionReader):
    """Runs statements: the whole reader of functions that have source."""

    def __init__(self) -> None:
        self.values: Semantics = Semantics(self.call_function)
        self.depth: int = 0

    # ---- calls of traced functions -------------------------------------------------------------------------

    def call_function(self, function: types.FunctionType, path: Path, args: list[Any], kwargs: dict[str, Any]) -> Any:
        source = source_of(function.__code__)
        spec = source.node.args
        names = [arg.arg for arg in (*spec.posonlyargs, *spec.args)]
        defaults: dict[str, Any] = {}
        given = function.__defaults__ or ()
        for index, name in enumerate(names[len(names) - len(given) :]):
            if name not in kwargs and names.index(name) >= len(args):
                defaults[name] = self.values.capture(given[index], path.step("default", (index, name)))
        for name, value in (function.__kwdefaults__ or {}).items():
            if name not in kwargs:
                defaults[name] = self.values.capture(value, path.step("kwdefault", name))
        frame = Frame(source, local_names(source.node), function=function, path=path)
        return self._call(frame, source.node, args, kwargs, defaults)

    def call_closure(self, closure: Closure, args: list[Any], kwargs: dict[str, Any]) -> Any:
        source = dataclasses.replace(closure.frame.source, function=closure.name, node=closure.node)
        frame = Frame(source, local_names(closure.node), parent=closure.frame)
        return self._call(frame, closure.node, args, kwargs, closure.defaults)

    def _call(
        self, frame: Frame, node: FunctionNode, args: list[Any], kwargs: dict[str, Any], defaults: dict[str, Any]
    ) -> Any:
        frame.variables = bind(frame.source.function, node.args, args, kwargs, defaults)
        frame.entry = self.values.tick()
        floor = self.values.floor
        self.depth += 1
        try:
            if self.depth > MAX_DEPTH:
                raise RecursionError
            if isinstance(node, ast.Lambda):
                return self.eval(node.body, frame)
            return self._returned(self.block(node.body, frame), frame)
        except RecursionError:
            if self.depth < 20:
                raise
            raise Untraceable(
                f"the recursion of {frame.source.function} goes too deep, or does not end",
                "recurse over a Python number with a near end, or write a loop",
            ) from None
        finally:
            self.values.floor = floor
            self.depth -= 1

    def _returned(self, exits: list[Exit], frame: Frame) -> Any:
        """The value of a call: the first exit whose condition holds; falling off the end gives None."""
        if not exits or (not all_left(exits) and all(exit.value is None for exit in exits)):
            return None
        if not all_left(exits):
            error = Untraceable(
                f"{frame.source.function} returns a value on some paths and None on others",
                "end the function with a `return` for the remaining positions",
            )
            error.places.append(frame.source.place(exits[-1].node))
            raise error
        result = exits[-1].value
        for exit in reversed(exits[:-1]):
            result = self.values.choose(exit.condition, exit.value, result, "the returned value")
            if isinstance(result, Conflict):
                error = Untraceable(result.reason, "return one kind of value on every path")
                error.places.append(frame.source.place(exit.node))
                raise error
        return self.values.made(result)

    # ---- statements ----------------------------------------------------------------------------------------

    def block(self, statements: list[ast.stmt], frame: Frame) -> list[Exit]:
        """Run statements; the exits end with a condition TRUE when no lane falls through."""
        exits: list[Exit] = []
        for statement in statements:
            kind = type(statement).__name__
            method: Callable[[Any, Frame], list[Exit] | None] | None = getattr(self, f"run_{kind}", None)
            try:
                if method is None:
                    keyword, remedy = UNSUPPORTED.get(kind, (kind.lower(), "use if, for, assignments and return"))
                    raise Untraceable(f"the statement `{keyword}` has no meaning in a mod", remedy)
                left = method(statement, frame) or []
                self._keep_returned([*exits, *left], frame)
            except Untraceable as error:
                if not error.places:
                    error.places.append(frame.source.place(statement))
                raise
            if left:
                exits += left
                if all_left(exits):
                    break
                self.values.floor = max([self.values.floor, *(exit.floor for exit in left)])
        return exits

    def _keep_returned(self, exits: list[Exit], frame: Frame) -> None:
        """Where other lanes go on, what some have returned must stay as it is."""
        if all_left(exits) and all(exit.kind == "return" for exit in exits):
            return
        for exit in exits:
            if exit.kind == "return":
                self.values.keep_all(exit.value, "that some positions have returned already")
                for function in self._closures_in(exit.value):
                    if function.frame.home is frame:
                        raise Untraceable(
                            f"{function.name} is returned under a condition known only inside the kernel",
                            "call it and return what it gives",
                        )

    def _closures_in(self, value: Any) -> list[Closure]:
        if isinstance(value, Closure):
            return [value]
        return [closure for part in parts_of(value) for closure in self._closures_in(part)]

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
        target, symbol = node.target, BINARY_SYMBOLS[type(node.op)]
        if isinstance(target, ast.Subscript):
            container, key = self.eval(target.value, frame), self.eval(target.slice, frame)
            old = self.values.item(container, key)
            self.set_item(container, key, self.values.augmented(symbol, old, self.eval(node.value, frame)))
            return
        if not isinstance(target, ast.Name):
            raise Untraceable("a mod must not change objects", "keep intermediate values in local variables")
        old = self.eval(ast.copy_location(ast.Name(target.id, ast.Load()), target), frame)
        frame.variables[target.id] = self.values.augmented(symbol, old, self.eval(node.value, frame))

    def run_FunctionDef(self, node: ast.FunctionDef, frame: Frame) -> None:
        decorators = [self.eval(decorator, frame) for decorator in node.decorator_list]
        function: Any = self.close(node, frame)
        for decorator in reversed(decorators):
            function = self.values.call(decorator, [function], {})
        frame.variables[node.name] = function

    def run_Import(self, node: ast.Import, frame: Frame) -> None:
        for alias in node.names:
            module = self._module(alias.name)
            top = self._module(alias.name.split(".")[0])
            frame.variables[alias.asname or alias.name.split(".")[0]] = module if alias.asname else top

    def run_ImportFrom(self, node: ast.ImportFrom, frame: Frame) -> None:
        name = node.module or ""
        if node.level:
            package = str(frame.outermost()[0].__globals__.get("__package__") or "")
            name = self.values.run(importlib.util.resolve_name, "." * node.level + name, package)
        module = self._module(name)
        for alias in node.names:
            if not hasattr(module, alias.name):
                self._module(f"{name}.{alias.name}")
            frame.variables[alias.asname or alias.name] = self.values.attribute(module, alias.name)

    def _module(self, name: str) -> Any:
        module = self.values.run(importlib.import_module, name)
        return self.values.capture(module, self.values.recorder.root.step("module", name))

    def run_Assert(self, node: ast.Assert, frame: Frame) -> None:
        truth = self.values.truth(self.eval(node.test, frame))
        if isinstance(truth, Expr):
            raise Untraceable(
                "an assert on a value known only inside the kernel", "check captured values outside the mod"
            )
        if not truth:
            message = "" if node.msg is None else f": {self.eval(node.msg, frame)}"
            raise Untraceable(f"assertion failed{message}", "call the mod with values that satisfy it")

    def run_Raise(self, node: ast.Raise, frame: Frame) -> None:
        if self.values.floor:
            raise Untraceable(
                "`raise` under a condition known only inside the kernel",
                "a kernel raises nothing: check captured values outside the mod",
            )
        error = None if node.exc is None else self.eval(node.exc, frame)
        text = repr(error) if isinstance(error, BaseException) else getattr(error, "__name__", "an exception")
        raise Untraceable(f"the mod raises {text}", "call the mod with values that it accepts")

    # ---- leaving a block, branches, loops ------------------------------------------------------------------

    def run_Return(self, node: ast.Return, frame: Frame) -> list[Exit]:
        value = None if node.value is None else self.eval(node.value, frame)
        return [Exit("return", TRUE, value, node, frame.entry)]

    def run_Break(self, node: ast.Break, frame: Frame) -> list[Exit]:
        return [Exit("break", TRUE, dict(frame.variables), node, self.values.tick())]

    def run_Continue(self, node: ast.Continue, frame: Frame) -> list[Exit]:
        return [Exit("continue", TRUE, dict(frame.variables), node, self.values.tick())]

    def run_If(self, node: ast.If, frame: Frame) -> list[Exit]:
        truth = self.values.truth(self.eval(node.test, frame))
        if not isinstance(truth, Expr):
            return self.block(node.body if truth else node.orelse, frame)
        before, since = frame.variables, self.values.clock
        yes, yes_exits = self._branch(node.body, before, frame)
        no, no_exits = self._branch(node.orelse, before, frame)
        exits = [exit.where(truth) for exit in yes_exits]
        # Where every lane of the `if` side has left, "otherwise" is implied by the order of the exits.
        exits += no_exits if all_left(yes_exits) else [exit.excluding(truth) for exit in no_exits]
        if all_left(yes_exits) and all_left(no_exits):
            return ending(exits)
        frame.variables = (
            yes if all_left(no_exits) else no if all_left(yes_exits) else join(self.values, truth, yes, no, since)
        )
        return exits

    def _branch(self, statements: list[ast.stmt], before: Variables, frame: Frame) -> tuple[Variables, list[Exit]]:
        """Run one side of a symbolic `if` on its own copy of the variables."""
        floor = self.values.floor
        self.values.floor = self.values.tick()
        try:
            return self._block_on(statements, dict(before), frame)
        finally:
            self.values.floor = floor
            frame.variables = before

    def _block_on(self, statements: list[ast.stmt], variables: Variables, frame: Frame) -> tuple[Variables, list[Exit]]:
        frame.variables = variables
        exits = self.block(statements, frame)
        return frame.variables, exits

    def run_For(self, node: ast.For, frame: Frame) -> list[Exit]:
        return self._loop(node, frame, self.values.iterate(self.eval(node.iter, frame)))

    def run_While(self, node: ast.While, frame: Frame) -> list[Exit]:
        return self._loop(node, frame, self._while(node, frame))

    def _while(self, node: ast.While, frame: Frame) -> Iterable[None]:
        while True:
            truth = self.values.truth(self.eval(node.test, frame))
            if isinstance(truth, Expr):
                raise Untraceable(
                    f"`while` on {truth!r}, which is known only inside the kernel",
                    "loop over a fixed range and stop with `if`: for _ in range(8): if not (...): break",
                )
            if not truth:
                return
            yield

    def _loop(self, node: ast.For | ast.While, frame: Frame, items: Iterable[Any]) -> list[Exit]:
        floor = self.values.floor
        loop = Loop(self.values, frame.variables, lambda body, variables: self._block_on(body, variables, frame))
        for count, item in enumerate(items):
            if count == MAX_ITERATIONS:
                raise Untraceable(f"a loop ran {MAX_ITERATIONS} times", "give it an end that plain Python reaches soon")
            if isinstance(node, ast.For):
                self.assign(node.target, item, frame)
            going = loop.step(node.body)
            frame.variables = loop.variables
            if not going:
                break
        frame.variables, exits = loop.finish(node.orelse)
        self.values.floor = floor
        return exits
