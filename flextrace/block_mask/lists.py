"""torch's lists of blocks, or runs of blocks -> Blocks: whatever is wrong with them is said before any work."""

from __future__ import annotations

import math
import os
from typing import Any, NamedTuple

import numpy as np

from flextrace.kernels import Blocks
from flextrace.kernels.blocks import FULL, PARTIAL, Array
from flextrace.kernels.scalars import check_block_size, check_size, shown
from flextrace.notices import notice

Lengths = tuple[int, int]
LARGE_LIST = 2**28  # bytes, from which on a list of indices is worth a notice


class BlockRanges(NamedTuple):
    """A BlockMask's runs of blocks, all numpy arrays.

    offsets: int64 [B * H * q_blocks + 1]; row r of blocks has the runs offsets[r] to offsets[r + 1] - 1, ascending.
    first, end: int32 [runs]; a run covers the kv blocks first to end - 1.
    full: bool [runs]; whether the mask keeps these blocks whole.

    Example:
        >>> import flextrace as flex
        >>> runs = flex.create_block_mask(flex.mods.causal, None, None, 256, 256).to_ranges()
        >>> [(int(first), int(end), bool(full)) for first, end, full in zip(runs.first, runs.end, runs.full)]
        [(0, 1, False), (0, 1, True), (1, 2, False)]
    """

    offsets: Array
    first: Array
    end: Array
    full: Array


def blocks_of_lists(
    lists: tuple[Any, Any, Any, Any], block: tuple[int, int], seq_lengths: Any
) -> tuple[Lengths, Blocks]:
    """Lengths, by default those of whole blocks, and the blocks of four lists, of which those of full ones may be None.

    Raises:
        ValueError: shapes do not fit, a count exceeds its list, or an index names no block.
    """
    kv_num_blocks, kv_indices, full_kv_num_blocks, full_kv_indices = lists
    if (full_kv_num_blocks is None) != (full_kv_indices is None):
        raise ValueError("full_kv_num_blocks and full_kv_indices go together: give both or none")
    counts, indices = _int32(kv_num_blocks, "kv_num_blocks", 3), _int32(kv_indices, "kv_indices", 4)
    full_counts = full_indices = None
    if full_kv_num_blocks is not None:
        full_counts = _int32(full_kv_num_blocks, "full_kv_num_blocks", 3)
        full_indices = _int32(full_kv_indices, "full_kv_indices", 4)
    whole_blocks = indices.shape[2] * block[0], indices.shape[3] * block[1]
    lengths = whole_blocks if seq_lengths is None else lengths_of(seq_lengths)
    rows, columns = _grid(lengths, block)
    for name, n, table in (("kv", counts, indices), ("full_kv", full_counts, full_indices)):
        if n is None or table is None:
            continue
        if n.shape != table.shape[:3] or n.shape[2] != rows or table.shape != indices.shape:
            raise ValueError(
                f"{name}_num_blocks has shape {n.shape} and {name}_indices {table.shape}; expected [B, H, {rows}] "
                f"and [B, H, {rows}, columns] for lengths {lengths} in blocks of {block}"
            )
        if n.size and (n.min() < 0 or n.max() > table.shape[3]):
            raise ValueError(f"{name}_num_blocks holds {n.min()} to {n.max()}; its lists have {table.shape[3]} entries")
        used = table[np.arange(table.shape[3]) < n[..., None]]
        if used.size and (used.min() < 0 or used.max() >= columns):
            raise ValueError(f"{name}_indices names block {used.min()} to {used.max()}; there are {columns} blocks")
    return lengths, Blocks.from_lists(counts, indices, full_counts, full_indices, *block, columns)


def blocks_of_ranges(
    ranges: BlockRanges, seq_lengths: Any, B: Any, H: Any, block: tuple[int, int]
) -> tuple[Lengths, Blocks]:
    """Lengths, and the blocks of runs over B batches and H heads.

    Raises:
        ValueError: the offsets do not fit the rows, or runs of a row overlap or name no block.
    """
    lengths, heads = lengths_of(seq_lengths), (check_size("B", B, 1), check_size("H", H, 1))
    rows, columns = _grid(lengths, block)
    offsets, first, end, full = (np.asarray(part) for part in ranges)
    lines = heads[0] * heads[1] * rows
    falls = offsets.shape != (lines + 1,) or offsets[0] != 0 or bool((np.diff(offsets) < 0).any())
    if falls or offsets[-1] != len(first):
        raise ValueError(f"offsets must rise from 0 to the number of runs, {len(first)}, in {lines + 1} entries")
    if not first.shape == end.shape == full.shape or first.ndim != 1:
        raise ValueError(f"first, end and full have shapes {first.shape}, {end.shape} and {full.shape}; expected one")
    row = np.repeat(np.arange(lines), np.diff(offsets))
    overlap = (row[1:] == row[:-1]) & (first[1:] < end[:-1])
    if (first < 0).any() or (end > columns).any() or (first >= end).any() or overlap.any():
        raise ValueError(f"runs must be ascending, disjoint and inside the {columns} blocks of a row")
    blocks = Blocks.from_runs((*heads, rows, columns), row, first, end, np.where(full, FULL, PARTIAL), *block)
    return lengths, blocks


def check_list_size(name: str, blocks: Blocks) -> None:
    """Says, once, that a dense list of a mask's blocks is large.

    Raises:
        MemoryError: this machine has less memory than it takes.
    """
    size = 4 * math.prod(blocks.shape)
    if size < LARGE_LIST:
        return
    what = f"{name} takes {size / 1e6:,.0f} MB: it has an entry for each of {' x '.join(map(str, blocks.shape))} blocks"
    remedy = (
        f"the counts and `to_ranges()`, in {blocks.nbytes / 1e6:.1f} MB, say which blocks are visited, and a larger "
        "BLOCK_SIZE makes fewer of them"
    )
    if size > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        raise MemoryError(f"{what}; {remedy}")
    notice("large lists of blocks", f"{what}; {remedy}")


def _int32(value: Any, name: str, ndim: int) -> Array:
    array = np.array(value)
    if array.ndim != ndim or array.dtype.kind not in "iu":
        raise ValueError(f"{name} is {array.dtype} of shape {array.shape}; expected an integer array of {ndim} axes")
    return np.ascontiguousarray(array, dtype=np.int32)


def _grid(lengths: Lengths, block: tuple[int, int]) -> tuple[int, int]:
    return -(-lengths[0] // block[0]), -(-lengths[1] // block[1])


def block_size(size: Any) -> tuple[int, int]:
    """(rows, columns) of BLOCK_SIZE. Raises ValueError."""
    if isinstance(size, str):
        raise ValueError(f"BLOCK_SIZE is {size!r}; if it is torch's device, leave it out: arrays of MLX are on none")
    return check_block_size(size, "BLOCK_SIZE")


def lengths_of(seq_lengths: Any) -> Lengths:
    """(q_len, kv_len) of seq_lengths. Raises ValueError."""
    given = tuple(seq_lengths) if isinstance(seq_lengths, (tuple, list)) else ()
    if len(given) != 2:
        raise ValueError(f"seq_lengths is {shown(seq_lengths)}; expected (q_len, kv_len)")
    return check_size("seq_lengths[0]", given[0], 0), check_size("seq_lengths[1]", given[1], 0)
