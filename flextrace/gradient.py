"""A forward kernel inside MLX's differentiation: an error that names the remedy, never a silent zero gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx

from flextrace.kernels import AttentionCall, Backend, BoundMod, Result


class GradientError(RuntimeError):
    """A backend without a backward pass was differentiated."""


def forward_only(backend: Backend, call: AttentionCall) -> Result:
    """Run `call` so that differentiating its result raises GradientError.

    MLX sees one custom function of q, k, v and the captured mlx arrays; outside of mx.grad that costs nothing.
    """
    mods = (call.score_mod, call.mask_mod)
    captured = [a for mod in mods if mod is not None for a in mod.arrays if isinstance(a, mx.array)]

    def forward(q: mx.array, k: mx.array, v: mx.array, *arrays: mx.array) -> list[mx.array]:
        given = iter(arrays)
        score, mask = (None if mod is None else _with_arrays(mod, given) for mod in mods)
        result = backend.attention(replace(call, q=q, k=k, v=v, score_mod=score, mask_mod=mask))
        return [part for part in (result.out, result.lse, result.max_scores) if part is not None]

    def refuse(*_: Any) -> Any:
        raise GradientError(
            f"the {backend.name} backend has no backward pass; differentiate with "
            'kernel_options={"BACKEND": "ops"} (or FLEXTRACE_BACKEND=ops)'
        )

    function = mx.custom_function(forward)
    function.vjp(refuse)
    function.jvp(refuse)
    parts = iter(function(call.q, call.k, call.v, *captured))
    return Result(
        next(parts), next(parts) if call.want_lse else None, next(parts) if call.want_max else None
    )


def _with_arrays(mod: BoundMod, given: Any) -> BoundMod:
    return BoundMod(mod.trace, [next(given) if isinstance(a, mx.array) else a for a in mod.arrays], mod.numbers)
