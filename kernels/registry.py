"""Name -> Backend: which backends there are, and which one runs a call."""

from __future__ import annotations

import os
from collections.abc import Callable

import mlx.core as mx

from flextrace.tracer.nearest import nearest

from .backend import Backend, BackendUnavailable


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
    from .simulator import SimulatorBackend

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


def chosen_name(option: str | None) -> str | None:
    """The backend that the caller asked for: kernel_options before FLEXTRACE_BACKEND; None leaves it to us.

    Raises:
        ValueError: FLEXTRACE_BACKEND names none.
    """
    wanted = os.environ.get("FLEXTRACE_BACKEND")
    if not option and wanted and wanted not in BACKENDS:
        raise ValueError(f"FLEXTRACE_BACKEND is {wanted!r}; unset it, or choose one of {', '.join(BACKENDS)}")
    return option or wanted or None
