"""The cuda section of `flextrace bench`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from apparatus.cuda.simulated import simulated_cuda
from rich.console import Console
from typer.testing import CliRunner

from flextrace.bench import cuda, main
from flextrace.cli import app


@pytest.mark.skipif(cuda.backend_for("cuda", to_run=False).unavailable() is None, reason="here is an NVIDIA GPU")
def test_without_a_gpu_it_says_so() -> None:
    result = CliRunner().invoke(app, ["bench", "--sections", "cuda"])
    assert result.exit_code == 2 and "the cuda section needs an NVIDIA GPU" in result.output


def test_a_time_is_the_difference_of_two_chains() -> None:
    launched: list[str] = []
    waited: list[int] = []
    runs = {
        name: cuda.Contender(lambda name=name: launched.append(name), lambda x: waited.append(len(x))) for name in "ab"
    }
    found = cuda.medians_ms(runs)  # type: ignore[arg-type]
    assert set(found) == {"a", "b"}
    assert waited == 2 * [cuda.SHORT] + cuda.ROUNDS * 2 * [cuda.SHORT, cuda.LONG]


def test_the_table_has_the_ratios() -> None:
    console = Console(width=120, record=True)
    console.print(cuda.cuda_table([cuda.CudaRow("decode", "none", (1, 32, 100, 64), 2.0, 3.0, 5.0, None, 3.0)]))
    text = console.export_text()
    assert "1x32x100x64" in text and "1.50x" in text and "2.50x" in text and "75%" in text


@pytest.mark.long
def test_every_row_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small: dict[str, Any] = {"SHAPES": ((1, 2, 32, 64),), "LONGER": (1, 2, 48, 64), "ROUNDS": 1, "SHORT": 1, "LONG": 2}
    small |= {"CACHE": 64, "CACHE_HEADS": 4, "CACHE_KV_HEADS": 2, "WINDOW": 16, "DOCUMENTS": 4}
    for name, value in small.items():
        monkeypatch.setattr(cuda, name, value)
    with simulated_cuda():
        main(sections=["cuda"], peers=False, as_json=True)
    rows = [cuda.CudaRow(**row) for row in json.loads(capsys.readouterr().out)["cuda"]]
    assert [row.what for row in rows] == 8 * ["forward"] + 4 * ["step"] + 3 * ["decode"]
    assert all(row.flextrace is not None for row in rows)
