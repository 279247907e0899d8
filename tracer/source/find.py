"""Python function -> its `ast` node: finds the source of functions in files, notebook cells, exec and lambdas."""

from __future__ import annotations
import __future__

import ast
import functools
import itertools
import linecache
import os
import re
import sys
import textwrap
import types
from dataclasses import dataclass
from typing import Any

from ..errors import Place
from .magics import texts_of_magics
from .signature import check_plain

FunctionNode = ast.FunctionDef | ast.Lambda


class NoSource(LookupError):
    """The text of a function is nowhere, or is another by now: `args` are its name and file."""


@dataclass(frozen=True)
class Source:
    """A function's node at its place in the whole file or cell, so that line numbers are the user's own.

    lines: the lines of the file from line `first` on, as they were read: the file may change.
    """

    filename: str
    function: str
    node: FunctionNode
    first: int
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """The function as its author wrote it, with its decorators."""
        if isinstance(self.node, ast.Lambda):
            *lines, last = self.lines
            lines.append(last.encode()[: self.node.end_col_offset].decode())
            lines[0] = lines[0].encode()[self.node.col_offset :].decode()
            return "".join(lines)
        return textwrap.dedent("".join(self.lines))

    def holds(self, place: Place) -> bool:
        """Whether a place lies in this function (or in one of the same name inside it)."""
        last = self.node.end_lineno or self.node.lineno
        same = (place.filename, place.function) == (self.filename, self.function)
        return same and self.node.lineno <= place.line <= last

    def place(self, node: ast.AST) -> Place:
        line = getattr(node, "lineno", self.node.lineno)
        one_line = getattr(node, "end_lineno", line) == line
        return Place(
            self.filename,
            self.function,
            line,
            getattr(node, "col_offset", 0),
            getattr(node, "end_col_offset", None) if one_line else None,
            self.lines[line - self.first],
        )


def source_of(code: types.CodeType) -> Source:
    """The source of the function that `code` belongs to.

    Raises:
        NoSource: there is none, or the text changed since the import.
        Untraceable: it is a generator or coroutine.
    """
    return _source_of(code, code.co_filename)  # equal functions of two cells are equal codes


@functools.lru_cache(maxsize=512)
def _source_of(code: types.CodeType, filename: str) -> Source:
    name = code.co_name
    check_plain(code)
    linecache.checkcache(filename)
    lines = linecache.getlines(filename, _module_of(filename))
    named = [lines] if lines else []
    for text in named if filename[:1] != "<" else itertools.chain(named, texts_of_magics()):
        node = _find(_parse_block(text, code.co_firstlineno), code)
        tree = None if node is not None else _parse(filename, "".join(text))
        node = node or _find(tree, code, whole=True) or _find(tree, code, whole=True, moved=True)
        if node is not None:
            first = _first_line(node)
            return Source(filename, name, node, first, tuple(text[first - 1 : node.end_lineno]))
    raise NoSource(name, filename)


def _module_of(filename: str) -> dict[str, Any] | None:
    """The globals of the module of a name that is no file, as in a zip: a loader there knows the text."""
    if os.path.exists(filename) or filename[:1] == "<":
        return None
    modules = [vars(module) for module in list(sys.modules.values()) if isinstance(module, types.ModuleType)]
    return next((names for names in modules if names.get("__file__") == filename), None)


def _find(
    tree: ast.Module | None, code: types.CodeType, whole: bool = False, moved: bool = False
) -> FunctionNode | None:
    """The node in a whole file, or in a part of it, that compiles to `code`.

    moved: it may be on any line, as after an edit above it; IPython's autoreload compiles functions one by one, all
        from line 1.
    """
    if tree is None:
        return None
    by_module = _imported(tree) if whole else None
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.Lambda)) and _is_named(node, code.co_name):
            if not moved and _first_line(node) != code.co_firstlineno:
                continue
            imported = {base.id for base in _attribute_bases(node)} if by_module is None else by_module
            # IPython compiles the statements of a cell one by one: then none of them sees another's imports.
            if _compiles_to(node, code, imported, moved) or (imported and _compiles_to(node, code, set(), moved)):
                return node
    return None


def _is_named(node: FunctionNode, name: str) -> bool:
    return name == (node.name if isinstance(node, ast.FunctionDef) else "<lambda>")


def _first_line(node: FunctionNode) -> int:
    decorators = node.decorator_list if isinstance(node, ast.FunctionDef) else []
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _attribute_bases(node: ast.AST) -> list[ast.Name]:
    """The names in `name.attribute`."""
    inner = [x.value for x in ast.walk(node) if isinstance(x, ast.Attribute)]
    return [value for value in inner if isinstance(value, ast.Name)]


def _imported(tree: ast.AST) -> set[str]:
    """The names that imports bind in a module, outside its functions and classes."""
    names: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.expr)):
            names |= _imported(node)
    return names - {"*"}


# ---- parsing -------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=16)
def _parse(filename: str, text: str) -> ast.Module | None:
    try:
        return ast.parse(text)
    except SyntaxError:  # edited since, or notebook magic: then only a block of it can be read
        return None


def _parse_block(lines: list[str], first: int) -> ast.Module | None:
    """Just the `def` that starts at line `first`, at its own line numbers; None where it does not stand alone.

    The block is guessed by indentation, which is faster than parsing a whole file; whether it is the function is
    decided by compiling it.
    """
    block = lines[first - 1 :]
    if not block or not re.match(r"\s*(@|def\b)", block[0]):
        return None
    indent = len(block[0]) - len(block[0].lstrip())
    header = next((i for i, line in enumerate(block) if re.match(r"\s*def\b", line)), 0)
    end = header + 1
    while end < len(block):
        text = block[end].lstrip()
        outside = len(block[end]) - len(text) <= indent and text and text[0] not in "#)]}\n\r"
        if outside:
            break
        end += 1
    prefix = "if True:\n" if indent else ""
    try:
        tree = ast.parse(prefix + "".join(block[:end]))
    except SyntaxError:
        return None
    return ast.increment_lineno(tree, first - 1 - bool(indent)) if first - 1 - bool(indent) else tree


# ---- is it the text of this code? ------------------------------------------------------------------------------

_FUTURES = functools.reduce(
    lambda a, b: a | b, (getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
)


def _compiles_to(node: FunctionNode, code: types.CodeType, imported: set[str], exactly: bool) -> bool:
    """Whether compiling the node gives the code: the same instructions on the same constants and names.

    imported: global names that an import binds; methods of those are called by other instructions.
    exactly: also where test frameworks may have rewritten its assert statements.
    """
    # Free variables must stay free: wrap in a function that owns them. It owns no other name, not that of the node.
    free = [_written(name) for name in code.co_freevars]
    owned = "".join(f"    {name} = None\n" for name in free)
    if isinstance(node, ast.FunctionDef) and node.name not in free:
        owned = f"    global {node.name}\n{owned}"
    imports = "".join(f"import {name}\n" for name in sorted(imported & set(code.co_names)))
    tree = ast.parse(f"{imports}def outer():\n{owned}    return None")
    outer = tree.body[-1]
    assert isinstance(outer, ast.FunctionDef)
    if isinstance(node, ast.Lambda):
        outer.body[-1] = ast.copy_location(ast.Return(ast.Lambda(_bare(node.args), node.body)), node)
    else:
        outer.body[-1] = ast.copy_location(ast.FunctionDef(node.name, _bare(node.args), node.body, []), node)
        if sys.version_info >= (3, 12):
            outer.body[-1].type_params = []
    ast.fix_missing_locations(tree)
    try:
        module = compile(tree, "<candidate>", "exec", flags=code.co_flags & _FUTURES, dont_inherit=True)
    except SyntaxError:
        return False
    made = _codes(_codes(module)[0])[0]
    if not exactly and any(isinstance(inner, ast.Assert) for inner in ast.walk(node)):
        return _within(made, code)
    return _same(made, code)


def _bare(spec: ast.arguments) -> ast.arguments:
    """The same parameters without defaults and annotations: those belong to the enclosing code."""

    def bare(args: list[ast.arg]) -> list[ast.arg]:
        return [ast.arg(arg.arg) for arg in args]

    return ast.arguments(
        posonlyargs=bare(spec.posonlyargs),
        args=bare(spec.args),
        vararg=None if spec.vararg is None else ast.arg(spec.vararg.arg),
        kwonlyargs=bare(spec.kwonlyargs),
        kw_defaults=[None] * len(spec.kwonlyargs),
        kwarg=None if spec.kwarg is None else ast.arg(spec.kwarg.arg),
        defaults=[],
    )


def _codes(code: types.CodeType) -> list[types.CodeType]:
    return [const for const in code.co_consts if isinstance(const, types.CodeType)]


def _constants(code: types.CodeType) -> list[str]:
    return [_constant(const) for const in code.co_consts if not isinstance(const, types.CodeType)]


def _constant(value: object) -> str:
    """A constant as text; the qualified name of an inner function or class without the names around it."""
    if isinstance(value, frozenset):
        return repr(sorted(map(repr, value)))
    return repr(value.rsplit("<locals>.", 1)[-1] if isinstance(value, str) else value)


def _names(code: types.CodeType) -> list[str]:
    """Names of globals, attributes and variables, as they are written."""
    return [_written(name) for name in (*code.co_names, *code.co_varnames)]


def _written(name: str) -> str:
    """A name as it stands in the source: a private one not mangled."""
    return re.sub(r"^_\w*?(__\w+)$", r"\1", name)


def _same(a: types.CodeType, b: types.CodeType) -> bool:
    return (
        a.co_code == b.co_code
        and _constants(a) == _constants(b)
        and _names(a) == _names(b)
        and len(_codes(a)) == len(_codes(b))
        and all(_same(x, y) for x, y in zip(_codes(a), _codes(b), strict=True))
    )


def _within(a: types.CodeType, b: types.CodeType) -> bool:
    """Whether `b` uses at least the constants and names of `a`."""
    constants = {const for const in _constants(a) if const not in ("None", "True", "False")}
    return constants <= set(_constants(b)) and set(_names(a)) - {"AssertionError"} <= set(_names(b))
