"""The metal backend's own parts: what it says of itself, and the text on disk."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from apparatus.mods import traces
from calls import attention_spec

import flextrace as flex
from flextrace.kernels import registry
from flextrace.kernels.loading import state
from flextrace.kernels.metal import MetalBackend
from flextrace.kernels.simulator import SimulatorBackend


def test_names_and_availability() -> None:
    metal, simulator = MetalBackend(), SimulatorBackend()
    assert (metal.name, simulator.name) == ("metal", "simulator")
    if mx.metal.is_available():
        assert metal.unavailable() is None
    else:
        reason = metal.unavailable()
        assert reason is not None and "Apple silicon, or choose the simulator or cpu backend" in reason


def test_the_simulator_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(registry, "made", {})
    reason = SimulatorBackend().unavailable()
    assert reason is not None and "install g++ 12 or later (Debian/Ubuntu: apt install g++)" in reason
    q = mx.ones((1, 1, 4, 8))
    with pytest.raises(flex.BackendUnavailable, match=r"found no g\+\+ 12 or later: CXX=.* is none; install"):
        flex.flex_attention(q, q, q, kernel_options={"BACKEND": "simulator"})
    assert "[[kernel]]" in flex.score_mod(lambda score, b, h, q_idx, kv_idx: score).source("simulator")


def test_tests_of_the_simulator_are_skipped_without_a_compiler() -> None:
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-m", "not long"]
    files = [here.parent / "simulator" / "test_async_copy.py", here / "test_counts.py", here.parents[1] / "test_zoo.py"]
    environment = os.environ | {"CXX": "no-such-compiler"}
    environment.pop("CI", None)
    chosen = ["-k", "async_copy or test_counts or (simulator and causal and not every_shape)"]
    done = subprocess.run([*command, *chosen, *files], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "found no g++ 12 or later: CXX='no-such-compiler' is none; install g++ 12 or later" in done.stdout
    assert re.match(r"s{20,} ", done.stdout), done.stdout
    in_ci = subprocess.run(
        [*command, "-k", "async_copy", files[0]], env=environment | {"CI": "true"}, capture_output=True, text=True
    )
    assert in_ci.returncode == 1 and "0 passed" in in_ci.stdout, "CI must not pass over what it cannot run"


def test_the_text_of_a_kernel_is_kept_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXTRACE_CACHE_DIR", str(tmp_path / "cache"))
    spec = attention_spec(*traces("alibi", "causal"))
    first, second = SimulatorBackend(), SimulatorBackend()
    assert first.load(spec) is first.load(spec) and first.built == 1
    assert state(first, spec.mods) == "memory" and state(second, spec.mods) == "disk"
    assert second.load(spec).text == first.load(spec).text and second.built == 0
    (entry,) = (tmp_path / "cache").glob("kernels/*/*")
    assert {file.name for file in entry.iterdir()} == {"manifest.json", "kernel.metal"}
    assert (entry / "kernel.metal").read_text() == first.text(spec)
    manifest = json.loads((entry / "manifest.json").read_text())
    assert manifest["backend"] == "simulator" and manifest["mask_mod"]["expression"] == ["kv_idx <= q_idx"]
    assert manifest["kernel"].startswith("flextrace_attention_")


def test_the_source_says_what_a_mod_became() -> None:
    text = MetalBackend().text(attention_spec(*traces("softcap", "causal")))
    assert "metal::precise::tanh(" in text
    assert "return kv_idx <= q_idx;" in text
