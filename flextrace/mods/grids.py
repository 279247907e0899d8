"""Tokens that lie on a grid of one to three axes: their orders, their coordinates, and nearness on the grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from .arguments import sizes, whole


def row_major(index: Any, canvas: Sequence[Any]) -> list[Any]:
    """Coordinates of a token, outermost axis first, where the last axis runs fastest."""
    inside = []
    for size in canvas[:0:-1]:
        inside.append(index % size)
        index = index // size
    return [index, *inside[::-1]]


def tile_major(index: Any, canvas: Sequence[Any], tile: Sequence[Any]) -> list[Any]:
    """Coordinates of a token where tiles follow each other in row-major order, and so do the tokens of a tile."""
    tokens: Any = 1
    for size in tile:
        tokens = tokens * size
    outer = row_major(index // tokens, [length // size for length, size in zip(canvas, tile, strict=True)])
    inner = row_major(index % tokens, tile)
    return [o * size + i for o, size, i in zip(outer, tile, inner, strict=True)]


def near(query: Sequence[Any], key: Sequence[Any], canvas: Sequence[Any], kernel: Sequence[Any]) -> Any:
    """On every axis the key lies in the window of `kernel` positions around the query, moved inside the canvas."""
    keep = True
    for q, kv, size, length in zip(query, key, canvas, kernel, strict=True):
        first = min(max(q - length // 2, 0), size - length)
        keep = keep and first <= kv < first + length
    return keep


def checked_grid(
    canvas: Any, kernel: Any, tile: Any = None
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Checked canvas, kernel and tile, all of the same number of axes."""
    canvas = sizes("canvas", canvas, (1, 2, 3), "(height, width)")
    kernel = sizes("kernel", kernel, (len(canvas),), "one for each axis of canvas")
    tile = canvas if tile is None else sizes("tile", tile, (len(canvas),), "one for each axis of canvas")
    if any(k > size for k, size in zip(kernel, canvas, strict=True)):
        raise ValueError(f"kernel {kernel} is larger than canvas {canvas}; take at most the canvas")
    if any(size % t for t, size in zip(tile, canvas, strict=True)):
        raise ValueError(f"tile {tile} does not divide canvas {canvas}; pad the canvas to whole tiles")
    return canvas, kernel, tile


def tiled_order(canvas: Sequence[int], tile: Sequence[int]) -> mx.array:
    """The permutation into tile-major order: int32 [tokens], row-major number of each token in the new order.

    `x[:, :, order]` brings [batch, heads, tokens, dim] into the order of `tiled_natten` and `sliding_tile`, and
    `out[:, :, mx.argsort(order)]` brings the result back.

    Raises:
        ValueError: the numbers of axes differ, or the tile does not divide the canvas.

    Source: Zhang et al., Sliding Tile Attention, arXiv 2502.04507.

    Example:
        >>> from flextrace import mods
        >>> mods.tiled_order(canvas=(2, 4), tile=(2, 2))
        array([0, 1, 4, ..., 3, 6, 7], dtype=int32)
    """
    canvas, _, tile = checked_grid(canvas, canvas, tile)
    at = tile_major(np.arange(np.prod(canvas)), canvas, tile)
    return mx.array(np.ravel_multi_index(at, canvas).astype(np.int32))


def morton_order(side: int) -> mx.array:
    """The permutation of a square image into Morton (Z) order: int32 [side * side], row-major number of each token.

    The n-th token has the even bits of n as its column and the odd bits as its row.

    Raises:
        ValueError: side is not a power of two.

    Source: Morton order, G. M. Morton, IBM, 1966.

    Example:
        >>> from flextrace import mods
        >>> mods.morton_order(4)[:8].tolist()
        [0, 1, 4, 5, 2, 3, 6, 7]
    """
    side = whole("side", side)
    if side & (side - 1) or side > 2**15:
        raise ValueError(f"side is {side}; Morton order needs a power of two up to {2**15}: pad the image")
    code = np.arange(side * side)
    row, column = np.zeros_like(code), np.zeros_like(code)
    for bit in range(side.bit_length() - 1):
        column |= (code >> 2 * bit & 1) << bit
        row |= (code >> 2 * bit + 1 & 1) << bit
    return mx.array((row * side + column).astype(np.int32))
