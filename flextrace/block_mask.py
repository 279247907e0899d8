"""BlockMask: which tiles of the score matrix to visit, and which of them need the mask at all.

Fields and meaning are those of torch.nn.attention.flex_attention.BlockMask.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from flextrace.kernels import Blocks

from .masks import noop_mask
from .mod import MaskMod, as_mod

Array = np.ndarray[Any, Any]
DEFAULT_BLOCK = 128


class BlockMask:
    """The tiles that a mask leaves, by rows of blocks.

    Attributes:
        seq_lengths: (q_len, kv_len).
        kv_num_blocks: int32 [B, H, q_blocks], how many partial blocks each row of blocks has.
        kv_indices: int32 [B, H, q_blocks, kv_blocks], which; entries past kv_num_blocks mean nothing.
        full_kv_num_blocks, full_kv_indices: the same for blocks that the mask keeps whole, or None.
        q_num_blocks, q_indices, full_q_num_blocks, full_q_indices: the same lists by columns of blocks.
        BLOCK_SIZE: (rows, columns) of one block.
        mask_mod: decides inside partial blocks.
    """

    def __init__(
        self,
        seq_lengths: tuple[int, int],
        kv_num_blocks: Array,
        kv_indices: Array,
        full_kv_num_blocks: Array | None,
        full_kv_indices: Array | None,
        BLOCK_SIZE: tuple[int, int],
        mask_mod: MaskMod,
    ) -> None:
        self.seq_lengths = seq_lengths
        self.BLOCK_SIZE = BLOCK_SIZE
        self.mask_mod = mask_mod
        self.blocks = Blocks(
            kv_num_blocks,
            kv_indices,
            full_kv_num_blocks,
            full_kv_indices,
            q_block=BLOCK_SIZE[0],
            kv_block=BLOCK_SIZE[1],
        )

    @classmethod
    def from_kv_blocks(
        cls,
        kv_num_blocks: Any,
        kv_indices: Any,
        full_kv_num_blocks: Any = None,
        full_kv_indices: Any = None,
        BLOCK_SIZE: int | tuple[int, int] = DEFAULT_BLOCK,
        mask_mod: Callable[..., Any] | None = None,
        seq_lengths: tuple[int, int] | None = None,
    ) -> BlockMask:
        """A BlockMask from its lists (mlx or numpy integer arrays, shapes as the attributes).

        Raises:
            ValueError: shapes do not fit, a count exceeds its list, or an index names no block.
        """
        block = block_size(BLOCK_SIZE)
        if (full_kv_num_blocks is None) != (full_kv_indices is None):
            raise ValueError("full_kv_num_blocks and full_kv_indices go together: give both or none")
        counts, indices = _int32(kv_num_blocks, "kv_num_blocks", 3), _int32(kv_indices, "kv_indices", 4)
        full = None
        if full_kv_num_blocks is not None:
            full = _int32(full_kv_num_blocks, "full_kv_num_blocks", 3), _int32(full_kv_indices, "full_kv_indices", 4)
        lengths = seq_lengths or (indices.shape[2] * block[0], indices.shape[3] * block[1])
        rows, columns = -(-lengths[0] // block[0]), -(-lengths[1] // block[1])
        for name, n, table in (("kv", counts, indices), *((("full_kv", *full),) if full else ())):
            if n.shape != table.shape[:3] or n.shape[2] != rows or table.shape != indices.shape:
                raise ValueError(
                    f"{name}_num_blocks has shape {n.shape} and {name}_indices {table.shape}; expected [B, H, {rows}] "
                    f"and [B, H, {rows}, columns] for lengths {lengths} in blocks of {block}"
                )
            if n.size and (n.min() < 0 or n.max() > table.shape[3]):
                raise ValueError(
                    f"{name}_num_blocks holds {n.min()} to {n.max()}; its lists have {table.shape[3]} entries"
                )
            used = table[np.arange(table.shape[3]) < n[..., None]]
            if used.size and (used.min() < 0 or used.max() >= columns):
                raise ValueError(f"{name}_indices names block {used.min()} to {used.max()}; there are {columns} blocks")
        mod = as_mod(noop_mask if mask_mod is None else mask_mod, MaskMod, "mask_mod")
        full_counts, full_indices = full or (None, None)
        return cls(lengths, counts, indices, full_counts, full_indices, block, mod)

    # ---- torch's fields --------------------------------------------------------------------------------------

    @functools.cached_property
    def kv_num_blocks(self) -> mx.array:
        return mx.array(self.blocks.kv_num_blocks)

    @functools.cached_property
    def kv_indices(self) -> mx.array:
        return mx.array(self.blocks.kv_indices)

    @functools.cached_property
    def full_kv_num_blocks(self) -> mx.array | None:
        full = self.blocks.full_kv_num_blocks
        return None if full is None else mx.array(full)

    @functools.cached_property
    def full_kv_indices(self) -> mx.array | None:
        full = self.blocks.full_kv_indices
        return None if full is None else mx.array(full)

    @functools.cached_property
    def _by_columns(self) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        states = self._states()
        partial = block_lists(np.swapaxes(states == 1, 2, 3))
        full = block_lists(np.swapaxes(states == 2, 2, 3))
        return mx.array(partial[0]), mx.array(partial[1]), mx.array(full[0]), mx.array(full[1])

    @property
    def q_num_blocks(self) -> mx.array:
        return self._by_columns[0]

    @property
    def q_indices(self) -> mx.array:
        return self._by_columns[1]

    @property
    def full_q_num_blocks(self) -> mx.array:
        return self._by_columns[2]

    @property
    def full_q_indices(self) -> mx.array:
        return self._by_columns[3]

    def as_tuple(self, flatten: bool = True) -> tuple[Any, ...]:
        """All fields in torch's order; `flatten` writes lengths and block size as single numbers."""
        lists = (self.kv_num_blocks, self.kv_indices, self.full_kv_num_blocks, self.full_kv_indices, *self._by_columns)
        if flatten:
            return (*self.seq_lengths, *lists, *self.BLOCK_SIZE, self.mask_mod)
        return (self.seq_lengths, *lists, self.BLOCK_SIZE, self.mask_mod)

    # ---- what it covers --------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, H, q_len, kv_len) of the mask."""
        b, h = self.blocks.kv_num_blocks.shape[:2]
        return (b, h, *self.seq_lengths)

    def numel(self) -> int:
        """Number of positions of the mask."""
        b, h, q_len, kv_len = self.shape
        return b * h * q_len * kv_len

    def sparsity(self) -> float:
        """Percentage of positions in blocks that are never visited, in [0, 100]."""
        q_len, kv_len = self.seq_lengths
        rows = np.diff(np.minimum(np.arange(self._grid[0] + 1) * self.BLOCK_SIZE[0], q_len))
        columns = np.diff(np.minimum(np.arange(self._grid[1] + 1) * self.BLOCK_SIZE[1], kv_len))
        visited = int(((self._states() > 0) * rows[:, None] * columns).sum())
        return 100.0 * (1 - visited / self.numel()) if self.numel() else 0.0

    def to_dense(self) -> mx.array:
        """bool [B, H, q_blocks, kv_blocks]: which blocks are visited."""
        return mx.array(self._states() > 0)

    def to_string(self) -> str:
        """A picture: one character per block, full `#`, partial `+`, empty `.`; first batch and head."""
        return "\n".join("".join(".+#"[state] for state in row) for row in self._states()[0, 0])

    def __repr__(self) -> str:
        head = f"BlockMask(shape={self.shape}, BLOCK_SIZE={self.BLOCK_SIZE}, sparsity={self.sparsity():.2f}%)"
        small = self._grid[0] <= 64 and self._grid[1] <= 120
        return f"{head}\n{self.to_string()}" if small else head

    @property
    def _grid(self) -> tuple[int, int]:
        return -(-self.seq_lengths[0] // self.BLOCK_SIZE[0]), -(-self.seq_lengths[1] // self.BLOCK_SIZE[1])

    def _states(self) -> Array:
        """int8 [B, H, q_blocks, kv_blocks]: 0 empty, 1 partial, 2 full."""
        return self.blocks.states(self._grid[1])

    def check_lengths(self, query: mx.array, key: mx.array) -> None:
        """Raises ValueError unless the mask was made for these tensors."""
        b, h, q_len, kv_len = self.shape
        if (q_len, kv_len) != (query.shape[2], key.shape[2]):
            raise ValueError(
                f"block_mask is for lengths {(q_len, kv_len)}, query and key have {(query.shape[2], key.shape[2])}; "
                "make one with create_block_mask for these lengths"
            )
        if b not in (1, query.shape[0]) or h not in (1, query.shape[1]):
            raise ValueError(
                f"block_mask is for B={b}, H={h}; query has {query.shape[0]} batches and {query.shape[1]} heads; "
                "B and H must be equal to them, or None"
            )


def _int32(value: Any, name: str, ndim: int) -> Array:
    array = np.array(value)
    if array.ndim != ndim or array.dtype.kind not in "iu":
        raise ValueError(f"{name} is {array.dtype} of shape {array.shape}; expected an integer array of {ndim} axes")
    return np.ascontiguousarray(array, dtype=np.int32)


def block_size(size: int | tuple[int, int]) -> tuple[int, int]:
    block = (size, size) if isinstance(size, int) else tuple(size)
    if len(block) != 2 or not all(isinstance(n, int) and n > 0 for n in block):
        raise ValueError(f"BLOCK_SIZE is {size!r}; expected a positive int, or (rows, columns)")
    return block[0], block[1]


def block_lists(marked: Array) -> tuple[Array, Array]:
    """bool [..., n] -> how many are marked, and their indices first, in order."""
    counts = marked.sum(axis=-1, dtype=np.int32)
    order = np.argsort(~marked, axis=-1, kind="stable").astype(np.int32)
    return counts, np.ascontiguousarray(order)
