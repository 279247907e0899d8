"""Head dims, dtype, architecture -> GradientPlan: how a block of a gradient kernel cuts its work."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from flextrace.tracer import Pattern

from ..attention.plan import LEAST_SHARED_BYTES, SHARED_BYTES, padded

MOST_REGISTERS = 252  # of a thread, as this model counts them: beyond, the compiler spills
WIDE, MOST_OF_WIDE = 256, 188  # it does so sooner where rows have more columns, whose loads it brings forward
WORDS_OF_PAIR = {Pattern.DIAGONAL: 1, Pattern.DENSE: 0, Pattern.TABLE: 2}  # in shared memory, where pairs are summed
OTHER_REGISTERS = 60  # addresses, the walk, terms of rows, factors of a product


@dataclass(frozen=True)
class GradientPlan:
    """The constants of plan.h.

    of_keys: own rows are those of k and v, and their gradients are summed; otherwise those of q and d_out, for dQ.
    with_max: max_scores has a gradient. words_of_pair: in shared memory, for each pair of a tile, where pairs.cu sums
    them and not their rows.
    """

    of_keys: bool
    head_dim: int
    value_dim: int
    dtype: str
    warps: int
    row_tiles: int
    bk: int
    slices: int
    stages: int
    with_max: bool = False
    words_of_pair: int | None = None

    @property
    def element_bytes(self) -> int:
        return 4 if self.dtype == "float32" else 2

    @property
    def bq(self) -> int:
        """Own rows of a block."""
        return 16 * self.row_tiles * self.warps

    @property
    def threads(self) -> int:
        return 32 * self.warps

    @property
    def shared_bytes(self) -> int:
        """Own rows and the tiles that pass by, each row 16 bytes longer than its columns; terms of query rows."""
        row = sum(padded(columns) * self.element_bytes + 16 for columns in (self.head_dim, self.value_dim))
        terms = 4 * (4 if self.with_max else 2) * self.bk * self.stages if self.of_keys else 0
        pairs = 4 * (self.words_of_pair or 0) * self.bq * (self.bk + 1)
        return (self.bq + self.stages * self.bk) * row + terms + pairs

    @property
    def sums(self) -> int:
        """Columns of gradients that a block has."""
        dims = (self.head_dim, self.value_dim) if self.of_keys else (self.head_dim,)
        return sum(16 * -(-padded(columns) // 16 // self.slices) for columns in dims)

    @property
    def registers(self) -> int:
        """What one thread needs at the same time, of 32 bits: sums, scores, slopes, and in float32 parts of factors."""
        sums = self.sums if self.words_of_pair is None else 0
        factors = 16 * (self.row_tiles + 1) if self.dtype == "float32" else 0
        return self.row_tiles * (sums // 2 + self.bk) + factors + OTHER_REGISTERS

    def constants(self) -> dict[str, str]:
        """The values of plan.h by name."""
        found = {
            "HEAD_DIM": self.head_dim,
            "VALUE_DIM": self.value_dim,
            "WARPS": self.warps,
            "ROW_TILES": self.row_tiles,
            "BK": self.bk,
            "SLICES": self.slices,
            "STAGES": self.stages,
        }
        return {name: str(value) for name, value in found.items()} | {"WITH_MAX": str(self.with_max).lower()}


@functools.lru_cache(maxsize=256)
def gradient_plan(
    of_keys: bool,
    head_dim: int,
    value_dim: int,
    dtype: str,
    architecture: int,
    with_max: bool = False,
    words_of_pair: int | None = None,
) -> GradientPlan:
    """The first plan that fits, most wanted first: few slices, as each computes all scores again; two stages.

    Raises:
        ValueError: the head dims do not fit a block.
    """
    shared = SHARED_BYTES.get(architecture, LEAST_SHARED_BYTES)
    for plan in _plans(of_keys, max(1, head_dim), max(1, value_dim), dtype):
        made = replace(plan, with_max=with_max, words_of_pair=words_of_pair)
        most = MOST_REGISTERS if max(head_dim, value_dim) <= WIDE else MOST_OF_WIDE
        if made.registers <= most and made.shared_bytes <= shared:
            return made
    raise ValueError(
        f"gradients of head dims {head_dim} and {value_dim} in {dtype} do not fit a block of this GPU; use fewer "
        'columns per head, half precision, or kernel_options={"BACKEND": "ops"}'
    )


def _plans(of_keys: bool, head_dim: int, value_dim: int, dtype: str) -> Iterator[GradientPlan]:
    for slices, stages, warps in product(range(1, 17), (2, 1), (4, 2, 1)):
        for row_tiles, bk in ((2, 32), (1, 64), (1, 32), (1, 16)):
            more = 2 if of_keys and row_tiles == 1 and bk == 64 and warps == 4 else 1  # halves what passes by
            yield GradientPlan(of_keys, head_dim, value_dim, dtype, more * warps, row_tiles, bk, slices, stages)
