"""Source text -> shared object: the system's C++ compiler, its flags and its fingerprint."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

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


class CompileError(RuntimeError):
    """The compiler refused a kernel; the message holds its output and the command."""


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler on this machine.

    fingerprint: changes with the compiler's file, the processor's features and the flags; part of a kernel's key,
    because home folders are shared between machines.
    """

    path: str
    flags: tuple[str, ...]
    fingerprint: str

    def version(self) -> str:
        """The first line of `--version`."""
        done = subprocess.run([self.path, "--version"], capture_output=True, text=True, check=False)
        return (done.stdout or done.stderr).strip().split("\n")[0]

    def build(self, source: Path, output: Path) -> list[str]:
        """Compile `source` into the shared object `output`; gives the command.

        Raises:
            CompileError: the compiler failed.
        """
        command = [self.path, *self.flags, "-o", str(output), str(source), "-lm"]
        try:
            # The compiler's own temporary files go beside its output, so that a full /tmp is no obstacle.
            environment = {**os.environ, "TMPDIR": str(output.parent)}
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        except OSError as error:
            raise CompileError(f"cannot run {self.path}: {error}; {REMEDY}") from error
        if done.returncode != 0:
            shown = "\n".join(done.stderr.splitlines()[:40])
            raise CompileError(f"{self.path} failed ({done.returncode}):\n{shown}\ncommand: {' '.join(command)}")
        if not output.is_file():
            raise CompileError(f"{self.path} ended with status 0 and wrote no {output}\ncommand: {' '.join(command)}")
        return command


@functools.cache
def find_compiler(wanted: str | None = None) -> Compiler | None:
    """The compiler named by `wanted` (CXX), else the first of c++, g++, clang++ on the path; None without one."""
    names = [wanted] if wanted else ["c++", "g++", "clang++"]
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        return None
    path = os.path.realpath(found)
    flags = (*FLAGS, *native_flags())
    status = os.stat(path)
    identity = (path, status.st_size, status.st_mtime_ns, platform.machine(), sys.platform, cpu_features(), flags)
    return Compiler(found, flags, hashlib.sha256(repr(identity).encode()).hexdigest())


def native_flags() -> tuple[str, ...]:
    """Compile for this machine's processor."""
    return ("-mcpu=native",) if platform.machine() in ("arm64", "aarch64") else ("-march=native",)


@functools.cache
def cpu_features() -> str:
    """The processor's model and instruction sets, as the system names them."""
    if sys.platform == "darwin":
        names = ("machdep.cpu.brand_string", "hw.optional")
        done = subprocess.run(["sysctl", *names], capture_output=True, text=True, check=False)
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
