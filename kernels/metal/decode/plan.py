"""Head dims, dtype, rows -> DecodePlan: how threadgroups of the kernel for few query rows cut their work; and splits.

The model counts 32-bit registers per thread, as attention/plan.py does: the output sums, the query fragments, the
scores and what a mask says of them, and the pieces of keys or of values that a lane has on their way.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from ..device import FRAGMENT, LANES, THREADGROUP_BYTES, registers_of
from ..scoring import PLAIN, Scoring

FEW_ROWS = 16  # of a head: up to here keys are never read more often than the kernel for many rows reads them
OTHER_REGISTERS = 51  # addresses, live tiles, a mask's bounds, statistics, one fragment of each operand
OF_ROW = 8  # a row's head and number, its statistics, and what a mask makes of them
PIECE_BYTES = 16  # of a row, that a lane reads at once
MOST_PADDING = 1.25  # columns that are computed, to those that there are
LEAST_KEYS = 384  # of a split; of live.h
# Threadgroups that are wanted: eight for each core of a GPU of 40, which is more than its threads can hold at a time.
# A constant, so that a result has the same bits on every machine.
THREADGROUPS = 320


@dataclass(frozen=True)
class DecodePlan:
    """The template arguments of plan.h."""

    head_dim: int
    value_dim: int
    row_fragments: int
    key_fragments: int
    simdgroups: int
    share: int
    key_piece: int
    value_piece: int
    dtype: str
    scoring: Scoring = PLAIN

    @property
    def threads(self) -> int:
        return self.simdgroups * LANES

    @property
    def rows(self) -> int:
        """Query rows of a threadgroup."""
        return self.row_fragments * FRAGMENT

    @property
    def bk(self) -> int:
        """Keys of one tile."""
        return self.key_fragments * FRAGMENT

    @property
    def shared(self) -> int:
        """Floats of threadgroup memory; SHARED of plan.h."""
        if self.share > 1:
            return 2 * (self.simdgroups * self.row_fragments * self.key_fragments * 2 * LANES + 2 * self.bk)
        return self.simdgroups * self.rows * (2 + 8 * self.value_piece + 4)

    @property
    def registers(self) -> int:
        """What one thread needs at the same time; two elements of every fragment lie in each lane."""
        s, rows = self.scoring, 2 * self.row_fragments
        element_bytes = 4 if self.dtype == "float32" else 2
        key_bytes, value_bytes = (2 if int8 else element_bytes for int8 in (s.quantised, s.int8_values))
        product_bytes = 2 if self.dtype == "float16" else 4
        keys = _chunks(self.head_dim, 4 * self.key_piece, self.share) * self.key_piece
        values = _chunks(self.value_dim, 8 * self.value_piece, self.share) * self.value_piece
        held = rows * (values + keys // 2 * product_bytes // 4 + 2 * self.key_fragments + OF_ROW)
        ahead = self.key_fragments * max(keys * key_bytes, 2 * values * value_bytes) // 4
        factors = rows * (s.quantised + s.add_back) + s.quantised + s.int8_values
        return held + ahead + factors + OTHER_REGISTERS

    def fits(self) -> bool:
        return self.registers <= registers_of(self.threads) and 4 * self.shared <= THREADGROUP_BYTES

    def template(self) -> list[tuple[str, int | bool]]:
        """The arguments by name, as plan.h and the kernel's body name them."""
        return [
            ("HEAD_DIM", self.head_dim),
            ("VALUE_DIM", self.value_dim),
            ("ROW_FRAGMENTS", self.row_fragments),
            ("KEY_FRAGMENTS", self.key_fragments),
            ("SIMDGROUPS", self.simdgroups),
            ("SHARE", self.share),
            ("KEY_PIECE", self.key_piece),
            ("VALUE_PIECE", self.value_piece),
            ("SHARED", self.shared),
        ]


@functools.lru_cache(maxsize=256)
def decode_plan(head_dim: int, value_dim: int, dtype: str, rows: int, scoring: Scoring = PLAIN) -> DecodePlan | None:
    """The first plan that fits, most wanted first; None where none does. rows: of one head of keys.

    Simdgroups with tiles of their own wait for nobody. Where a row's output does not fit in the registers of one, they
    share the columns; where there are many rows too, so that keys are read less often.
    """
    element_bytes = 4 if dtype == "float32" else 2
    key_bytes, value_bytes = (1 if int8 else element_bytes for int8 in (scoring.quantised, scoring.int8_values))
    for row_fragments, simdgroups, share, key_fragments in _cuts(rows):
        key_piece = _piece(head_dim, 4 * share, PIECE_BYTES // key_bytes, 2)
        value_piece = _piece(value_dim, 8 * share, PIECE_BYTES // value_bytes, 1)
        cut = (row_fragments, key_fragments, simdgroups, share, key_piece, value_piece)
        plan = DecodePlan(head_dim, value_dim, *cut, dtype, scoring)
        if plan.fits():
            return plan
    return None


def _cuts(rows: int) -> Iterator[tuple[int, int, int, int]]:
    """(row_fragments, simdgroups, share, key_fragments)"""
    fragments = -(-rows // FRAGMENT)
    for row_fragments in (4, 2, 1):
        if row_fragments > 1 and fragments <= row_fragments // 2:
            continue
        if row_fragments <= 2:
            yield from ((row_fragments, 4, 1, key_fragments) for key_fragments in (2, 1))
        for simdgroups, key_fragments in product((4, 8), (4, 2, 1)):
            yield row_fragments, simdgroups, simdgroups, key_fragments


def _piece(columns: int, lanes: int, widest: int, least: int) -> int:
    """Elements of a piece: the widest that make up a row, and whose chunks hardly go beyond it, or do so least."""
    widths = [least]
    while widths[0] < widest:
        widths.insert(0, 2 * widths[0])
    computed = {width: -(-columns // (lanes * width)) * lanes * width for width in widths}
    whole = [width for width in widths if columns % width == 0] or [least]
    return next((w for w in whole if computed[w] <= MOST_PADDING * columns), min(whole, key=lambda w: computed[w]))


def _chunks(columns: int, chunk: int, share: int) -> int:
    """Of one simdgroup."""
    return -(-columns // (chunk * share))


def splits_for(units: int, keys: int) -> int:
    """Threadgroups that share the keys of one head. units: threadgroups without any split; keys: at most live."""
    return max(1, min(-(-THREADGROUPS // units), keys // LEAST_KEYS))
