"""Notebook cells -> the texts that their magics compile: %%time, %timeit, %%timeit, %prun and others of their kind.

IPython registers the lines of a cell, in which a magic is a call, `get_ipython().run_cell_magic("time", "", text)`.
The magic compiles the text under a name of its own (<timed exec>, <magic-timeit>, <string>) without registering it.
Which text a function is of is decided by who compiles it and compares.
"""

from __future__ import annotations

import ast
import functools
import itertools
import linecache
import re
import sys
from collections.abc import Iterator

_CALLS = ("run_cell_magic", "run_line_magic")


def texts_of_magics() -> Iterator[list[str]]:
    """The lines of every text given to a magic, those of the latest cell first."""
    for entry in reversed(list(linecache.cache.values())):
        lines = entry[2] if len(entry) == 4 else []
        text = "".join(lines)
        if any(call in text for call in _CALLS):
            for found in _texts_in(text):
                yield found.splitlines(True)


@functools.lru_cache(maxsize=64)
def _texts_in(cell: str) -> tuple[str, ...]:
    """The texts given to magics in the text of one cell, as Python."""
    tree = _parsed(cell)
    found: list[str] = []
    for node in () if tree is None else ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _CALLS:
            given = [arg.value for arg in node.args[1:] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            for start in itertools.chain.from_iterable(map(_without_options, given)):
                found += [text for text in (start, _transformed(start)) if _parsed(text) is not None][:1]
    return tuple(found)


def _without_options(given: str) -> Iterator[str]:
    """The text, and what is left of it behind each of the options that it may begin with, as in `-n 1 -r 1 call()`."""
    yield given
    option = False
    for token in re.finditer(r"(\S+)\s*", given):
        if not option and not token[1].startswith("-"):
            return
        option = token[1].startswith("-")
        yield given[token.end() :]


def _transformed(text: str) -> str:
    """Python of a text in which magics are, as IPython makes it."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return text if shell is None else str(shell.transform_cell(text))


def _parsed(text: str) -> ast.Module | None:
    try:
        return ast.parse(text)
    except SyntaxError:
        return None
