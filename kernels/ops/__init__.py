"""The ops backend: the same attention in MLX array operations, tile by tile."""

from .backend import OpsBackend

__all__ = ["OpsBackend"]
