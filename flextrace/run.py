"""AttentionCall -> Result: which backend runs a call, and what is said where that is not the one asked for."""

from __future__ import annotations

import os

import mlx.core as mx

from flextrace.kernels import BACKENDS, AttentionCall, Backend, BackendUnavailable, Result, backend_for, registry
from flextrace.kernels.backend import needs_values
from flextrace.kernels.call import BackwardCall, Gradients
from flextrace.kernels.differentiation import differentiated, refused
from flextrace.kernels.gradients import is_traced
from flextrace.kernels.stages.pipeline import run_staged

from .int8.smoothing import smoothed
from .notices import notice


def run(call: AttentionCall, asked: str | None = None) -> Result:
    """Run on the backend asked for, or on the default one; on ops where that one cannot run (said once). Stages and
    quantisation are asked for, and not replaced by ops, which has none."""
    special = call.staged or call.quant is not None or call.smooth_k
    wanted = registry.asked_name(asked, os.environ.get(registry.VARIABLE))
    name = wanted or registry.owner_of(mx.default_device().type)
    if special:
        wanted = name
    try:
        backend = registry.made.get(name) or backend_for(name)
    except BackendUnavailable as reason:
        if wanted is not None:
            raise
        notice("no compiler", f"flextrace runs on MLX operations, which is slower: {reason}")
        backend = backend_for("ops")
    if special:
        refuse_what_is_not_followed(backend, call)
    if backend.name == "ops":
        return attend(backend, call)
    try:
        result = _differentiable(backend, call)
    except (ValueError, RuntimeError) as error:
        if not needs_values(error):
            raise
        if wanted is not None:
            without = "PIPELINE" if call.staged else "QK_QUANT, SMOOTH_K and SMOOTH_Q"
            raise BackendUnavailable(
                f"the {wanted} backend needs values, which mx.compile and mx.vmap hide; call flex_attention outside "
                f'them, or with kernel_options={{"BACKEND": "ops"}}{f" and without {without}" if special else ""}'
            ) from None
        notice(
            "transformation",
            "inside mx.compile or mx.vmap flextrace runs on MLX operations, which is slower; call flex_attention "
            'outside them for the compiled kernel, or ask for it with kernel_options={"BACKEND": "ops"}',
        )
        return attend(backend_for("ops"), call)
    if result.notice is not None:
        notice("kernel option", result.notice)
    return result


def attend(backend: Backend, call: AttentionCall) -> Result:
    """The fused kernel, or its stages where the call asks for them, without a gradient. A backend that is not lazy gets
    evaluated arrays.

    Raises:
        ValueError, RuntimeError: MLX forbids to evaluate, inside mx.compile and mx.vmap.
    """
    if not backend.lazy:
        mx.eval(*call.arrays)
    return _attend(backend, call)


def _attend(backend: Backend, call: AttentionCall) -> Result:
    """The same of evaluated arrays, where the backend wants them."""
    if call.staged:
        return run_staged(backend.stages(call.threads), call)
    if call.smooth_k:
        call = smoothed(call)
    return backend.load(backend.spec(call)).run(call)


def _differentiable(backend: Backend, call: AttentionCall) -> Result:
    """Run `call` so that MLX can differentiate its result by q, k, v and captured arrays, where it might."""
    if not backend.lazy:
        mx.eval(*call.arrays)
        if not is_traced(call.arrays):
            return _attend(backend, call)
    reason = _no_gradient(call)
    if reason is not None:
        return refused(_attend(backend, call), call, reason)

    def backward(wanted: BackwardCall) -> Gradients:
        found = backend.backward(wanted)
        if found is None:
            notice("gradients", f"gradients of the {backend.name} backend run on MLX operations, which is slower")
            found = backend_for("ops").backward(wanted)
            assert found is not None
        return found

    return differentiated(_attend(backend, call._replace(want_lse=True)), call, backend.name, backward)


def _no_gradient(call: AttentionCall) -> str | None:
    """Why a call has no gradient, and what to do, or None."""
    if call.staged:
        return 'the stages have no backward pass; leave "PIPELINE": "staged" out to differentiate'
    if call.k_scales is not None:
        return "keys and values in int8 have no gradient; differentiate with *cache.dequantised() of the Int8KV"
    if call.quant is not None:
        return "QK_QUANT has no backward pass, as rounding has no derivative; leave it out in training"
    return None


def refuse_what_is_not_followed(backend: Backend, call: AttentionCall) -> None:
    """Raises ValueError where the call wants q and k quantised or smoothed, and this backend or pipeline does not."""
    if call.quant is None and not call.smooth_k:
        return
    asked = "QK_QUANT" if call.quant is not None else "SMOOTH_K"
    if call.staged:
        raise ValueError(f'{asked} and "PIPELINE": "staged" exclude each other: stages neither quantise nor smooth')
    if not backend.quantises:
        able = [name for name in BACKENDS if backend_for(name, to_run=False).quantises]
        choice = f"choose BACKEND {', '.join(able)}, or " if able else "no backend of this version does; "
        if call.k_scales is not None:
            raise ValueError(
                f"the {backend.name} backend does not read int8 keys; {choice}pass *cache.dequantised() of the Int8KV"
            )
        raise ValueError(
            f"the {backend.name} backend neither quantises nor smooths query and key; {choice}leave {asked} out"
        )
