"""The workflow for hosted machines, which cannot run here: what it names exists, and its probe of a device works."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import backends
import mlx.core as mx
import pytest

from flextrace.kernels.simulator import metal_kernel

ROOT = Path(__file__).parents[1]
yaml = pytest.importorskip("yaml")


@pytest.fixture(scope="module")
def jobs() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    found: dict[str, Any] = loaded["jobs"]
    return found


def commands(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


def test_its_make_targets_exist(jobs: dict[str, Any]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("$(VENV)", ".venv")
    targets = {*re.findall(r"^([\w./-]+):", makefile, re.MULTILINE)}
    asked = {entry["target"] for entry in jobs["linux"]["strategy"]["matrix"]["include"]}
    named = {word for job in jobs.values() for line in commands(job) for word in re.findall(r"^make ([\w./-]+)", line)}
    assert asked == {"test", "test-lowest", "lint"} and asked | named <= targets


def test_its_files_and_markers_exist(jobs: dict[str, Any], pytestconfig: pytest.Config) -> None:
    lines = "\n".join([*commands(jobs["metal"]), *commands(jobs["cuda"])])
    files = re.findall(r"tests/[\w/]+\.py", lines)
    assert files and all((ROOT / file).is_file() for file in files)
    markers = {line.partition(":")[0] for line in pytestconfig.getini("markers")}
    (expression,) = re.findall(r'-m "([^"]+)"', lines)
    assert {*re.findall(r"\w+", expression)} - {"and", "not"} <= markers


def test_it_probes_the_device_first_and_keeps_what_doctor_says(jobs: dict[str, Any]) -> None:
    job = jobs["metal"]
    assert job["env"] == {"METAL_DEVICE_WRAPPER_TYPE": "1"}
    steps = [step.get("run", step.get("uses", "")) for step in job["steps"]]
    order = [next(i for i, step in enumerate(steps) if word in step) for word in ("probe", "doctor --json", "pytest")]
    assert order == sorted(order)
    kept = next(step for step in job["steps"] if "upload-artifact" in step.get("uses", ""))
    assert kept["if"] == "always()" and kept["with"]["path"] in steps[order[1]]
    systems = {entry["system"]: entry["may_fail"] for entry in job["strategy"]["matrix"]["include"]}
    assert systems == {"macos-15": False, "macos-26": True}


def test_the_probe_multiplies_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "apparatus"))
    import device_probe

    assert device_probe.product_is_right(metal_kernel)
    monkeypatch.setattr(
        device_probe, "PRODUCT", device_probe.PRODUCT.replace("left, right, product", "right, left, product")
    )
    assert not device_probe.product_is_right(metal_kernel)


def test_tests_on_a_device_are_marked(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(backends, "METAL", ("metal",))
    assert backends.device_of({"backend": "metal"}) == backends.device_of({"way": "metal-int8"}) == "metal"
    assert backends.device_of({"backend": "simulator", "name": "metal"}) is None
    assert backends.device_of({"backend": object()}) is backends.device_of({}) is None
    monkeypatch.setattr(backends, "METAL", ())
    assert backends.device_of({"backend": "metal"}) is None
    marked = [item for item in request.session.items if item.get_closest_marker("metal")]
    assert mx.metal.is_available() or all(item.get_closest_marker("skipif") for item in marked)
