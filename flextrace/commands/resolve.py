"""MODULE:NAME on a command line -> the mod of that name."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from flextrace.block_mask import BlockMask
from flextrace.decorators import MaskMod, Mod, ScoreMod
from flextrace.tracer import name_of
from flextrace.tracer.errors import with_article
from flextrace.tracer.nearest import nearest
from flextrace.tracer.source.signature import count_parameters, underlying

FORM = "write MODULE:NAME or FILE.py:NAME, such as flextrace.mods:causal or notes/masks.py:alibi"
_PAIR = re.compile(r"(?P<place>[^:]+):(?P<name>[\w.]+)(\+(?P<second>.+))?")
_OF_COUNT: dict[int, type[Mod]] = {5: ScoreMod, 4: MaskMod}


class ResolveError(ValueError):
    """No mod has that name; the message says what is there, or names the remedy."""


def find_mod(target: str) -> ScoreMod | MaskMod:
    """The mod that `target` names: "package.module:name", "path/to/file.py:name", with dots for attributes.

    A plain function of five parameters is a score_mod, of four a mask_mod. The current folder is importable.

    Raises:
        ResolveError: there is no such module or name, it is no mod, or its module fails when it is imported.

    Example:
        >>> find_mod("flextrace.mods:causal")
        <mask_mod causal>
    """
    place, _, name = target.partition(":")
    if not place or not name:
        raise ResolveError(f"{target!r} names no mod: {FORM}")
    owner: Any = None
    found: Any = _module(place)
    for depth, part in enumerate(name.split(".")):
        try:
            owner, found = found, getattr(found, part)
        except AttributeError:
            whole = ".".join([place, *name.split(".")[:depth]])
            raise ResolveError(f"{whole} has no {part!r}; {_offer(found, part)}") from None
    if inspect.isclass(owner) and isinstance(found, FunctionType):
        first = found.__code__.co_varnames[:1]
        if first in (("self",), ("cls",)):
            raise ResolveError(
                f"{target} is a method and belongs to an instance, its first argument is {first[0]}; make one, "
                f"as in a = {owner.__name__}(...) at module level, and name {place}:a.{found.__name__}"
            )
    return _as_mod(found, target)


def find_mods(target: str) -> tuple[ScoreMod | None, MaskMod | None]:
    """One mod, or a score_mod and a mask_mod for the same call: "notes.py:alibi+causal", "a:alibi+b:causal".

    Raises:
        ResolveError: as find_mod; or two mods of one kind.
    """
    split = _PAIR.fullmatch(target)
    if split is None:
        raise ResolveError(f"{target!r} names no mod: {FORM}, or two of them as MODULE:SCORE+MASK")
    mods: list[ScoreMod | MaskMod] = [find_mod(f"{split['place']}:{split['name']}")]
    if split["second"] is not None:
        second = split["second"] if ":" in split["second"] else f"{split['place']}:{split['second']}"
        mods.append(find_mod(second))
    scores = [mod for mod in mods if isinstance(mod, ScoreMod)]
    masks = [mod for mod in mods if isinstance(mod, MaskMod)]
    if max(len(scores), len(masks)) > 1:
        raise ResolveError(
            f"{target} names two {mods[0].kind}s, and a call takes one of each kind; "
            "combine masks in Python with & and |, or call one score function in another"
        )
    return (scores[0] if scores else None, masks[0] if masks else None)


def _module(place: str) -> ModuleType:
    """The module, or the file as a module."""
    try:
        here = Path.cwd()
    except FileNotFoundError:
        raise ResolveError("the current folder was deleted; cd to one that exists") from None
    path = (here / place).resolve() if place.endswith(".py") or "/" in place else None
    for folder in map(str, (here, path.parent) if path else (here,)):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    if path is not None:
        return _from_file(path, place)
    try:
        module: ModuleType = _imported(place, lambda: importlib.import_module(place))
        return module
    except ModuleNotFoundError as error:
        file = Path(*place.split(".")).with_suffix(".py")
        raise ResolveError(
            f"there is no module {error.name!r}, neither installed nor in this folder; "
            f"install it, or name its file: path/to/{file.name}:NAME"
        ) from error


def _from_file(path: Path, given: str) -> ModuleType:
    if not path.is_file():
        raise ResolveError(f"there is no file {given}; the path is from the current folder, {Path.cwd()}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ResolveError(f"{given} is not Python source; name a file that ends in .py")
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    module = importlib.util.module_from_spec(spec)
    if known is None:
        sys.modules[path.stem] = module
    loader = spec.loader
    try:
        _imported(given, lambda: loader.exec_module(module))
    except BaseException:
        if known is None:
            del sys.modules[path.stem]
        raise
    return module


def _imported(place: str, load: Callable[[], Any]) -> Any:
    """What `load` gives. Raises ResolveError where the user's own module raises, ModuleNotFoundError where it is
    `place` that does not exist."""
    try:
        return load()
    except SystemExit as error:
        raise ResolveError(
            f"{place} ends the program when it is imported; put what it runs under `if __name__ == '__main__':`"
        ) from error
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{place}.".startswith(f"{error.name}."):
            raise
        kind, run = type(error).__name__, shlex.quote(place) if place.endswith(".py") else f"-m {place}"
        remedy = f"`python {run}` shows where"
        if isinstance(error, ImportError) and "relative import" in str(error):
            remedy = "it belongs to a package: name it as package.module:NAME from the folder of the package"
        raise ResolveError(f"importing {place} failed with {kind}: {error}; {remedy}") from error


def _offer(owner: Any, missing: str) -> str:
    """What to write instead of a name that is not there."""
    mods = [name for name, value in vars(owner).items() if isinstance(value, Mod)] if hasattr(owner, "__dict__") else []
    near = nearest(missing, mods or dir(owner))
    if near:
        return f"did you mean {near!r}?"
    return f"its mods: {', '.join(mods)}" if mods else "it has no mods: decorate one with @flex.score_mod or mask_mod"


def _as_mod(found: Any, target: str) -> ScoreMod | MaskMod:
    if isinstance(found, (ScoreMod, MaskMod)):
        return found
    if isinstance(found, BlockMask):
        raise ResolveError(f"{target} is a BlockMask; name its function: {target}.mask_mod")
    if not callable(found) or inspect.isclass(found) or underlying(found) is None:
        raise ResolveError(f"{target} is {with_article(type(found).__name__)}, not a mod; name a function")
    count = count_parameters(found)
    if _returns_mod(found) or count not in _OF_COUNT:
        takes = "any number of parameters" if count is None else f"{count} parameter{'' if count == 1 else 's'}"
        raise ResolveError(
            f"{target} takes {takes}: it is no score_mod (score, b, h, q_idx, kv_idx) and no mask_mod "
            f"(b, h, q_idx, kv_idx). If it makes a mod, name what it made: write my_mod = {name_of(found)}(...) "
            "in a module of yours and name MODULE:my_mod"
        )
    kind = _OF_COUNT[count]
    made = kind(found)
    assert isinstance(made, (ScoreMod, MaskMod))
    return made


def _returns_mod(function: Any) -> bool:
    """Whether a function says that it makes a mod; such a factory may have four parameters too."""
    annotation = getattr(underlying(function), "__annotations__", {}).get("return")
    name = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return name.rpartition(".")[2] in ("ScoreMod", "MaskMod", "Mod")
