"""What an Apple GPU has, and how MLX hands a kernel its arrays: numbers that all kernels of this folder keep to."""

from __future__ import annotations

FRAGMENT, LANES = 8, 32  # of simdgroup.h
REGISTERS = 128  # 32-bit ones of a thread, before fewer threads are resident
# Each thread's share of the 208 KB of registers that a core of M1 or M2 has, by the threads of a threadgroup; a
# pipeline that needs more takes fewer threads, and MLX refuses the launch. (Mesa's src/asahi has the same steps, in
# 16-bit halves.)
REGISTERS_OF_THREADS = {384: 128, 512: 104, 768: 68, 1024: 52}
THREADGROUP_BYTES = 32 * 1024
MAX_BUFFERS = 31


def registers_of(threads: int) -> int:
    """What a thread of a threadgroup of so many may need. Raises ValueError for more threads than a threadgroup has."""
    for most, registers in REGISTERS_OF_THREADS.items():
        if threads <= most:
            return registers
    raise ValueError(f"a threadgroup has at most {most} threads, not {threads}")
