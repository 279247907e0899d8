"""Imports of the whole tree -> what may call what: rooms in order, no import upwards, no circle, no crowded folder.

An import counts wherever it stands: inside a function, under TYPE_CHECKING, as `#include "file"` in a kernel's text.
The exceptions are listed by name, and the lists can only shrink: one that is no longer needed fails its test.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
SUFFIXES = (".py", ".h", ".cpp", ".metal", ".cu")
TOPS = ("tracer", "cache", "kernels", "flextrace")

# Every room, the lowest first: a file imports from rooms that stand before its own, and from its own. A room is a
# folder, which ends in "/", or one file (without its ending) that has another place in the order than its folder.
ROOMS = """
tracer/locks tracer/errors tracer/nearest
tracer/expr/
tracer/source/
tracer/captures/
tracer/porting/
tracer/bounds/
tracer/emit/
tracer/semantics/
tracer/frontends/
tracer/frontends/syntax/ tracer/frontends/bytecode/
tracer/
cache/

kernels/template/
kernels/
kernels/stages/
kernels/backend kernels/loading kernels/differentiation
kernels/gpu/
kernels/cpu/tile/
kernels/cpu/mod/
kernels/cpu/int8/
kernels/cpu/attention/
kernels/cpu/params kernels/cpu/generate kernels/cpu/launch
kernels/cpu/stages/
kernels/cpu/
kernels/metal/device kernels/metal/scoring
kernels/metal/tile/
kernels/metal/mod/
kernels/metal/attention/
kernels/metal/params kernels/metal/text kernels/metal/kernel kernels/metal/generate
kernels/metal/async_copy/
kernels/metal/int8/
kernels/metal/stages/
kernels/metal/launch
kernels/metal/decode/
kernels/metal/backward/
kernels/metal/captured/
kernels/metal/
kernels/cuda/device kernels/cuda/nvrtc
kernels/cuda/tile/
kernels/cuda/mod/
kernels/cuda/attention/
kernels/cuda/generate kernels/cuda/launch
kernels/cuda/hopper/
kernels/cuda/backward/differentiate kernels/cuda/backward/rows kernels/cuda/backward/transposed
kernels/cuda/backward/site_sums
kernels/cuda/backward/hopper/
kernels/cuda/backward/
kernels/cuda/captured/
kernels/cuda/decode/
kernels/cuda/int8/
kernels/cuda/stages/
kernels/cuda/
kernels/simulator/runtime/
kernels/simulator/stdlib/
kernels/simulator/translate/
kernels/simulator/registers/
kernels/simulator/
kernels/ops/
kernels/registry kernels/__init__

flextrace/mlx_build flextrace/notices
flextrace/advice/
flextrace/pickling
flextrace/decorators
flextrace/block_mask/
flextrace/stages/
flextrace/int8/
flextrace/merge
flextrace/checks flextrace/options flextrace/run flextrace/attention
flextrace/mods/
flextrace/nn/
flextrace/simulator
flextrace/show/
flextrace/warm
flextrace/
flextrace/exact
flextrace/bench/
flextrace/doctor/
flextrace/demo/
flextrace/commands/
flextrace/cli flextrace/__main__
""".split()

UPWARD: set[tuple[str, str]] = set()

IN_CIRCLES: set[str] = set()

FLAT = 14  # files of one folder
CROWDED: set[str] = set()


def folder_of(file: str) -> str:
    return f"{Path(file).parent.as_posix()}/"


def room(file: str) -> str:
    alone = Path(file).with_suffix("").as_posix()
    return alone if alone in ROOMS else folder_of(file)


@cache
def files() -> dict[str, Path]:
    """The sources of the library, by their paths in the repository."""
    found = [path for top in TOPS for path in sorted((ROOT / top).rglob("*"))]
    return {
        path.relative_to(ROOT).as_posix(): path
        for path in found
        if path.suffix in (".py", ".h", ".cpp", ".metal", ".cu")
    }


@cache
def imports() -> dict[str, set[str]]:
    """What each file names of the others."""
    return {name: (_of_python if path.suffix == ".py" else _of_text)(name, path) for name, path in files().items()}


def _module(parts: tuple[str, ...]) -> str | None:
    """The file of an installed module, whose name starts with flextrace; None for others."""
    if parts[:1] != ("flextrace",):
        return None
    parts = parts[1:] if parts[1:2] and parts[1] in TOPS else parts
    ends = (f"{'/'.join(parts)}.py", f"{'/'.join(parts)}/__init__.py")
    return next((name for name in ends if name in files()), None)


def _of_python(name: str, path: Path) -> set[str]:
    package = Path(name).parent.parts
    package = package if package[0] == "flextrace" else ("flextrace", *package)
    found: set[str | None] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {_module(tuple(alias.name.split("."))) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base += tuple((node.module or "").split(".")) if node.module else ()
            found |= {_module((*base, alias.name)) or _module(base) for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("flextrace."):
            found.add(_module(tuple(node.value.split("."))))  # as import_module takes it
    return {other for other in found if other is not None} - {name}


def _of_text(name: str, path: Path) -> set[str]:
    included = re.findall(r'^\s*#include\s+"([^"]+)"', path.read_text(encoding="ascii"), re.MULTILINE)
    beside = {(path.parent / other).resolve() for other in included}
    return {other for other, its_path in files().items() if its_path.resolve() in beside} - {name}


def circles() -> list[set[str]]:
    """Groups of files each of which is reached from each other one."""
    reached = {name: _reached(name) for name in files()}
    found: list[set[str]] = []
    for name in files():
        circle = {other for other in reached[name] if name in reached[other]}
        if circle and circle not in found:
            found.append(circle)
    return found


def _reached(name: str) -> set[str]:
    seen: set[str] = set()
    to_do = [name]
    while to_do:
        new = imports()[to_do.pop()] - seen
        seen |= new
        to_do += new
    return seen


def test_every_folder_is_a_room() -> None:
    assert len(set(ROOMS)) == len(ROOMS)
    used = {room(name) for name in files()}
    assert used - set(ROOMS) == set(), "name these folders in ROOMS, each above all that it imports"
    assert set(ROOMS) - used == set(), "these rooms hold nothing: strike them"


def test_imports_go_down() -> None:
    place = {name: at for at, name in enumerate(ROOMS)}
    pairs = {(name, other) for name, others in imports().items() for other in others}
    upward = {(name, other) for name, other in pairs if place[room(name)] < place[room(other)]}
    assert upward - UPWARD == set(), "each imports a file of a room above its own"
    assert UPWARD - upward == set(), "these do so no longer: strike them"


def test_files_import_each_other_in_no_circle() -> None:
    found: set[str] = set().union(*circles())
    assert found - IN_CIRCLES == set(), [sorted(circle) for circle in circles()]
    assert IN_CIRCLES - found == set(), "these are in no circle any more: strike them"


def test_no_folder_is_crowded() -> None:
    count = Counter(folder_of(name) for name in files() if not name.endswith("/__init__.py"))
    crowded = {folder for folder, number in count.items() if number > FLAT}
    assert crowded - CROWDED == set(), f"a folder of more than {FLAT} files does not say where you are: give it rooms"
    assert CROWDED - crowded == set(), "these are crowded no more: strike them"


def test_tests_lie_in_folders_of_the_library() -> None:
    tests = [path.relative_to(ROOT / "tests") for top in TOPS for path in (ROOT / "tests" / top).rglob("*.py")]
    assert tests
    assert {path.parent.as_posix() for path in tests if not (ROOT / path.parent).is_dir()} == set()
