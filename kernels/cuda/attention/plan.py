"""Head dims, dtype, architecture -> Plan: how a block cuts its work, from a model of registers and shared memory."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

# Bytes of shared memory that one block may have, by compute capability (CUDA C++ Programming Guide, table of features
# and technical specifications); others are taken to have the least.
SHARED_BYTES = {80: 163 << 10, 86: 99 << 10, 87: 163 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 103: 227 << 10}
LEAST_SHARED_BYTES = 99 << 10
MOST_REGISTERS = 200  # of a thread, as this model counts them: beyond, the compiler spills
OTHER_REGISTERS = 48  # addresses, row statistics, the walk, factors of a product
WIDEST = 256  # columns of v of a block


class Scoring(NamedTuple):
    """How q and k in int8 give scores. smoothed_q: q lacks a mean, of which there are scores too; add_back: each row
    has a term that its scores get before score_mod."""

    smoothed_q: bool = False
    add_back: bool = False


@dataclass(frozen=True)
class Plan:
    """The constants of plan.h. scoring: of q and k in int8."""

    head_dim: int
    value_dim: int
    dtype: str
    warps: int
    row_tiles: int
    bk: int
    values: int
    scoring: Scoring | None = None

    @property
    def element_bytes(self) -> int:
        return 4 if self.dtype == "float32" else 2

    @property
    def bq(self) -> int:
        """Query rows of a block."""
        return 16 * self.row_tiles * self.warps

    @property
    def threads(self) -> int:
        return 32 * self.warps

    @property
    def slices(self) -> int:
        """Blocks that share the columns of v of one tile of rows."""
        return max(1, -(-self.value_dim // self.values))

    @property
    def shared_bytes(self) -> int:
        """The queries, a tile of keys and one of values; each row is 16 bytes longer than its columns."""
        heads, values = (padded(columns) * self.element_bytes + 16 for columns in (self.head_dim, self.values))
        if self.scoring is not None:
            heads = -(-max(1, self.head_dim) // 32) * 32 + 16
        return (self.bq + self.bk) * heads + self.bk * values

    @property
    def registers(self) -> int:
        """What one thread needs at the same time, of 32 bits: sums, scores, and in float32 both parts of factors."""
        factors = 16 * (self.row_tiles + 1) if self.dtype == "float32" else 4 * self.row_tiles
        return self.row_tiles * (self.values + self.bk) // 2 + factors + OTHER_REGISTERS

    def constants(self) -> dict[str, str]:
        """The values of plan.h by name."""
        found = {
            "HEAD_DIM": self.head_dim,
            "VALUE_DIM": self.value_dim,
            "WARPS": self.warps,
            "ROW_TILES": self.row_tiles,
            "BK": self.bk,
            "VALUES": self.values,
        }
        constants = {name: str(value) for name, value in found.items()}
        if self.scoring is not None:
            flags = {"ADD_BACK": self.scoring.add_back, "SMOOTHED_Q": self.scoring.smoothed_q}
            constants |= {name: str(flag).lower() for name, flag in flags.items()}
        return constants


@functools.lru_cache(maxsize=256)
def plan_for(head_dim: int, value_dim: int, dtype: str, architecture: int, scoring: Scoring | None = None) -> Plan:
    """The first plan that fits, most wanted first: few slices, 32 rows of a warp, long tiles of keys, four warps.

    Raises:
        ValueError: the head dims do not fit a block.
    """
    shared = SHARED_BYTES.get(architecture, LEAST_SHARED_BYTES)
    fewest = -(-max(1, value_dim) // WIDEST)
    for slices in range(fewest, fewest + 8):
        values = padded(-(-value_dim // slices))
        for warps in (4, 2, 1):
            for row_tiles, bk in ((2, 64), (1, 64), (1, 32), (1, 16)):
                if bk > 32 and (head_dim > WIDEST or (dtype == "float32" and values > 96)):
                    continue  # the compiler spills
                plan = Plan(head_dim, value_dim, dtype, warps, row_tiles, bk, values, scoring)
                if plan.registers <= MOST_REGISTERS and plan.shared_bytes <= shared:
                    return plan
    raise ValueError(f"head dims {head_dim} and {value_dim} do not fit a block; use fewer columns per head")


def padded(columns: int) -> int:
    """Columns of a row in shared memory that products read."""
    return max(1, -(-columns // 16)) * 16
