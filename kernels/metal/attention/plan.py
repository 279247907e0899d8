"""Head dims, dtype -> Plan: how a threadgroup cuts its work, from a model of registers and threadgroup memory.

The model counts 32-bit registers per thread, of which an Apple GPU has about 128 before fewer threads are resident:
the output sums, the scores, the query fragments if they stay, the tile of K or V on its way, and the rest; of quantised
kernels also the factors of rows and keys. The smallest register has 16 bits: int8 on its way takes 2 bytes. It was
fitted to what clang needs of these texts for another GPU with as many lanes: `flextrace bench --counts` prints it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from itertools import product

from ..device import FRAGMENT, LANES, THREADGROUP_BYTES, registers_of
from ..scoring import PLAIN, Scoring

OTHER_REGISTERS = 55  # addresses, the walk, row statistics, fragments on their way
CUT_REGISTERS = 8  # several tiles of columns of K or V, whose code the compiler interleaves
FEW, MANY = 7, 48  # registers that a thread keeps in memory: so few cost little; so many where nothing else fits
BARRIERS = 2 / (32 * 64)  # for each pair of a row and a key: fewer hardly matter
MEMORY = 17 * 1024  # of threadgroup memory, about what MLX's kernel takes: so that a core holds several threadgroups
# (row_fragments, simdgroups, parts), 64 query rows at least: they say how often K and V are read. Sixteen rows of a
# simdgroup halve its reads of K and V from threadgroup memory. Of large head dims simdgroups share rows, 48 or 24.
ROWS = ((2, 4, 1), (2, 8, 1), (1, 8, 1))
SHARED, FEWER = ((2, 12, 4), (1, 12, 2)), ((1, 12, 4),)
# Rows, whether queries stay in registers, registers in memory, keys of a tile: the first that has a plan. With fewer
# keys the sums are scaled more often.
ATTEMPTS = (
    *((ROWS, True, FEW, (32, 16)), (SHARED, True, FEW, (16,)), (FEWER, True, FEW, (16,))),
    *((rows, True, MANY, (keys,)) for keys in (16, 8) for rows in (ROWS, SHARED, FEWER)),
    *((ROWS, False, FEW, (32, 16, 8)), (ROWS, False, 2 * MANY, (16, 8))),
)


@dataclass(frozen=True)
class Plan:
    """The template arguments of plan.h."""

    head_dim: int
    value_dim: int
    row_fragments: int
    simdgroups: int
    bk: int
    bd: int
    bv: int
    value_tiles: int
    parts: int
    q_in_registers: bool
    dtype: str
    scoring: Scoring = PLAIN

    @property
    def element_bytes(self) -> int:
        return 4 if self.dtype == "float32" else 2

    @property
    def key_bytes(self) -> int:
        return 1 if self.scoring.quantised else self.element_bytes

    @property
    def value_bytes(self) -> int:
        return 1 if self.scoring.int8_values else self.element_bytes

    @property
    def product_bytes(self) -> int:
        """Bytes of one element of a product's operands: bfloat16 is multiplied as float32 (fragments.h)."""
        return 2 if self.dtype == "float16" else 4

    @property
    def bq(self) -> int:
        """Query rows of a threadgroup."""
        return self.simdgroups // self.parts * self.row_fragments * FRAGMENT

    @property
    def threads(self) -> int:
        return self.simdgroups * LANES

    @property
    def value_slices(self) -> int:
        """Threadgroups that share the value columns of one tile of rows."""
        return _parts(self.value_dim, self.bv * self.value_tiles)

    @property
    def staged(self) -> int:
        """Elements of threadgroup memory: two tiles, each row 16 bytes longer than its columns."""
        return 2 * self.bk * (max(self.bd * self.key_bytes, self.bv * self.value_bytes) + 16) // self.element_bytes

    @property
    def threadgroup_bytes(self) -> int:
        """The tiles, the votes of walk.h, the scales of a tile's keys and values, and scores that parts sum."""
        scales = self.bk * (self.scoring.quantised + self.scoring.int8_values)
        return self.staged * self.element_bytes + 8 * self.simdgroups + 4 * scales + 4 * self.partial

    @property
    def partial(self) -> int:
        """Words of threadgroup memory for the scores of parts."""
        return self.simdgroups * self.row_fragments * self.bk // FRAGMENT * 2 * LANES if self.parts > 1 else 0

    @property
    def registers(self) -> int:
        """What one thread needs at the same time; two elements of every fragment lie in each lane."""
        rows = 2 * self.row_fragments
        sums = rows * self.value_tiles * self.bv // FRAGMENT // self.parts
        scores = rows * self.bk // FRAGMENT
        queries = rows * padded(self.head_dim) // FRAGMENT // self.parts * self.product_bytes // 4
        queries = queries if self.q_in_registers else 0
        row_bytes = max(self.bd * max(2, self.key_bytes), self.bv * max(2, self.value_bytes))
        ahead = 4 * _parts(self.bk * row_bytes, self.threads * 16)
        cut = CUT_REGISTERS if self.bd < padded(self.head_dim) or self.value_tiles > 1 else 0
        return sums + scores + queries + ahead + self._factors + OTHER_REGISTERS + cut

    @property
    def _factors(self) -> int:
        """What smooth.h holds: a scale, a term, and where the scores of a mean begin (64 bits) for each row; a scale in
        each lane for the keys and for the values of a tile. While the next tile's scales are on their way they need no
        register of their own."""
        s = self.scoring
        of_row = s.quantised + s.add_back + 2 * s.smoothed_q
        return self.row_fragments * of_row + s.quantised + s.int8_values

    @property
    def spilled(self) -> int:
        """Registers that a thread keeps in memory."""
        return max(0, self.registers - registers_of(self.threads))

    def barriers_per_pair(self) -> float:
        """Of a row and a key. Each tile of columns ends with one."""
        return (_parts(self.head_dim, self.bd) + self.value_tiles) / (self.bk * self.bq)

    def fits(self, spilled: int = FEW) -> bool:
        few = spilled == FEW and self.parts == 1
        return self.spilled <= spilled and self.threadgroup_bytes <= (MEMORY if few else THREADGROUP_BYTES)

    def template(self) -> list[tuple[str, int | bool]]:
        """The arguments by name, as plan.h and the kernel's body name them."""
        return [
            ("HEAD_DIM", self.head_dim),
            ("VALUE_DIM", self.value_dim),
            ("ROW_FRAGMENTS", self.row_fragments),
            ("SIMDGROUPS", self.simdgroups),
            ("BK", self.bk),
            ("BD", self.bd),
            ("BV", self.bv),
            ("VALUE_TILES", self.value_tiles),
            ("Q_IN_REGISTERS", self.q_in_registers),
            ("STAGED", self.staged),
            ("PARTS", self.parts),
            ("PARTIAL", self.partial),
        ]


@functools.lru_cache(maxsize=256)
def plan_for(head_dim: int, value_dim: int, dtype: str, scoring: Scoring = PLAIN) -> Plan:
    """The best plan that fits: of those with most rows for each fragment of K and V that is read, one with few
    barriers, few query rows, and few registers.

    Queries stay in registers. Where that is too much, simdgroups share rows; then rather a thread keeps some registers
    in memory, read again for each tile, than several threadgroups share the value columns, each computing all scores
    again. Only where nothing fits are queries read again for each tile.
    """
    for slices, (cuts, q_in_registers, spilled, keys) in product(range(1, padded(value_dim) // FRAGMENT + 1), ATTEMPTS):
        columns = padded(_parts(value_dim, slices))
        tiles = product(cuts, keys, _tilings(padded(head_dim)), _tilings(columns))
        plans = (
            Plan(
                head_dim, value_dim, fragments, groups, bk, bd, bv, columns // bv, parts, q_in_registers, dtype, scoring
            )
            for (fragments, groups, parts), bk, bd, bv in tiles
            if bd % (FRAGMENT * parts) == bv % (FRAGMENT * parts) == 0
        )
        found = [plan for plan in plans if plan.fits(spilled)]
        if found:
            return min(found, key=_wanted if spilled == FEW else _spilled)
    raise ValueError(f"head dims {head_dim} and {value_dim} do not fit a threadgroup; use fewer columns per head")


def _wanted(plan: Plan) -> tuple[float, ...]:
    """What is less is better."""
    return -plan.row_fragments, max(BARRIERS, plan.barriers_per_pair()), plan.bq, plan.spilled, plan.registers


def _spilled(plan: Plan) -> tuple[float, ...]:
    return plan.spilled, plan.barriers_per_pair()


def _tilings(columns: int) -> list[int]:
    """Widths of equal tiles that make up `columns`, widest first."""
    return [w for w in range(columns, 0, -FRAGMENT) if columns % w == 0]


def _parts(size: int, part: int) -> int:
    """How many parts of that size make up `size`."""
    return -(-size // part)


def padded(size: int) -> int:
    """The next multiple of a fragment's side, at least one."""
    return max(1, _parts(size, FRAGMENT)) * FRAGMENT
