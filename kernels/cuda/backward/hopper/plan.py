"""Head dims, dtype, mods -> HopperGradientPlan: how a block of a Hopper gradient kernel cuts its work."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from ...hopper.plan import BARRIERS, HEAD_GROUP, SLAB, are_for_tma, slabs

WIDEST = 128  # columns whose sums the registers of a consumer hold
ROWS, CONSUMERS = 64, 2  # own rows of a consumer, and those of a box of TMA; as plan.h has them


@dataclass(frozen=True)
class HopperGradientPlan:
    """The constants of hopper/plan.h. of_keys, with_max: as in GradientPlan.

    Under a mask, where head dims are not multiples of 64, ptxas waits for each product (C7511), for want of registers
    in the careful pass: such kernels are right, and slower.
    """

    of_keys: bool
    head_dim: int
    value_dim: int
    dtype: str
    bk: int
    stages: int
    deferred: bool
    consumer_registers: int
    producer_registers: int
    with_max: bool = False

    @property
    def bq(self) -> int:
        """Own rows of a block."""
        return ROWS * CONSUMERS

    @property
    def threads(self) -> int:
        return 128 * (CONSUMERS + 1)

    @property
    def shared_bytes(self) -> int:
        """Own rows, and in each stage a tile of those that pass by, and terms of query rows."""
        row = 2 * SLAB * sum(slabs(columns) for columns in (self.head_dim, self.value_dim))
        terms = 4 * (4 if self.with_max else 2) * self.bk * self.stages
        return (self.bq + self.stages * self.bk) * row + terms + BARRIERS

    def constants(self) -> dict[str, str]:
        """The values of plan.h by name."""
        found = {
            "HEAD_DIM": self.head_dim,
            "VALUE_DIM": self.value_dim,
            "CONSUMERS": CONSUMERS,
            "BK": self.bk,
            "STAGES": self.stages,
            "HEAD_GROUP": HEAD_GROUP,
            "CONSUMER_REGISTERS": self.consumer_registers,
            "PRODUCER_REGISTERS": self.producer_registers,
        }
        flags = {"DEFERRED": self.deferred, "WITH_MAX": self.with_max}
        return {name: str(value).lower() for name, value in (found | flags).items()}


@functools.lru_cache(maxsize=256)
def hopper_gradient_plan(
    of_keys: bool, head_dim: int, value_dim: int, dtype: str, masked: bool, with_max: bool = False
) -> HopperGradientPlan | None:
    """The plan, or None where the kernel of sm_80 has to do it: float32, rows that TMA cannot take, wide rows.

    Args:
        masked: the producer asks the mask's bounds.
    """
    if not are_for_tma((head_dim, value_dim), dtype, WIDEST):
        return None
    narrow = max(head_dim, value_dim) <= SLAB
    deferred = narrow or not of_keys  # the sums of keys and values, and what two tiles need, are too many registers
    registers = (232, 40) if not masked else (224, 56) if of_keys and not narrow else (216, 72)
    stages = 4 if narrow else 3 if deferred else 2
    return HopperGradientPlan(of_keys, head_dim, value_dim, dtype, 64, stages, deferred, *registers, with_max)
