"""Head dims, element types, rows -> DecodePlan: how a block of the kernel for few query rows cuts its work; splits."""

from __future__ import annotations

import functools
from dataclasses import dataclass

FEW_ROWS = 16  # of a query head, or FEW_IN_ALL of all heads that share one head of keys
FEW_IN_ALL = 64
FEW_TO_ROUND = 8  # of a query head: so few rows do not wait until keys are rounded; as on the cpu
BK = 16  # keys of a tile; of plan.h
WARPS = 8  # of a block; of plan.h
LEAST_KEYS = 256  # of a split; of live.h
MOST_SHARED = 48 << 10  # bytes that a block has without asking
WIDEST = {"float32": 256}  # columns of v of a block, and those of other types:
WIDEST_OF_OTHERS = 512
NARROW = 128  # columns of v, up to which a thread holds two tiles of query rows
OTHER_REGISTERS = 52  # addresses, live tiles, statistics, scores
RESIDENT_REGISTERS = 128  # of a thread, with which two blocks are resident on a multiprocessor


@dataclass(frozen=True)
class DecodePlan:
    """The constants of plan.h. keys, values: the element types of k and of v. means: keys lack a mean, whose product
    with a query is a term of its scores; add_back: which the score_mod sees."""

    head_dim: int
    value_dim: int
    dtype: str
    keys: str
    values: str
    column_tiles: int
    slice: int
    means: bool = False
    add_back: bool = False

    @property
    def rows(self) -> int:
        """Query rows of a block."""
        return 8 * self.column_tiles

    @property
    def threads(self) -> int:
        return 32 * WARPS

    @property
    def slices(self) -> int:
        """Blocks that share the columns of v."""
        return max(1, -(-self.value_dim // self.slice))

    @property
    def shared_bytes(self) -> int:
        """Queries, or tiles of sums of all warps; and what is known of rows."""
        key_bytes, columns = size_of(self.keys), 64 // size_of(self.keys)
        queries = self.rows * -(-self.head_dim // columns) * columns * key_bytes
        return max(queries, WARPS * WARPS * 32 * 16) + (2 + 3 * WARPS) * self.rows * 4

    @property
    def resident(self) -> int:
        """Blocks that a multiprocessor is to hold at a time."""
        chunk = 128 // size_of(self.values)
        sums = self.column_tiles * -(-min(self.slice, self.value_dim) // chunk) * chunk // 4
        on_their_way = sum(
            min(32, -(-columns // chunk) * 8 * of_row)
            for columns, chunk, of_row in (
                (self.head_dim, 64 // size_of(self.keys), 1),
                (min(self.slice, self.value_dim), chunk, 2),
            )
        )
        float32 = 32 if self.dtype == "float32" else 0
        return 2 if sums + on_their_way + float32 + OTHER_REGISTERS <= RESIDENT_REGISTERS else 1

    def constants(self) -> dict[str, str]:
        """The values of plan.h by name."""
        numbers = {
            "HEAD_DIM": self.head_dim,
            "VALUE_DIM": self.value_dim,
            "COLUMN_TILES": self.column_tiles,
            "VALUES": self.slice,
            "RESIDENT": self.resident,
        }
        flags = {"MEANS": self.means, "ADD_BACK": self.add_back}
        return {name: str(number) for name, number in numbers.items()} | {
            name: str(flag).lower() for name, flag in flags.items()
        }


PLAIN = DecodePlan(64, 64, "float16", "float16", "float16", 1, 64)  # as plan.h lies


@functools.lru_cache(maxsize=256)
def decode_plan(
    head_dim: int,
    value_dim: int,
    dtype: str,
    rows: int,
    keys: str | None = None,
    values: str | None = None,
    means: bool = False,
    add_back: bool = False,
) -> DecodePlan | None:
    """None where a row of q is too long. rows: of one head of keys. keys, values: the element types of k and v, where
    they are not that of q."""
    values = values or dtype
    widest, chunk = WIDEST.get(dtype, WIDEST_OF_OTHERS), 128 // size_of(values)
    slices = -(-value_dim // widest)
    chunks = -(-value_dim // chunk)
    part = -(-chunks // slices) * chunk
    column_tiles = 2 if rows > 8 and part <= NARROW else 1
    plan = DecodePlan(head_dim, value_dim, dtype, keys or dtype, values, column_tiles, part, means, add_back)
    return plan if plan.shared_bytes <= MOST_SHARED else None


def are_few(rows: int, group: int, rounds: bool = False) -> bool:
    """Whether the kernel for few query rows is the better one.

    Args:
        rows: of a query head. group: query heads that share keys.
        rounds: keys are to be rounded, which this kernel does not do.
    """
    if rounds:
        return 0 < rows <= FEW_TO_ROUND
    return 0 < rows <= FEW_ROWS or 0 < rows * group <= FEW_IN_ALL


def splits_for(plan: DecodePlan, units: int, keys: int, multiprocessors: int) -> int:
    """Blocks that share the keys of one head: as many as are resident at a time. units: blocks without any split;
    keys: at most live."""
    return max(1, min(multiprocessors * plan.resident // units, keys // LEAST_KEYS))


def size_of(dtype: str) -> int:
    """Bytes of an element."""
    return {"int8": 1, "float32": 4}.get(dtype, 2)
