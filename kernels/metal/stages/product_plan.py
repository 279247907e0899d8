"""Sizes, dtypes, tiles -> ProductPlan: how threadgroups cut a matrix product (stages/product.h).

The model of plan.py: 32-bit registers per thread, of which an Apple GPU has 128 for up to 384 threads and fewer for
more, and 32 KB of threadgroup memory. Among the tiles that fit, the ones that read the operands least often win.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from ..attention.plan import padded
from ..device import FRAGMENT, LANES, REGISTERS_OF_THREADS, THREADGROUP_BYTES, registers_of

SIDES = (64, 32, 16, 8)  # of the tiles that are chosen here
STEPS = (32, 16, 8)
OTHER_REGISTERS = 20  # addresses, one fragment of each operand
PIECE = 16  # bytes that a thread reads at once (staging.h)
COPIED_AT_ONCE = 2  # pieces of each operand that a thread copies together into a 2-D tile


@dataclass(frozen=True)
class Operands:
    """What the product is of. Bytes are those of one element."""

    a_bytes: int
    b_bytes: int
    half: bool  # both are float16, and so are the products
    transpose_a: bool = False
    transpose_b: bool = False


@dataclass(frozen=True)
class ProductPlan:
    """The template arguments of the struct of that name in product.h."""

    operands: Operands
    bm: int
    bn: int
    bk: int
    whole: bool  # bk is the whole shared axis, in one step
    row_groups: int = 1
    column_groups: int = 1

    @property
    def threads(self) -> int:
        return self.row_groups * self.column_groups * LANES

    @property
    def threadgroup_bytes(self) -> int:
        """Two halves of a tile of each operand as it lies, each row 16 bytes longer than its columns."""
        o = self.operands
        a_rows, a_columns = (self.bk, self.bm) if o.transpose_a else (self.bm, self.bk)
        b_rows, b_columns = (self.bn, self.bk) if o.transpose_b else (self.bk, self.bn)
        once = a_rows * (a_columns * o.a_bytes + 16) + b_rows * (b_columns * o.b_bytes + 16)
        return once if self.whole else 2 * once

    @property
    def registers(self) -> int:
        """What one thread needs at the same time; two elements of every fragment lie in each lane."""
        o = self.operands
        rows, columns = self.bm // FRAGMENT // self.row_groups, self.bn // FRAGMENT // self.column_groups
        fragments = 2 * (rows + 1) * (2 if o.half else 4) // 4
        read = (self.bm * o.a_bytes, self.bn * o.b_bytes)
        pieces = [-(-side * self.bk // (PIECE * self.threads)) for side in read]
        if self.whole:
            pieces = [min(COPIED_AT_ONCE, count) for count in pieces]
        return 2 * rows * columns + fragments + PIECE // 4 * sum(pieces) + OTHER_REGISTERS

    def fits(self) -> bool:
        return self.registers <= registers_of(self.threads) and self.threadgroup_bytes <= THREADGROUP_BYTES

    def template(self) -> list[tuple[str, int | bool]]:
        """The arguments by name, as the bodies of matmul and block_sparse_matmul name them."""
        return [
            ("BM", self.bm),
            ("BN", self.bn),
            ("BK", self.bk),
            ("ROW_GROUPS", self.row_groups),
            ("COLUMN_GROUPS", self.column_groups),
        ]


@functools.lru_cache(maxsize=1024)
def choose(operands: Operands, m: int, n: int, k: int) -> ProductPlan:
    """The tiles, of sides 8 to 64, by which threadgroups together read the fewest elements; then the longest steps."""
    best, best_cost = None, None
    for bm, bn, bk in product(SIDES, SIDES, STEPS):
        if bk > padded(k):
            continue
        plan = _shared_out(ProductPlan(operands, bm, bn, bk, whole=False))
        cost = (-(-m // bm) * -(-n // bn) * (bm + bn), -bk)
        if plan is not None and (best_cost is None or cost < best_cost):
            best, best_cost = plan, cost
    assert best is not None  # tiles of 8 x 8 x 8 fit whatever the dtype
    return best


@functools.lru_cache(maxsize=1024)
def plan_of(operands: Operands, tiles: tuple[int, ...], k: int) -> ProductPlan:
    """The plan for tiles that the caller chose: (BM, BN), or (BM, BN, BK).

    Raises:
        ValueError: they are no multiples of 8, or do not fit; the message names tiles that do.
    """
    if len(tiles) not in (2, 3) or any(side < 1 or side % FRAGMENT for side in tiles):
        nearest = tuple(padded(side) for side in tiles)
        raise ValueError(
            f"tiles={tiles}: sides must be positive multiples of {FRAGMENT}, the side of a simdgroup's matrix; "
            f"use (BM, BN) or (BM, BN, BK), say {nearest}"
        )
    bk = tiles[2] if len(tiles) == 3 else padded(k)
    wanted = ProductPlan(operands, tiles[0], tiles[1], bk, whole=len(tiles) == 2)
    plan = _shared_out(wanted)
    if plan is not None:
        return plan
    smaller = next((p for p in _smaller(wanted) if _shared_out(p) is not None), None)
    what = f"tiles={tiles} of {'the whole of K = ' + str(k) if wanted.whole else 'three sides'}"
    if smaller is None:
        three = next(p for p in _smaller(replace(wanted, bk=STEPS[0], whole=False)) if _shared_out(p) is not None)
        remedy = f"no 2-D tiles do; use 3-D ones, up to {(three.bm, three.bn, three.bk)}"
    else:
        remedy = f"the largest that do are {(smaller.bm, smaller.bn, smaller.bk)[: len(tiles)]}"
    limits = ", ".join(f"{most} for up to {threads}" for threads, most in REGISTERS_OF_THREADS.items())
    raise ValueError(
        f"{what} need {wanted.threadgroup_bytes} bytes of threadgroup memory and do not fit its {THREADGROUP_BYTES} "
        f"bytes with the registers that a thread has ({limits} threads); {remedy}"
    )


def _smaller(plan: ProductPlan) -> Iterator[ProductPlan]:
    """Smaller and smaller tiles: shorter steps first, then smaller sides."""
    while not plan.whole and plan.bk > FRAGMENT:
        yield plan
        plan = replace(plan, bk=plan.bk - FRAGMENT)
    while max(plan.bm, plan.bn) > FRAGMENT:
        yield plan
        if plan.bm >= plan.bn:
            plan = replace(plan, bm=plan.bm - FRAGMENT)
        else:
            plan = replace(plan, bn=plan.bn - FRAGMENT)
    yield plan


def _shared_out(plan: ProductPlan) -> ProductPlan | None:
    """The plan with its tile shared out to simdgroups: four, or as few more as its registers need; None: no fit."""
    if plan.threadgroup_bytes > THREADGROUP_BYTES:
        return None
    for most in (4, 8, 12, 16, 24, 32):
        layouts = [
            replace(plan, row_groups=r, column_groups=c)
            for r, c in product(_divisors(plan.bm // FRAGMENT, most), _divisors(plan.bn // FRAGMENT, most))
            if r * c <= most
        ]
        # As many simdgroups as may be; of those, the layout that loads the fewest fragments.
        best = min(layouts, key=lambda p: (-p.threads, p.bm // p.row_groups + p.bn // p.column_groups))
        if best.fits():
            return best
    return None


def _divisors(number: int, most: int) -> Sequence[int]:
    return [d for d in range(1, most + 1) if number % d == 0]
