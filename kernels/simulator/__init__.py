"""Metal text -> numbers, findings and counts on the host: a simulator of Apple's GPUs for kernels of MLX."""

from .backend import SimulatorBackend
from .build import CompileError, SimulatorUnavailable
from .kernel import MetalKernel, metal_kernel, recording
from .report import BufferCount, Finding, Report, SimulationError
from .translate.rewrite import RewriteError

__all__ = [
    "BufferCount",
    "CompileError",
    "Finding",
    "MetalKernel",
    "Report",
    "RewriteError",
    "SimulationError",
    "SimulatorBackend",
    "SimulatorUnavailable",
    "metal_kernel",
    "recording",
]
