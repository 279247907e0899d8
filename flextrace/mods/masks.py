"""Parameters -> mask_mod: causal, without padding, in diffusion blocks."""

from __future__ import annotations

from typing import Any

from flextrace.decorators import MaskMod, mask_mod

from .arguments import integers, whole
from .offsets import Causal


@Causal
def causal(b: int, h: int, q_idx: int, kv_idx: int) -> bool:
    """A query sees itself and what precedes it: kv_idx <= q_idx.

    It is aligned top left, as in torch: query 0 is at position 0, whatever the lengths. MLX's mask="causal" is aligned
    lower right: its last query sees all keys. So where the queries are the last of the keys, as with a cache, write
    `flex.mods.causal(offset=kv_len - q_len)`; a call that says no offset, and has more keys than queries, says so once.

    Args:
        offset: by itself, `causal(offset=...)` gives the mask for queries that start at that position:
            kv_idx <= q_idx + offset. An int, or integers as an mx.array: one without axes, or [B] for a position of
            each batch entry. Another value compiles nothing, and an array is read at every call. All masks and biases
            of `flex.mods` that ask where a query is take one; 0 says that rows do count from the first key on.

    Raises:
        ValueError: offset is neither a whole number that fits int32 nor integers of at most one axis.

    Source: Vaswani et al., Attention Is All You Need, arXiv 1706.03762.

    Example:
        >>> import flextrace as flex
        >>> flex.mods.causal.expr
        kv_idx <= q_idx
        >>> flex.create_mask(flex.mods.causal(offset=2), None, None, 2, 4)
        array([[[[True, True, True, False],
                 [True, True, True, True]]]], dtype=bool)
    """
    return kv_idx <= q_idx


def padding(lengths: Any) -> MaskMod:
    """Hides the padding of right-padded batches: kv_idx < lengths[b].

    Args:
        lengths: integers [B], the real keys of each batch entry.

    Raises:
        ValueError: lengths is not an integer array of one axis.

    Source: the key padding mask of Vaswani et al., arXiv 1706.03762.

    Example:
        >>> from flextrace import mods
        >>> mods.padding([5, 2]).expr
        kv_idx < array0[b]
    """
    lengths = integers("lengths", lengths, (1,), "[B]")

    @mask_mod
    def padding(b: int, h: int, q_idx: int, kv_idx: int) -> Any:
        return kv_idx < lengths[b]

    return padding


def block_diffusion(length: int, block: int) -> MaskMod:
    """Training mask of block diffusion over [noised, clean] copies of a sequence.

    With n = length and the blocks of `block` tokens of each half numbered alike: a noised query sees its own noised
    block and the clean blocks before it; a clean query sees clean blocks up to its own, and nothing noised.

    Args:
        length: tokens of the sequence; Q_LEN and KV_LEN are 2 * length.
        block: tokens of a diffusion block.

    Raises:
        ValueError: length or block is not a positive whole number.

    Source: Arriola et al., Block Diffusion (BD3-LM), arXiv 2503.09573.

    Example:
        >>> import flextrace as flex
        >>> mask = flex.mods.block_diffusion(length=6, block=2)
        >>> print(flex.create_block_mask(mask, None, None, 12, 12, BLOCK_SIZE=2).to_string())
        #.....
        .#.#..
        ..###.
        ...#..
        ...##.
        ...###
    """
    length, block = whole("length", length), whole("block", block)

    @mask_mod
    def block_diffusion(b: int, h: int, q_idx: int, kv_idx: int) -> bool:
        q_block = (q_idx - length if q_idx >= length else q_idx) // block
        kv_block = (kv_idx - length if kv_idx >= length else kv_idx) // block
        if kv_idx >= length:
            return kv_block <= q_block if q_idx >= length else kv_block < q_block
        return q_idx < length and q_block == kv_block

    return block_diffusion
