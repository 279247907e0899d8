"""Name -> Backend: which backends there are, and which one runs a call."""

from __future__ import annotations

import functools
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


def _cuda() -> Backend:
    from .cuda.backend import CudaBackend

    return CudaBackend()


BACKENDS: dict[str, Callable[[], Backend]] = {
    "metal": _metal,
    "cuda": _cuda,
    "simulator": _simulator,
    "cpu": _cpu,
    "ops": _ops,
}
made: dict[str, Backend] = {}  # those that can run here and were asked for
VARIABLE = "FLEXTRACE_BACKEND"


def backend_for(name: str, *, to_run: bool = True) -> Backend:
    """The backend of that name; without `to_run` only for its texts, which need no device.

    Raises:
        ValueError: there is no such backend.
        BackendUnavailable: it cannot run on this machine.

    Example:
        >>> backend_for("ops").unavailable() is None
        True
    """
    backend = made.get(name)
    if backend is None:
        if name not in BACKENDS:
            near = nearest(name, BACKENDS)
            meant = f"; did you mean {near!r}?" if near else ""
            raise ValueError(f"unknown backend {name!r}; known: {', '.join(BACKENDS)}{meant}")
        backend = BACKENDS[name]()
        reason = backend.unavailable()
        if reason is None:
            made[name] = backend
        elif to_run:
            raise BackendUnavailable(reason)
    return backend


def default_name() -> str:
    """The backend that owns MLX's default device."""
    return owner_of(mx.default_device().type)


def chosen_name(option: str | None) -> str | None:
    """The backend that the caller asked for: kernel_options before FLEXTRACE_BACKEND; None leaves it to us.

    Raises:
        ValueError: FLEXTRACE_BACKEND names none.
    """
    return asked_name(option, os.environ.get(VARIABLE))


@functools.cache
def owner_of(device: mx.DeviceType) -> str:
    """The backend that owns MLX's devices of a type."""
    if device != mx.DeviceType.gpu:
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


@functools.cache
def asked_name(option: str | None, variable: str | None) -> str | None:
    """As `chosen_name`, of the value of FLEXTRACE_BACKEND."""
    if not option and variable and variable not in BACKENDS:
        raise ValueError(f"{VARIABLE} is {variable!r}; unset it, or choose one of {', '.join(BACKENDS)}")
    return option or variable or None
