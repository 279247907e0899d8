"""Grids of cells -> text: the counts of a picture in words, and pictures in characters."""

from __future__ import annotations

from typing import cast

import mlx.core as mx
import numpy as np

from flextrace.block_mask import BlockMask
from flextrace.decorators import ScoreMod
from flextrace.kernels.blocks import EMPTY, FULL, PARTIAL, Array
from flextrace.kernels.scalars import check_whole
from flextrace.tracer import count_parameters
from flextrace.tracer.source.signature import MaskFunction, ScoreFunction

from .cells import BlockCounts, MaskCells, MaskLike, ScoreCells, block_cells, mask_cells, score_cells


def text(
    what: MaskLike | ScoreFunction | BlockMask,
    q_len: int | None = None,
    kv_len: int | None = None,
    *,
    b: int = 0,
    h: int = 0,
    width: int = 80,
    ascii: bool = False,
) -> str:
    """A picture in characters of a mask, a BlockMask or a score_mod (of scores 0); it needs no matplotlib.

    Args:
        what: a mask_mod, score_mod or plain function of either kind, a bool array, or a BlockMask.
        q_len, kv_len, b, h: as for `mask`.
        width: most characters of a line; larger masks are drawn by cells, twice as tall as wide in positions.
        ascii: `#` full, `+` partial, `.` empty, in place of full, shaded and middle-dot characters.

    Raises:
        ValueError: lengths are missing, there is no such batch entry or head, or width is below 8.

    Example:
        >>> import flextrace as flex
        >>> print(flex.visualize.text(flex.mods.sliding_window(3), 6, ascii=True))
        sliding_window: 15 of 36 pairs kept (41.7 %), b 0, h 0
        #.....
        ##....
        ###...
        .###..
        ..###.
        ...###
    """
    width = check_whole("width", width)
    if width < 8:
        raise ValueError(f"width is {width}; a picture needs at least 8 characters")
    rows = width // 2
    place = f", b {b}, h {h}"
    if isinstance(what, BlockMask):
        cells, counts = block_cells(what, b, h, (rows if max(what.seq_lengths) > width else width, width))
        return _lines(f"{cells.name}: {block_grid(what)}, {block_counts(counts)}{place}", cells.states, ascii)
    if isinstance(what, ScoreMod) or (not isinstance(what, (mx.array, np.ndarray)) and count_parameters(what) == 5):
        shown = score_cells(cast(ScoreFunction, what), q_len, kv_len, b, h, (rows, width))
        return _shades(f"{shown.name}: {score_counts(shown)}{place}", shown, ascii)
    lengths = what.shape[-2:] if isinstance(what, (mx.array, np.ndarray)) else (q_len or 0, kv_len or q_len or 0)
    cells = mask_cells(cast(MaskFunction, what), q_len, kv_len, b, h, (width if max(lengths) <= width else rows, width))
    return _lines(f"{cells.name}: {mask_counts(cells)}{place}", cells.states, ascii)


def mask_counts(cells: MaskCells) -> str:
    pairs = cells.lengths[0] * cells.lengths[1]
    if cells.kept is not None:
        return f"{cells.kept:,} of {pairs:,} pairs kept ({100 * cells.kept / pairs:.1f} %)"
    full, partial = int((cells.states == FULL).sum()), int((cells.states == PARTIAL).sum())
    empty = cells.states.size - full - partial
    return f"cells of {cells.cell[0]} x {cells.cell[1]} pairs: {full:,} full, {partial:,} partial, {empty:,} empty"


def block_counts(counts: BlockCounts) -> str:
    kinds = f"{counts.full:,} full, {counts.partial:,} partial, {counts.empty:,} empty"
    return f"{kinds}, sparsity {counts.sparsity:.1f} %"


def block_grid(blocks: BlockMask) -> str:
    """How many blocks there are, and of what size."""
    grid = [-(-n // size) for n, size in zip(blocks.seq_lengths, blocks.BLOCK_SIZE, strict=True)]
    return f"{grid[0]:,} x {grid[1]:,} blocks of {blocks.BLOCK_SIZE[0]} x {blocks.BLOCK_SIZE[1]}"


def score_counts(cells: ScoreCells) -> str:
    seen = cells.values[~cells.hidden & np.isfinite(cells.values)]
    span = f"{seen.min():.4g} to {seen.max():.4g}" if seen.size else "nothing finite"
    hidden = cells.values.size - seen.size
    rest = f", {hidden:,} of {cells.values.size:,} hidden or -inf" if hidden else ""
    every = f", every {cells.step[0]}. row and {cells.step[1]}. column" if cells.step != (1, 1) else ""
    return (span + rest + every).replace("-0 ", "0 ")


def _lines(head: str, states: Array, ascii: bool) -> str:
    letters = dict(zip((EMPTY, PARTIAL, FULL), ".+#" if ascii else "\u00b7\u2592\u2588", strict=True))
    return "\n".join([head, *("".join(letters[int(state)] for state in row) for row in states)])


def _shades(head: str, cells: ScoreCells, ascii: bool) -> str:
    ramp = ".:-=+*#%@" if ascii else "\u00b7\u2591\u2592\u2593\u2588"
    shown = ~cells.hidden & np.isfinite(cells.values)
    low, high = (cells.values[shown].min(), cells.values[shown].max()) if shown.any() else (0.0, 0.0)
    with np.errstate(invalid="ignore"):
        level = (cells.values - low) / (high - low or 1.0) * (len(ramp) - 1)
    marks = np.where(shown, np.rint(np.where(shown, level, 0)).astype(int), len(ramp))
    return "\n".join([head, *("".join((ramp + " ")[i] for i in row) for row in marks)])
