"""Function -> which front end reads it: its source where that is known, else its code."""

from __future__ import annotations

import types
from typing import Any, Literal

from .captures.paths import Path
from .frontends import bytecode, syntax
from .semantics import Tracing
from .source.find import NoSource, source_of
from .source.signature import check_plain

Reader = Literal["source", "bytecode"]


def reader_of(code: types.CodeType) -> Reader:
    """What a function is read from."""
    try:
        source_of(code)
    except NoSource:
        return "bytecode"
    return "source"


def reader_in(t: Tracing, code: types.CodeType) -> Reader:
    """What a function is read from in this trace: its source is searched once."""
    key = code, code.co_filename
    if key not in t.readers:
        t.readers[key] = reader_of(code)
    return t.readers[key]


def follow(t: Tracing, function: types.FunctionType, path: Path, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """A call of a function from outside: what it returns on these values.

    Raises:
        Untraceable: it has no meaning in a mod.
    """
    check_plain(function.__code__)
    read = syntax.follow if reader_in(t, function.__code__) == "source" else bytecode.follow
    return read(t, function, path, args, kwargs)
