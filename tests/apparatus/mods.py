"""Zoo entries -> traces and kernel texts, for the tests of the Metal text."""

from __future__ import annotations

from typing import Any

import numpy as np
import zoo
from calls import formulas

from flextrace.kernels.metal.generate import kernel_text
from flextrace.kernels.metal.text import KernelText
from flextrace.tracer import Trace, trace


def traces(*names: str) -> tuple[Trace | None, Trace | None]:
    """(score_mod, mask_mod) of these entries, at most one of each kind."""
    found: dict[str, Any] = {}
    for name in names:
        entry = zoo.ZOO[name]
        mod = entry.make(2, 2, 37, 53, np.random.default_rng(0))
        found[entry.kind] = trace(mod, "score_mod" if entry.kind == "score" else "mask_mod")
    return found.get("score"), found.get("mask")


def text_of(*names: str) -> KernelText:
    return kernel_text(formulas(*traces(*names)))
