"""Parameters -> mask_mod: neighbourhoods on images and video, in row-major, tile-major or Morton order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from flextrace.decorators import MaskMod, mask_mod

from .arguments import whole
from .grids import checked_grid, morton_order, near, row_major, tile_major


def natten(canvas: Sequence[int], kernel: Sequence[int]) -> MaskMod:
    """Neighbourhood attention on a line, an image or a video, tokens in row-major order.

    On each axis of n positions a query at x sees the k positions from min(max(x - k // 2, 0), n - k) on, so that at
    the border the window stays whole.

    Args:
        canvas: (length,), (height, width) or (time, height, width).
        kernel: positions seen along each axis of canvas.

    Raises:
        ValueError: the numbers of axes differ, or the kernel exceeds the canvas.

    Source: Hassani et al., Neighborhood Attention Transformer, arXiv 2204.07143; even kernels as in Hassani et al.,
    Generalized Neighborhood Attention, arXiv 2504.16922.

    Example:
        >>> import flextrace as flex
        >>> mask = flex.mods.natten(canvas=(4, 6), kernel=(3, 3))
        >>> [kv_idx for kv_idx in range(24) if mask(0, 0, 0, kv_idx)]
        [0, 1, 2, 6, 7, 8, 12, 13, 14]
    """
    canvas, kernel, _ = checked_grid(canvas, kernel)

    @mask_mod
    def natten(b: int, h: int, q_idx: int, kv_idx: int) -> Any:
        return near(row_major(q_idx, canvas), row_major(kv_idx, canvas), canvas, kernel)

    return natten


def tiled_natten(canvas: Sequence[int], kernel: Sequence[int], tile: Sequence[int]) -> MaskMod:
    """`natten` for tokens in tile-major order (see `tiled_order`): a block is a patch, which meets fewer other blocks.

    Args:
        canvas, kernel: as for `natten`.
        tile: size of a tile along each axis; it divides the canvas. A tile of BLOCK_SIZE tokens fits best.

    Raises:
        ValueError: as `natten`, or the tile does not divide the canvas.

    Source: Hassani et al., Generalized Neighborhood Attention, arXiv 2504.16922 (token permutation).

    Example:
        >>> import flextrace as flex
        >>> plain, tiled = flex.mods.natten((32, 32), (9, 9)), flex.mods.tiled_natten((32, 32), (9, 9), tile=(4, 4))
        >>> for mask in (plain, tiled):
        ...     print(flex.create_block_mask(mask, None, None, 1024, 1024, BLOCK_SIZE=16).sparsity())
        71.875
        85.9375
    """
    canvas, kernel, tile = checked_grid(canvas, kernel, tile)

    @mask_mod
    def tiled_natten(b: int, h: int, q_idx: int, kv_idx: int) -> Any:
        return near(tile_major(q_idx, canvas, tile), tile_major(kv_idx, canvas, tile), canvas, kernel)

    return tiled_natten


def morton_natten(side: int, kernel: Sequence[int]) -> MaskMod:
    """`natten` on a square image whose tokens lie in Morton order (see `morton_order`).

    Rows and columns are read from two captured arrays of side * side numbers; any run of 4**n tokens is a square, so
    a tile's rows and columns have a small range.

    Args:
        side: height and width of the image, a power of two.
        kernel: (height, width) of the window.

    Raises:
        ValueError: side is not a power of two, or the kernel exceeds it.

    Source: Hassani et al., Neighborhood Attention Transformer, arXiv 2204.07143; the order as in attention-gym.

    Example:
        >>> import flextrace as flex
        >>> mask = flex.mods.morton_natten(16, (5, 5))
        >>> flex.create_block_mask(mask, None, None, 256, 256, BLOCK_SIZE=16).sparsity()
        60.9375
    """
    order = np.array(morton_order(side))
    canvas, kernel, _ = checked_grid((side, side), kernel)
    row, column = mx.array(order // side), mx.array(order % side)

    @mask_mod
    def morton_natten(b: int, h: int, q_idx: int, kv_idx: int) -> Any:
        return near((row[q_idx], column[q_idx]), (row[kv_idx], column[kv_idx]), canvas, kernel)

    return morton_natten


def sliding_tile(canvas: Sequence[int], kernel: Sequence[int], tile: Sequence[int], text: int = 0) -> MaskMod:
    """Neighbourhoods of whole tiles on an image or a video in tile-major order, followed by text tokens.

    An image token sees the tiles in the window of its own tile (`natten` over tiles) and the text; text sees all.
    With tiles of BLOCK_SIZE tokens no block is partial.

    Args:
        canvas: (height, width) or (time, height, width).
        kernel: window along each axis in positions, a multiple of the tile.
        tile: size of a tile along each axis; it divides the canvas. Tokens in the order of `tiled_order`.
        text: text tokens after the image's; keys beyond them are padding, seen by none.

    Raises:
        ValueError: the numbers of axes differ, or the tile does not divide canvas and kernel.

    Source: Zhang et al., Sliding Tile Attention, arXiv 2502.04507.

    Example:
        >>> import flextrace as flex
        >>> mask = flex.mods.sliding_tile(canvas=(4, 16), kernel=(4, 12), tile=(4, 4), text=16)
        >>> print(flex.create_block_mask(mask, None, None, 80, 80, BLOCK_SIZE=16).to_string())
        ###.#
        ###.#
        .####
        .####
        #####
    """
    canvas, kernel, tile = checked_grid(canvas, kernel, tile)
    text = whole("text", text, at_least=0)
    if any(k % t for k, t in zip(kernel, tile, strict=True)):
        raise ValueError(f"tile {tile} does not divide kernel {kernel}; take a kernel of whole tiles")
    tiles = tuple(size // t for size, t in zip(canvas, tile, strict=True))
    window = tuple(k // t for k, t in zip(kernel, tile, strict=True))
    tile_tokens, image = int(np.prod(tile)), int(np.prod(canvas))

    @mask_mod
    def sliding_tile(b: int, h: int, q_idx: int, kv_idx: int) -> Any:
        if q_idx >= image or kv_idx >= image:
            return kv_idx < image + text
        return near(row_major(q_idx // tile_tokens, tiles), row_major(kv_idx // tile_tokens, tiles), tiles, window)

    return sliding_tile
