"""Emitted C++ under the address and undefined-behaviour sanitizers, in processes of its own (sanitised.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import zoo

from flextrace.kernels.toolchain import find_compiler

FLAGS = "-fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=all -g1"
NAMES = list(zoo.ZOO)
PARTS = 12
TESTS = Path(__file__).parents[2]


def sanitised(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """sanitised.py with kernels that are compiled under sanitizers. Python's own objects come from malloc, so that what
    lies around each of them is known to be out of bounds."""
    compiler = find_compiler()
    assert compiler is not None
    asked = subprocess.run([compiler.path, "-print-file-name=libasan.so"], capture_output=True, text=True, check=False)
    library = Path(asked.stdout.strip())
    if not library.is_absolute():
        pytest.skip(f"{compiler.path} has no libasan.so")
    wrapper = folder / "c++"
    wrapper.write_text(f'#!/bin/sh\nexec "{compiler.path}" {FLAGS} "$@"\n')
    wrapper.chmod(0o755)
    environment = {
        **os.environ,
        "CXX": str(wrapper),
        "FLEXTRACE_CACHE_DIR": str(folder / "cache"),
        "LD_PRELOAD": str(library),
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]),
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0:alloc_dealloc_mismatch=0:exitcode=99",
        "UBSAN_OPTIONS": "print_stacktrace=1:exitcode=98",
    }
    command = [sys.executable, str(Path(__file__).parent / "sanitised.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
def test_kernels_of_the_zoo_stay_inside_their_arrays(tmp_path: Path, part: int) -> None:
    names = NAMES[part::PARTS]
    done = sanitised(tmp_path, *names)
    assert done.returncode == 0, done.stderr[-6000:]
    assert int(done.stdout.split()[0]) > len(names), "every mod was compiled, by the sanitizers' compiler"


@pytest.mark.long
@pytest.mark.parametrize(
    ("mistake", "name", "found"),
    [
        ("out of bounds", "noop", "AddressSanitizer: heap-buffer-overflow"),
        ("misaligned", "alibi", "misaligned address"),
    ],
)
def test_the_sanitizers_find_a_planted_mistake(tmp_path: Path, mistake: str, name: str, found: str) -> None:
    done = sanitised(tmp_path, "--plant", mistake, name)
    assert done.returncode != 0
    assert found in done.stderr
