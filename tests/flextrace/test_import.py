"""Importing flextrace: it evaluates nothing, and where MLX does not load it says what to install."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from flextrace import mlx_build
from flextrace.commands.exits import CANNOT

FORKS = """
import importlib, os, pkgutil, signal, sys

import flextrace

if sys.argv[1] == "everything":
    for package in (flextrace, flextrace.tracer, flextrace.kernels, flextrace.cache):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)

import mlx.core as mx

child = os.fork()
if child == 0:
    signal.alarm(20)  # a thread of MLX's that ran in the parent is missing here, and is waited for without end
    mx.eval(mx.zeros(3) + 1)
    os._exit(0)
sys.exit(os.waitpid(child, 0)[1] != 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.skipif(sys.platform == "darwin", reason="Metal does not outlive a fork, whatever was evaluated")
@pytest.mark.parametrize("modules", ["package", "everything"])
def test_importing_evaluates_nothing(modules: str) -> None:
    done = subprocess.run([sys.executable, "-c", FORKS, modules], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


NO_LIBRARY = "libmlx.so: cannot open shared object file: No such file or directory"
NO_BUILD = {"mlx/__init__.py": "", "mlx/core.py": f"raise ImportError({NO_LIBRARY!r})"}  # as `mlx` alone is on Linux
NO_MLX = {"mlx/__init__.py": ""}


def run_without_mlx(folder: Path, files: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    """Python with this command line, where MLX is no more than these files."""
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, timeout=60)


@pytest.mark.parametrize(
    ("files", "state"), [(NO_BUILD, f"does not load ({NO_LIBRARY})"), (NO_MLX, "is not installed")]
)
def test_without_mlx_the_import_says_what_to_install(files: dict[str, str], state: str, tmp_path: Path) -> None:
    done = run_without_mlx(tmp_path, files, "-c", "import flextrace")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: flextrace needs MLX, which {state}; ")


@pytest.mark.parametrize("arguments", [["--help"], ["doctor", "--json"], ["cache", "ls"]])
@pytest.mark.parametrize("start", ["module", "script"])
def test_without_mlx_a_command_says_so_without_a_traceback(start: str, arguments: list[str], tmp_path: Path) -> None:
    script = tmp_path / "bin" / "flextrace"  # as pip writes it
    script.parent.mkdir()
    script.write_text("import sys\nfrom flextrace.cli import app\nsys.exit(app())\n")
    command = ["-m", "flextrace"] if start == "module" else [str(script)]
    done = run_without_mlx(tmp_path, NO_BUILD, *command, *arguments)
    assert (done.returncode, done.stdout) == (CANNOT, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"flextrace needs MLX, which does not load ({NO_LIBRARY}); ")


@pytest.mark.parametrize(
    ("system", "machine", "installed", "said"),
    [
        ("linux", "x86_64", {}, "pip install 'flextrace[cpu]', or with an NVIDIA GPU pip install 'flextrace[cuda13]'"),
        (
            "linux",
            "x86_64",
            {"mlx": "1"},
            "on Linux MLX's library is a package of its own: pip install 'flextrace[cpu]'",
        ),
        ("linux", "x86_64", {"mlx": "2", "mlx-cpu": "1"}, "do not go together: pip install mlx-cpu==2"),
        ("linux", "x86_64", {"mlx": "1", "mlx-cpu": "1"}, "pip install --force-reinstall mlx==1 mlx-cpu==1"),
        (
            "linux",
            "x86_64",
            {"mlx": "1", "mlx-cpu": "1", "mlx-cuda-13": "1"},
            "mlx-cpu and mlx-cuda-13 overwrite each other's files: pip uninstall mlx mlx-cpu mlx-cuda-13, then",
        ),
        ("darwin", "x86_64", {}, "MLX needs Apple silicon"),
        ("darwin", "arm64", {}, "pip install --upgrade --force-reinstall mlx"),
        ("win32", "AMD64", {}, "MLX has builds for macOS and Linux, and this is win32"),
    ],
)
def test_the_remedy_fits_the_machine(system: str, machine: str, installed: dict[str, str], said: str) -> None:
    assert said in mlx_build.remedy(ImportError(NO_LIBRARY), system, machine, installed)


def test_a_cuda_build_without_a_driver_names_the_cpu_build() -> None:
    error = ImportError("libcuda.so.1: cannot open shared object file: No such file or directory")
    said = mlx_build.remedy(error, "linux", "x86_64", {"mlx": "1", "mlx-cuda-13": "1"})
    assert "needs an NVIDIA driver" in said and said.endswith("then pip install 'flextrace[cpu]'")


def test_the_extras_that_are_named_exist() -> None:
    extras = re.findall(r"flextrace\[(\w+)\]", Path(mlx_build.__file__).read_text(encoding="utf-8"))
    assert (
        {"cpu", "cuda12", "cuda13"} == {*extras} <= {*(metadata.metadata("flextrace").get_all("Provides-Extra") or [])}
    )
