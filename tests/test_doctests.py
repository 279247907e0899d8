"""Every example in a docstring runs."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import types

import pytest

import flextrace
from flextrace.kernels.simulator import SimulatorBackend

PACKAGES = ("flextrace", "flextrace.tracer", "flextrace.kernels", "flextrace.cache")  # kept in four folders


def modules() -> list[str]:
    """Every module of the package, however deep, but those that run when imported."""
    found = {"flextrace"}
    for package in PACKAGES:
        path = importlib.import_module(package).__path__
        found |= {name for _, name, _ in pkgutil.walk_packages(path, f"{package}.")}
    return sorted(name for name in found if not name.endswith("__main__"))


@pytest.mark.parametrize("module", modules())
def test_examples(module: str) -> None:
    missing = SimulatorBackend().unavailable()
    if missing is not None and ".simulator." in module:
        pytest.skip(missing)
    failed, _ = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0


def test_every_public_name_has_an_example() -> None:
    finder = doctest.DocTestFinder()
    without = []
    for name in flextrace.__all__:
        public = getattr(flextrace, name)
        if not isinstance(public, types.ModuleType) and ">>>" not in (public.__doc__ or ""):
            without.append(name)
    for module in (flextrace.mods, flextrace.nn, flextrace.visualize):
        without += [name for name in module.__all__ if ">>>" not in (getattr(module, name).__doc__ or "")]
    assert without == []
    # A mod is an object, not a function: its example must be found all the same.
    assert any(test.name.endswith(".causal") and test.examples for test in finder.find(flextrace.mods.masks))
