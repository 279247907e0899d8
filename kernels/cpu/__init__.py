"""The cpu backend: C++ for the whole machine, compiled once per pair of mods and kept on disk."""

from .backend import CpuBackend
from .toolchain import CompileError

__all__ = ["CompileError", "CpuBackend"]
