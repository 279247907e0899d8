"""Masks, BlockMasks, score_mods -> grids of cells small enough to look at; `visualize` paints them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from flextrace.block_mask import BlockMask, create_block_mask, create_mask
from flextrace.block_mask.text import chosen_head, coarse_states
from flextrace.checks import checked_scale
from flextrace.decorators import MaskMod, ScoreMod, as_mod
from flextrace.kernels.blocks import EMPTY, FULL, PARTIAL, Array
from flextrace.kernels.scalars import as_int, check_size, shown
from flextrace.tracer import evaluate, name_of
from flextrace.tracer.source.signature import MaskFunction, ScoreFunction

MaskLike = MaskFunction | mx.array | Array


@dataclass(frozen=True)
class MaskCells:
    """One head of a mask: states [rows, columns] of EMPTY, PARTIAL, FULL, each over `cell` positions.

    kept: how many pairs the mask keeps; None where cells stand for more than a pair.
    """

    name: str
    states: Array
    cell: tuple[int, int]
    lengths: tuple[int, int]
    kept: int | None


@dataclass(frozen=True)
class ScoreCells:
    """One head of scores: values [rows, columns] at every step-th row and column; hidden: where a mask hides them."""

    name: str
    values: Array
    hidden: Array
    step: tuple[int, int]
    lengths: tuple[int, int]


def one_head(values: Any, b: int, h: int, name: str) -> Array:
    """numpy [rows, columns] out of [.., .., rows, columns].

    Raises:
        ValueError: it has not 2 to 4 axes, or no such batch or head.
    """
    bfloat16 = isinstance(values, mx.array) and values.dtype == mx.bfloat16
    array = np.array(values.astype(mx.float32) if bfloat16 else values)
    if not 2 <= array.ndim <= 4:
        raise ValueError(
            f"{name} has shape {array.shape}; expected [rows, columns], with heads and batch before or not"
        )
    array = array.reshape((1,) * (4 - array.ndim) + array.shape)
    return array[chosen_head(b, h, array.shape[:2])]  # type: ignore[no-any-return]


def mask_cells(mask: MaskLike, q_len: int | None, kv_len: int | None, b: int, h: int, limit: Any) -> MaskCells:
    """A mask on a grid of at most limit = (rows, columns) cells; beyond that it is never made densely."""
    if isinstance(mask, (mx.array, np.ndarray)):
        kept, name = one_head(mask, b, h, "the mask"), "mask"
        if kept.dtype != np.bool_:
            raise ValueError(f"the mask is an array of {kept.dtype}; expected bools, True where a pair is kept")
        return _from_dense(name, kept, limit)
    mod = as_mod(mask, MaskMod, "mask")
    lengths = _lengths(q_len, kv_len)
    name, b, h = name_of(mod), check_size("b", b, 0), check_size("h", h, 0)
    head = MaskMod(lambda _b, _h, q_idx, kv_idx: mod(b, h, q_idx, kv_idx))
    cell = cell_size(lengths, limit)
    if cell == (1, 1):
        return _from_dense(name, np.array(create_mask(head, None, None, *lengths))[0, 0], limit)
    blocks = create_block_mask(head, None, None, *lengths, BLOCK_SIZE=cell).blocks
    return MaskCells(name, coarse_states(blocks, 0, 0, *limit)[0], cell, lengths, None)


def _lengths(q_len: int | None, kv_len: int | None) -> tuple[int, int]:
    rows, columns = as_int(q_len, "q_len"), as_int(q_len if kv_len is None else kv_len, "kv_len")
    if rows is None or columns is None or min(rows, columns) < 1:
        given = f"{shown(q_len)} and {shown(kv_len)}"
        raise ValueError(f"a function needs q_len (and kv_len where it differs), not {given}")
    return rows, columns


def cell_size(lengths: tuple[int, int], limit: tuple[int, int]) -> tuple[int, int]:
    """Positions of one cell, so that no more than `limit` cells are needed."""
    return max(1, -(-lengths[0] // limit[0])), max(1, -(-lengths[1] // limit[1]))


def _from_dense(name: str, kept: Array, limit: tuple[int, int]) -> MaskCells:
    lengths = (kept.shape[0], kept.shape[1])
    cell = cell_size(lengths, limit)
    starts = np.arange(0, lengths[0], cell[0]), np.arange(0, lengths[1], cell[1])
    counts = np.add.reduceat(np.add.reduceat(kept, starts[0], axis=0, dtype=np.int64), starts[1], axis=1)
    heights, widths = (np.diff(np.append(s, n)) for s, n in zip(starts, lengths, strict=True))
    states = np.where(counts == heights[:, None] * widths, FULL, np.where(counts > 0, PARTIAL, EMPTY))
    return MaskCells(name, states, cell, lengths, int(kept.sum()))


@dataclass(frozen=True)
class BlockCounts:
    """Blocks of one head of a BlockMask, and the percentage of its pairs in blocks that are never visited."""

    empty: int
    partial: int
    full: int
    sparsity: float


def block_cells(mask: BlockMask, b: int, h: int, limit: tuple[int, int]) -> tuple[MaskCells, BlockCounts]:
    """One head of a BlockMask on a grid of at most limit = (rows, columns) cells, and its exact counts."""
    b, h = check_size("b", b, 0), check_size("h", h, 0)
    mask.check_heads(b + 1, h + 1)
    b, h = chosen_head(b, h, mask.shape[:2])
    states, (tall, wide) = coarse_states(mask.blocks, b, h, *limit)
    (q_len, kv_len), (q_block, kv_block) = mask.seq_lengths, mask.BLOCK_SIZE
    rows, columns = -(-q_len // q_block), -(-kv_len // kv_block)
    ranges = mask.to_ranges()
    begin = (b * mask.shape[1] + h) * rows
    runs = slice(int(ranges.offsets[begin]), int(ranges.offsets[begin + rows]))
    row = np.repeat(np.arange(rows), np.diff(ranges.offsets[begin : begin + rows + 1]))
    first, end, full = ranges.first[runs].astype(np.int64), ranges.end[runs].astype(np.int64), ranges.full[runs]
    heights = np.minimum((row + 1) * q_block, q_len) - row * q_block
    visited = int((heights * (np.minimum(end * kv_block, kv_len) - first * kv_block)).sum())
    blocks, whole = int((end - first).sum()), int((end - first)[full].sum())
    sparsity = 100.0 * (1 - visited / (q_len * kv_len)) if q_len * kv_len else 0.0
    cells = MaskCells(name_of(mask.mask_mod), states, (tall * q_block, wide * kv_block), (q_len, kv_len), None)
    return cells, BlockCounts(rows * columns - blocks, blocks - whole, whole, sparsity)


def score_cells(
    mod: ScoreFunction,
    q_len: int | None,
    kv_len: int | None,
    b: int,
    h: int,
    limit: tuple[int, int],
    *,
    scores: Any = None,
    query: Any = None,
    key: Any = None,
    scale: float | None = None,
    mask: MaskLike | None = None,
) -> ScoreCells:
    """score_mod of given scores (zeros, or scale * query . key) at no more than `limit` rows and columns.

    Raises:
        ValueError: the lengths are missing, or the tensors do not fit.
    """
    score_mod = as_mod(mod, ScoreMod, "score_mod")
    b, h = check_size("b", b, 0), check_size("h", h, 0)
    if (query is None) != (key is None) or (scores is not None and query is not None):
        raise ValueError("give query and key together, or scores, or none of them (scores of zero)")
    if query is not None:
        ratio = max(1, _heads(query) // _heads(key))
        q, k = one_head(query, b, h, "query"), one_head(key, b, h // ratio, "key")
        lengths = len(q), len(k)
    elif scores is not None:
        given = one_head(scores, b, h, "scores")
        lengths = (given.shape[0], given.shape[1])
    else:
        lengths = _lengths(q_len, kv_len)
    step = cell_size(lengths, limit)
    rows, columns = np.arange(0, lengths[0], step[0]), np.arange(0, lengths[1], step[1])
    if query is not None:
        factor = checked_scale(scale, q.shape[1])
        start: Any = factor * (q[rows].astype(np.float32) @ k[columns].astype(np.float32).T)
    elif scores is not None:
        start = given[np.ix_(rows, columns)].astype(np.float32)
    else:
        start = np.float32(0)
    values = _at(score_mod, b, h, rows, columns, start).astype(np.float64)
    hidden = np.zeros(values.shape, bool)
    if isinstance(mask, (mx.array, np.ndarray)):
        hidden = ~one_head(mask, b, h, "the mask")[np.ix_(rows, columns)]
    elif mask is not None:
        hidden = ~_at(as_mod(mask, MaskMod, "mask_mod"), b, h, rows, columns)
    return ScoreCells(name_of(score_mod), values, hidden, step, lengths)


def _heads(tensor: Any) -> int:
    return int(tensor.shape[-3]) if len(tensor.shape) > 2 else 1


def _at(mod: MaskMod | ScoreMod, b: int, h: int, rows: Array, columns: Array, score: Any = None) -> Array:
    """The mod of one head at chosen rows and columns: [rows, columns]."""
    bound = mod.bind()
    values = {"b": b, "h": h, "q_idx": rows[:, None], "kv_idx": columns, "score": score}
    arrays = [np.array(a.astype(mx.float32) if a.dtype == mx.bfloat16 else a) for a in bound.arrays]
    with np.errstate(all="ignore"):
        result = evaluate(bound.trace.expr, values, numbers=bound.numbers, arrays=arrays)
    return np.broadcast_to(result, (len(rows), len(columns)))
