"""BlockMask: which blocks of the score matrix to visit, and which of them need the mask at all.

Fields and meaning are those of torch.nn.attention.flex_attention.BlockMask. Inside, a BlockMask is runs of neighbouring
blocks: a million tokens under a causal mask take 300 kB. torch's fields are made one by one, when they are asked for;
counts are short, lists of indices dense. The blocks follow the captured values of the mask: they are compared at each
use, and the blocks made anew where they differ.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from flextrace.advice.keywords import OF_BLOCK_MASK, knows
from flextrace.decorators import MaskMod, as_mod
from flextrace.kernels import Blocks, Int8Rows
from flextrace.kernels.blocks import FULL, PARTIAL, Array
from flextrace.kernels.notebooks import html_of
from flextrace.kernels.scalars import as_int, check_size, check_whole, shown
from flextrace.pickling import same
from flextrace.tracer import Bound
from flextrace.tracer.source.signature import MaskFunction

from .kept_values import KeptValues, ValuesHidden
from .lists import BlockRanges, block_size, blocks_of_lists, blocks_of_ranges, check_list_size
from .refine import refine
from .text import block_text, chosen_head
from .views import lookup_mask, noop_mask, pick_mask, shift_mask

DEFAULT_BLOCK = 128


class BlockMask:
    """The blocks that a mask leaves; made by `create_block_mask`, or from lists or runs of blocks.

    Its mask_mod reads captured values at every call, and so do its blocks: the values that they were made of are
    compared at each use, and where they differ (a number, an attribute, an array rebound or written in place) the
    blocks are made anew. Numbers, arrays of up to 64 KiB and numpy arrays are compared whole, at some 10 GB/s; larger
    mx.arrays by the memory that they lie in, which costs next to nothing: what MLX writes is noticed, what numpy writes
    there through a view of an mx.array is not. Blocks from lists or runs are their maker's own and stay.

    Attributes:
        shape: (B, H, q_len, kv_len) of the mask.
        BLOCK_SIZE: (rows, columns) of one block.
        implied: whether the blocks follow from mask_mod alone; False for one made from lists or runs.
        mask_mod: decides inside partial blocks; its q_idx 0 is this mask's first row.
        offset: position in the whole sequence of the first row: not 0 for queries that start later; None for rows of
            blocks that do not follow each other.

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
        values: KeptValues | None = None,
        offset: int | None = 0,
        renumbered: frozenset[str] = frozenset(),
    ) -> None:
        """values: what mask_mod captured when the blocks were made of it; None where they are a caller's own.
        renumbered: those of "b" and "h" that count anew in a part of another mask."""
        self.shape: tuple[int, int, int, int] = (*blocks.shape[:2], *seq_lengths)
        self.BLOCK_SIZE: tuple[int, int] = blocks.q_block, blocks.kv_block
        self.mask_mod = mask_mod
        self.implied: bool = values is not None
        self.offset = offset
        self._renumbered = renumbered
        self._made: tuple[Blocks, KeptValues | None] | None = blocks, values  # both at once, for other threads
        # torch's fields that were asked for, and the blocks that each was made of.
        self._lists: dict[str, tuple[Blocks, mx.array]] = {}

    @classmethod
    def _of(
        cls,
        mask: MaskMod,
        shape: tuple[int, int, int, int],
        block: tuple[int, int],
        offset: int | None,
        renumbered: frozenset[str] = frozenset(),
    ) -> BlockMask:
        """The BlockMask that a mask_mod implies; its row 0 is that of the mask_mod."""
        values = KeptValues.of(mask.bind())
        blocks = refine(values.bound, shape, block)
        return cls(shape[2:], blocks, mask, values=values, offset=offset, renumbered=renumbered)

    @property
    def blocks(self) -> Blocks:
        """The runs of blocks, as kernels read them, for the captured values of this moment.

        Raises:
            TraceError: the mask_mod can no longer be traced.
            ValuesHidden: mx.compile or mx.vmap replaces an array that it captures.
        """
        if not self.implied and self._made is not None:
            return self._made[0]
        return self._blocks_for(self.mask_mod.bind())

    def _blocks_for(self, bound: Bound) -> Blocks:
        if self._made is not None:
            blocks, values = self._made
            now = None if values is None else values.as_in(bound)
            if now is not None:
                if now is not values:
                    self._made = blocks, now
                return blocks
        values = KeptValues.of(bound)
        blocks = refine(values.bound, self.shape, self.BLOCK_SIZE)
        self._made = blocks, values
        return blocks

    @property
    def seq_lengths(self) -> tuple[int, int]:
        """(q_len, kv_len)."""
        return self.shape[2:]

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
        return cls._of(shift_mask(mask_mod, offset), shape, BLOCK_SIZE, offset)

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

        The lists are the caller's claim, and stay whatever mask_mod captures: it only decides inside partial blocks,
        there with the actual b and h. So lists of one batch or head stand for all.

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
        """The runs of blocks, a few per row for most masks; copies, which are the caller's."""
        blocks = self.blocks
        return BlockRanges(blocks.offsets.copy(), blocks.first.copy(), blocks.end.copy(), blocks.state == FULL)

    # ---- torch's fields --------------------------------------------------------------------------------------

    # Counts cost what rows and runs do. A list of indices is dense, as torch's is: 4 bytes for every block of the mask;
    # it is made when it is asked for, and kept.

    def _listed(self, name: str, make: Callable[[Blocks], Array]) -> mx.array:
        """A field as it is made of the blocks of this moment; writing to it changes no others."""
        blocks = self.blocks
        made_of, field = self._lists.get(name, (None, None))
        if made_of is not blocks or field is None:
            field = mx.array(make(blocks))
            self._lists[name] = blocks, field
        return field[...]

    def _indices(self, name: str, state: int) -> mx.array:
        def make(blocks: Blocks) -> Array:
            check_list_size(name, blocks)
            return (blocks.transposed if "q_" in name else blocks).indices(state)

        return self._listed(name, make)

    @property
    def kv_num_blocks(self) -> mx.array:
        """int32 [B, H, q_blocks]: how many partial blocks each row of blocks has."""
        return self._listed("kv_num_blocks", lambda blocks: blocks.counts(PARTIAL))

    @property
    def kv_indices(self) -> mx.array:
        """int32 [B, H, q_blocks, kv_blocks]: which, ascending; entries past kv_num_blocks mean nothing.

        Dense: 4 bytes for each block, visited or not: 268 MB for a million tokens in blocks of 128, where `to_ranges`
        gives the same in less than 1 MB. A notice says so, once, from 256 MiB on.

        Raises:
            MemoryError: this machine has less memory than the list takes.

        Example:
            >>> import flextrace as flex
            >>> mask = flex.create_block_mask(flex.mods.sliding_window(1024), None, None, 2**20, 2**20)
            >>> mask.kv_num_blocks.shape, int(mask.kv_num_blocks.max())  # 8192 numbers
            ((1, 1, 8192), 2)
        """
        return self._indices("kv_indices", PARTIAL)

    @property
    def full_kv_num_blocks(self) -> mx.array:
        """int32 [B, H, q_blocks]: how many full blocks, which the mask keeps whole, each row of blocks has."""
        return self._listed("full_kv_num_blocks", lambda blocks: blocks.counts(FULL))

    @property
    def full_kv_indices(self) -> mx.array:
        """int32 [B, H, q_blocks, kv_blocks]: which; as large as kv_indices. Entries past the count mean nothing.

        Raises:
            MemoryError: as kv_indices.
        """
        return self._indices("full_kv_indices", FULL)

    @property
    def q_num_blocks(self) -> mx.array:
        """int32 [B, H, kv_blocks]: how many partial blocks each column of blocks has."""
        return self._listed("q_num_blocks", lambda blocks: blocks.transposed.counts(PARTIAL))

    @property
    def q_indices(self) -> mx.array:
        """int32 [B, H, kv_blocks, q_blocks]: which, ascending. As large as kv_indices.

        Raises:
            MemoryError: as kv_indices.
        """
        return self._indices("q_indices", PARTIAL)

    @property
    def full_q_num_blocks(self) -> mx.array:
        """int32 [B, H, kv_blocks]: how many full blocks each column of blocks has."""
        return self._listed("full_q_num_blocks", lambda blocks: blocks.transposed.counts(FULL))

    @property
    def full_q_indices(self) -> mx.array:
        """int32 [B, H, kv_blocks, q_blocks]: which, ascending. As large as kv_indices.

        Raises:
            MemoryError: as kv_indices.
        """
        return self._indices("full_q_indices", FULL)

    def as_tuple(self, flatten: bool = True) -> tuple[Any, ...]:
        """All fields in torch's order; `flatten` writes lengths and block size as single numbers.

        Four of them are as large as kv_indices.

        Raises:
            MemoryError: as kv_indices.
        """
        by_rows = self.kv_num_blocks, self.kv_indices, self.full_kv_num_blocks, self.full_kv_indices
        lists = (*by_rows, self.q_num_blocks, self.q_indices, self.full_q_num_blocks, self.full_q_indices)
        if flatten:
            return (*self.seq_lengths, *lists, *self.BLOCK_SIZE, self.mask_mod)
        return (self.seq_lengths, *lists, self.BLOCK_SIZE, self.mask_mod)

    # ---- what it covers --------------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Bytes that the blocks take. torch's lists of indices, once asked for, take more: see kv_indices."""
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
        (q_len, kv_len), q_block = self.seq_lengths, self.BLOCK_SIZE[0]
        sizes = (*self.shape[:2], -(-q_len // q_block))
        names = ("B", "H", "q_blocks")
        chosen = [_chosen(part, n, name) for part, n, name in zip(parts, sizes, names, strict=False)]
        chosen += [np.arange(n) for n in sizes[len(parts) :]]
        batch, heads, rows = chosen
        heights = np.minimum(q_block, q_len - rows * q_block)
        if (heights[:-1] < q_block).any():
            raise ValueError(
                f"row {int(rows.max())} of blocks has {int(heights.min())} rows only, so it can only come last"
            )
        mask = pick_mask(self.mask_mod, sizes, batch, heads, rows, q_block)
        values = KeptValues.of(mask.bind()) if self.implied else None  # before the blocks: newer blocks are found out
        blocks = self.blocks.select(batch, heads, rows)
        offset = self.offset
        if (np.diff(rows) != 1).any():
            offset = None
        elif offset is not None and len(rows):
            offset += int(rows[0]) * q_block
        anew = {name for name, part in (("b", batch), ("h", heads)) if (part != np.arange(len(part))).any()}
        lengths = int(heights.sum()), kv_len
        return BlockMask(lengths, blocks, mask, values=values, offset=offset, renumbered=self._renumbered | anew)

    def _adjust(self, new_q_len: int, new_kv_len: int) -> BlockMask:
        """The same mask over other lengths, recomputed.

        Raises:
            ValueError: this mask was made from lists or runs, or of rows of blocks that do not follow each other, which
                say nothing beyond its lengths.
        """
        q_len, kv_len = self.seq_lengths
        new_q_len = check_size("new_q_len", new_q_len, 0)
        new_kv_len = check_size("new_kv_len", new_kv_len, 0)
        if not self.implied and (new_q_len > q_len or new_kv_len > kv_len):
            raise ValueError(
                f"this BlockMask was made from lists or runs of blocks for lengths {self.seq_lengths}; they say "
                f"nothing of {(new_q_len, new_kv_len)}: make one with create_block_mask"
            )
        if self.offset is None and new_q_len > q_len:
            raise ValueError(
                f"this BlockMask holds {q_len} chosen rows of another one, which say nothing of {new_q_len}: adjust "
                "that one, and choose then"
            )
        return self._again(self.as_mask_mod(), (*self.shape[:2], new_q_len, new_kv_len), self.offset)

    def at_offset(self, offset: int, q_len: int) -> BlockMask:
        """The same mask for q_len queries that start at position `offset` (decoding, context parallelism).

        Raises:
            ValueError: this mask was made from lists or runs and has no such rows, or its rows of blocks do not follow
                each other.

        Example:
            >>> import flextrace as flex
            >>> whole = flex.create_block_mask(lambda b, h, q, kv: q >= kv, None, None, 64, 64, BLOCK_SIZE=16)
            >>> whole.at_offset(40, 1).to_string()
            '##+.'
        """
        offset, q_len = check_whole("offset", offset), check_size("q_len", q_len, 0)
        if self.offset is None:
            raise ValueError("this BlockMask holds chosen rows of another one: ask that one for the rows at an offset")
        if not self.implied and not 0 <= offset - self.offset <= self.seq_lengths[0] - q_len:
            raise ValueError(
                f"this BlockMask was made from lists or runs of blocks and has the rows {self.offset} to "
                f"{self.offset + self.seq_lengths[0]} only: make one with create_block_mask(..., offset={offset})"
            )
        mask = shift_mask(self.as_mask_mod(), offset - self.offset)
        return self._again(mask, (*self.shape[:2], q_len, self.seq_lengths[1]), offset)

    def _again(self, mask: MaskMod, shape: tuple[int, int, int, int], offset: int | None) -> BlockMask:
        return BlockMask._of(mask, shape, self.BLOCK_SIZE, offset, self._renumbered)

    # ---- algebra ---------------------------------------------------------------------------------------------

    def as_mask_mod(self) -> MaskMod:
        """The whole mask as one mask_mod, blocks included: True for the pairs that attention under it computes."""
        return self.mask_mod if self.implied else lookup_mask(self.blocks, self.mask_mod)

    def __and__(self, other: Any) -> BlockMask:
        """The pairs that this mask and another BlockMask, or a mask_mod, keep. A mask_mod counts rows from the start of
        the sequence, as create_block_mask does: `create_block_mask(a, offset=o) & b` is that of `a & b`."""
        return self._combined(other, operator.and_)

    def __or__(self, other: Any) -> BlockMask:
        """The pairs that this mask or another BlockMask, or a mask_mod, keeps; rows count as in `&`."""
        return self._combined(other, operator.or_)

    def __invert__(self) -> BlockMask:
        """The pairs that this mask leaves out."""
        mask = self._placed(~self._in_sequence())
        if not self.implied:
            return self._again(mask, self.shape, self.offset)
        values = KeptValues.of(mask.bind())
        blocks = self.blocks.inverted
        return BlockMask(self.seq_lengths, blocks, mask, values=values, offset=self.offset, renumbered=self._renumbered)

    def __rand__(self, other: Any) -> BlockMask:
        return self.__and__(other)

    def __ror__(self, other: Any) -> BlockMask:
        return self.__or__(other)

    def __bool__(self) -> bool:
        raise TypeError("a BlockMask is neither true nor false: write `&`, `|` and `~` for and, or and not")

    def _combined(self, other: Any, combine: Callable[[MaskMod, MaskMod], MaskMod]) -> BlockMask:
        if isinstance(other, BlockMask):
            batch, heads = self._broadcast(other)
            mask = combine(self._in_sequence(), other._in_sequence())
            return self._again(self._placed(mask), (batch, heads, *self.seq_lengths), self.offset)
        its = as_mod(other, MaskMod, "a BlockMask")
        anew = self._renumbered | ({"q_idx"} if self.offset is None else set())
        for name in sorted(its.expr.varies & anew):
            raise ValueError(
                f"this BlockMask is a part of another one, in which {name} counts anew, and {its!r} reads {name}: "
                "combine the whole one with it, and take the part then"
            )
        return self._again(self._placed(combine(self._in_sequence(), its)), self.shape, self.offset)

    def _in_sequence(self) -> MaskMod:
        """The whole mask, with rows that count from the start of the sequence."""
        return shift_mask(self.as_mask_mod(), -(self.offset or 0))

    def _placed(self, mask: MaskMod) -> MaskMod:
        """A mask over the rows of the sequence as one over the rows of this mask."""
        return shift_mask(mask, self.offset or 0)

    def _broadcast(self, other: BlockMask) -> tuple[int, int]:
        """Batch and heads of both together."""
        if (other.seq_lengths, other.BLOCK_SIZE) != (self.seq_lengths, self.BLOCK_SIZE):
            raise ValueError(
                f"one BlockMask is for lengths {self.seq_lengths} in blocks of {self.BLOCK_SIZE}, the other for "
                f"{other.seq_lengths} in blocks of {other.BLOCK_SIZE}; make both alike"
            )
        if other.offset != self.offset:
            mine, its = ("chosen rows" if n is None else f"offset {n}" for n in (self.offset, other.offset))
            raise ValueError(
                f"one BlockMask has {mine}, the other {its}, so their rows are not the same; make both with one "
                "offset, or write `block_mask & mask_mod`, which counts rows from the start of the sequence"
            )
        if any(mine != its and 1 not in (mine, its) for mine, its in zip(self.shape[:2], other.shape[:2], strict=True)):
            raise ValueError(f"masks for B, H = {self.shape[:2]} and {other.shape[:2]} do not broadcast")
        batch, heads = (max(pair) for pair in zip(self.shape[:2], other.shape[:2], strict=True))
        for mask in (self, other):
            mask.check_heads(batch, heads)
        return batch, heads

    def __repr__(self) -> str:
        head = f"BlockMask(shape={self.shape}, BLOCK_SIZE={self.BLOCK_SIZE}, sparsity={self.sparsity():.2f}%)"
        return f"{head}\n{self.to_string()}" if self.numel() else head

    _repr_html_ = html_of

    def __eq__(self, other: object) -> bool:
        """Whether both stand for the same mask: same lengths and blocks, and mask_mods that are the same expression
        over equal captured values."""
        if not isinstance(other, BlockMask):
            return NotImplemented
        if self.seq_lengths != other.seq_lengths or not self.blocks.same_as(other.blocks):
            return False
        return self.mask_mod is other.mask_mod or same(self.mask_mod.bind(), other.mask_mod.bind())

    def __hash__(self) -> int:
        return hash((self.shape, self.BLOCK_SIZE))  # both stay when captured values change

    def __getstate__(self) -> dict[str, Any]:
        """The state without torch's lists, and without blocks that mask_mod implies: they are made anew where they are
        used, because what it captures there may differ."""
        return self.__dict__ | {"_lists": {}, "_made": None if self.implied else self._made}

    # ---- use -------------------------------------------------------------------------------------------------

    def for_call(self, query: mx.array, key: mx.array | Int8Rows) -> tuple[Bound, Blocks | None]:
        """The mask_mod and the blocks of this moment. Without blocks where mx.compile or mx.vmap hides the values that
        they would be made of: mask_mod alone keeps the same pairs.

        Raises:
            TraceError: the mask_mod can no longer be traced.
            ValueError: the mask was not made for these tensors.
        """
        b, h, q_len, kv_len = self.shape
        (batch, heads, queries, _), keys = query.shape, key.shape[2]
        if q_len != queries or kv_len != keys:
            raise ValueError(
                f"block_mask is for lengths {(q_len, kv_len)}, query and key have {(queries, keys)}; "
                "make one with create_block_mask for these lengths"
            )
        if b not in (1, batch) or h not in (1, heads):
            raise ValueError(
                f"block_mask is for B={b}, H={h}; query has {batch} batches and {heads} heads; "
                "B and H must be equal to them, or None"
            )
        bound = self.mask_mod.bind()
        if b != batch or h != heads:
            self.check_heads(batch, heads, bound)
        if not self.implied:
            return bound, self.blocks
        try:
            return bound, self._blocks_for(bound)
        except ValuesHidden:
            return bound, None

    def check_heads(self, batch: int, heads: int, bound: Bound | None = None) -> None:
        """Raises ValueError where blocks of one batch or head would stand for several that the mask tells apart."""
        for name, index, made, wanted in (("B", "b", self.shape[0], batch), ("H", "h", self.shape[1], heads)):
            if self.implied and made == 1 < wanted and index in (bound or self.mask_mod.bind()).trace.expr.varies:
                raise ValueError(
                    f"block_mask was made for {name}=1 and its mask depends on {index}, so its blocks are not those of "
                    f"{wanted}: make it with create_block_mask(..., {name}={wanted})"
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
