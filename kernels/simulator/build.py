"""C++ text -> shared object: the system's g++, the stand-in headers, the runtime, kept in the cache."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flextrace.cache import LoadError, Store, key_of

from ..toolchain import CompileError, Compiler, find_compiler, native_flags

RUNTIME_FOLDER, STDLIB = (Path(__file__).parent / name for name in ("runtime", "stdlib"))
LIBRARY, SOURCE, OBJECT, RUNTIME = "kernel.so", "kernel.cpp", "kernel.o", "runtime.o"
REMEDY = "install g++ 12 or later (Debian/Ubuntu: apt install g++) or name one in CXX"
# Constants are single precision and half stays half, as in Metal; nothing is contracted, so that results repeat.
LANGUAGE = (
    "-std=c++20",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-threadsafe-statics",
    "-fno-strict-aliasing",
    "-fstack-clash-protection",  # a frame too large for its lane's stack meets the guard page
    "-fwrapv",
    "-ffp-contract=off",
    "-fsingle-precision-constant",
    "-fexcess-precision=16",
    "-w",
)
# Unoptimised, every access that the text makes is one call of a hook: vector code would be counted wrongly.
# Version 4 of DWARF: addr2line of binutils 2.40 misreads the file names of version 5.
CHECKED = ("-O0", "-g", "-gdwarf-4", "-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0")
PLAIN = ("-O2", "-g", "-gdwarf-4")
RUNTIME_FLAGS = ("-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti")

_built: dict[str, Library] = {}  # by key, so that a second call in this process need not verify it again


class SimulatorUnavailable(RuntimeError):
    """This machine cannot run the simulator; the message names the remedy."""


@dataclass(frozen=True)
class Library:
    """A kernel's shared object: loaded, and where it lies on disk, which names the lines of addresses in it."""

    loaded: ctypes.CDLL
    path: Path


def compiler() -> Compiler:
    """The g++ that builds kernels. Raises SimulatorUnavailable."""
    wanted = os.environ.get("CXX", "").strip()
    for name in [wanted] if wanted else ["g++", "c++"]:
        found = find_compiler(name)
        if found is not None and _is_recent_gcc(found):
            return replace(found, flags=(), chosen=wanted)
    why = f": CXX={wanted!r} is none" if wanted else ""
    raise SimulatorUnavailable(f"the simulator found no g++ 12 or later{why}; {REMEDY}")


@functools.cache
def _is_recent_gcc(found: Compiler) -> bool:
    try:
        done = found.run(["-dM", "-E", "-x", "c++", os.devnull])
    except CompileError:  # a file that is no program
        return False
    version = re.search(r"#define __GNUC__ (\d+)", done.stdout)
    return "__clang__" not in done.stdout and version is not None and int(version[1]) >= 12


def build(text: str, checks: bool, name: str) -> Library:
    """The shared object of a kernel's C++ text, from the cache or compiled now.

    Raises:
        CompileError: the compiler refused the kernel; its messages name the kernel's own lines.
        SimulatorUnavailable: there is no compiler.
    """
    gcc = compiler()
    flags = (*LANGUAGE, *native_flags(), *(CHECKED if checks else PLAIN))

    def make(folder: Path) -> dict[str, Any]:
        (folder / SOURCE).write_text(text, encoding="utf-8")
        compile_ = replace(gcc, flags=(*flags, "-I", str(STDLIB), "-c"))
        command = compile_.build(folder / SOURCE, folder / OBJECT)
        (folder / RUNTIME).write_bytes(_runtime(gcc))
        link = replace(gcc, flags=("-shared", "-Wl,-Bsymbolic", str(folder / RUNTIME)))
        link.build(folder / OBJECT, folder / LIBRARY)
        (folder / OBJECT).unlink()
        (folder / RUNTIME).unlink()
        return {
            "backend": "simulator",
            "kernel": name,
            "checks": checks,
            "flags": command[1:-4],
            "compiler": gcc.version(),
        }

    key = key_of("simulator kernel", text, _texts(), gcc.fingerprint, " ".join((*flags, *RUNTIME_FLAGS)))
    known = _built.get(key)
    if known is None or not known.path.is_file():
        entry, loaded = Store().load_or_build(key, make, LIBRARY, _load, [SOURCE])
        known = _built[key] = Library(loaded, entry.folder / LIBRARY)
    return known


def _load(path: Path) -> ctypes.CDLL:
    try:
        loaded = ctypes.CDLL(str(path))
        loaded.flextrace_simulate.restype = ctypes.c_int
    except (OSError, AttributeError) as error:
        raise LoadError(
            f"the simulator's kernel cannot be loaded: {error}; if its folder is mounted noexec, point TMPDIR or "
            "FLEXTRACE_CACHE_DIR at another one, else name another g++ in CXX"
        ) from error
    return loaded


def _runtime(gcc: Compiler) -> bytes:
    """The object file that every kernel is linked with."""

    def make(folder: Path) -> dict[str, Any]:
        for file in RUNTIME_FOLDER.iterdir():
            shutil.copyfile(file, folder / file.name)
        compile_ = replace(gcc, flags=(*RUNTIME_FLAGS, "-c"))
        compile_.build(folder / "runtime.cpp", folder / RUNTIME)
        return {"backend": "simulator", "kernel": "the runtime", "compiler": gcc.version()}

    key = key_of("simulator runtime", _texts(), gcc.fingerprint, " ".join(RUNTIME_FLAGS))
    return Store().get_or_build(key, make, [RUNTIME]).contents[RUNTIME]


def _files() -> list[Path]:
    return [*headers(), RUNTIME_FOLDER / "runtime.cpp"]


def headers() -> list[Path]:
    """The headers of the simulator, which are no lines of a kernel."""
    return sorted([*RUNTIME_FOLDER.glob("*.h"), *STDLIB.glob("*.h")])


@functools.cache
def _texts() -> str:
    return "".join(f"{file.name}\n{file.read_text(encoding='ascii')}" for file in _files())


@functools.cache
def places(library: str, address: int) -> list[tuple[str, int]]:
    """(file, line) of an address in a kernel's library, innermost inlined function first; empty if unknown."""
    tool = shutil.which("addr2line")
    if tool is None or address <= 0:
        return []
    command = [tool, "-i", "-e", library, hex(address - 1)]  # the call itself lies before its return address
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    found = []
    for line in done.stdout.splitlines():
        matched = re.match(r"(.*):(\d+)", line)
        if matched and matched[1] != "??":
            found.append((matched[1], int(matched[2])))
    return found


__all__ = ["CompileError", "Library", "SimulatorUnavailable", "build", "compiler", "headers", "places"]
