"""Arrays, mods -> the call that a backend takes, and its result: for tests that speak to one backend."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from flextrace.kernels import AttentionCall, Backend, Blocks, Result
from flextrace.kernels.call import Mods
from flextrace.kernels.spec import ATTENTION, Formulas, KernelSpec
from flextrace.run import attend
from flextrace.tracer import Bound, Trace


def attention_call(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    scale: float,
    score_mod: Bound | None = None,
    mask_mod: Bound | None = None,
    blocks: Blocks | None = None,
    **options: Any,
) -> AttentionCall:
    """A call; options: the other fields of AttentionCall."""
    return AttentionCall.of(q, k, v, scale, Mods(score_mod, mask_mod), blocks, **options)


def run_on(backend: Any, call: AttentionCall) -> Result:
    """The result of a call on a backend, fused or by stages, as the call says."""
    chosen: Backend = backend
    return attend(chosen, call)


def formulas(score_mod: Trace | None = None, mask_mod: Trace | None = None) -> Formulas:
    """What a kernel knows of these mods."""
    return Formulas(*(None if mod is None else mod.formula for mod in (score_mod, mask_mod)))


def attention_spec(score_mod: Trace | None = None, mask_mod: Trace | None = None, variant: Any = None) -> KernelSpec:
    """The attention kernel of these mods, the backend's plain one without a variant."""
    return KernelSpec(ATTENTION, formulas(score_mod, mask_mod), variant)
