"""Blocks -> what a BlockMask shows: torch's fields, counts, pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from flextrace.kernels import Blocks
from flextrace.kernels.blocks import FULL, PARTIAL, Array
from flextrace.kernels.stage_checks import check_size
from flextrace.tracer import Bound

from .block_pictures import block_text, chosen_head
from .mod import MaskMod


class BlockFields(ABC):
    """The read-only side of a BlockMask.

    Attributes:
        shape: (B, H, q_len, kv_len) of the mask.
        BLOCK_SIZE: (rows, columns) of one block.
        implied: whether the blocks follow from mask_mod alone; False for one made from lists or runs.
        mask_mod: decides inside partial blocks; its q_idx 0 is this mask's first row.
    """

    shape: tuple[int, int, int, int]
    BLOCK_SIZE: tuple[int, int]
    implied: bool
    mask_mod: MaskMod
    _lists: dict[str, tuple[Blocks, tuple[mx.array, ...]]]  # torch's, and the blocks that they were made of

    @property
    @abstractmethod
    def blocks(self) -> Blocks:
        """The runs of blocks, as kernels read them."""

    @property
    def seq_lengths(self) -> tuple[int, int]:
        """(q_len, kv_len)."""
        return self.shape[2:]

    # ---- torch's fields --------------------------------------------------------------------------------------

    @property
    def _by_rows(self) -> tuple[mx.array, ...]:
        return self._listed("rows", lambda blocks: blocks)

    @property
    def _by_columns(self) -> tuple[mx.array, ...]:
        return self._listed("columns", lambda blocks: blocks.transposed())

    def _listed(self, by: str, turned: Callable[[Blocks], Blocks]) -> tuple[mx.array, ...]:
        """Counts and indices of partial blocks, then of full ones; writing to them changes no others."""
        blocks = self.blocks
        made_of, lists = self._lists.get(by, (None, ()))
        if made_of is not blocks:
            turned_blocks = turned(blocks)
            parts: tuple[Array, ...] = (*turned_blocks.lists(PARTIAL), *turned_blocks.lists(FULL))
            lists = tuple(mx.array(part) for part in parts)
            self._lists[by] = blocks, lists
        return tuple(part[...] for part in lists)

    @property
    def kv_num_blocks(self) -> mx.array:
        """int32 [B, H, q_blocks]: how many partial blocks each row of blocks has."""
        return self._by_rows[0]

    @property
    def kv_indices(self) -> mx.array:
        """int32 [B, H, q_blocks, kv_blocks]: which, ascending; entries past kv_num_blocks mean nothing."""
        return self._by_rows[1]

    @property
    def full_kv_num_blocks(self) -> mx.array:
        """As kv_num_blocks, of the blocks that the mask keeps whole."""
        return self._by_rows[2]

    @property
    def full_kv_indices(self) -> mx.array:
        """As kv_indices, of the blocks that the mask keeps whole."""
        return self._by_rows[3]

    @property
    def q_num_blocks(self) -> mx.array:
        """int32 [B, H, kv_blocks]: how many partial blocks each column of blocks has."""
        return self._by_columns[0]

    @property
    def q_indices(self) -> mx.array:
        """int32 [B, H, kv_blocks, q_blocks]: which, ascending."""
        return self._by_columns[1]

    @property
    def full_q_num_blocks(self) -> mx.array:
        """As q_num_blocks, of the blocks that the mask keeps whole."""
        return self._by_columns[2]

    @property
    def full_q_indices(self) -> mx.array:
        """As q_indices, of the blocks that the mask keeps whole."""
        return self._by_columns[3]

    def as_tuple(self, flatten: bool = True) -> tuple[Any, ...]:
        """All fields in torch's order; `flatten` writes lengths and block size as single numbers."""
        lists = (*self._by_rows, *self._by_columns)
        if flatten:
            return (*self.seq_lengths, *lists, *self.BLOCK_SIZE, self.mask_mod)
        return (self.seq_lengths, *lists, self.BLOCK_SIZE, self.mask_mod)

    # ---- what it covers --------------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Bytes that the blocks take. torch's lists, once asked for, take more."""
        return self.blocks.nbytes

    def numel(self) -> int:
        """Number of positions of the mask."""
        b, h, q_len, kv_len = self.shape
        return b * h * q_len * kv_len

    def sparsity(self) -> float:
        """Percentage of positions in blocks that are never visited, in [0, 100]."""
        blocks, (q_len, kv_len) = self.blocks, self.seq_lengths
        row_in_head = blocks.rows % max(1, blocks.shape[2])
        heights = np.minimum(blocks.q_block, q_len - row_in_head * blocks.q_block)
        first = blocks.first.astype(np.int64) * blocks.kv_block
        widths = np.minimum(blocks.end.astype(np.int64) * blocks.kv_block, kv_len) - first
        return 100.0 * (1 - int((heights * widths).sum()) / self.numel()) if self.numel() else 0.0

    def to_dense(self) -> mx.array:
        """bool [B, H, q_blocks, kv_blocks]: which blocks are visited."""
        return mx.array(self.blocks.states() > 0)

    def to_string(self, batch: int = 0, head: int = 0, rows: int = 64, columns: int = 120) -> str:
        """A picture: one character per block, full `#`, partial `+`, empty `.`; coarser beyond rows x columns.

        Raises:
            ValueError: there is no such batch or head.
        """
        batch, head = check_size("batch", batch, 0), check_size("head", head, 0)
        self.check_heads(batch + 1, head + 1)
        at = chosen_head(batch, head, self.shape)
        return block_text(self.blocks, *at, check_size("rows", rows, 1), check_size("columns", columns, 1))

    def check_heads(self, batch: int, heads: int, bound: Bound | None = None) -> None:
        """Raises ValueError where blocks of one batch or head would stand for several that the mask tells apart."""
        for name, index, made, wanted in (("B", "b", self.shape[0], batch), ("H", "h", self.shape[1], heads)):
            if self.implied and made == 1 < wanted and index in (bound or self.mask_mod.bind()).trace.expr.varies:
                raise ValueError(
                    f"block_mask was made for {name}=1 and its mask depends on {index}, so its blocks are not those of "
                    f"{wanted}: make it with create_block_mask(..., {name}={wanted})"
                )

    def __repr__(self) -> str:
        head = f"BlockMask(shape={self.shape}, BLOCK_SIZE={self.BLOCK_SIZE}, sparsity={self.sparsity():.2f}%)"
        return f"{head}\n{self.to_string()}" if self.numel() else head

    def _repr_html_(self) -> str:
        """For notebooks: the picture of the first batch and head, with counts of blocks over all of them."""
        from .displays import blocks_html  # notebooks only

        return blocks_html(self)
