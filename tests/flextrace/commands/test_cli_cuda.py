"""What the commands say of the cuda backend, on a machine with NVRTC and without a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from apparatus.cuda.simulated import simulated_cuda
from calls import attention_call
from typer.testing import CliRunner

import flextrace as flex
from flextrace.cli import app
from flextrace.kernels import BackendUnavailable, backend_for
from flextrace.mods import alibi, causal


def run(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


@pytest.mark.parametrize(("arch", "gpu"), [("sm_80", 80), ("sm_90a", 90), ("sm_90", 90)])
@pytest.mark.parametrize("rows", [70, 1])
def test_kernels_made_ahead_are_those_that_the_gpu_looks_up(arch: str, gpu: int, rows: int, fresh_cache: Path) -> None:
    shape = ("--shape", f"1,2,{rows},64", "--kv-len", "300", "--dtype", "bfloat16")
    with simulated_cuda(None):
        result = run("warm", "flextrace.mods:causal", "--arch", arch, *shape, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["compiled"] >= 1
    q, k = mx.zeros((1, 2, rows, 64), mx.bfloat16), mx.zeros((1, 2, 300, 64), mx.bfloat16)
    with simulated_cuda(gpu):
        backend: Any = backend_for("cuda")
        found = backend.build(attention_call(q, k, k, 0.125, None, causal.bind()))
        assert found and backend.built == 0, "it is on disk"
        backend.build(attention_call(q, k, k, 0.125, alibi(2).bind(), causal.bind()))
        assert backend.built == 1, "another one is not"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--arch", "sm_75"), "sm_75 is too old: the cuda backend needs sm_80 or later; choose the ops backend there"),
        (("--arch", "hopper"), "'hopper' names no architecture; write it as sm_90a (H100, H200) or sm_80 (A100)"),
        (("--arch", "sm_95"), "NVRTC 13.0 does not know sm_95; it knows sm_80, sm_90, sm_120"),
        (
            ("--arch", "sm_90a", "--backend", "cpu"),
            "only kernels of the cuda backend are of an architecture, and this is",
        ),
        (("--backend", "cuda"), "no NVIDIA driver answers; choose the cpu or ops backend"),
    ],
)
def test_an_architecture_that_cannot_be_is_refused(words: tuple[str, ...], says: str, fresh_cache: Path) -> None:
    with simulated_cuda(None):
        result = run("warm", "flextrace.mods:causal", *words)
    assert result.exit_code == 2 and says in result.stderr


def test_without_nvrtc_the_remedy_is_named(fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flextrace.warm.find_nvrtc", lambda: None)
    result = run("warm", "flextrace.mods:causal", "--arch", "sm_90a")
    assert (
        result.exit_code == 2
        and 'NVRTC is missing; install MLX with CUDA, which brings it: pip install "mlx' in result.stderr
    )


def test_the_cache_shows_the_text_of_a_kernel(fresh_cache: Path) -> None:
    with simulated_cuda(None):
        made = run("warm", "flextrace.mods:causal", "--arch", "sm_80", "--json")
    key = json.loads(made.stdout)["kernels"][0]["key"]
    assert "struct Mods" in run("cache", "show", key, "--whole").stdout
    shown = run("cache", "show", key).stdout
    assert "backend: cuda" in shown and "sm_80" in shown and "kernel.cubin" in shown
    listed = json.loads(run("cache", "ls", "--json").stdout)["entries"]
    assert {entry["backend"] for entry in listed} == {"cuda"} and not any(entry["damage"] for entry in listed)


def test_show_needs_no_gpu() -> None:
    shown = run("show", "flextrace.mods:causal", "--backend", "cuda")
    assert shown.exit_code == 0 and "bounds::le(kv_idx, q_idx)" in shown.stdout
    assert "struct Mods" in causal.source("cuda") and "attention_forward" in causal.source("cuda")
    assert "array0" in alibi(4).source("cuda", whole=False)


def test_without_a_gpu_a_call_names_the_remedy() -> None:
    if mx.cuda.is_available():
        pytest.skip("there is one")
    q = mx.zeros((1, 1, 4, 8))
    with pytest.raises(BackendUnavailable, match="no NVIDIA driver answers; choose the cpu or ops backend"):
        flex.flex_attention(q, q, q, kernel_options={"BACKEND": "cuda"})


def test_a_gpu_that_is_too_old_names_the_remedy(fresh_cache: Path) -> None:
    q = mx.zeros((1, 1, 4, 8))
    with (
        simulated_cuda(75),
        pytest.raises(BackendUnavailable, match="this GPU is sm_75, and the cuda backend needs sm_80"),
    ):
        flex.flex_attention(q, q, q, kernel_options={"BACKEND": "cuda"})
