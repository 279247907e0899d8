"""`flextrace bench --plot`: what is in the picture, and what is said before anything is measured."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flextrace.bench import measure
from flextrace.bench.backward import StepRow
from flextrace.bench.int8 import Int8Row
from flextrace.bench.masks import MaskRow
from flextrace.bench.plot import figure_of
from flextrace.bench.results import Report, Row
from flextrace.cli import app

SMALL = [
    "bench",
    "--lengths",
    "64",
    "--dtypes",
    "float32",
    "--heads",
    "2",
    "--head-dim",
    "16",
    "--sections",
    "attention",
]


def report(**sections: Any) -> Report:
    return Report({"mlx": "0.1"}, **sections)


def attention(*dtypes: str) -> list[Row]:
    shapes = ((1, 2, 64, 16), (1, 2, 128, 16))
    return [
        Row(mod, dtype, shape, 2.0, None if mod == "softcap" else 90.0, None, 1.0)
        for dtype in dtypes
        for shape in shapes
        for mod in ("none", "softcap")
    ]


def texts(figure: Any) -> list[str]:
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def test_attention_has_a_panel_for_each_dtype_and_length() -> None:
    figure = figure_of(report(rows=attention("float32", "bfloat16")))
    assert [axes.get_title() for axes in figure.findobj(lambda artist: hasattr(artist, "get_xscale"))] == [
        f"{dtype}, B x H x L x D 1x2x{length}x16" for dtype in ("float32", "bfloat16") for length in (64, 128)
    ]
    for axes in figure.findobj(lambda artist: hasattr(artist, "get_xscale")):
        assert [bar.get_height() for bar in axes.patches] == [2.0, 2.0, 90.0], "MLX has no softcap"
        assert [label.get_text() for label in axes.get_xticklabels()] == ["none", "softcap"]
        assert axes.get_yscale() == "log"
    shown = texts(figure)
    assert "45x" in shown and "flextrace" in shown and "MLX's attention" in shown
    assert not any("torch" in text for text in shown), "it was not measured"


def test_the_other_sections() -> None:
    figure = figure_of(
        report(
            start={"cold_ms": 1234.0, "warm_ms": 4.0, "call_us": 30.0, "kernel_us": 5.0},
            masks=[MaskRow("window", 4096, 0.17, 0, 0, 75.0, "torch", 1413.0)],
            int8=[Int8Row("forward 1x8x4096x128", "int8, K smoothed", 12.0, 100, 1.5)],
            steps=[StepRow("causal", (1, 8, 2048, 64), 20.0, 80.0, 8000.0, None)],
            memory={"none": {"seconds": 2.0, "bytes": 5e6}, "window": {"seconds": 0.5, "bytes": 6e6}},
        )
    )
    bars = [[bar.get_width() for bar in axes.patches] for axes in figure.findobj(lambda a: hasattr(a, "get_xscale"))]
    assert bars == [[1234.0, 4.0, 0.025], [0.17], [12.0], [80.0], [2000.0, 500.0]]
    shown = texts(figure)
    for text in (
        "1,234",
        "0.17, torch 1,413",
        "window 4,096",
        "12, 1.50x",
        "80, MLX 100x",
        "500, 6 MB, 4.0x",
        "forward, int8, K smoothed",
    ):
        assert text in shown


def test_the_command_draws_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SECONDS", 0.01)
    monkeypatch.setattr(measure, "PAUSE", 0.0)
    path = tmp_path / "out.png"
    result = CliRunner().invoke(app, [*SMALL, "--mods", "causal,softcap", "--plot", str(path)])
    assert result.exit_code == 0, result.output
    assert "drawn: " in result.output
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out.bmp3", "name a file that ends in one of ."),
        ("out", "name a file that ends in one of ."),
        ("missing/out.png", "there is no folder"),
    ],
)
def test_what_cannot_be_drawn_is_said_before_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.setattr("flextrace.bench.report.measure", lambda *arguments: pytest.fail("it measured"))
    result = CliRunner().invoke(app, [*SMALL, "--plot", str(tmp_path / name)])
    assert result.exit_code == 2 and message in result.stderr


def test_without_matplotlib_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def without(name: str, *arguments: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(f"No module named {name!r}")
        return found(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    result = CliRunner().invoke(app, [*SMALL, "--plot", str(tmp_path / "out.png")])
    assert result.exit_code == 2 and "pip install 'flextrace[plot]'" in result.stderr
