"""Source text -> shared object: the system's C++ compiler, its flags and its fingerprint."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flextrace.tracer.errors import Brief

# No -ffast-math: attention needs inf and nan. Each flag alone keeps IEEE values:
# -fwrapv: int32 wraps; -ffp-contract=fast: fused multiply-add; no errno, no traps: vectorised math.
FLAGS = (
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-shared",
    "-fwrapv",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-exceptions",
    "-fno-rtti",
    "-fvisibility=hidden",
    "-Wno-psabi",
    "-pthread",
)
REMEDY = (
    "install a C++17 compiler (Debian/Ubuntu: apt install g++, Fedora: dnf install gcc-c++, "
    "macOS: xcode-select --install) or name one in CXX"
)


class CompileError(Brief, RuntimeError):
    """The compiler refused a kernel; the message holds its output and the command."""


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler on this machine.

    words: between the program and the flags, as in CXX="ccache g++" or "g++ -m64".
    chosen: the value of CXX, where that chose it.
    fingerprint: changes with the compiler's file, the processor's features and the flags; part of a kernel's key,
    because home folders are shared between machines.
    """

    path: str
    flags: tuple[str, ...]
    fingerprint: str
    words: tuple[str, ...] = ()
    chosen: str = ""

    def run(self, arguments: Sequence[str], folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        """What the compiler says to these arguments, with its temporary files in `folder`.

        Raises:
            CompileError: the program cannot be run.
        """
        environment = dict(os.environ) if folder is None else {**os.environ, "TMPDIR": str(folder)}
        try:
            return subprocess.run(
                [self.path, *self.words, *arguments],
                capture_output=True,
                encoding="utf-8",
                errors="replace",  # a compiler quotes sources of any encoding, and speaks that of its locale
                check=False,
                env=environment,
            )
        except OSError as error:
            raise CompileError(f"cannot run {self}: {error}; {self._remedy()}") from error

    def version(self) -> str:
        """The first line of `--version`. Raises CompileError."""
        done = self.run(["--version"])
        return (done.stdout or done.stderr).strip().split("\n")[0]

    def build(self, source: Path, output: Path) -> list[str]:
        """Compile `source` into the shared object `output`; gives the command.

        Raises:
            CompileError: the compiler failed.
        """
        arguments = [*self.flags, "-o", str(output), str(source), "-lm"]
        command = [self.path, *self.words, *arguments]
        # The compiler's own temporary files go beside its output, so that a full /tmp is no obstacle.
        done = self.run(arguments, output.parent)
        if done.returncode != 0:
            shown = "\n".join(done.stderr.splitlines()[:40])
            raise CompileError(f"{self} failed ({done.returncode}):\n{shown}\ncommand: {shlex.join(command)}")
        if not output.is_file():
            wrote = f"ended with status 0 and wrote no {output}; {self._remedy()}"
            raise CompileError(f"{self} {wrote}\ncommand: {shlex.join(command)}")
        return command

    def __str__(self) -> str:
        return f"{self.path}, of CXX={self.chosen!r}," if self.chosen else self.path

    def _remedy(self) -> str:
        return "unset CXX, or name a C++17 compiler in it" if self.chosen else REMEDY


@functools.cache
def find_compiler(wanted: str | None = None) -> Compiler | None:
    """The compiler that `wanted` (CXX) names as a shell would read it, else the first of c++, g++, clang++ on the path;
    None without one."""
    wanted = (wanted or "").strip()
    choices = [_words(wanted)] if wanted else [["c++"], ["g++"], ["clang++"]]
    found, words = next(((path, rest) for name, *rest in choices if (path := shutil.which(name))), (None, []))
    if found is None:
        return None
    flags = (*FLAGS, *native_flags())
    programs = [path for name in words if not name.startswith("-") and (path := shutil.which(name))]  # ccache's g++
    files = [(path, *_times(path)) for path in map(os.path.realpath, [found, *programs])]
    identity = (files, words, platform.machine(), sys.platform, cpu_features(), flags)
    return Compiler(found, flags, hashlib.sha256(repr(identity).encode()).hexdigest(), tuple(words), wanted)


def no_compiler(wanted: str | None) -> str:
    """Why `find_compiler` found none, and the remedy."""
    why = f": CXX={wanted!r} names no program that can be run" if wanted and wanted.strip() else ""
    return f"no C++ compiler{why}; {REMEDY}"


def _words(wanted: str) -> list[str]:
    """CXX as make has a shell read it; a path with spaces that exists stays whole."""
    if shutil.which(wanted):
        return [wanted]
    try:
        return shlex.split(wanted) or [wanted]
    except ValueError:  # a quote that is not closed
        return [wanted]


def _times(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def native_flags() -> tuple[str, ...]:
    """Compile for this machine's processor."""
    return ("-mcpu=native",) if platform.machine() in ("arm64", "aarch64") else ("-march=native",)


@functools.cache
def cpu_features() -> str:
    """The processor's model and instruction sets, as the system names them."""
    if sys.platform == "darwin":
        names = ("machdep.cpu.brand_string", "hw.optional")
        done = subprocess.run(["sysctl", *names], capture_output=True, encoding="utf-8", errors="replace", check=False)
        return done.stdout
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    seen: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in wanted:
            seen.setdefault(name.strip(), value.strip())
        elif not line.strip() and seen:
            break  # the first processor speaks for all
    return repr(sorted(seen.items()))
