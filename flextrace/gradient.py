"""A forward kernel inside MLX's differentiation: an error that names the remedy, never a silent zero gradient."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx

from flextrace.kernels import AttentionCall, Backend, Result


class GradientError(RuntimeError):
    """A backend without a backward pass was differentiated."""


def forward_only(backend: Backend, call: AttentionCall) -> Result:
    """Run `call` so that differentiating its result raises GradientError.

    MLX sees one custom function of q, k, v and the captured mlx arrays: of a backend that evaluates, only inside
    mx.grad and its kin; of a lazy one always, which costs nothing there.
    """
    mods = [mod for mod in (call.score_mod, call.mask_mod) if mod is not None]
    inputs = [call.q, call.k, call.v, *(a for mod in mods for a in mod.arrays if isinstance(a, mx.array))]
    result = backend.attention(call)
    if not backend.lazy and not is_traced(inputs):
        return result

    def refuse(*_: Any) -> Any:
        raise GradientError(
            f"the {backend.name} backend has no backward pass; differentiate with "
            'kernel_options={"BACKEND": "ops"} (or FLEXTRACE_BACKEND=ops)'
        )

    parts = [part for part in (result.out, result.lse, result.max_scores) if part is not None]
    function = mx.custom_function(lambda *_: parts)
    function.vjp(refuse)
    function.jvp(refuse)
    tied: Iterator[mx.array] = iter(function(*inputs))  # type: ignore[call-overload]
    return Result(next(tied), next(tied) if call.want_lse else None, next(tied) if call.want_max else None)


def is_traced(evaluated: Sequence[mx.array]) -> bool:
    """Whether MLX differentiates any of these evaluated arrays: it keeps the graph of those, and of no others.

    MLX has no public question for this; its graph export shows an edge for every array that still has inputs.
    """
    graph = io.StringIO()
    mx.export_to_dot(graph, *evaluated)
    return "->" in graph.getvalue()
