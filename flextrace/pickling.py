"""Mod -> what identifies it: for pickle its global name or its expression as Python text; for == its canonical form."""

from __future__ import annotations

import importlib
import linecache
import pickle
import re
import sys
import types
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from flextrace.tracer import Bound, Expr, function_text
from flextrace.tracer.expr.node import rebuild
from flextrace.tracer.source.signature import ARGUMENTS

_RENAMED = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "atan2": "arctan2"}
_RENAMED |= {"asinh": "arcsinh", "acosh": "arccosh", "atanh": "arctanh"}
_FUNCTIONS = (
    "exp expm1 log log2 log10 log1p sqrt rsqrt erf sigmoid sin cos tan asin acos atan atan2 sinh cosh tanh "
    "asinh acosh atanh floor ceil round"
).split()
# The functions that the rendered text calls, besides Python's own.
_NAMES: dict[str, Any] = {
    **{name: getattr(mx, _RENAMED.get(name, name)) for name in _FUNCTIONS},
    "exp2": np.exp2,
    "trunc": np.trunc,
}


def global_name(thing: Any, module: str | None, name: str) -> str | None:
    """The name under which `thing` itself is found in its module, or None: code that is run without a file has a
    module of any name, or none."""
    if module is None or module == "__main__":
        return None
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return None
    return name if found is thing else None


def rendered(bound: Bound) -> tuple[str, dict[str, Any]]:
    """A function of the same expression, as text, and the captured values that it names."""
    text = function_text("mod", ARGUMENTS[bound.trace.kind], bound.trace.expr)
    values = {f"array{slot}": array for slot, array in enumerate(bound.arrays)}
    values |= {f"number{slot}": number for slot, number in enumerate(bound.numbers)}
    return re.sub(r"\b(inf|nan)\b", r'float("\1")', text + "\n"), values


def canonical(bound: Bound) -> tuple[Expr, list[Any], list[bool | int | float]]:
    """The expression with its captured arrays and numbers in the order in which it names them, and these."""
    arrays: dict[int, int] = {}
    numbers: dict[int, int] = {}

    def renumbered(node: Expr, args: tuple[Expr, ...]) -> Expr:
        value = node.value
        if node.op == "load":
            value = (arrays.setdefault(value[0], len(arrays)), value[1])
        elif node.op == "param":
            value = numbers.setdefault(value, len(numbers))
        return Expr(node.op, node.dtype, args, value)

    expr = rebuild(bound.trace.expr, renumbered)
    return expr, [bound.arrays[slot] for slot in arrays], [bound.numbers[slot] for slot in numbers]


def same(first: Bound, second: Bound) -> bool:
    """Whether two mods are the same expression over equal captured values."""
    (expr, arrays, numbers), (other, others, its_numbers) = canonical(first), canonical(second)
    if expr is not other or numbers != its_numbers:
        return False
    pairs = [(_mlx(a), _mlx(b)) for a, b in zip(arrays, others, strict=True)]
    return all(a.dtype == b.dtype and bool(mx.array_equal(a, b)) for a, b in pairs)


def _mlx(array: Any) -> mx.array:
    return mx.array(np.ascontiguousarray(array)) if isinstance(array, np.ndarray) else array


def function_of(text: str, values: dict[str, Any], name: str) -> Callable[..., Any]:
    """The function that `rendered` wrote; it is traced, and shows its source, like any other."""
    file = f"<flextrace mod {hash((text, name)) & 0xFFFFFFFF:08x}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    scope: dict[str, Any] = {**_NAMES, **values, "__name__": __name__}
    exec(compile(text, file, "exec"), scope)
    function = scope["mod"]
    assert isinstance(function, types.FunctionType)
    function.__name__ = function.__qualname__ = name
    return function


# ---- pickles of before 0.1.0 ----------------------------------------------------------------------------------------

_FORMER: dict[str, dict[str, str]] = {  # module and name, as these pickles have them -> what to make anew
    "flextrace.mod": {"_unpickled": "the mod from its function"},
    "flextrace.kv_cache": {"Int8KV": "the Int8KV from its keys and values"},
    "flextrace.block_input": {"BlockRanges": "the runs with BlockMask.to_ranges"},
}


class _Former(types.ModuleType):
    """A module that is no more: what a pickle asks it for is an error that says so."""

    def __getattr__(self, name: str) -> Any:
        anew = _FORMER[self.__name__].get(name)
        if anew is None:
            raise AttributeError(f"module {self.__name__!r} is no more and has no attribute {name!r}")
        raise pickle.UnpicklingError(
            f"this pickle is of a flextrace before 0.1.0, it names {self.__name__}.{name}: make {anew}, and pickle it "
            "with this version"
        )


sys.modules.update({name: _Former(name) for name in _FORMER})
