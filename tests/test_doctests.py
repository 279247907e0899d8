"""Every example in a docstring runs."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import flextrace
from flextrace.kernels.metal import SimulatorBackend

MODULES = sorted(
    name for _, name, _ in pkgutil.walk_packages(flextrace.__path__, "flextrace.") if not name.endswith("__main__")
) + [
    f"flextrace.{package}.{name}"
    for package in ("tracer", "kernels", "cache")
    for _, name, _ in pkgutil.iter_modules(importlib.import_module(f"flextrace.{package}").__path__)
]


@pytest.mark.parametrize("module", ["flextrace", *dict.fromkeys(MODULES)])
def test_examples(module: str) -> None:
    missing = SimulatorBackend().unavailable()
    if missing is not None and ".simulator." in module:
        pytest.skip(missing)
    failed, _ = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0
