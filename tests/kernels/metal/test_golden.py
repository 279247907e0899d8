"""mod.source("metal") is the file in tests/golden, byte for byte: a change of the kernels shows there."""

from __future__ import annotations

import difflib
import subprocess
import sys

from apparatus import golden


def test_the_text_is_the_golden_file() -> None:
    text, kept = golden.alibi.source("metal"), golden.FILE.read_bytes().decode("ascii")
    changed = "".join(list(difflib.unified_diff(kept.splitlines(True), text.splitlines(True), "golden", "now"))[:40])
    assert text == kept, f"if this change is meant, run `{golden.COMMAND}` and commit the file:\n{changed}"


def test_another_process_prints_the_same() -> None:
    """Nothing in the text depends on the run: no path, no order of a set, no address."""
    root = golden.FILE.parent.parent.parent
    program = f"import runpy; print(runpy.run_path({golden.__file__!r})['alibi'].source('metal'), end='')"
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == golden.alibi.source("metal")
    assert str(root) not in done.stdout


def test_a_reader_finds_the_formula_and_the_kernel() -> None:
    text = golden.FILE.read_text(encoding="ascii")
    assert "// score_mod alibi" in text and "[[kernel]] void flextrace_attention_" in text
    assert text.index("float score_mod(") < text.index("attention_forward<P, BLOCKS, StagedTile>(")
    assert len(text.splitlines()) < 1700
