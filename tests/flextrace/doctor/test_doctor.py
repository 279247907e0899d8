"""`flextrace doctor`: a healthy machine, and what it says of a kernel, a cache or a machine that is not."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from typer.testing import CliRunner, Result

from flextrace.cache import Store, key_of
from flextrace.cli import app
from flextrace.doctor import kernels as selftest
from flextrace.doctor import report as doctor
from flextrace.kernels.metal import MetalBackend
from flextrace.kernels.ops import OpsBackend
from flextrace.kernels.simulator import SimulatorBackend, metal_kernel


def run(monkeypatch: pytest.MonkeyPatch, backends: dict[str, Callable[[], Any]], *options: str) -> Result:
    """The command with these backends only, which try the first two kernels."""
    monkeypatch.setattr(doctor, "BACKENDS", backends)
    monkeypatch.setattr(selftest, "BACKENDS", backends)
    monkeypatch.setattr(selftest, "MODS", selftest.MODS[:2])
    monkeypatch.setattr(selftest, "ON_METAL", ())
    monkeypatch.setattr(selftest, "_check_stages", lambda backend: ())
    return CliRunner().invoke(app, ["doctor", *options])


def line_of(result: Result, part: str) -> str:
    return next(line for line in result.output.splitlines() if part in line)


class OnThisMachine(MetalBackend):
    """The metal backend, said to run here."""

    def unavailable(self) -> str | None:
        return None


# ---- a healthy machine --------------------------------------------------------------------------------------------


@pytest.mark.long
def test_every_kernel_in_a_real_process(tmp_path: Path) -> None:
    command = [Path(sys.executable).with_name("flextrace"), "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    report = json.loads(done.stdout)
    failed = [check for check in report["checks"] if check["status"] == "FAILED"]
    assert not failed and report["ok"] and done.returncode == 0
    status = {(check["group"], check["name"]): check["status"] for check in report["checks"]}
    versions = {check["name"]: check["detail"] for check in report["checks"] if check["group"] == "system"}
    assert versions["python"].endswith(sys.version.split()[0])
    assert versions["mlx"].split(".")[0].isdigit()
    assert status["metal", "kernels"] == "not available" or mx.metal.is_available()
    for backend in ("simulator", "cpu", "ops"):
        for case in selftest.MODS:
            assert status[backend, case.name] == "ok"
    for backend in ("simulator", "cpu"):
        for stage in (
            "matmul",
            "scale",
            "score_mod",
            "softmax",
            "block_mask",
            "block_sparse_matmul",
            "attention_output",
        ):
            assert status[backend, stage] == "ok"
        for case in selftest.STAGED:
            assert status[backend, case.name] == "ok"
    for case in selftest.ON_METAL:
        assert status["simulator", case.name] == "ok"


def test_one_line_per_check(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(monkeypatch, {"metal": MetalBackend, "ops": OpsBackend})
    assert result.exit_code == 0, result.output
    assert line_of(result, "attention, alibi and causal").startswith("ok             ops")
    if not mx.metal.is_available():
        assert "MLX finds no Metal device" in line_of(result, "metal        kernels")
        assert line_of(result, "metal        kernels").startswith("not available")
    assert line_of(result, "checks passed")
    for name in ("platform", "python", "flextrace", "mlx", "numpy", "default device", "Metal", "CUDA", "C++ compiler"):
        assert f" {name}: " in result.output


def test_the_self_test_leaves_nothing_in_the_cache(fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, {"simulator": SimulatorBackend}).exit_code == 0
    assert Store().entries() == []


def test_every_kernel_file_is_compiled(fresh_cache: Path) -> None:
    """By whatever takes the texts: no kernel file is forgotten on a Mac."""
    import flextrace.kernels.metal as metal

    headers = []

    def factory(**definition: Any) -> Any:
        headers.append(definition["header"])
        if definition["name"].startswith("flextrace_async_probe"):
            return metal_kernel(**definition)  # its answer decides whether the kernel with copies is made

        def zeros(**call: Any) -> list[mx.array]:
            return [mx.zeros(s, t) for s, t in zip(call["output_shapes"], call["output_dtypes"], strict=True)]

        return zeros

    def backend() -> MetalBackend:
        return OnThisMachine(factory)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selftest, "BACKENDS", {"metal": backend})
        checks = list(selftest.check_backend("metal"))
    assert {check.status for check in checks} <= {"FAILED", "ok"} and len(checks) > 20
    compiled = set(re.findall(r'^#line 1 "([^"]+\.metal)"', "\n".join(headers), re.MULTILINE))
    folder = Path(metal.__file__).parent
    files = {str(file.relative_to(folder)) for file in folder.rglob("*.metal")}
    assert compiled == files


# ---- kernels that fail --------------------------------------------------------------------------------------------


def test_a_refused_kernel_shows_the_compiler_s_first_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def factory(**definition: Any) -> Any:
        def refused(**call: Any) -> Any:
            raise RuntimeError(
                "[metal::Device] Unable to build metal library from source\n"
                "program_source:9:1: warning: unused variable 'y'\n"
                "program_source:12:3: error: use of undeclared identifier 'x'\n"
                "  x = 1;\n  ^\n"
                "program_source:14:3: error: a second one\n"
            )

        return refused

    result = run(monkeypatch, {"metal": lambda: OnThisMachine(factory)})
    assert result.exit_code == 1
    line = line_of(result, "attention without mods")
    assert line.startswith("FAILED         metal")
    assert "float32: program_source:12:3: error: use of undeclared identifier 'x'" in line
    assert "3 of" in line_of(result, "checks FAILED")


def test_a_line_of_a_kernel_file_is_named_as_the_file_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    right = "piece.values[e] = e < left"

    def factory(**definition: Any) -> Any:
        assert right in definition["header"]
        return metal_kernel(
            **definition | {"header": definition["header"].replace(right, "piece.values[e] = raw && e < left")}
        )

    result = run(monkeypatch, {"simulator": lambda: SimulatorBackend(factory)})
    import flextrace.kernels.metal as metal

    lines = (Path(metal.__file__).parent / "tile" / "staging.h").read_text(encoding="ascii").splitlines()
    number = next(number for number, line in enumerate(lines, start=1) if right in line)
    assert result.exit_code == 1
    shown = line_of(result, "attention without mods")
    assert f"staging.h:{number}:" in shown and "was not declared in this scope" in shown


def test_wrong_numbers_and_findings_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(OpsBackend):
        def run(self, call: Any) -> Any:
            result = super().run(call)
            return dataclasses.replace(result, lse=result.lse + 1)

    result = run(monkeypatch, {"ops": Wrong}, "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 1 and not report["ok"]
    failed = [check for check in report["checks"] if check["status"] == "FAILED"]
    assert [check["name"] for check in failed] == [case.name for case in selftest.MODS]
    assert "lse differs from float64 numpy in 140 of 140 values" in failed[0]["detail"]


def test_a_kernel_that_the_checks_find_wrong_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def factory(**definition: Any) -> Any:
        text = definition["header"].replace("if (row < p.q_len) {", "{")
        return metal_kernel(**definition | {"header": text})

    result = run(monkeypatch, {"simulator": lambda: SimulatorBackend(factory)})
    assert result.exit_code == 1
    assert "SimulationError" in line_of(result, "attention without mods")


def test_a_backend_that_cannot_be_made_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise ImportError("no such module")

    result = run(monkeypatch, {"cpu": broken})
    assert result.exit_code == 1
    assert "available: ImportError: no such module" in line_of(result, "FAILED         cpu")


def test_an_option_that_is_not_followed_is_not_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    class Declines(OpsBackend):
        def run(self, call: Any) -> Any:
            return dataclasses.replace(super().run(call), notice="this copy does not work here")

    result = run(monkeypatch, {"ops": Declines})
    assert result.exit_code == 0
    assert line_of(result, "this copy does not work here").startswith("not available  ops")


def test_stages_that_a_backend_lacks_are_not_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    (check,) = selftest._check_stages(OpsBackend())
    assert check.status == "not available" and "no stage kernels" in check.detail


# ---- the cache and the machine ------------------------------------------------------------------------------------


def test_a_damaged_entry_is_named(fresh_cache: Path) -> None:
    def build(folder: Path) -> dict[str, Any]:
        (folder / "kernel.metal").write_text("whole")
        return {}

    entry = Store().get_or_build(key_of("doctor's test"), build)
    assert [check.status for check in doctor.cache_health()] == ["ok", "ok", "ok"]
    (entry.folder / "kernel.metal").write_text("other")
    damaged = {check.name: check for check in doctor.cache_health()}["verification"]
    assert damaged.status == "FAILED" and entry.key[:12] in damaged.detail and "1 damaged" in damaged.detail
    assert "`flextrace cache verify` lists all, `flextrace cache prune --damaged` removes" in damaged.detail
    assert [found.key for found in Store().entries()] == [entry.key], "the trial entry is gone"


def test_a_cache_that_others_can_write_to_fails(fresh_cache: Path) -> None:
    list(doctor.cache_health())
    fresh_cache.chmod(0o777)
    check = next(doctor.cache_health())
    assert check.status == "FAILED" and str(fresh_cache) in check.detail and "chmod" in check.detail


@pytest.mark.filterwarnings("ignore::flextrace.CacheWarning")
def test_a_cache_that_cannot_be_written_to_is_not_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FLEXTRACE_CACHE_DIR", str(tmp_path / "file" / "cache"))
    checks = {check.name: check for check in doctor.cache_health()}
    assert checks["writing"].status == "not available" and "temporary folder" in checks["writing"].detail


def test_calls_that_run_on_slow_operations_are_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(doctor, "default_name", lambda: "cpu")
    check = doctor._chosen_backend()
    assert check.status == "FAILED" and "apt install g++" in check.detail
    assert check.detail.startswith(
        "cpu, cannot run here, so calls run on MLX operations, which is slower: the cpu backend"
    )
    monkeypatch.setenv("FLEXTRACE_BACKEND", "simulator")
    assert "by FLEXTRACE_BACKEND, cannot run here, so calls raise BackendUnavailable" in doctor._chosen_backend().detail
    monkeypatch.setenv("FLEXTRACE_BACKEND", "ops")
    assert doctor._chosen_backend().status == "ok"


def test_compilers_are_named_with_the_words_of_cxx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "env g++ -g1")
    checks = {check.name: check for check in doctor.environment()}
    for name in ("C++ compiler", "g++ of the simulator"):
        assert checks[name].status == "ok" and re.match(r"/.*/env g\+\+ -g1, .*[0-9]", checks[name].detail)


def test_without_a_compiler_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    checks = {check.name: check for check in doctor.environment()}
    for name in ("C++ compiler", "g++ of the simulator"):
        assert checks[name].status == "not available" and "apt install g++" in checks[name].detail


@pytest.mark.parametrize(
    ("installed", "status", "detail"),
    [
        ({"mlx": "0.32.4", "mlx-cpu": "0.32.4"}, "ok", "mlx-cpu 0.32.4"),
        ({"mlx": "0.28.0"}, "ok", "in one package, or built from source"),
        (
            {"mlx": "0.32.4", "mlx-cuda-13": "0.31.0"},
            "FAILED",
            "mlx-cuda-13 0.31.0 beside mlx 0.32.4: pip install --force-reinstall mlx==0.32.4 mlx-cuda-13==0.32.4",
        ),
    ],
)
def test_which_build_of_mlx(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], status: str, detail: str
) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    check = doctor._mlx_build()
    assert (check.status, check.detail) == (status, detail)


def test_a_backend_that_is_not_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXTRACE_BACKEND", "gpu")
    (check,) = [check for check in doctor.environment() if check.name == "backend"]
    assert check.status == selftest.FAILED
    assert check.detail == "FLEXTRACE_BACKEND is 'gpu'; unset it, or choose one of metal, cuda, simulator, cpu, ops"
    monkeypatch.setenv("FLEXTRACE_BACKEND", "ops")
    (check,) = [check for check in doctor.environment() if check.name == "backend"]
    assert (check.status, check.detail) == (selftest.OK, "ops, by FLEXTRACE_BACKEND")


def test_a_number_of_threads_that_is_none_fails_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from flextrace.kernels.cpu import CpuBackend

    monkeypatch.setenv("FLEXTRACE_NUM_THREADS", "abc")
    result = run(monkeypatch, {"cpu": CpuBackend})
    assert result.exit_code == 1 and result.output.count("FAILED ") == 1, result.output
    line = line_of(result, "threads")
    assert line.startswith("FAILED") and "'abc' is not a positive number; unset it or write one" in line
    assert os.environ["FLEXTRACE_NUM_THREADS"] == "abc"
    monkeypatch.setenv("FLEXTRACE_NUM_THREADS", "2")
    assert doctor._threads().detail == "2, by FLEXTRACE_NUM_THREADS"
