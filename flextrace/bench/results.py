"""The figures of one run of the benchmark, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .backward import StepRow
from .cuda import CudaRow
from .decode import DecodeRow
from .int8 import Int8Row
from .masks import MaskRow


@dataclass
class Row:
    """Times in milliseconds of one forward pass; None where a peer has no such attention or is not installed."""

    mod: str
    dtype: str
    shape: tuple[int, int, int, int]
    flextrace: float
    mlx: float | None
    torch: float | None
    dense_gflops: float  # 4 B H L^2 D per second: counts skipped tiles as done

    def ratio(self, peer: float | None) -> float | None:
        return None if peer is None else peer / self.flextrace


@dataclass
class Report:
    """All figures of one run, on one machine."""

    machine: dict[str, Any]
    peak_gflops: float = 0.0
    rows: list[Row] = field(default_factory=list)
    start: dict[str, float] = field(default_factory=dict)
    memory: dict[str, dict[str, float]] = field(default_factory=dict)
    masks: list[MaskRow] = field(default_factory=list)
    mask_calls: dict[str, float | None] = field(default_factory=dict)
    int8: list[Int8Row] = field(default_factory=list)
    decode: list[DecodeRow] = field(default_factory=list)
    cuda: list[CudaRow] = field(default_factory=list)
    steps: list[StepRow] = field(default_factory=list)
    long_step: dict[str, float] = field(default_factory=dict)
