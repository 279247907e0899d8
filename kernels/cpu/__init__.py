"""The cpu backend: C++ for the whole machine, compiled once per pair of mods and kept on disk."""

from ..toolchain import CompileError
from .backend import CpuBackend

__all__ = ["CompileError", "CpuBackend"]
