"""Which backends tests run on: on a Mac with Apple silicon, the real metal backend too; with an NVIDIA GPU, or where
FLEXTRACE_TEST_CUDA is "simulated" (apparatus/cuda), cuda too."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from flextrace.kernels import backend_for

METAL = ("metal",) if mx.metal.is_available() else ()
CUDA = ("cuda",) if backend_for("cuda", to_run=False).unavailable() is None else ()
COMPILED_OR_OPS = ("cpu", "ops", *METAL)
EVERY = ("cpu", "ops", "simulator", *METAL, *CUDA)
STAGED = ("cpu", "simulator", *METAL, *CUDA)


def device_of(parameters: dict[str, Any]) -> str | None:
    """The device that a test with these parameters runs on, by the mark that conftest gives it; None for the host."""
    chosen = [parameters[name] for name in ("backend", "way") if isinstance(parameters.get(name), str)]
    return next((base for name in chosen if (base := name.partition("-")[0]) in (*METAL, *CUDA)), None)


def _ways() -> dict[str, dict[str, Any]]:
    every: dict[str, dict[str, Any]] = {name: {"BACKEND": name} for name in EVERY}
    changes = {"staged": {"PIPELINE": "staged"}, "int8": {"QK_QUANT": "int8"}, "smooth": {"SMOOTH_K": True}}
    changes["smooth-q"] = {"QK_QUANT": "int8", "SMOOTH_Q": True}
    every |= {f"{name}-{way}": {"BACKEND": name} | options for name in STAGED for way, options in changes.items()}
    return every


WAYS = _ways()  # every way to compute a call: kernel_options by name
