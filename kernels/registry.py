"""Name -> Backend: which backends there are, and which one runs a call."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

import mlx.core as mx

from flextrace.tracer import Trace
from flextrace.tracer.errors import Brief
from flextrace.tracer.nearest import nearest

from .call import AttentionCall, Result
from .stage_types import Stages


class BackendUnavailable(Brief, RuntimeError):
    """A backend cannot run here, or not inside this MLX transformation. The message names the remedy.

    Example:
        >>> import mlx.core as mx, flextrace as flex
        >>> q = mx.ones((1, 1, 4, 8))
        >>> try:
        ...     out = flex.flex_attention(q, q, q, kernel_options={"BACKEND": "metal"})
        ... except flex.BackendUnavailable:
        ...     out = flex.flex_attention(q, q, q, kernel_options={"BACKEND": "ops"})
        >>> out.shape
        (1, 1, 4, 8)
    """


class Backend(Protocol):
    """What a folder of `kernels/` provides."""

    name: str
    lazy: bool  # a call adds to MLX's graph and evaluates nothing, or (ops) only v, where MLX lets it
    quantises: bool  # follows `quant` and `smoothing` of a call

    def unavailable(self) -> str | None:
        """Why it cannot run on this machine, or None."""

    def source(self, score_mod: Trace | None, mask_mod: Trace | None) -> str:
        """The complete text of the attention kernel for these mods."""

    def prepare(self, score_mod: Trace | None, mask_mod: Trace | None) -> str:
        """Build or load the kernel without running it; says what it took ("memory", "disk", "compiled")."""

    def state(self, score_mod: Trace | None, mask_mod: Trace | None) -> str:
        """Where the kernel for just these mods is: "memory", "paired" (in memory, but only with another mod too),
        "disk" or "nowhere". Makes nothing, loads nothing, and the cache does not count it as a use."""

    def attention(self, call: AttentionCall) -> Result:
        """Run. Raises ValueError where MLX forbids to evaluate (inside mx.compile and mx.vmap)."""

    def stages(self, threads: int = 0) -> Stages:
        """Its stage kernels. Raises ValueError where there are none."""


def _cpu() -> Backend:
    from .cpu import CpuBackend

    return CpuBackend()


def _ops() -> Backend:
    from .ops import OpsBackend

    return OpsBackend()


def _metal() -> Backend:
    from .metal import MetalBackend

    return MetalBackend()


def _simulator() -> Backend:
    from .metal import SimulatorBackend

    return SimulatorBackend()


BACKENDS: dict[str, Callable[[], Backend]] = {"metal": _metal, "simulator": _simulator, "cpu": _cpu, "ops": _ops}
_made: dict[str, Backend] = {}


def backend_for(name: str, *, to_run: bool = True) -> Backend:
    """The backend of that name; without `to_run` only for its texts, which need no device.

    Raises:
        ValueError: there is no such backend.
        BackendUnavailable: it cannot run on this machine.

    Example:
        >>> backend_for("ops").unavailable() is None
        True
    """
    backend = _made.get(name)
    if backend is None:
        if name not in BACKENDS:
            near = nearest(name, BACKENDS)
            meant = f"; did you mean {near!r}?" if near else ""
            raise ValueError(f"unknown backend {name!r}; known: {', '.join(BACKENDS)}{meant}")
        backend = BACKENDS[name]()
        reason = backend.unavailable()
        if reason is None:
            _made[name] = backend
        elif to_run:
            raise BackendUnavailable(reason)
    return backend


def default_name() -> str:
    """The backend that owns MLX's default device."""
    on_metal = mx.metal.is_available() and mx.default_device().type == mx.DeviceType.gpu
    return "metal" if on_metal else "cpu"


def needs_values(error: Exception) -> bool:
    """Whether this is MLX's refusal to evaluate inside mx.compile or mx.vmap."""
    return "during function transformations" in str(error)


def chosen_name(option: str | None) -> str | None:
    """The backend that the caller asked for: kernel_options before FLEXTRACE_BACKEND; None leaves it to us.

    Raises:
        ValueError: FLEXTRACE_BACKEND names none.
    """
    wanted = os.environ.get("FLEXTRACE_BACKEND")
    if not option and wanted and wanted not in BACKENDS:
        raise ValueError(f"FLEXTRACE_BACKEND is {wanted!r}; unset it, or choose one of {', '.join(BACKENDS)}")
    return option or wanted or None
