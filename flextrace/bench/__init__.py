"""`flextrace bench`: flextrace beside MLX's own attention and torch's compiled flex_attention, in one process.

`--counts` compares in the simulator what the Metal kernels of flextrace and of MLX move and multiply.
"""

from .measure import BenchError
from .report import main

__all__ = ["BenchError", "main"]
