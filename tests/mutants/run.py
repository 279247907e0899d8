"""table.MUTANTS -> which of them the tests let through: `make mutants`.

A mutant is one small mistake planted in the source. For each row of the table, the tests it names run on a copy of the
tree that has the mistake; they must fail. They must pass on the copy without it, or the row says nothing. (DeMillo,
Lipton, Sayward: Hints on test data selection, 1978.) All copies compile into one cache, FLEXTRACE_CACHE_DIR where it is
set, so a kernel that a mistake does not touch is compiled once.

    python tests/mutants/run.py                 every row, on as many processes as there are cores
    python tests/mutants/run.py walk.h joins    the rows whose file or change has one of these words

Exit status 0: every mistake is caught. 1: one survived, or tests fail without it. 2: a row fits the tree no more.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
from table import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
PACKAGES = ("tracer", "kernels", "cache")  # installed inside flextrace
SECONDS = 400  # one run of tests; a mutant that never ends is caught too


class Outcome(NamedTuple):
    """failed: the first test that did, which caught the mistake; "" where all pass."""

    failed: str
    output: str
    seconds: float


class Copy:
    """The tracked and new files of the tree in a folder where `import flextrace` finds them."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        for name in filter(None, listed.stdout.decode().split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, folder / name)
        for name in PACKAGES:
            (folder / "flextrace" / name).symlink_to(folder / name, target_is_directory=True)
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(folder),
            "PYTHONDONTWRITEBYTECODE": "1",  # a mutant may keep the size and the second of a file
            "FLEXTRACE_CACHE_DIR": str(cache),
            "HYPOTHESIS_STORAGE_DIRECTORY": str(folder / ".hypothesis"),
        }

    def outcome(self, tests: Sequence[str], seconds: float | None = SECONDS) -> Outcome:
        """What these tests say here, up to the first that fails. A matrix's part that is for test-long stays out."""
        options = ["-x", "-q", "-n0", "-m", "not long", "-p", "no:cacheprovider", "--no-header"]
        command, started = [sys.executable, "-m", "pytest", *options, *tests], time.perf_counter()
        try:
            done = subprocess.run(
                command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=seconds
            )
        except subprocess.TimeoutExpired as error:
            return Outcome(f"no end after {error.timeout:.0f} s", "", error.timeout)
        if done.returncode in (3, 4, 5):  # internal error, usage, no test: not an answer
            raise RuntimeError(f"pytest could not run {' '.join(tests)}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        named = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
        failed = named[1] if named else f"pytest's status {done.returncode}"
        return Outcome(failed if done.returncode else "", done.stdout, time.perf_counter() - started)

    def run(self, mutant: Mutant) -> Outcome:
        """Its tests, with the mistake in place; afterwards the file is as before."""
        path = self.folder / mutant.file
        text = path.read_text()
        path.write_text(mutant.applied(text))
        try:
            return self.outcome(mutant.tests)
        finally:
            path.write_text(text)


def by_file(mutants: Iterable[Mutant]) -> list[list[str]]:
    """The tests that rows name, a list for each file of tests."""
    files: dict[str, set[str]] = {}
    for test in (test for mutant in mutants for test in mutant.tests):
        files.setdefault(test.partition("::")[0], set()).add(test)
    return [[file] if file in tests else sorted(tests) for file, tests in sorted(files.items())]


def chosen(words: Iterable[str]) -> list[Mutant]:
    words = list(words)
    return [m for m in MUTANTS if not words or any(word in f"{m.file} {m.old} {m.new}" for word in words)]


def stale(mutants: Iterable[Mutant]) -> list[str]:
    """What no longer fits the tree, a sentence each."""
    found = []
    for mutant in mutants:
        path = ROOT / mutant.file
        times = path.read_text().count(mutant.old) if path.is_file() else 0
        if times != 1:
            found.append(f"{mutant.file}: {mutant.old!r} stands there {times} times, not once")
        for test in mutant.tests:
            file, _, name = test.partition("::")
            if not (ROOT / file).is_file() or (name and f"def {name.split('[')[0]}(" not in (ROOT / file).read_text()):
                found.append(f"{mutant.file}: there is no test {test}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Plant each mistake of the table; its tests must fail.")
    parser.add_argument("words", nargs="*", help="only rows whose file or change has one of these words")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--output", action="store_true", help="print what pytest said of each survivor")
    options = parser.parse_args()
    mutants = chosen(options.words)
    if problems := stale(mutants):
        print("\n".join(problems))
        return 2
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="flextrace-mutants-") as name, ThreadPoolExecutor(options.jobs) as pool:
        cache = Path(os.environ.get("FLEXTRACE_CACHE_DIR") or Path(name) / "cache")
        folders: SimpleQueue[Copy] = SimpleQueue()
        for index in range(options.jobs):
            (Path(name) / str(index)).mkdir()
            folders.put(Copy(Path(name) / str(index), cache))

        def in_a_copy(work: Callable[[Copy], Outcome]) -> Outcome:
            copy = folders.get()
            try:
                return work(copy)
            finally:
                folders.put(copy)

        def planted(mutant: Mutant) -> Outcome:
            found = in_a_copy(lambda copy: copy.run(mutant))
            said = f"caught by {found.failed.rpartition('/')[2]}" if found.failed else "SURVIVED"
            print(f"{found.seconds:4.0f} s  {mutant}  {said}", flush=True)
            return found

        whole = pool.map(lambda tests: in_a_copy(lambda copy: copy.outcome(tests, None)), by_file(mutants))
        if broken := [found for found in whole if found.failed]:
            print("\n".join(f"without any mistake:\n{found.output[-4000:]}" for found in broken))
            return 1
        print(f"{time.perf_counter() - started:4.0f} s  all pass without a mistake", flush=True)
        found = list(pool.map(planted, mutants))
    survivors = [(mutant, outcome) for mutant, outcome in zip(mutants, found, strict=True) if not outcome.failed]
    for mutant, outcome in survivors if options.output else ():
        print(f"\n{mutant}\n{outcome.output[-3000:]}")
    print(
        f"{len(mutants) - len(survivors)} of {len(mutants)} mistakes are caught, "
        f"in {time.perf_counter() - started:.0f} s"
    )
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
