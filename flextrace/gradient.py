"""A forward kernel inside MLX's differentiation: an error that names the remedy, never a silent zero gradient."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from flextrace.kernels import AttentionCall, Backend, Result


class GradientError(RuntimeError):
    """A backend without a backward pass was differentiated."""


def forward_only(backend: Backend, call: AttentionCall) -> Result:
    """Run `call` so that differentiating its result raises GradientError.

    MLX sees one custom function of q, k, v and the captured mlx arrays; outside of mx.grad that costs nothing.
    """
    mods = (call.score_mod, call.mask_mod)
    captured = [a for mod in mods if mod is not None for a in mod.arrays if isinstance(a, mx.array)]
    result = backend.attention(call)

    def refuse(*_: Any) -> Any:
        raise GradientError(
            f"the {backend.name} backend has no backward pass; differentiate with "
            'kernel_options={"BACKEND": "ops"} (or FLEXTRACE_BACKEND=ops)'
        )

    parts = [part for part in (result.out, result.lse, result.max_scores) if part is not None]
    function = mx.custom_function(lambda *_: parts)
    function.vjp(refuse)
    function.jvp(refuse)
    tied = iter(function(call.q, call.k, call.v, *captured))
    return Result(next(tied), next(tied) if call.want_lse else None, next(tied) if call.want_max else None)
