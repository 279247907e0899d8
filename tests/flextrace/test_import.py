"""Importing flextrace: it evaluates nothing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

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
