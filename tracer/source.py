"""Python function -> its `ast` node: finds the source of functions in files, notebook cells, exec and lambdas."""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import sys
import types
from dataclasses import dataclass

from .errors import Place, Untraceable

FunctionNode = ast.FunctionDef | ast.Lambda


@dataclass(frozen=True)
class Source:
    """A function's node in the tree of its whole file or cell, so that line numbers are the user's own."""

    filename: str
    function: str
    node: FunctionNode

    def place(self, node: ast.AST) -> Place:
        line = getattr(node, "lineno", self.node.lineno)
        one_line = getattr(node, "end_lineno", line) == line
        return Place(
            self.filename,
            self.function,
            line,
            getattr(node, "col_offset", 0),
            getattr(node, "end_col_offset", None) if one_line else None,
        )


_HELP = "define the function in a file, a notebook cell, or pass the text through linecache when you exec it"


@functools.lru_cache(maxsize=512)
def source_of(code: types.CodeType) -> Source:
    """The source of the function that `code` belongs to.

    Raises:
        Untraceable: there is no source, it is a generator or coroutine, or the text changed since the import.
    """
    name = code.co_name
    if code.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
        kind = "an async function" if code.co_flags & inspect.CO_COROUTINE else "a generator"
        raise Untraceable(f"{name} is {kind}", "write a plain function that returns one value")
    lines = _lines(code)
    if not lines:
        raise Untraceable(
            f'the source of {name} is not available (file "{code.co_filename}")',
            _HELP,
        )
    block = _parse_block(lines, code.co_firstlineno) if name != "<lambda>" else None
    tree = block if block is not None else _parse(code.co_filename, "".join(lines))
    candidates = [
        node
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.Lambda))
        and (node.name if isinstance(node, ast.FunctionDef) else "<lambda>") == name
        and _first_line(node) == code.co_firstlineno
        and _parameters(node) == code.co_varnames[: len(_parameters(node))]
        and not _unread_names(node, code)
    ]
    if len(candidates) > 1:
        candidates = _by_position(candidates, code) or _by_bytecode(candidates, code)
    if not candidates:
        raise Untraceable(
            f'line {code.co_firstlineno} of "{code.co_filename}" no longer holds the source of {name}',
            "reload the module (or restart the notebook kernel) after editing it",
        )
    return Source(code.co_filename, name, candidates[0])


def _lines(code: types.CodeType) -> list[str]:
    linecache.checkcache(code.co_filename)
    return linecache.getlines(code.co_filename)


@functools.lru_cache(maxsize=64)
def _parse(filename: str, text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except SyntaxError as error:
        raise Untraceable(f'"{filename}" is no longer valid Python (line {error.lineno})', "reload it") from error


def _parse_block(lines: list[str], first: int) -> ast.Module | None:
    """Just the `def` that starts at line `first`, at its own line numbers; None where it does not stand alone."""
    try:
        block = inspect.getblock(lines[first - 1 :])
        indented = block[0][:1].isspace()
        text = "".join(["if True:\n", *block] if indented else block)
        tree = ast.parse(text)
    except (SyntaxError, IndentationError, IndexError):
        return None
    return ast.increment_lineno(tree, first - 1 - indented)


def _first_line(node: FunctionNode) -> int:
    decorators = node.decorator_list if isinstance(node, ast.FunctionDef) else []
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _parameters(node: FunctionNode) -> tuple[str, ...]:
    return tuple(arg.arg for arg in (*node.args.posonlyargs, *node.args.args))


def _unread_names(node: FunctionNode, code: types.CodeType) -> set[str]:
    """Globals and attributes that the code uses but the text does not mention: the text was edited."""
    used = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    used |= {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
    used |= {alias.name for n in ast.walk(node) if isinstance(n, (ast.Import, ast.ImportFrom)) for alias in n.names}
    used |= {n.module or "" for n in ast.walk(node) if isinstance(n, ast.ImportFrom)}
    used |= {keyword.arg or "" for n in ast.walk(node) if isinstance(n, ast.Call) for keyword in n.keywords}
    return {name for name in code.co_names if name not in used and not name.startswith("_")} - {"AssertionError"}


def _by_position(candidates: list[FunctionNode], code: types.CodeType) -> list[FunctionNode]:
    """The candidate whose body holds the code's instructions (Python 3.11 and later know their columns)."""
    if sys.version_info < (3, 11):
        return []
    spans = [p for p in code.co_positions() if None not in p and p[2] != p[3]]
    if not spans:
        return []

    def holds(node: FunctionNode) -> bool:
        body = node.body if isinstance(node, ast.Lambda) else node.body[0]
        low, high = (body.lineno, body.col_offset), (body.end_lineno or 0, body.end_col_offset or 0)
        return all(low <= (s[0], s[2]) and (s[1], s[3]) <= high for s in spans if s[0] and s[1] and s[3])  # type: ignore[operator]

    return [node for node in candidates if holds(node)][:1]


def _by_bytecode(candidates: list[FunctionNode], code: types.CodeType) -> list[FunctionNode]:
    """Without columns: the candidate that compiles to the same instructions and names."""

    def compiled(node: FunctionNode) -> types.CodeType:
        # Free variables must stay free: wrap in a function that owns them.
        owned = "".join(f"    {name} = None\n" for name in code.co_freevars) or "    pass\n"
        outer = ast.parse(f"def outer():\n{owned}    return None")
        function = outer.body[0]
        assert isinstance(function, ast.FunctionDef)
        function.body[-1] = ast.copy_location(
            ast.Return(node) if isinstance(node, ast.Lambda) else node, function.body[-1]
        )
        module = compile(ast.fix_missing_locations(outer), "<candidate>", "exec")
        inner = next(c for c in module.co_consts if isinstance(c, types.CodeType))
        return next(c for c in inner.co_consts if isinstance(c, types.CodeType))

    def same(node: FunctionNode) -> bool:
        other = compiled(node)
        return (other.co_code, other.co_names, other.co_freevars) == (
            code.co_code,
            code.co_names,
            code.co_freevars,
        ) and [c for c in other.co_consts if not isinstance(c, types.CodeType)] == [
            c for c in code.co_consts if not isinstance(c, types.CodeType)
        ]

    matching = [node for node in candidates if same(node)]
    texts = {ast.dump(node) for node in matching}
    if len(texts) > 1:
        raise Untraceable(
            f"several functions named {code.co_name} stand on line {code.co_firstlineno} and look alike",
            "put each on a line of its own",
        )
    return matching[:1]
