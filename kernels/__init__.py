"""Expression tree -> running kernel: one folder per backend, and what they share."""

from .call import AttentionCall, Blocks, Result
from .registry import BACKENDS, Backend, BackendUnavailable, backend_for

__all__ = [
    "BACKENDS",
    "AttentionCall",
    "Backend",
    "BackendUnavailable",
    "Blocks",
    "Result",
    "backend_for",
]
