"""Python callable -> its kind: whether it takes the arguments of a score_mod or of a mask_mod."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, Literal

from ..errors import Untraceable

Kind = Literal["score_mod", "mask_mod"]
ARGUMENTS: dict[Kind, tuple[str, ...]] = {
    "score_mod": ("score", "b", "h", "q_idx", "kv_idx"),
    "mask_mod": ("b", "h", "q_idx", "kv_idx"),
}
ScoreFunction = Callable[[Any, Any, Any, Any, Any], Any]
MaskFunction = Callable[[Any, Any, Any, Any], Any]  # two types, so that one in the other's place is an error of types
NOT_PLAIN = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
WRAPPED = "__flextrace_function__"  # the attribute in which a mod has the user's function
PASSED_AS: dict[Kind, str] = {"score_mod": "score_mod", "mask_mod": "block_mask"}


def name_of(function: Any) -> str:
    """The name that messages, manifests and kernels use."""
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def is_wrapped(function: Any) -> bool:
    """Whether a callable is a mod: it stands for the user's function, and only shows it."""
    return hasattr(function, WRAPPED)


def wrapped(mod: Any) -> Any:
    """The user's function that a mod stands for."""
    return getattr(mod, WRAPPED)


def underlying(function: Any) -> types.FunctionType | None:
    """The function written in Python that a call of `function` ends in, if there is one."""
    if type(function) is types.FunctionType:
        return function
    while isinstance(function, functools.partial) or is_wrapped(function):
        function = function.func if isinstance(function, functools.partial) else wrapped(function)
    if isinstance(function, functools._lru_cache_wrapper):
        function = function.__wrapped__
    if not isinstance(function, (types.FunctionType, types.MethodType, type)):
        function = getattr(function, "__call__", function)  # noqa: B004 (the bound method itself is wanted)
    function = getattr(function, "__func__", function)
    return function if isinstance(function, types.FunctionType) else None


def check_parameters(function: Any, kind: Kind) -> None:
    """Raises Untraceable unless `function` is plain Python and takes the arguments of its kind."""
    wanted = ARGUMENTS[kind]
    python = underlying(function)
    if python is None:
        raise Untraceable(
            f"{name_of(function)} is not a function written in Python", f"wrap it: def mod({', '.join(wanted)}): ..."
        )
    check_plain(python.__code__)
    count = count_parameters(function)
    owner, _, name = python.__qualname__.rpartition("<locals>.")[2].rpartition(".")
    first = python.__code__.co_varnames[:1]
    if owner and function is python and count == len(wanted) + 1 and first in (("self",), ("cls",)):
        raise Untraceable(
            f"{name} is a method and belongs to an instance: its first argument is {first[0]}",
            f"take that of an instance: {owner}(...).{name}",
        )
    if count is not None and count != len(wanted):
        raise Untraceable(
            f"a {kind} takes {len(wanted)} arguments ({', '.join(wanted)}), {name_of(function)} takes {count}",
            _remedy(function, python, kind, count),
        )


def check_plain(code: types.CodeType) -> None:
    """Raises Untraceable for the code of a generator or of an async function."""
    if code.co_flags & NOT_PLAIN:
        kind = "a generator" if code.co_flags & inspect.CO_GENERATOR else "an async function"
        raise Untraceable(f"{code.co_name} is {kind}", "write a plain function that returns one value")


def _remedy(function: Any, python: types.FunctionType, kind: Kind, count: int) -> str:
    """What to write for a function that takes `count` arguments, which are not those of its kind."""
    name, made, wanted = name_of(function), _made_by(python), ", ".join(ARGUMENTS[kind])
    if made is not None:
        owner = "flex.mods." if python.__module__.startswith("flextrace.mods.") else ""
        names = python.__code__.co_varnames[: python.__code__.co_argcount]
        call = f"{owner}{name}({', '.join(names[: max(1, count)])})"
        return f"it makes a {made}: call it and pass what it gives as {PASSED_AS[made]}, {call}"
    write = f"lambda {wanted}: ..." if name == "<lambda>" else f"def {name}({wanted}): ..."
    first = python.__code__.co_varnames[:1]
    for other, arguments in ARGUMENTS.items():
        if other != kind and len(arguments) == count and (other == "score_mod" or first != ("score",)):
            return f"a function of {count} arguments is a {other}: pass it as {PASSED_AS[other]}; else write {write}"
    return f"write {write}"


def _made_by(factory: types.FunctionType) -> Kind | None:
    """The kind of mod that a function makes: by what it says that it returns, or by the function inside it."""
    said = factory.__annotations__.get("return")
    said = said if isinstance(said, str) else getattr(said, "__name__", "")
    names: dict[str, Kind] = {"ScoreMod": "score_mod", "MaskMod": "mask_mod"}
    if said.rpartition(".")[2] in names:
        return names[said.rpartition(".")[2]]
    if {*factory.__code__.co_varnames[: factory.__code__.co_argcount]} & {*ARGUMENTS["score_mod"]}:
        return None
    inner = {code.co_argcount for code in factory.__code__.co_consts if isinstance(code, types.CodeType)}
    return next((kind for kind, arguments in ARGUMENTS.items() if len(arguments) in inner), None)


def count_parameters(function: Any) -> int | None:
    """How many positional parameters without default a call must give; None where *args takes any number."""
    if type(function) is types.FunctionType and not hasattr(function, "__wrapped__"):
        code = function.__code__
        if code.co_flags & inspect.CO_VARARGS:
            return None
        return code.co_argcount - len(function.__defaults__ or ())
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.default is p.empty for p in parameters if p.kind in positional)
