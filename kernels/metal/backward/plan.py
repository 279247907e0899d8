"""Head dims, dtype -> GradientPlan: how a threadgroup of a gradient kernel cuts its work.

Beside what the forward plan chooses there is where a threadgroup keeps its own rows: they are the left operands of two
products of each tile, and read again for each where neither threadgroup memory nor registers have room.

The model of registers was fitted to what clang needs of these texts for another GPU with as many lanes (gfx1100), the
8x8 products being one instruction (kernels/simulator/registers). Tests hold it for head dims 64 and 128.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from ..attention.plan import padded, plan_for
from ..device import FRAGMENT, LANES, REGISTERS, THREADGROUP_BYTES

IN_REGISTERS, IN_THREADGROUP, IN_DEVICE = 0, 1, 2  # enum Keeping of own_rows.h
OTHER_REGISTERS = 40  # addresses, the walk, terms of rows, fragments on their way
OF_KEYS_REGISTERS = 16  # terms of columns, and the loop over heads
CUT_REGISTERS = 24  # several tiles of columns, whose code the compiler interleaves
SPILLED = 8  # registers, of which it costs little to keep as many in memory
NARROWEST = 32  # tile of columns, where there is a choice
TERMS = 4  # of differentiate.h
# Times what the forward kernel reads of device memory for a pair, in each of the two kernels: above that rather
# simdgroups share rows, so that a threadgroup has more of them; what follows from scores is computed in each.
ENOUGH = 1.9


@dataclass(frozen=True)
class GradientPlan:
    """The template arguments of query.metal and key.metal.

    of_keys: own rows are those of k and v, and their gradients are summed; otherwise those of q and d_out, for dQ.
    head_kept, value_kept: where own rows of q or k, and of d_out or v, lie. slices: threadgroups that share the columns
    of a tile of rows; parts: simdgroups that do, each with its part of every tile. with_max: max_scores has a gradient.
    words_of_pair: in threadgroup memory, for each pair of a tile, where pairs.metal sums them and not their rows.
    """

    of_keys: bool
    head_dim: int
    value_dim: int
    simdgroups: int
    bk: int
    bd: int
    bv: int
    head_kept: int
    value_kept: int
    slices: int
    dtype: str
    parts: int = 1
    with_max: bool = False
    words_of_pair: int | None = None

    @property
    def element_bytes(self) -> int:
        return 4 if self.dtype == "float32" else 2

    @property
    def bq(self) -> int:
        """Own rows of a threadgroup."""
        return self.simdgroups // self.parts * FRAGMENT

    @property
    def threads(self) -> int:
        return self.simdgroups * LANES

    @property
    def head_tiles(self) -> int:
        return padded(self.head_dim) // self.bd

    @property
    def value_tiles(self) -> int:
        return padded(self.value_dim) // self.bv

    @property
    def whole(self) -> bool:
        """Rows are not cut into tiles of columns: both tiles of a step stay until both have served twice."""
        return self.head_tiles == self.value_tiles == 1

    @property
    def staged(self) -> int:
        """Elements of threadgroup memory: two tiles, each row 16 bytes longer than its columns."""
        return 2 * self.bk * (max(self.bd, self.bv) * self.element_bytes + 16) // self.element_bytes

    def _own(self, columns: int, kept: int) -> int:
        row = padded(columns) * self.element_bytes + 16
        return self.bq * row // self.element_bytes if kept == IN_THREADGROUP else 0

    @property
    def head_staged(self) -> int:
        """Elements of threadgroup memory for own rows of q or k."""
        return self._own(self.head_dim, self.head_kept)

    @property
    def own_staged(self) -> int:
        """Elements of threadgroup memory for all own rows; an array has at least one."""
        return max(1, self.head_staged + self._own(self.value_dim, self.value_kept))

    @property
    def threadgroup_bytes(self) -> int:
        """The tiles, own rows, the votes of walk.h, and the terms of a tile of query rows."""
        terms = 4 * TERMS * self.bk if self.of_keys else 0
        pairs = 0 if self.words_of_pair is None else 4 * sum(self._pair_words)
        votes = 4 * (2 * self.simdgroups + self.partial)
        return (self.staged + self.own_staged) * self.element_bytes + votes + terms + pairs

    @property
    def partial(self) -> int:
        """Words of threadgroup memory for S and dP of parts."""
        return 2 * self.simdgroups * self.bk // FRAGMENT * 2 * LANES if self.parts > 1 else 0

    @property
    def _pair_words(self) -> tuple[int, int]:
        """Words for the values of a tile's pairs, and for their elements; an array has at least one."""
        pairs, words = self.bq * (self.bk + 1), self.words_of_pair or 0
        return pairs if words > 0 else 1, pairs if words > 1 else 1

    @property
    def registers(self) -> int:
        """What one thread needs at the same time; two elements of every fragment lie in each lane."""
        head, value = padded(self.head_dim) // self.parts, padded(self.value_dim) // self.parts
        sums = 2 * _parts(self.head_tiles, self.slices) * self.bd // FRAGMENT if self.words_of_pair is None else 0
        sums += 2 * _parts(self.value_tiles, self.slices) * self.bv // FRAGMENT if self.of_keys else 0
        sums //= self.parts
        kept = ((head, self.head_kept), (value, self.value_kept))
        own = sum(self._held(columns) for columns, where in kept if where == IN_REGISTERS)
        ahead = _parts(self.bk * max(self.bd, self.bv) * self.element_bytes, self.threads * 4)
        others = OTHER_REGISTERS + OF_KEYS_REGISTERS * self.of_keys + CUT_REGISTERS * (not self.whole)
        return sums + 2 * 2 * self.bk // FRAGMENT + own + ahead + others

    def _held(self, columns: int) -> int:
        """Registers of own rows; their products are unrolled, and so the other operands come sooner than needed."""
        both = 2 * columns // FRAGMENT + self.bk
        return both // 2 if self.dtype == "float16" else both

    @property
    def device_columns(self) -> float:
        """Elements read of device memory for a pair of an own row and another one, in all slices."""
        both = padded(self.head_dim) + padded(self.value_dim)
        again = 0 if self.whole or self.words_of_pair is not None else both if self.of_keys else padded(self.head_dim)
        own = (self.head_dim, self.head_kept), (self.value_dim, self.value_kept)
        read_again = sum(padded(columns) for columns, where in own if where == IN_DEVICE)
        return self.slices * ((both + again / self.slices) / self.bq + read_again / self.bk)

    @property
    def barriers_per_row(self) -> float:
        """Each tile of columns ends with one."""
        sums = _parts(self.head_tiles, self.slices) + self.of_keys * _parts(self.value_tiles, self.slices)
        whole = self.head_tiles + self.value_tiles * (not (self.whole and self.of_keys)) + sums + (self.parts > 1)
        return whole / self.bk

    def fits(self) -> bool:
        return self.registers <= REGISTERS + SPILLED and self.threadgroup_bytes <= THREADGROUP_BYTES

    def template(self) -> list[tuple[str, int | bool]]:
        """The arguments by name, as gradient_rows.h and the kernels' bodies name them."""
        values, elements = self._pair_words
        pairs = [] if self.words_of_pair is None else [("PAIR_VALUES", values), ("PAIR_ELEMENTS", elements)]
        return [
            ("HEAD_DIM", self.head_dim),
            ("VALUE_DIM", self.value_dim),
            ("SIMDGROUPS", self.simdgroups),
            ("BK", self.bk),
            ("BD", self.bd),
            ("BV", self.bv),
            ("VALUE_TILES", self.value_tiles),
            ("HEAD_KEPT", self.head_kept),
            ("VALUE_KEPT", self.value_kept),
            ("SLICES", self.slices),
            ("PARTS", self.parts),
            ("PARTIAL", self.partial),
            ("STAGED", self.staged),
            ("HEAD_STAGED", self.head_staged),
            ("OWN_STAGED", self.own_staged),
            ("WITH_MAX", self.with_max),
            *pairs,
        ]


@functools.lru_cache(maxsize=256)
def gradient_plan(
    of_keys: bool,
    head_dim: int,
    value_dim: int,
    dtype: str,
    words_of_pair: int | None = None,
    with_max: bool = False,
) -> GradientPlan:
    """The plan that reads the least device memory; of these one with the fewest barriers, and the fewest registers.

    Slices compute all scores again, so there are several only where nothing else fits. Simdgroups share rows only where
    too much is read without; never where the largest score is looked for, as scores would be summed in another order
    than the forward kernel's, nor where pairs are summed.
    """
    most = padded(max(head_dim, value_dim)) // FRAGMENT
    forward = plan_for(head_dim, value_dim, dtype)
    enough = ENOUGH * forward.value_slices * (padded(head_dim) + padded(value_dim)) / forward.bq
    all_parts = (1,) if with_max or words_of_pair is not None else (1, 2, 4)
    for narrowest, slices in product((NARROWEST, FRAGMENT), range(1, most + 1)):
        plans = _plans(of_keys, head_dim, value_dim, slices, dtype, narrowest, all_parts)
        plans = (replace(plan, words_of_pair=words_of_pair, with_max=with_max) for plan in plans)
        fitting = [plan for plan in plans if plan.fits()]
        if fitting:
            return min(fitting, key=lambda plan: _cost(plan, enough))
    raise ValueError(f"head dims {head_dim} and {value_dim} do not fit a threadgroup; use fewer columns per head")


def _cost(plan: GradientPlan, enough: float) -> tuple[float, ...]:
    columns = plan.device_columns
    return max(columns, enough), plan.parts, columns, plan.barriers_per_row, plan.registers


def _plans(
    of_keys: bool,
    head_dim: int,
    value_dim: int,
    slices: int,
    dtype: str,
    narrowest: int,
    all_parts: tuple[int, ...],
) -> Iterator[GradientPlan]:
    head_widths, value_widths = (_tilings(columns, narrowest) for columns in (head_dim, value_dim))
    kept = list(product((IN_REGISTERS, IN_THREADGROUP, IN_DEVICE), repeat=2))
    for simdgroups, bk, bd, bv, parts in product((12, 8, 6, 4), (32, 16, 8), head_widths, value_widths, all_parts):
        if bd % (FRAGMENT * parts) == bv % (FRAGMENT * parts) == 0:
            for head_kept, value_kept in kept:
                cut = (simdgroups, bk, bd, bv, head_kept, value_kept)
                yield GradientPlan(of_keys, head_dim, value_dim, *cut, slices=slices, dtype=dtype, parts=parts)


def _tilings(columns: int, narrowest: int) -> list[int]:
    """Widths of equal tiles that make up the columns; narrow ones would only add barriers."""
    whole = padded(columns)
    return [width for width in range(whole, 0, -FRAGMENT) if whole % width == 0 and width >= min(whole, narrowest)]


def _parts(size: int, part: int) -> int:
    return -(-size // part)
