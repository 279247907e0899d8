"""The public face of the Metal simulator: `flextrace.simulator.metal_kernel(...)` tries a Metal kernel on Linux."""

from flextrace.kernels.simulator import (
    BufferCount,
    CompileError,
    Finding,
    MetalKernel,
    Report,
    RewriteError,
    SimulationError,
    SimulatorUnavailable,
    metal_kernel,
    recording,
)

__all__ = [
    "BufferCount",
    "CompileError",
    "Finding",
    "MetalKernel",
    "Report",
    "RewriteError",
    "SimulationError",
    "SimulatorUnavailable",
    "metal_kernel",
    "recording",
]
