"""The gradients section of `flextrace bench`."""

from __future__ import annotations

import json
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from flextrace.bench import backward, measure, report
from flextrace.bench.cases import flextrace_attention, mlx_attention, problem


@pytest.mark.long
def test_the_section_times_steps_in_turns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(report, "STEPS", [("causal", (1, 2, 64, 16), True), ("none", (1, 2, 64, 16), False)])
    monkeypatch.setattr(report, "long_step", lambda: {"seconds": 1.0, "bytes": 2e6})
    monkeypatch.setattr(measure, "SECONDS", 0.01)
    monkeypatch.setattr(measure, "PAUSE", 0.0)
    report.main(sections=["backward"], as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["long_step"] == {"seconds": 1.0, "bytes": 2e6}
    causal, none = [backward.StepRow(**row) for row in found["steps"]]
    assert causal.mlx is not None and causal.mlx > 0 and none.mlx is None
    for row in (causal, none):
        assert row.forward > 0 and row.backward == row.step - row.forward and row.step > 0
    assert backward.backward_table([causal, none]).row_count == 2


@pytest.mark.parametrize("mod", [mod for mod, _, _ in backward.CASES])
def test_the_steps_are_of_the_same_attention(mod: str) -> None:
    p, cotangent = problem(1, 2, 40, 16, "float32"), mx.array(problem(1, 2, 40, 16, "float32", seed=1).q)
    steps: dict[str, Any] = {
        name: backward.mlx_step(attend(p, mod), p.tensors(), cotangent)
        for name, attend in (("flextrace", flextrace_attention), ("MLX", mlx_attention))
    }
    try:
        import torch  # noqa: F401
    except ImportError:
        pass
    else:
        steps["torch"] = backward.torch_step(p, mod, np.array(cotangent))
    ours = [np.array(x) for x in steps.pop("flextrace")()]
    assert len(ours) == 4 and all(np.abs(x).max() > 0.1 for x in ours)
    for name, step in steps.items():
        for got, expected in zip(step(), ours, strict=True):
            theirs = got.detach().numpy() if name == "torch" else np.array(got)
            np.testing.assert_allclose(theirs, expected, atol=1e-4, err_msg=name)


@pytest.mark.long
def test_a_long_step_is_measured_in_a_new_process() -> None:
    found = measure.long_step(4096)
    assert found["seconds"] > 0 and 0 < found["bytes"] < 4096 * 4096, "less than a byte for each score"


def test_a_dense_step_stands_beside_the_peak_of_the_machine() -> None:
    row = backward.StepRow("none", (1, 2, 100, 8), forward=1.0, step=4.0, mlx=30.0, torch=None)
    flops = 7 * 2 * (2 * 100 * 100 * 8)  # seven products, two operations an element
    said = backward.beside_peak(row, peak_gflops=flops / 1e6 / 2)
    assert "2.0 ms" in said and "50 %" in said and "15.0x" in said
