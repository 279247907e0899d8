"""Expression tree -> running kernel: one folder per backend, and what they share."""

from .backend import Backend, BackendUnavailable
from .blocks import Blocks
from .call import AttentionCall, Result
from .gradients import GradientError
from .int8_types import Int8Rows, QKQuant, Smoothing
from .registry import BACKENDS, backend_for
from .stages.protocol import BlockLists, OutputParts, SoftmaxParts, Stages

__all__ = [
    "BACKENDS",
    "AttentionCall",
    "Backend",
    "BackendUnavailable",
    "BlockLists",
    "Blocks",
    "GradientError",
    "Int8Rows",
    "OutputParts",
    "QKQuant",
    "Result",
    "Smoothing",
    "SoftmaxParts",
    "Stages",
    "backend_for",
]
