"""Result -> the same in MLX's graph, with its gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import mlx.core as mx

from .call import AttentionCall, BackwardCall, Gradients, Result
from .gradients import is_traced, refusal, refuse_gradient

Backward = Callable[[BackwardCall], Gradients]


def differentiated(result: Result, call: AttentionCall, name: str, backward: Backward) -> Result:
    """What a call gave, with lse, as one function of q, k, v and the captured arrays, whose gradient is `backward`, of
    the backend of that name.

    MLX takes arrays that a custom function reads from outside for constants, so all of them are its arguments.
    Differentiating that gradient raises GradientError.
    """
    inputs = [call.q, call.k, call.v, *call.mods.mlx_arrays]
    outputs = [part for part in (result.out, result.lse, result.max_scores) if part is not None]
    wanted = tuple(slot for slot in call.mods.formulas.differentiable if _may_vary(call.mods.arrays[slot]))
    plain = call._replace(want_lse=True, smooth_k=False)

    def vjp(primals: Sequence[mx.array], cotangents: Sequence[mx.array], _: Any) -> list[mx.array]:
        d_out, d_lse = cotangents[:2]
        d_max_scores = None if result.max_scores is None else cotangents[2]
        lse, largest = cast("mx.array", result.lse), result.max_scores
        found = backward(BackwardCall(plain, result.out, lse, d_out, d_lse, largest, d_max_scores, wanted))
        by_slot = dict(zip(wanted, found.arrays, strict=True))
        gradients = [found.q, found.k, found.v]
        for slot, array in enumerate(call.mods.arrays):
            if isinstance(array, mx.array):
                gradients.append(by_slot[slot] if slot in by_slot else mx.zeros_like(array))
        return list(refuse_gradient([*primals, *cotangents], gradients, True, _ONCE.format(name)))

    function = mx.custom_function(lambda *_: list(outputs))
    function.vjp(vjp)
    function.jvp(refusal(_FORWARD_MODE.format(name)))
    return _with_parts(result, cast("Sequence[mx.array]", function(*inputs)))


_IN_OPS = 'use kernel_options={{"BACKEND": "ops"}}, whose gradients are MLX\'s own'
_ONCE = f"the gradient of the {{}} backend cannot be differentiated again; {_IN_OPS}"
_FORWARD_MODE = f"the {{}} backend has no forward-mode derivative (mx.jvp); {_IN_OPS}"


def _may_vary(array: Any) -> bool:
    """Whether MLX may ask for the gradient of a captured array: it has a graph. One that was evaluated outside of any
    differentiation has none."""
    return isinstance(array, mx.array) and is_traced([array])


def refused(result: Result, call: AttentionCall, message: str) -> Result:
    """The same result; differentiating it by q, k, v or a captured mlx array raises GradientError."""
    parts = [part for part in (result.out, result.lse, result.max_scores) if part is not None]
    outputs = [*parts, *result.intermediates.values()]
    return _with_parts(result, refuse_gradient(call.arrays, outputs, True, message))


def _with_parts(result: Result, parts: Sequence[mx.array]) -> Result:
    """The result made of these outputs."""
    left = iter(parts)
    out = next(left)
    lse = None if result.lse is None else next(left)
    max_scores = None if result.max_scores is None else next(left)
    intermediates = dict(zip(result.intermediates, left, strict=True))
    return Result(out, lse, max_scores, result.notice, intermediates)
