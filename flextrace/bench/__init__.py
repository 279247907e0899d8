"""`flextrace bench`: flextrace beside MLX's own attention and torch's compiled flex_attention, in one process."""

from .report import BenchError, main

__all__ = ["BenchError", "main"]
