"""Head dims, dtype, mods -> HopperPlan: how a block of the Hopper kernel cuts its work."""

from __future__ import annotations

import functools
from dataclasses import dataclass

SHARED_BYTES = 227 << 10
SLAB = 64  # columns
WIDEST = 256
HEAD_GROUP = 4  # of plan.h
TMA_BYTES = 16  # rows of q, k and v are multiples of it
BARRIERS = 1024  # bytes for them and the words, at most, and for what aligns the rest


@dataclass(frozen=True)
class HopperPlan:
    """The constants of plan.h."""

    head_dim: int
    value_dim: int
    dtype: str
    consumers: int
    bk: int
    stages: int
    consumer_registers: int
    producer_registers: int

    @property
    def bq(self) -> int:
        """Query rows of a block."""
        return 64 * self.consumers

    @property
    def threads(self) -> int:
        return 128 * (self.consumers + 1)

    @property
    def shared_bytes(self) -> int:
        """The queries, and in each stage a tile of keys and one of values."""
        heads, values = (2 * SLAB * slabs(columns) for columns in (self.head_dim, self.value_dim))
        return self.bq * heads + self.stages * self.bk * (heads + values) + BARRIERS

    def constants(self) -> dict[str, str]:
        """The values of plan.h by name."""
        found = {
            "HEAD_DIM": self.head_dim,
            "VALUE_DIM": self.value_dim,
            "CONSUMERS": self.consumers,
            "BK": self.bk,
            "STAGES": self.stages,
            "CONSUMER_REGISTERS": self.consumer_registers,
            "PRODUCER_REGISTERS": self.producer_registers,
        }
        return {name: str(value) for name, value in found.items()}


@functools.lru_cache(maxsize=256)
def hopper_plan(head_dim: int, value_dim: int, dtype: str, mods: bool, masked: bool) -> HopperPlan | None:
    """The plan, or None where the kernel of sm_80 has to do it: float32, rows that TMA cannot take, wide rows.

    Registers of consumers and producer add up to those of a launch, 168 a thread of 384 or 96 of 640.

    Args:
        mods: there are some, or blocks, so that the producer has more to do than to bring every tile.
        masked: tiles of rows differ in the tiles of keys that they visit: the fewer rows in a tile, the fewer of them.
    """
    if not are_for_tma((head_dim, value_dim), dtype, WIDEST):
        return None
    registers = (224, 56) if mods else (240, 24)
    if max(head_dim, value_dim) > 128:
        return HopperPlan(head_dim, value_dim, dtype, 2, 64, 2, *registers)
    if max(head_dim, value_dim) > 64:
        return HopperPlan(head_dim, value_dim, dtype, 2, 128, 2, *registers)
    if masked:
        return HopperPlan(head_dim, value_dim, dtype, 2, 128, 3, *registers)
    return HopperPlan(head_dim, value_dim, dtype, 4, 64, 4, 112, 32)


def are_for_tma(dims: tuple[int, int], dtype: str, widest: int) -> bool:
    """Whether rows of so many columns go by TMA: 16 bits a number, multiples of 16 bytes, `widest` columns at most."""
    return dtype != "float32" and all(0 < columns <= widest and 2 * columns % TMA_BYTES == 0 for columns in dims)


def slabs(columns: int) -> int:
    return -(-columns // SLAB)
