"""`flextrace show` and `flextrace simulate`, through typer's runner and in a real process."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_notes import NOTES, flextrace
from rich.console import Console
from typer.testing import CliRunner

import flextrace as flex
from flextrace.cli import app
from flextrace.commands.resolve import find_mod
from flextrace.doctor.exactness import exact, softmax, tensors
from flextrace.doctor.simulate import simulate
from flextrace.kernels.simulator import SimulatorBackend, metal_kernel
from flextrace.kernels.template.hole import written_by
from flextrace.show import terminal as printing


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "notes.py").write_text(NOTES)
    monkeypatch.chdir(tmp_path)
    return str(tmp_path / "notes.py")


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


# ---- show -----------------------------------------------------------------------------------------------------------


def test_show_in_a_real_process(notes: str, tmp_path: Path) -> None:
    done = flextrace("show", "notes.py:alibi+banded", "--backend", "metal", folder=tmp_path, cache=tmp_path / "cache")
    assert done.returncode == 0 and done.stderr == ""
    assert "\x1b" not in done.stdout, "colours in a pipe"
    assert f"score_mod alibi, {notes}:9\n" in done.stdout
    assert "        return score + slopes[h] * (kv_idx - q_idx)\n" in done.stdout
    assert "expression\n    score + (array0[h] * float((kv_idx - q_idx)))\n" in done.stdout
    assert "    array0 = slopes: float32 [2]\n" in done.stdout
    assert "    number0 = window: int 48, read at every call\n" in done.stdout
    assert "return (kv_idx <= q_idx) && (fx::sub(q_idx, kv_idx) < number0);" in done.stdout
    assert "captures of the mask_mod are numbered on from those of the score_mod" in done.stdout
    assert "captured_by_mods" not in done.stdout, "only the functions of the mod are shown"
    assert not (tmp_path / "cache").exists(), "nothing is compiled"


@pytest.mark.parametrize("backend", ["metal", "cpu", "simulator"])
def test_whole_is_the_kernel_text_and_nothing_else(notes: str, backend: str) -> None:
    result = run("show", f"{notes}:alibi", "--backend", backend, "--whole")
    assert result.exit_code == 0
    assert result.stdout.rstrip() == find_mod(f"{notes}:alibi").source(backend).rstrip()


def test_show_the_kernel_of_gradients(notes: str) -> None:
    result = run("show", f"{notes}:alibi", "--backend", "cpu", "--kernel", "backward")
    assert result.exit_code == 0 and "backward kernel on cpu" in result.stdout and "ScoreGradient{" in result.stdout
    unknown = run("show", f"{notes}:alibi", "--backend", "cpu", "--kernel", "sideways")
    assert unknown.exit_code == 2 and "it has attention, decode, backward" in unknown.output


def test_the_line_numbers_are_those_of_the_whole_text(notes: str) -> None:
    text = find_mod(f"{notes}:banded").source("cpu")
    excerpts = written_by(["mask_mod"], text)
    assert [e.lines[0] for e in excerpts] == [text.splitlines()[e.first - 1] for e in excerpts]
    assert [next(x for x in e.lines if "static" in x).split("(")[0].strip() for e in excerpts] == [
        "static auto mask_mod",
        "static auto tile_state",
    ]


def test_show_json(notes: str) -> None:
    found = json.loads(run("show", f"{notes}:looked_up", "--backend", "cpu", "--json").stdout)
    (mod,) = found["mods"]
    assert mod["arrays"] == [{"slot": "array0", "name": "table", "dtype": "float16", "shape": [3, 5]}]
    assert (mod["name"], mod["kind"], mod["file"], mod["line"]) == ("looked_up", "score_mod", notes, 17)
    assert found["backend"] == "cpu" and found["kernel"] == find_mod(f"{notes}:looked_up").source("cpu")
    whole = found["kernel"].splitlines()
    for excerpt in found["lines"]:
        first = excerpt["first_line"] - 1
        assert whole[first : first + len(excerpt["lines"])] == excerpt["lines"]


def test_numbers_that_json_lacks(tmp_path: Path) -> None:
    text = "import math\nfar = math.inf\ndef mod(score, b, h, q_idx, kv_idx):\n    return min(score, far)\n"
    (tmp_path / "infinite.py").write_text(text)
    result = run("show", f"{tmp_path / 'infinite.py'}:mod", "--json")
    assert json.loads(result.stdout)["mods"][0]["numbers"][0]["value"] == "inf"


def test_a_terminal_gets_colours_and_the_same_text(notes: str, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(force_terminal=True, highlight=False, soft_wrap=True, color_system="truecolor")
    text = "inline int mask(int a) {  // a comment " + "x" * 200 + "\n  return a;\n}"
    printing.print_code(console, text, "cpp", indent="")
    shown = capsys.readouterr().out
    assert "\x1b[" in shown
    assert re.sub(r"\x1b\[[\d;]*m", "", shown).rstrip() == text


LOUD = """\
print("imported")
def naïve(b, h, q_idx, kv_idx):
    print("traced")
    return q_idx >= kv_idx
"""


@pytest.fixture
def loud(tmp_path: Path) -> Iterator[str]:
    """A mod that prints, and whose name ASCII lacks."""
    (tmp_path / "loud.py").write_text(LOUD, encoding="utf-8")
    yield str(tmp_path / "loud.py")
    sys.modules.pop("loud", None)


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", "--json"],
        ["warm", "--backend", "cpu", "--json"],
        ["simulate", "--shape", "1,1,8,8", "--json"],
        ["show", "--whole"],
        ["show"],
    ],
    ids=" ".join,
)
def test_what_a_mod_prints_is_no_result(loud: str, arguments: list[str]) -> None:
    result = run(arguments[0], f"{loud}:naïve", *arguments[1:])
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("imported\ntraced\n")
    assert "imported\n" not in result.stdout and "traced\n" not in result.stdout
    if "--json" in arguments:
        json.loads(result.stdout)


def test_an_output_that_lacks_letters(loud: str) -> None:
    result = CliRunner(charset="ascii").invoke(app, ["show", f"{loud}:naïve"])
    assert result.exit_code == 0, result.output
    assert "def na\\xefve(b, h, q_idx, kv_idx):\n" in result.stdout


def test_show_takes_the_backend_of_the_environment(notes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXTRACE_BACKEND", "simulator")
    assert json.loads(run("show", f"{notes}:alibi", "--json").stdout)["backend"] == "simulator"
    monkeypatch.setenv("FLEXTRACE_BACKEND", "ops")
    result = run("show", f"{notes}:alibi")
    assert result.exit_code == 2
    assert (
        "FLEXTRACE_BACKEND is 'ops', which has no kernels; add --backend metal or cuda or simulator or cpu"
        in result.stderr
    )


@pytest.mark.parametrize("command", ["show", "simulate", "warm"])
def test_a_mod_that_cannot_be_traced_is_printed_as_it_is(notes: str, command: str) -> None:
    result = run(command, f"{notes}:loops")
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("cannot trace loops: ") and "Remedy: " in result.stderr
    assert "Traceback" not in result.stderr
    assert "^^^" in result.stderr


@pytest.mark.parametrize("command", ["show", "simulate", "warm"])
def test_a_name_that_is_no_mod(notes: str, command: str) -> None:
    result = run(command, f"{notes}:alibbi")
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith(f"flextrace {command}: ") and "did you mean 'alibi'?" in result.stderr


def test_a_backend_that_is_none_is_a_usage_error(notes: str) -> None:
    result = run("show", f"{notes}:alibi", "--backend", "rocm")
    assert result.exit_code == 2 and "rocm" in result.stderr and "simulator" in result.stderr


def test_more_captures_than_a_kernel_takes(tmp_path: Path) -> None:
    lines = ["import mlx.core as mx", *(f"t{i} = mx.zeros((9,))" for i in range(21))]
    terms = " + ".join(f"t{i}[kv_idx]" for i in range(21))
    lines += ["def mod(score, b, h, q_idx, kv_idx):", f"    return score + {terms}"]
    (tmp_path / "many.py").write_text("\n".join(lines) + "\n")
    result = run("show", f"{tmp_path / 'many.py'}:mod", "--backend", "metal")
    assert result.exit_code == 2 and "capture 21 arrays" in result.stderr and "has room for 20" in result.stderr
    assert "stack some into one array" in result.stderr


# ---- simulate -------------------------------------------------------------------------------------------------------


def test_simulate_in_a_real_process(notes: str, tmp_path: Path) -> None:
    options = ["--shape", "1,2,32,16", "--kv-heads", "1", "--kv-len", "40", "--dtype", "float16", "--json"]
    done = flextrace("simulate", "notes:alibi+banded", *options, folder=tmp_path, cache=tmp_path / "cache")
    if "found no g++" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ok"] and set(found["errors"]) == {"out", "lse"}
    assert found["problem"] == {
        **{"batch": 1, "heads": 2, "kv_heads": 1, "q_len": 32, "kv_len": 40, "head_dim": 16, "dtype": "float16"}
    }
    (kernel,) = found["kernels"]
    assert kernel["findings"] == [] and kernel["counts"]["matrix_multiplies"] > 0
    sizes = {buffer["name"]: buffer["size"] for buffer in kernel["buffers"]}
    assert (sizes["q"], sizes["k"], sizes["out"]) == (2 * 32 * 16 * 2, 40 * 16 * 2, 2 * 32 * 16 * 2)
    assert 0 < found["errors"]["out"]["largest"] <= found["errors"]["out"]["tolerance"] * 8


def test_simulate_prints_the_report_and_the_error(notes: str) -> None:
    result = run("simulate", f"{notes}:plain_score", "--shape", "1,1,16,16", "--head-dim", "8")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("plain_score, 1x1x16x8 float32\nkernel flextrace_attention_")
    assert "no findings" in result.stdout and "matrix multiplies" in result.stdout
    assert "out: largest error " in result.stdout and "within the tolerance 2e-05" in result.stdout


def test_the_error_is_the_one_that_numpy_finds() -> None:
    """Beside attention under the user's own Python function, called for each score."""

    def halved(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score * 0.5 + (q_idx - kv_idx) % 3

    shapes = [(1, 2, 20, 16)] * 3
    result = simulate(flex.score_mod(halved), None, shapes, "float32")
    q, k, v = tensors(shapes, "float32")
    scores = exact(q) @ exact(k).swapaxes(-1, -2) / math.sqrt(16)
    for index in np.ndindex(*scores.shape):
        scores[index] = halved(float(scores[index]), *index)
    weights, _, total = softmax(scores)
    options = {"BACKEND": "simulator"}
    out = exact(flex.flex_attention(q, k, v, flex.score_mod(halved), kernel_options=options))
    expected = np.abs(out - weights @ exact(v) / total[..., None]).max()
    assert result.ok
    assert result.errors[0].largest == pytest.approx(expected, abs=1e-6)


def broken(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    """The simulator backend with another text in its kernels."""
    from flextrace.kernels import registry

    def factory(**definition: Any) -> Callable[..., Any]:
        assert old in definition["header"]
        made: Callable[..., Any] = metal_kernel(**definition | {"header": definition["header"].replace(old, new)})
        return made

    monkeypatch.setattr(registry, "made", {"simulator": SimulatorBackend(factory)})


def test_findings_give_exit_code_1(notes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, "if (row < p.q_len) {", "{")
    result = run("simulate", f"{notes}:alibi", "--shape", "1,1,20,16")
    assert result.exit_code == 1
    assert "out of bounds: " in result.stdout and "its numbers were not compared" in result.stdout
    found = json.loads(run("simulate", f"{notes}:alibi", "--shape", "1,1,20,16", "--json").stdout)
    assert not found["ok"] and found["errors"] == {}
    assert found["kernels"][0]["findings"][0]["kind"] == "out of bounds"


def test_a_wrong_number_gives_exit_code_1(notes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, "score * 0.5f", "score * 0.51f")
    result = run("simulate", f"{notes}:plain_score", "--shape", "1,1,20,16")
    assert result.exit_code == 1
    assert "out: largest error" in result.stdout and "BEYOND the tolerance" in result.stdout
    assert "no findings" in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shape", "1,2,3"], "--shape takes four positive numbers, batch,heads,length,head_dim, such as 1,8,1024,64"),
        (["--shape", "1,2,3,x"], "got '1,2,3,x'"),
        (["--shape", "1,2,0,4"], "four positive numbers"),
        (["--shape", "99999999999,1,16,16"], "--shape takes numbers up to 2147483647, as MLX does; got '99999999999,1"),
        (["--shape", "1,6,8,8", "--kv-heads", "4"], "--kv-heads 4 does not divide the 6 heads of --shape"),
    ],
)
def test_shapes_that_are_none(notes: str, options: list[str], message: str) -> None:
    for command in ("simulate", "warm"):
        result = run(command, f"{notes}:alibi", *options)
        assert result.exit_code == 2 and message in result.stderr


def test_a_shape_beyond_the_memory(notes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*arguments: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr("flextrace.doctor.simulate.tensors", refuses)
    result = run("simulate", f"{notes}:alibi", "--shape", "1,2,8,8")
    assert result.exit_code == 2
    assert result.stderr == ("flextrace simulate: 1x2x8x8 float32 does not fit in memory; choose a smaller --shape\n")


def test_simulate_without_a_compiler_names_the_remedy(notes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from flextrace.kernels import registry

    monkeypatch.setattr(registry, "made", {})
    monkeypatch.setenv("CXX", "no-such-compiler")
    result = run("simulate", f"{notes}:alibi")
    assert result.exit_code == 2 and "apt install g++" in result.stderr
