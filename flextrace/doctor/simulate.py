"""Mods, a problem -> what its Metal kernel did in the simulator, and how far it is from float64 attention.

The other side is softmax(mask(score_mod(scale * Q K^T))) V as it is written down, in float64 numpy, with the mods'
expressions evaluated by numpy: no kernel text is part of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from flextrace.attention import flex_attention
from flextrace.decorators import MaskMod, ScoreMod, bound
from flextrace.exact import exact_attention
from flextrace.kernels import AttentionCall
from flextrace.simulator import Report, SimulationError, recording

from .exactness import TOLERANCE, tensors

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Error:
    """How far a result is from float64.

    largest: the largest |kernel - exact|; inf where one of them is nan or infinite.
    within: whether each value is within tolerance * (1 + |exact|).
    """

    result: str
    largest: float
    tolerance: float
    within: bool


@dataclass(frozen=True)
class Simulation:
    """reports: one for each kernel that ran; errors: those of out and lse, none where findings stopped the run."""

    reports: tuple[Report, ...]
    errors: tuple[Error, ...]

    @property
    def ok(self) -> bool:
        return bool(self.errors) and all(error.within for error in self.errors) and not self.findings

    @property
    def findings(self) -> tuple[Any, ...]:
        return tuple(finding for report in self.reports for finding in report.findings)


def simulate(
    score_mod: ScoreMod | None, mask_mod: MaskMod | None, shapes: Sequence[tuple[int, ...]], dtype: str
) -> Simulation:
    """Run the kernel of one call on normal random tensors of these shapes of (query, key, value).

    Raises:
        BackendUnavailable: this machine has no compiler for the simulator.
        TraceError, OverflowError, ZeroDivisionError: a mod cannot be used.
    """
    q, k, v = tensors(shapes, dtype)
    mods = bound(score_mod, mask_mod)
    with recording() as reports:
        try:
            out, lse = flex_attention(
                q,
                k,
                v,
                score_mod,
                mask_mod,
                enable_gqa=True,
                return_lse=True,
                kernel_options={"BACKEND": "simulator"},
            )
        except SimulationError:
            return Simulation(tuple(reports), ())
    exact = exact_attention(AttentionCall.of(q, k, v, 1 / math.sqrt(q.shape[-1]), mods))
    errors = (_error("out", out, exact.out, TOLERANCE[dtype]), _error("lse", lse, exact.lse, TOLERANCE[dtype]))
    return Simulation(tuple(reports), errors)


def _error(result: str, got: mx.array, exact: Array, tolerance: float) -> Error:
    found = np.array(got.astype(mx.float32)).astype(np.float64)
    same = (found == exact) | (np.isnan(found) & np.isnan(exact))  # also -inf, the lse of a row without keys
    with np.errstate(invalid="ignore"):
        off = np.where(same, 0.0, np.abs(found - exact))
    off = np.where(np.isnan(off), np.inf, off)
    within = off <= tolerance * (1 + np.abs(np.where(np.isfinite(exact), exact, 0.0)))
    return Error(result, float(off.max(initial=0.0)), tolerance, bool(within.all()))
