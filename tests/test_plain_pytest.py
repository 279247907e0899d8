"""The suite under plain `pytest`, which, unlike `python -m pytest`, does not put the current folder on the path."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PLAIN = """\
import sys
import pytest
if __name__ == "__main__":  # processes that a test starts import this file
    sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.mark.long
def test_processes_that_tests_start_find_the_package(tmp_path: Path) -> None:
    """And not tests/flextrace, which has its name."""
    script = tmp_path / "plain.py"
    script.write_text(PLAIN)
    test = "tests/flextrace/bench/test_bench_counts.py::test_an_interrupt_waits_for_no_run"
    command = [sys.executable, str(script), "-n0", "-p", "no:cacheprovider", test]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
