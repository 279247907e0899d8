"""A forward kernel inside MLX's differentiation: an error that names the remedy, never a silent zero gradient."""

from __future__ import annotations

from flextrace.kernels import AttentionCall, Backend, Result
from flextrace.kernels.gradients import GradientError, refuse_gradient
from flextrace.kernels.staged import attend


def forward_only(backend: Backend, call: AttentionCall) -> Result:
    """Run `call` so that differentiating its result by q, k, v or a captured mlx array raises GradientError."""
    result = attend(backend, call)
    statistics = [part for part in (result.lse, result.max_scores) if part is not None]
    outputs = [result.out, *statistics, *result.intermediates.values()]
    message = (
        f"the {backend.name} backend has no backward pass; differentiate with "
        'kernel_options={"BACKEND": "ops"} (or FLEXTRACE_BACKEND=ops)'
    )
    tied = refuse_gradient(call.arrays, outputs, backend.lazy, message)
    if tied is outputs:
        return result
    parts = iter(tied)
    return Result(
        next(parts),
        None if result.lse is None else next(parts),
        None if result.max_scores is None else next(parts),
        result.notice,
        dict(zip(result.intermediates, parts, strict=True)),
    )


__all__ = ["GradientError", "forward_only"]
