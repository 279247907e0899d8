"""Blocks -> a picture of characters; large masks are drawn coarser."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flextrace.kernels import Blocks
from flextrace.kernels.blocks import EMPTY, FULL, PARTIAL, Array
from flextrace.kernels.scalars import check_size

LETTERS = {EMPTY: ".", PARTIAL: "+", FULL: "#"}


def coarse_states(blocks: Blocks, b: int, h: int, rows: int, columns: int) -> tuple[Array, tuple[int, int]]:
    """One head's states on a grid of at most rows x columns cells, and how many blocks one cell stands for.

    A cell is full (or empty) where all its blocks are, and partial otherwise. Only runs are read, never the whole grid.
    """
    _, heads, q_blocks, kv_blocks = blocks.shape
    per_cell = max(1, -(-q_blocks // rows)), max(1, -(-kv_blocks // columns))
    grid = -(-q_blocks // per_cell[0]), -(-kv_blocks // per_cell[1])
    begin = (b * heads + h) * q_blocks
    runs = slice(int(blocks.offsets[begin]), int(blocks.offsets[begin + q_blocks]))
    cell_row = (np.repeat(np.arange(q_blocks), np.diff(blocks.offsets[begin : begin + q_blocks + 1]))) // per_cell[0]
    counts = []
    for chosen in (np.ones(runs.stop - runs.start, bool), blocks.state[runs] == FULL):
        steps = np.zeros((grid[0], kv_blocks + 1), np.int64)
        np.add.at(steps, (cell_row[chosen], blocks.first[runs][chosen]), 1)
        np.subtract.at(steps, (cell_row[chosen], blocks.end[runs][chosen]), 1)
        covered = np.cumsum(steps[:, :-1], axis=1)
        starts = np.arange(0, kv_blocks, per_cell[1])
        counts.append(np.add.reduceat(covered, starts, axis=1) if kv_blocks else covered)
    heights = np.minimum(per_cell[0], q_blocks - np.arange(grid[0]) * per_cell[0])
    widths = np.minimum(per_cell[1], kv_blocks - np.arange(grid[1]) * per_cell[1])
    visited, full = counts
    states = np.where(full == heights[:, None] * widths, FULL, np.where(visited > 0, PARTIAL, EMPTY))
    return states, per_cell


def chosen_head(b: int, h: int, shape: Sequence[int]) -> tuple[int, int]:
    """Where batch b and head h lie in an array whose first axes may be 1 and broadcast.

    Raises:
        ValueError: there is no such batch or head.
    """
    chosen = []
    for name, given, size in (("b", b, shape[0]), ("h", h, shape[1])):
        index = check_size(name, given, 0)
        if size > 1 and index >= size:
            raise ValueError(f"{name} is {index}; this has {name} from 0 to {size - 1}")
        chosen.append(index if size > 1 else 0)
    return chosen[0], chosen[1]


def block_text(blocks: Blocks, b: int = 0, h: int = 0, rows: int = 64, columns: int = 120) -> str:
    """One character per block, full `#`, partial `+`, empty `.`; a last line says so where one stands for several."""
    states, (tall, wide) = coarse_states(blocks, b, h, rows, columns)
    lines = ["".join(LETTERS[int(state)] for state in row) for row in states]
    if (tall, wide) != (1, 1):
        lines.append(f"(one character stands for {tall} x {wide} blocks)")
    return "\n".join(lines)
