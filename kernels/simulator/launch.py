"""Library + buffers -> one run: the structs of interface.h, filled, run and read back."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from .build import Library
from .findings import explain
from .report import BufferCount, Report

MAX_FINDINGS, MAX_VARIABLES = 16, 64
ORDERS = {"forward": 0, "reverse": 1, "shuffled": 2}
_lock = threading.Lock()  # a library has one run at a time, and a run owns the process's fault handler


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("host", ctypes.c_void_p),
        ("bytes", ctypes.c_size_t),
        ("origin", ctypes.c_size_t),
        ("output", ctypes.c_int),
        ("initialised", ctypes.c_int),
        ("address", ctypes.c_void_p),
        ("read", ctypes.c_ulonglong),
        ("written", ctypes.c_ulonglong),
        ("unwritten", ctypes.c_ulonglong),
    )


_COUNTS = (
    *("threadgroup_read", "threadgroup_written", "threadgroup_allocated", "multiply_accumulates"),
    *("threadgroup_barriers", "simdgroup_barriers", "shuffles", "reductions", "atomics"),
)


class _Counts(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_ulonglong) for name in _COUNTS)


class _Finding(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int),
        ("space", ctypes.c_int),
        ("lane", ctypes.c_int),
        ("other_lane", ctypes.c_int),
        ("group", ctypes.c_uint * 3),
        ("other_group", ctypes.c_uint * 3),
        ("write", ctypes.c_int),
        ("other_write", ctypes.c_int),
        ("pc", ctypes.c_ulonglong),
        ("other_pc", ctypes.c_ulonglong),
        ("offset", ctypes.c_longlong),
        ("size", ctypes.c_ulonglong),
    )


class _Variable(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("bytes", ctypes.c_ulonglong))


class _Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("threadgroup", ctypes.c_uint * 3),
        ("order", ctypes.c_int),
        ("checks", ctypes.c_int),
        ("buffer_count", ctypes.c_int),
        ("buffers", ctypes.POINTER(_Buffer)),
        ("counts", _Counts),
        ("finding_count", ctypes.c_int),
        ("findings", _Finding * MAX_FINDINGS),
        ("variable_count", ctypes.c_int),
        ("variables", _Variable * MAX_VARIABLES),
    )


@dataclass(frozen=True)
class Argument:
    """One buffer of a launch.

    address, size: the memory, in bytes; origin: byte offset in it of the element that the kernel's pointer starts at.
    """

    name: str  # empty: a place that this launch leaves unused
    address: int
    size: int
    item: int
    origin: int = 0
    output: bool = False
    initialised: bool = True
    constant: bool = False


def launch(
    library: Library,
    kernel: str,
    arguments: Sequence[Argument],
    grid: tuple[int, int, int],
    threadgroup: tuple[int, int, int],
    order: str,
    checks: bool,
) -> Report:
    """Run the kernel on every thread of the grid; outputs are written in place.

    Raises:
        MemoryError: no room for the address range of the buffers or for the lanes' stacks.
    """
    buffers = (_Buffer * max(1, len(arguments)))()
    for buffer, argument in zip(buffers, arguments, strict=False):
        buffer.host, buffer.bytes, buffer.origin = argument.address, argument.size, argument.origin
        buffer.output, buffer.initialised = argument.output, argument.initialised
    state = _Launch()
    state.grid[:], state.threadgroup[:] = grid, threadgroup
    state.order, state.checks = ORDERS[order], checks
    state.buffer_count, state.buffers = len(arguments), buffers
    with _lock:
        failed = library.loaded.flextrace_simulate(ctypes.byref(state))
    if failed:
        raise MemoryError(
            "the simulator cannot reserve its address range (2.1 TiB, nearly all of it unused); raise `ulimit -v`"
        )
    variables = [(v.name.decode(), int(v.bytes)) for v in state.variables[: state.variable_count]]
    named = [(argument.name, argument.item, argument.size) for argument in arguments]
    counts = {name: int(getattr(state.counts, name)) for name in _COUNTS}
    return Report(
        kernel=kernel,
        checks=checks,
        buffers={a.name: _count(a, b) for a, b in zip(arguments, buffers, strict=False) if a.name},
        matrix_multiplies=counts.pop("multiply_accumulates"),
        threadgroup_variables=dict(variables),
        findings=tuple(explain(f, library.path, named, variables) for f in state.findings[: state.finding_count]),
        **counts,
    )


def _count(argument: Argument, buffer: _Buffer) -> BufferCount:
    space = "constant" if argument.constant else "device"
    moved = (int(buffer.read), int(buffer.written), int(buffer.unwritten))
    return BufferCount(argument.name, space, argument.size, *moved)
