"""The metal backend's own parts: what it says of itself, and the text on disk."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest
from metal.mods import traces

from flextrace.kernels.metal import MetalBackend, SimulatorBackend


def test_names_and_availability() -> None:
    metal, simulator = MetalBackend(), SimulatorBackend()
    assert (metal.name, simulator.name) == ("metal", "simulator")
    assert simulator.unavailable() is None
    if mx.metal.is_available():
        assert metal.unavailable() is None
    else:
        reason = metal.unavailable()
        assert reason is not None and "Apple silicon, or choose the simulator or cpu backend" in reason


def test_prepare_keeps_the_text_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXTRACE_CACHE_DIR", str(tmp_path / "cache"))
    score, mask = traces("alibi", "causal")
    first, second = SimulatorBackend(), SimulatorBackend()
    assert first.prepare(score, mask) == "compiled"
    assert first.prepare(score, mask) == "memory"
    assert second.prepare(score, mask) == "disk"
    (entry,) = (tmp_path / "cache").glob("kernels/*/*")
    assert {file.name for file in entry.iterdir()} == {"manifest.json", "kernel.metal"}
    assert (entry / "kernel.metal").read_text() == first.source(score, mask)
    manifest = json.loads((entry / "manifest.json").read_text())
    assert manifest["backend"] == "simulator" and manifest["mask_mod"]["expression"] == ["kv_idx <= q_idx"]
    assert manifest["kernel"].startswith("flextrace_attention_")


def test_the_source_says_what_a_mod_became() -> None:
    text = MetalBackend().source(*traces("softcap", "causal"))
    assert "metal::precise::tanh(" in text
    assert "return kv_idx <= q_idx;" in text
