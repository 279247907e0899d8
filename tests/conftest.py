"""Shared set-up: every test process keeps its kernels in one cache of the test run, not in the user's."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # zoo, reference, expressions


def pytest_configure(config: pytest.Config) -> None:
    # Workers of xdist inherit the folder, so a kernel is compiled once per run. CI may keep it between runs.
    if "FLEXTRACE_CACHE_DIR" not in os.environ:
        os.environ["FLEXTRACE_CACHE_DIR"] = folder = tempfile.mkdtemp(prefix="flextrace-tests-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    if os.environ.get("FLEXTRACE_TEST_CUDA") == "simulated":  # as on a machine that has the backend
        from apparatus.cuda.simulated import simulated_cuda

        simulation = simulated_cuda()
        simulation.__enter__()
        config.add_cleanup(lambda: simulation.__exit__(None, None, None))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    from backends import device_of

    simulated = os.environ.get("FLEXTRACE_TEST_CUDA") == "simulated"
    for item in items:
        sampled = item.get_closest_marker("sampled")
        device = device_of(item.callspec.params if hasattr(item, "callspec") else {})
        if device is not None:
            item.add_marker(device)
        if (device is None or simulated) and sampled is not None and zlib.crc32(item.nodeid.encode()) % sampled.args[0]:
            item.add_marker(pytest.mark.long)  # by its name, so that no parameter is left out throughout


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
    """A test that meets a machine without a compiler for the simulator is skipped, and says what to install. In CI
    nothing may be missing: there it fails."""
    from flextrace.kernels import BackendUnavailable
    from flextrace.kernels.simulator import SimulatorBackend, SimulatorUnavailable

    try:
        return (yield)
    except (SimulatorUnavailable, BackendUnavailable) as error:
        if isinstance(error, BackendUnavailable) and str(error) != SimulatorBackend().unavailable():
            raise
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many tests of Metal text ran: a green run would hide that they were skipped for want of a compiler."""
    counts = {}
    for outcome in ("passed", "failed", "skipped"):
        reports = terminalreporter.stats.get(outcome, [])
        counts[outcome] = sum(
            any(part in report.nodeid for part in ("tests/metal/", "tests/kernels/metal/", "simulator"))
            for report in reports
            if outcome == "skipped" or report.when == "call"
        )
    if any(counts.values()):
        said = ", ".join(f"{number} {outcome}" for outcome, number in counts.items())
        terminalreporter.write_line(f"Metal text in the simulator: {said}")


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for this test; kernels already in memory are forgotten."""
    from flextrace.kernels import registry

    monkeypatch.setenv("FLEXTRACE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "made", {})
    return tmp_path / "cache"


@pytest.fixture
def fresh_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notices that are said once per process may be said again."""
    from flextrace import notices

    monkeypatch.setattr(notices, "said", set())
