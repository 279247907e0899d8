"""Mods, head dims -> registers of flextrace's Metal kernel and of MLX's own, by a compiler that stands in for Apple's.

What it stands on: kernels/simulator/registers. Beside it stand the large head dims, which MLX runs unfused on M1 to M4:
what our kernel reads there, simulated, and what the unfused steps would at least.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx

import flextrace as flex
from flextrace.kernels.metal.attention.plan import Plan, plan_for
from flextrace.kernels.metal.generate import kernel_text
from flextrace.kernels.simulator import recording
from flextrace.kernels.simulator.registers import Registers, measured, measured_steel
from flextrace.kernels.spec import Formulas

from .cases import flextrace_mods, problem

TEXTS = ("none", "causal", "window", "document", "softcap", "tiled_natten")
OF_MLX = (64, 80, 96, 128)  # head dims for which its kernel is built
LARGE = ((192, 128), (192, 192), (256, 256), (512, 512), (576, 512))
LENGTH = 192  # of a simulated run of these: whole tiles of every plan
TILE = 64  # rows and columns of a product's tile
KILOBYTE = 1024
# text -> bytes of code at most; tested, with the bytes that a thread keeps in memory, by tests/flextrace/bench.
CODE = dict.fromkeys(TEXTS, 24 * KILOBYTE) | {"tiled_natten": 100 * KILOBYTE}
SPILLED, SPILLED_LARGE = 64, 256


@dataclass(frozen=True)
class Line:
    """One kernel: `ours`, and MLX's of the same head dim, where it has one."""

    text: str
    head_dim: int
    value_dim: int
    dtype: str
    ours: Registers
    steel: Registers | None

    @property
    def plan(self) -> Plan:
        return plan_for(self.head_dim, self.value_dim, self.dtype)


@dataclass(frozen=True)
class LargeRun:
    """A simulated run of one head of LENGTH rows and keys: bytes that the kernel reads and writes of device memory, and
    those that three unfused steps read and write: two matrix products, as MLX's tiles of 64 x 64 elements cut them, and
    softmax between."""

    head_dim: int
    value_dim: int
    dtype: str
    device: int
    unfused: int
    threadgroup_read: int
    matrix_multiplies: int
    threadgroup_barriers: int


def formulas(text: str) -> Formulas:
    """The mods of one of TEXTS."""
    if text == "tiled_natten":
        mod = flex.mods.tiled_natten((32, 32), (7, 7), (8, 8))
        return Formulas(None, mod.trace().formula)
    score_mods, mask_mods = flextrace_mods(problem(1, 1, 512, 1, "float32"))
    score, mask = score_mods.get(text), mask_mods.get(text)
    return Formulas(*(None if mod is None else mod.trace().formula for mod in (score, mask)))


def lines(texts: Sequence[str], dims: Sequence[tuple[int, int]], dtypes: Sequence[str]) -> Iterator[Line]:
    """One for each of them, as it is measured.

    Raises:
        NoCompiler: this machine has no compiler for the stand-in.
    """
    for head_dim, value_dim in dims:
        for dtype in dtypes:
            plan = plan_for(head_dim, value_dim, dtype)
            steel = measured_steel(head_dim, dtype) if head_dim == value_dim and head_dim in OF_MLX else None
            for text in texts:
                ours = measured(kernel_text(formulas(text)), plan)
                yield Line(text, head_dim, value_dim, dtype, ours, steel)


def large_run(head_dim: int, value_dim: int, dtype: str) -> LargeRun:
    """Simulated. Raises as simulated runs do."""
    sizes = ((1, 1, LENGTH, head_dim), (1, 1, LENGTH, head_dim), (1, 1, LENGTH, value_dim))
    q, k, v = (mx.random.normal(size, key=mx.random.key(i)).astype(getattr(mx, dtype)) for i, size in enumerate(sizes))
    with recording() as reports:
        mx.eval(flex.flex_attention(q, k, v, kernel_options={"BACKEND": "simulator"}))
    (report,) = reports
    counts = report.as_dict()
    scores = LENGTH**2 * q.itemsize  # written, read and written by softmax, and read for each tile of values' columns
    of_tiles = -(-LENGTH // TILE)
    products = of_tiles * (q.nbytes + k.nbytes + v.nbytes) + v.nbytes
    return LargeRun(
        head_dim,
        value_dim,
        dtype,
        counts["device_read"] + counts["device_written"],
        products + (3 + -(-value_dim // TILE)) * scores,
        counts["threadgroup_read"],
        counts["matrix_multiplies"],
        counts["threadgroup_barriers"],
    )
