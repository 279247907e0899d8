"""table.MUTANTS -> which of them the tests let through: `make mutants`.

A mutant is one small mistake planted in the source. For each row of the table, the tests it names run on a copy of the
tree that has the mistake; they must fail. They must pass on the copy without it, or the row says nothing. (DeMillo,
Lipton, Sayward: Hints on test data selection, 1978.)

    python tests/mutants/run.py                 every row, on as many processes as there are cores
    python tests/mutants/run.py visits.h joins  the rows whose file or change has one of these words

Exit status 0: every mistake is caught. 1: one survived, or tests fail without it. 2: a row fits the tree no more.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
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
    mutant: Mutant
    caught: bool
    seconds: float
    output: str


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

    def passes(self, tests: Sequence[str], seconds: float | None = SECONDS) -> tuple[bool, str]:
        """Whether all of these tests pass here in that time, and what pytest printed."""
        options = ["-x", "-q", "-n0", "-p", "no:cacheprovider", "--no-header"]
        command = [sys.executable, "-m", "pytest", *options, *tests]
        try:
            done = subprocess.run(
                command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=seconds
            )
        except subprocess.TimeoutExpired as error:
            return False, f"not done after {error.timeout:.0f} s"
        if done.returncode in (2, 3, 4, 5):  # interrupted, internal error, usage, no test: not an answer
            raise RuntimeError(f"pytest could not run {' '.join(tests)}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.returncode == 0, done.stdout

    def run(self, mutant: Mutant) -> Outcome:
        """Its tests, with the mistake in place; afterwards the file is as before."""
        path, started = self.folder / mutant.file, time.perf_counter()
        text = path.read_text()
        path.write_text(mutant.applied(text))
        try:
            passed, output = self.passes(mutant.tests)
        finally:
            path.write_text(text)
        return Outcome(mutant, not passed, time.perf_counter() - started, output)


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
    with tempfile.TemporaryDirectory(prefix="flextrace-mutants-") as name:
        folders: SimpleQueue[Copy] = SimpleQueue()
        for index in range(options.jobs):
            (Path(name) / str(index)).mkdir()
            folders.put(Copy(Path(name) / str(index), Path(name) / "cache"))

        def in_a_copy(mutant: Mutant) -> Outcome:
            copy = folders.get()
            try:
                outcome = copy.run(mutant)
            finally:
                folders.put(copy)
            print(f"{'caught' if outcome.caught else 'SURVIVED':9} {outcome.seconds:5.0f} s  {mutant}", flush=True)
            return outcome

        tests = sorted({test for mutant in mutants for test in mutant.tests})
        first = folders.get()
        passed, output = first.passes(tests, None) if tests else (True, "")
        folders.put(first)
        if not passed:
            print(f"the tests fail without any mistake:\n{output[-4000:]}")
            return 1
        with ThreadPoolExecutor(options.jobs) as pool:
            outcomes = list(pool.map(in_a_copy, mutants))
    survivors = [outcome for outcome in outcomes if not outcome.caught]
    for outcome in survivors if options.output else ():
        print(f"\n{outcome.mutant}\n{outcome.output[-3000:]}")
    print(f"{len(outcomes) - len(survivors)} of {len(outcomes)} mistakes are caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
