"""mask_mod -> BlockMask: the mask is evaluated densely, a band of rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from flextrace.tracer import Bound, evaluate
from flextrace.tracer.expr import B as B_INDEX
from flextrace.tracer.expr import H as H_INDEX
from flextrace.tracer.expr import leaves

from .block_mask import DEFAULT_BLOCK, Array, BlockMask, block_lists, block_size
from .mod import MaskMod, as_mod

BAND_POSITIONS = 2**24  # positions of the mask held at once


def _band(bound: Bound, b: int | None, h: int | None, rows: slice, kv_len: int) -> Array:
    """The mask over some rows: bool [B or 1, H or 1, rows, kv_len]."""
    values = {
        "b": np.arange(b or 1).reshape(-1, 1, 1, 1),
        "h": np.arange(h or 1).reshape(1, -1, 1, 1),
        "q_idx": np.arange(rows.start, rows.stop).reshape(-1, 1),
        "kv_idx": np.arange(kv_len),
    }
    arrays = [np.array(a.astype(mx.float32) if _is_bfloat16(a) else a) for a in bound.arrays]
    kept = evaluate(bound.trace.expr, values, numbers=bound.numbers, arrays=arrays)
    return np.broadcast_to(kept, (b or 1, h or 1, rows.stop - rows.start, kv_len))


def _is_bfloat16(array: Any) -> bool:
    return isinstance(array, mx.array) and bool(array.dtype == mx.bfloat16)


def _bands(bound: Bound, b: int | None, h: int | None, q_len: int, kv_len: int, step: int) -> Any:
    per_row = max(1, (b or 1) * (h or 1) * kv_len)
    rows = max(step, BAND_POSITIONS // per_row // step * step)
    for first in range(0, q_len, rows):
        band = slice(first, min(first + rows, q_len))
        yield band, _band(bound, b, h, band, kv_len)


def _check_size(**sizes: int | None) -> None:
    for name, size in sizes.items():
        if size is not None and (not isinstance(size, int) or size < (1 if name in "BH" else 0)):
            raise ValueError(f"{name} is {size!r}; expected a whole number" + (" or None" if name in "BH" else ""))


def create_mask(mask_mod: Callable[..., Any], B: int | None, H: int | None, Q_LEN: int, KV_LEN: int) -> mx.array:
    """The dense mask: bool [B or 1, H or 1, Q_LEN, KV_LEN]. For looking at and comparing; kernels never need it.

    Raises:
        TraceError: the mask_mod cannot be traced.

    Example:
        >>> import flextrace as flex
        >>> flex.create_mask(lambda b, h, q, kv: q >= kv, None, None, 2, 2)
        array([[[[True, False],
                 [True, True]]]], dtype=bool)
    """
    _check_size(B=B, H=H, Q_LEN=Q_LEN, KV_LEN=KV_LEN)
    bound = as_mod(mask_mod, MaskMod, "mask_mod").bind()
    return mx.array(_band(bound, B, H, slice(0, Q_LEN), KV_LEN))


def create_block_mask(
    mask_mod: Callable[..., Any],
    B: int | None,
    H: int | None,
    Q_LEN: int,
    KV_LEN: int,
    BLOCK_SIZE: int | tuple[int, int] = DEFAULT_BLOCK,
) -> BlockMask:
    """The BlockMask of a mask_mod.

    Args:
        mask_mod: a mask_mod or plain function `(b, h, q_idx, kv_idx) -> bool`.
        B, H: batch and query heads that the mask depends on; None where it does not, then it broadcasts.
        Q_LEN, KV_LEN: lengths; they need not be multiples of the block size.
        BLOCK_SIZE: rows and columns of a block.

    Raises:
        TraceError: the mask_mod cannot be traced.
        ValueError: a size is not positive, or B or H is None though the mask reads b or h.

    Example:
        >>> import flextrace as flex
        >>> print(flex.create_block_mask(lambda b, h, q, kv: q >= kv, None, None, 384, 384))
        BlockMask(shape=(1, 1, 384, 384), BLOCK_SIZE=(128, 128), sparsity=33.33%)
        +..
        #+.
        ##+
    """
    _check_size(B=B, H=H, Q_LEN=Q_LEN, KV_LEN=KV_LEN)
    rows, columns = block_size(BLOCK_SIZE)
    mod = as_mod(mask_mod, MaskMod, "mask_mod")
    bound = mod.bind()
    used = leaves(bound.trace.expr, ("index",))
    for name, size, index in (("B", B, B_INDEX), ("H", H, H_INDEX)):
        if size is None and index in used:
            raise ValueError(f"the mask depends on {index.value}, so create_block_mask needs {name}, not None")
    q_blocks, kv_blocks = -(-Q_LEN // rows), -(-KV_LEN // columns)
    states = np.zeros((B or 1, H or 1, q_blocks, kv_blocks), np.int8)
    starts = np.arange(0, KV_LEN, columns)
    widths = np.diff(np.append(starts, KV_LEN))
    for band, kept in _bands(bound, B, H, Q_LEN, KV_LEN, rows) if KV_LEN else ():
        by_column = np.add.reduceat(kept, starts, axis=-1, dtype=np.int32)  # kept keys per row and block
        first = np.arange(0, band.stop - band.start, rows)
        counts = np.add.reduceat(by_column, first, axis=-2)
        heights = np.diff(np.append(first, band.stop - band.start))
        full = counts == heights[:, None] * widths
        states[:, :, band.start // rows : band.start // rows + len(first)] = (counts > 0) + full.astype(np.int8)
    return BlockMask((Q_LEN, KV_LEN), *block_lists(states == 1), *block_lists(states == 2), (rows, columns), mod)
