"""Tiles, dtypes, architecture -> ProductPlan: how a product is cut into tiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..attention.plan import LEAST_SHARED_BYTES, SHARED_BYTES, padded

SIDE = 8  # tiles are cut at multiples of 16 bytes
REGISTERS = 1 << 16  # of a block of threads
OTHER_REGISTERS = 64  # of a thread, beside its sums: addresses and factors
MOST_REGISTERS, MOST_THREADS = 200, 1024


@dataclass(frozen=True)
class ProductPlan:
    """The sides of plan.h: bm rows and bn columns of the result, of bk steps at once."""

    dtype: str  # of both factors
    bm: int = 64
    bn: int = 64
    bk: int = 32

    @property
    def threads(self) -> int:
        """A warp for 16 rows."""
        return padded(self.bm) * 2

    def shared_bytes(self, transpose_b: bool) -> int:
        """A tile of a and one of b; each row is 16 bytes longer than its columns."""
        m, n, k = (padded(side) for side in (self.bm, self.bn, self.bk))
        element = 4 if self.dtype == "float32" else 2
        b_rows, b_columns = (n, k) if transpose_b else (k, n)
        return m * (k * element + 16) + b_rows * (b_columns * element + 16)

    def fits(self, architecture: int) -> bool:
        registers = padded(self.bn) // 2 + OTHER_REGISTERS
        few = registers <= MOST_REGISTERS and self.threads <= min(MOST_THREADS, REGISTERS // registers)
        shared = SHARED_BYTES.get(architecture, LEAST_SHARED_BYTES)
        return few and max(self.shared_bytes(False), self.shared_bytes(True)) <= shared

    def constants(self) -> dict[str, str]:
        """The values of plan.h by name."""
        return {"BM": str(self.bm), "BN": str(self.bn), "BK": str(self.bk), "THREADS": str(self.threads)}


def plan_of(dtype: str, tiles: tuple[int, ...] | None, k: int, architecture: int) -> ProductPlan:
    """The plan for tiles that the caller chose: (BM, BN), each over the whole of k at once, or (BM, BN, BK).

    Raises:
        ValueError: they are no multiples of 8, or do not fit; the message names tiles that do.
    """
    if tiles is None:
        return ProductPlan(dtype)
    if len(tiles) not in (2, 3) or any(side < 1 or side % SIDE for side in tiles):
        nearest = tuple(-(-side // SIDE) * SIDE for side in tiles)
        raise ValueError(
            f"tiles={tiles}: sides must be positive multiples of {SIDE}; use (BM, BN) or (BM, BN, BK), say {nearest}"
        )
    whole = len(tiles) == 2
    wanted = ProductPlan(dtype, tiles[0], tiles[1], max(SIDE, -(-k // SIDE) * SIDE) if whole else tiles[2])
    if wanted.fits(architecture):
        return wanted
    of = f"tiles={tiles} of {f'the whole of K = {k}' if whole else 'three sides'}"
    smaller = next((plan for plan in _smaller(wanted, whole) if plan.fits(architecture)), None)
    if smaller is None:
        three = next(plan for plan in _smaller(replace(wanted, bk=4 * SIDE), False) if plan.fits(architecture))
        remedy = f"no 2-D tiles do; use 3-D ones, up to {(three.bm, three.bn, three.bk)}"
    else:
        remedy = f"the largest that do are {(smaller.bm, smaller.bn, smaller.bk)[: len(tiles)]}"
    raise ValueError(f"{of} do not fit the shared memory and registers of a block on sm_{architecture}; {remedy}")


def _smaller(plan: ProductPlan, whole: bool) -> Iterator[ProductPlan]:
    """Smaller and smaller tiles: shorter steps first, then smaller sides."""
    while not whole and plan.bk > 2 * SIDE:
        plan = replace(plan, bk=plan.bk - SIDE)
        yield plan
    while max(plan.bm, plan.bn) > SIDE:
        side = "bm" if plan.bm >= plan.bn else "bn"
        plan = replace(plan, **{side: getattr(plan, side) - SIDE})
        yield plan
