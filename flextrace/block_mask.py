"""BlockMask: which blocks of the score matrix to visit, and which of them need the mask at all.

Fields and meaning are those of torch.nn.attention.flex_attention.BlockMask. Inside, a BlockMask is runs of neighbouring
blocks: a million tokens under a causal mask take 300 kB. torch's lists are made when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from flextrace.kernels import Blocks, Int8Rows
from flextrace.kernels.blocks import FULL, Array
from flextrace.kernels.scalars import as_int, shown
from flextrace.kernels.stage_checks import check_size, check_whole
from flextrace.tracer.signature import MaskFunction

from .block_fields import BlockFields
from .block_input import BlockRanges, block_size, blocks_of_lists, blocks_of_ranges
from .keywords import OF_BLOCK_MASK, knows
from .masks import lookup_mask, noop_mask, pick_mask, shift_mask
from .mod import MaskMod, as_mod
from .portable import same
from .refine import refine

DEFAULT_BLOCK = 128


class BlockMask(BlockFields):
    """The blocks that a mask leaves; made by `create_block_mask`, or from lists or runs of blocks.

    Attributes:
        offset: position in the whole sequence of the first row: not 0 for queries that start later.
        implied: whether the blocks follow from mask_mod alone; False for one made from lists or runs.

    Example:
        >>> import flextrace as flex
        >>> mask = flex.create_block_mask(flex.mods.causal, None, None, 1024, 1024)
        >>> mask.shape, mask.BLOCK_SIZE, mask.sparsity()  # per cent of pairs in blocks that nothing reads
        ((1, 1, 1024, 1024), (128, 128), 43.75)
        >>> (mask & flex.mods.sliding_window(256)).sparsity()
        67.1875
    """

    def __init__(
        self,
        seq_lengths: tuple[int, int],
        blocks: Blocks,
        mask_mod: MaskMod,
        *,
        implied: bool = False,
        offset: int = 0,
    ) -> None:
        self.seq_lengths = seq_lengths
        self.blocks = blocks
        self.mask_mod = mask_mod
        self.implied = implied
        self.offset = offset

    # ---- constructors ----------------------------------------------------------------------------------------

    @classmethod
    def from_mask(
        cls,
        mask_mod: MaskMod,
        shape: tuple[int, int, int, int],
        BLOCK_SIZE: tuple[int, int],
        *,
        offset: int = 0,
    ) -> BlockMask:
        """The BlockMask of a mask_mod; shape is (B, H, q_len, kv_len), already checked: see create_block_mask."""
        shifted = shift_mask(mask_mod, offset)
        blocks = refine(shifted.bind(), shape, BLOCK_SIZE)
        return cls(shape[2:], blocks, shifted, implied=True, offset=offset)

    @classmethod
    @knows(OF_BLOCK_MASK)
    def from_kv_blocks(
        cls,
        kv_num_blocks: Any,
        kv_indices: Any,
        full_kv_num_blocks: Any = None,
        full_kv_indices: Any = None,
        BLOCK_SIZE: int | tuple[int, int] = DEFAULT_BLOCK,
        mask_mod: MaskMod | MaskFunction | None = None,
        seq_lengths: tuple[int, int] | None = None,
    ) -> BlockMask:
        """A BlockMask from torch's lists (mlx or numpy integer arrays, shapes as the attributes).

        Raises:
            ValueError: shapes do not fit, a count exceeds its list, or an index names no block.
        """
        lists = (kv_num_blocks, kv_indices, full_kv_num_blocks, full_kv_indices)
        lengths, blocks = blocks_of_lists(lists, block_size(BLOCK_SIZE), seq_lengths)
        return cls(lengths, blocks, as_mod(noop_mask if mask_mod is None else mask_mod, MaskMod, "mask_mod"))

    @classmethod
    def from_ranges(
        cls,
        ranges: BlockRanges,
        seq_lengths: tuple[int, int],
        B: int = 1,
        H: int = 1,
        BLOCK_SIZE: int | tuple[int, int] = DEFAULT_BLOCK,
        mask_mod: MaskMod | MaskFunction | None = None,
    ) -> BlockMask:
        """A BlockMask from runs of blocks: the reverse of `to_ranges`.

        Raises:
            ValueError: the offsets do not fit the rows, or runs of a row overlap or name no block.
        """
        lengths, blocks = blocks_of_ranges(ranges, seq_lengths, B, H, block_size(BLOCK_SIZE))
        return cls(lengths, blocks, as_mod(noop_mask if mask_mod is None else mask_mod, MaskMod, "mask_mod"))

    def to_ranges(self) -> BlockRanges:
        """The runs of blocks, a few per row for most masks."""
        blocks = self.blocks
        return BlockRanges(blocks.offsets, blocks.first, blocks.end, blocks.state == FULL)

    # ---- parts and other lengths -----------------------------------------------------------------------------

    def __getitem__(self, index: Any) -> BlockMask:
        """Some batches, heads and rows of blocks: ints, slices or lists of ints for (B, H, q_blocks); axes stay.

        The mask_mod goes along, shifted to the rows that were taken; so does `offset` where they are consecutive.

        Raises:
            IndexError: an index that the mask does not have, or more than three.
            ValueError: the last, shorter row of blocks is taken before another one.
        """
        parts = index if isinstance(index, tuple) else (index,)
        if any(part is Ellipsis for part in parts):
            at = next(i for i, part in enumerate(parts) if part is Ellipsis)
            parts = (*parts[:at], *(slice(None),) * (4 - len(parts)), *parts[at + 1 :])
        if len(parts) > 3:
            raise IndexError(f"a BlockMask has three axes of blocks to index (B, H, q_blocks), not {len(parts)}")
        names = ("B", "H", "q_blocks")
        chosen = [_chosen(part, n, name) for part, n, name in zip(parts, self.blocks.shape, names, strict=False)]
        chosen += [np.arange(n) for n in self.blocks.shape[len(parts) : 3]]
        batch, heads, rows = chosen
        q_len, q_block = self.seq_lengths[0], self.blocks.q_block
        heights = np.minimum(q_block, q_len - rows * q_block)
        if (heights[:-1] < q_block).any():
            raise ValueError(
                f"row {int(rows.max())} of blocks has {int(heights.min())} rows only, so it can only come last"
            )
        mask = pick_mask(self.mask_mod, self.blocks.shape, batch, heads, rows, q_block)
        follow = len(rows) > 0 and bool((np.diff(rows) == 1).all())
        offset = self.offset + int(rows[0]) * q_block if follow else 0
        lengths = (int(heights.sum()), self.seq_lengths[1])
        blocks = self.blocks.select(batch, heads, rows)
        return BlockMask(lengths, blocks, mask, implied=self.implied, offset=offset)

    def _adjust(self, new_q_len: int, new_kv_len: int) -> BlockMask:
        """The same mask over other lengths, recomputed.

        Raises:
            ValueError: this mask was made from lists or runs, which say nothing beyond its lengths.
        """
        q_len, kv_len = self.seq_lengths
        new_q_len = check_size("new_q_len", new_q_len, 0)
        new_kv_len = check_size("new_kv_len", new_kv_len, 0)
        if not self.implied and (new_q_len > q_len or new_kv_len > kv_len):
            raise ValueError(
                f"this BlockMask was made from lists or runs of blocks for lengths {self.seq_lengths}; they say "
                f"nothing of {(new_q_len, new_kv_len)}: make one with create_block_mask"
            )
        return self._again(self.as_mask_mod(), (*self.blocks.shape[:2], new_q_len, new_kv_len), self.offset)

    def at_offset(self, offset: int, q_len: int) -> BlockMask:
        """The same mask for q_len queries that start at position `offset` (decoding, context parallelism).

        Raises:
            ValueError: this mask was made from lists or runs and has no such rows.

        Example:
            >>> import flextrace as flex
            >>> whole = flex.create_block_mask(lambda b, h, q, kv: q >= kv, None, None, 64, 64, BLOCK_SIZE=16)
            >>> whole.at_offset(40, 1).to_string()
            '##+.'
        """
        offset, q_len = check_whole("offset", offset), check_size("q_len", q_len, 0)
        if not self.implied and not 0 <= offset - self.offset <= self.seq_lengths[0] - q_len:
            raise ValueError(
                f"this BlockMask was made from lists or runs of blocks and has the rows {self.offset} to "
                f"{self.offset + self.seq_lengths[0]} only: make one with create_block_mask(..., offset={offset})"
            )
        mask = shift_mask(self.as_mask_mod(), offset - self.offset)
        return self._again(mask, (*self.blocks.shape[:2], q_len, self.seq_lengths[1]), offset)

    def _again(self, mask: MaskMod, shape: tuple[int, int, int, int], offset: int) -> BlockMask:
        blocks = refine(mask.bind(), shape, self.BLOCK_SIZE)
        return BlockMask(shape[2:], blocks, mask, implied=True, offset=offset)

    # ---- algebra ---------------------------------------------------------------------------------------------

    def as_mask_mod(self) -> MaskMod:
        """The whole mask as one mask_mod, blocks included: True for the pairs that attention under it computes."""
        return self.mask_mod if self.implied else lookup_mask(self.blocks, self.mask_mod)

    def __and__(self, other: Any) -> BlockMask:
        """The pairs that this mask and another BlockMask, or a mask_mod, keep."""
        return self._combined(other, lambda mine, its: mine & its)

    def __or__(self, other: Any) -> BlockMask:
        """The pairs that this mask or another BlockMask, or a mask_mod, keeps."""
        return self._combined(other, lambda mine, its: mine | its)

    def __invert__(self) -> BlockMask:
        """The pairs that this mask leaves out."""
        if not self.implied:
            return self._again(~self.as_mask_mod(), self.shape, self.offset)
        states = FULL - self.blocks.states()  # empty and full change places, partial stays
        blocks = Blocks.from_states(states, *self.BLOCK_SIZE)
        return BlockMask(self.seq_lengths, blocks, ~self.mask_mod, implied=True, offset=self.offset)

    def __rand__(self, other: Any) -> BlockMask:
        return self.__and__(other)

    def __ror__(self, other: Any) -> BlockMask:
        return self.__or__(other)

    def _combined(self, other: Any, combine: Callable[[MaskMod, MaskMod], MaskMod]) -> BlockMask:
        shape = self.shape
        if isinstance(other, BlockMask):
            if (other.seq_lengths, other.BLOCK_SIZE) != (self.seq_lengths, self.BLOCK_SIZE):
                raise ValueError(
                    f"one BlockMask is for lengths {self.seq_lengths} in blocks of {self.BLOCK_SIZE}, the other for "
                    f"{other.seq_lengths} in blocks of {other.BLOCK_SIZE}; make both alike"
                )
            sizes = [(mine, its) for mine, its in zip(shape[:2], other.shape[:2], strict=True)]
            if any(1 not in pair and pair[0] != pair[1] for pair in sizes):
                raise ValueError(f"masks for B, H = {shape[:2]} and {other.shape[:2]} do not broadcast")
            shape = (max(sizes[0]), max(sizes[1]), *self.seq_lengths)
            return self._again(combine(self.as_mask_mod(), other.as_mask_mod()), shape, self.offset)
        return self._again(combine(self.as_mask_mod(), as_mod(other, MaskMod, "a BlockMask")), shape, self.offset)

    def __eq__(self, other: object) -> bool:
        """Whether both stand for the same mask: same lengths and blocks, and mask_mods that are the same expression
        over equal captured values."""
        if not isinstance(other, BlockMask):
            return NotImplemented
        if self.seq_lengths != other.seq_lengths or not self.blocks.same_as(other.blocks):
            return False
        return self.mask_mod is other.mask_mod or same(self.mask_mod.bind(), other.mask_mod.bind())

    def __getstate__(self) -> dict[str, Any]:
        """Without torch's lists, which are made again when asked for."""
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_by_")}

    def __hash__(self) -> int:
        return hash((self.seq_lengths, self.BLOCK_SIZE, self.blocks.shape, len(self.blocks.first)))

    # ---- use -------------------------------------------------------------------------------------------------

    def check_lengths(self, query: mx.array, key: mx.array | Int8Rows) -> None:
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


def _chosen(given: Any, n: int, name: str) -> Array:
    """The numbers that an index of one axis chooses."""
    part, one = given, as_int(given, name)
    if not isinstance(part, slice):
        part = np.asarray(part if one is None else [one])
        if part.ndim != 1 or (part.size and part.dtype.kind not in "iub"):
            raise IndexError(f"{name} is indexed by {shown(given)}; a BlockMask takes ints, slices and lists of ints")
        part = part if part.size else part.astype(int)
    numbers: Array = np.arange(n)
    try:
        kept: Array = numbers[part]
    except IndexError as error:
        raise IndexError(f"{name} has {n} entries: {error}") from None
    return kept.reshape(-1)
