"""Expression tree -> running kernel: one folder per backend, and what they share."""

from .call import AttentionCall, Blocks, BoundMod, Result
from .registry import BACKENDS, Backend, BackendUnavailable, backend_for

__all__ = [
    "BACKENDS",
    "AttentionCall",
    "Backend",
    "BackendUnavailable",
    "Blocks",
    "BoundMod",
    "Result",
    "backend_for",
]
