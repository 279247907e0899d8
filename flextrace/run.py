"""AttentionCall -> Result: which backend runs a call, and what is said where that is not the one asked for."""

from __future__ import annotations

from flextrace.kernels import AttentionCall, Backend, BackendUnavailable, Result, backend_for
from flextrace.kernels.registry import default_name, needs_values
from flextrace.kernels.staged import attend

from .gradient import forward_only
from .notices import notice


def run(call: AttentionCall, wanted: str | None) -> Result:
    """Run on the backend asked for, or on the default one; on ops where that one cannot run (said once). Stages are
    asked for, and not replaced by ops, which has none."""
    backend: Backend
    if wanted is None and call.staged:
        wanted = default_name()
    try:
        backend = backend_for(wanted or default_name())
    except BackendUnavailable as reason:
        if wanted is not None:
            raise
        notice("no compiler", f"flextrace runs on MLX operations, which is slower: {reason}")
        backend = backend_for("ops")
    if backend.name == "ops":
        return attend(backend, call)
    try:
        result = forward_only(backend, call)
        if result.notice is not None:
            notice("kernel option", result.notice)
        return result
    except (ValueError, RuntimeError) as error:
        if not needs_values(error):
            raise
        if wanted is not None:
            raise BackendUnavailable(
                f"the {wanted} backend needs values, which mx.compile and mx.vmap hide; call flex_attention outside "
                f'them, or with kernel_options={{"BACKEND": "ops"}}{" and without PIPELINE" if call.staged else ""}'
            ) from None
        notice(
            "transformation",
            "inside mx.compile or mx.vmap flextrace runs on MLX operations, which is slower; call flex_attention "
            'outside them for the compiled kernel, or ask for it with kernel_options={"BACKEND": "ops"}',
        )
        return backend_for("ops").attention(call)
