"""What has no gradient inside MLX's differentiation: an error, never a silent zero."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any, cast

import mlx.core as mx

from flextrace.tracer.errors import Brief


class GradientError(Brief, RuntimeError):
    """What was differentiated has no gradient: quantised keys, a stage, or a gradient itself. The message names the
    remedy.

    Example:
        >>> import mlx.core as mx, flextrace as flex
        >>> q = mx.ones((1, 1, 4, 8))
        >>> def loss(q, **options):
        ...     return flex.flex_attention(q, q, q, kernel_options=options).sum()
        >>> mx.grad(loss)(q).shape
        (1, 1, 4, 8)
        >>> mx.grad(lambda q: loss(q, QK_QUANT="int8"))(q)     # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        flextrace.kernels.gradients.GradientError: QK_QUANT has no backward pass ...
    """


def refuse_gradient(
    inputs: Sequence[mx.array], outputs: Sequence[mx.array], lazy: bool, message: str
) -> Sequence[mx.array]:
    """The outputs, so that differentiating them raises GradientError.

    MLX sees one custom function of the inputs: of a backend that evaluates, only inside mx.grad and its kin; of a lazy
    one always, which costs nothing there.
    """
    if not inputs or (not lazy and not is_traced(inputs)):
        return outputs

    function = mx.custom_function(lambda *_: list(outputs))
    function.vjp(refusal(message))
    function.jvp(refusal(message))
    return cast("Sequence[mx.array]", function(*inputs))


def refusal(message: str) -> Callable[..., Any]:
    """What MLX calls for a derivative, and gets GradientError from."""

    def refuse(*_: Any) -> Any:
        raise GradientError(message)

    return refuse


def is_traced(evaluated: Sequence[mx.array]) -> bool:
    """Whether MLX differentiates any of these evaluated arrays: it keeps the graph of those, and of no others.

    MLX has no public question for this; its graph export shows an edge for every array that still has inputs.
    """
    graph = io.StringIO()
    mx.export_to_dot(graph, *evaluated)
    return "->" in graph.getvalue()
