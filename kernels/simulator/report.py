"""Counts and findings of one run, as a table and as messages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..notebooks import html_of


@dataclass(frozen=True)
class BufferCount:
    """Bytes that a run moved between the kernel and one buffer."""

    name: str
    space: str
    """device, or constant: sizes, strides and inputs of fewer than 8 elements, which an Apple GPU keeps close"""
    size: int
    read: int
    written: int
    unwritten: int
    """bytes of an output that no lane wrote (they hold its initial value, or NaN)"""


@dataclass(frozen=True)
class Finding:
    """One thing that the checks found wrong.

    kind: race, overlapping write, uninitialised read, out of bounds, write to input, divergent, bad lane,
    threadgroup memory limit, wild access, stack overflow, asynchronous copy, misaligned.
    """

    kind: str
    message: str
    place: str
    """file:line in the kernel's text"""
    buffer: str
    lanes: tuple[int, ...]
    """indices in the threadgroup of the lane and, where there is one, of the other lane"""

    def __str__(self) -> str:
        return f"{self.kind}: {self.place}: {self.message}"


@dataclass(frozen=True, repr=False)
class Report:
    """What one run of a kernel did. Memory is counted only with checks; the rest always.

    barriers are counted once for a threadgroup or simdgroup; shuffles, reductions and matrix products once for a
    simdgroup; atomics once for a lane.
    """

    kernel: str
    checks: bool
    buffers: dict[str, BufferCount]
    threadgroup_read: int
    threadgroup_written: int
    threadgroup_allocated: int
    threadgroup_variables: dict[str, int]
    matrix_multiplies: int
    threadgroup_barriers: int
    simdgroup_barriers: int
    shuffles: int
    reductions: int
    atomics: int
    findings: tuple[Finding, ...] = field(default=())

    @property
    def device_read(self) -> int:
        """Bytes read of all buffers in the device address space."""
        return sum(buffer.read for buffer in self.buffers.values() if buffer.space == "device")

    @property
    def device_written(self) -> int:
        """Bytes written to all buffers."""
        return sum(buffer.written for buffer in self.buffers.values())

    def as_dict(self) -> dict[str, Any]:
        """The counts by name, for JSON and for comparing runs."""
        names = (
            *("device_read", "device_written", "threadgroup_read", "threadgroup_written", "threadgroup_allocated"),
            *("matrix_multiplies", "threadgroup_barriers", "simdgroup_barriers", "shuffles", "reductions", "atomics"),
        )
        return {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        rows = [("buffer", "bytes", "read", "written")]
        for buffer in self.buffers.values():
            moved = (f"{buffer.read:,}", f"{buffer.written:,}") if self.checks else ("-", "-")
            label = buffer.name if buffer.space == "device" else f"{buffer.name} (constant)"
            rows.append((label, f"{buffer.size:,}", *moved))
        tile = (f"{self.threadgroup_read:,}", f"{self.threadgroup_written:,}") if self.checks else ("-", "-")
        rows.append(("(threadgroup)", f"{self.threadgroup_allocated:,}", *tile))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        table = [
            "  ".join(
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        counts = (
            f"matrix multiplies {self.matrix_multiplies:,}, threadgroup barriers {self.threadgroup_barriers:,}, "
            f"simdgroup barriers {self.simdgroup_barriers:,}, shuffles {self.shuffles:,}, "
            f"reductions {self.reductions:,}, atomics {self.atomics:,}"
        )
        found = [str(finding) for finding in self.findings] or (["no findings"] if self.checks else ["not checked"])
        return "\n".join([f"kernel {self.kernel}", *table, counts, *found])

    __repr__ = __str__

    _repr_html_ = html_of


class SimulationError(RuntimeError):
    """A kernel ran and the checks found it wrong; `report` holds the findings and the counts."""

    def __init__(self, report: Report) -> None:
        self.report = report
        shown = [str(finding) for finding in report.findings]
        super().__init__(f"kernel {report.kernel!r} is wrong:\n  " + "\n  ".join(shown))

    _repr_html_ = html_of
