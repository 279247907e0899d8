"""AttentionCall -> Result: which backend runs a call, and what is said where that is not the one asked for."""

from __future__ import annotations

from flextrace.kernels import AttentionCall, Backend, BackendUnavailable, Result, backend_for
from flextrace.kernels.backend import needs_values
from flextrace.kernels.registry import default_name
from flextrace.kernels.smoothing import smoothing
from flextrace.kernels.staged import attend

from .gradient import forward_only
from .notices import notice
from .quantise import refuse_unless_quantising


def run(call: AttentionCall, wanted: str | None, smooth_k: bool = False) -> Result:
    """Run on the backend asked for, or on the default one; on ops where that one cannot run (said once). Stages and
    quantisation are asked for, and not replaced by ops, which has none."""
    backend: Backend
    special = call.staged or call.quant is not None or smooth_k
    if wanted is None and special:
        wanted = default_name()
    try:
        backend = backend_for(wanted or default_name())
    except BackendUnavailable as reason:
        if wanted is not None:
            raise
        notice("no compiler", f"flextrace runs on MLX operations, which is slower: {reason}")
        backend = backend_for("ops")
    refuse_unless_quantising(backend, call, smooth_k)
    if backend.name == "ops":
        return attend(backend, call)
    try:
        if smooth_k:
            call.smoothing = smoothing(call)
        result = forward_only(backend, call)
        if result.notice is not None:
            notice("kernel option", result.notice)
        return result
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
