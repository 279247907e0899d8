"""Captured object -> path: how to reach it again from the mod's function."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Check = Callable[[Any], bool]
Getter = Callable[[Any], Any]
GLOBALS, CLOSURE = operator.attrgetter("__globals__"), operator.attrgetter("__closure__")
DEFAULTS, KWDEFAULTS = operator.attrgetter("__defaults__"), operator.attrgetter("__kwdefaults__")
CONTENTS = operator.attrgetter("cell_contents")
_UNREAD = object()


@dataclass(eq=False)
class Path:
    """One step on the way from the mod's function to a captured object.

    kind: root, global, cell, attr, item, default, kwdefault, module, table (a list as an array), result (a number
        computed from other captured ones), or held: a value that only running the mod's own Python gave, kept as
        it was.
    checks: what the trace relies on, by a name for each fact.
    seen: what the mod sees of the object (a number as its param, an array as a view), once it was read.
    """

    kind: str
    base: Path | None = None
    key: Any = None
    seen: Any = _UNREAD
    checks: dict[Hashable, Check] = field(default_factory=dict)
    steps: dict[tuple[str, Any], Path] = field(default_factory=dict)

    def step(self, kind: str, key: Any = None) -> Path:
        path = self.steps.get((kind, key))
        if path is None:
            path = self.steps[kind, key] = Path(kind, self, key)
        return path

    @property
    def is_read(self) -> bool:
        return self.seen is not _UNREAD

    def check(self, fact: Hashable, holds: Check) -> None:
        """The trace relies on `holds(object)`; `fact` names it, so that it is checked once."""
        if self.kind != "held":
            self.checks[fact] = holds

    def __str__(self) -> str:
        if self.kind in ("global", "cell", "kwdefault", "module", "result"):
            return str(self.key)
        if self.kind == "default":
            return str(self.key[1])
        if self.base is None or self.kind == "held":
            return "mod" if self.base is None else "computed"
        if self.kind == "table":
            return str(self.base)
        return f"{self.base}.{self.key}" if self.kind == "attr" else f"{self.base}[{self.key!r}]"

    def getters(self) -> tuple[Getter, ...]:
        """The way from the object at `base` to the object here, step by step."""
        key = self.key
        readers: dict[str, Callable[[], tuple[Getter, ...]]] = {
            "global": lambda: (GLOBALS, operator.itemgetter(key)),
            "cell": lambda: (CLOSURE, operator.itemgetter(key.index), CONTENTS),
            "attr": lambda: (operator.attrgetter(key),),
            "item": lambda: (operator.itemgetter(key),),
            "default": lambda: (DEFAULTS, operator.itemgetter(key[0])),
            "kwdefault": lambda: (KWDEFAULTS, operator.itemgetter(key)),
            "table": lambda: (as_number_array,),
            "module": lambda: (lambda function: sys.modules[key],),
            "held": lambda: (lambda function: key.value,),
        }
        return readers[self.kind]()


@dataclass(frozen=True)
class Cell:
    """A closure cell: the name and position of a free variable."""

    name: str
    index: int

    def __str__(self) -> str:
        return self.name


@dataclass(eq=False)
class Result:
    """`function(*operands)`, where an operand is the path of a captured number or a Python number."""

    function: Callable[..., Any]
    operands: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{getattr(self.function, '__name__', 'f')}({', '.join(map(str, self.operands))})"

    def computer(self, index: Mapping[Path, int]) -> Callable[[list[Any]], Any]:
        """A function from all objects read before to the number; `index` says where a path is among them."""
        function, text = self.function, str(self)
        sources = tuple((index[x], None) if isinstance(x, Path) else (None, x) for x in self.operands)

        def compute(objects: list[Any]) -> Any:
            operands = [constant if at is None else plain(objects[at]) for at, constant in sources]
            try:
                return plain(function(*operands))
            except ArithmeticError as error:
                raise type(error)(f"{error}, in {text}") from error

        return compute


@dataclass(eq=False)
class Held:
    """A value that has no path: the result of running the mod's own Python during the trace."""

    value: Any


def plain(value: Any) -> Any:
    """A numpy scalar as a Python number."""
    return value.item() if isinstance(value, np.generic) else value


def as_number_array(values: Any) -> Any:
    """A list or tuple of Python numbers as the numpy array that a kernel indexes."""
    array = np.asarray(values)
    return array.astype(np.float32) if array.dtype == np.float64 else array
