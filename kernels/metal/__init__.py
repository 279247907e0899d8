"""The metal backend: Metal kernels for Apple GPUs through mx.fast.metal_kernel, and the same ones in the simulator."""

from .backend import MetalBackend

__all__ = ["MetalBackend"]
