"""Parameters -> mask_mod: masks over many sequences packed into one, without padding."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from flextrace.decorators import MaskMod, as_mod, mask_mod
from flextrace.tracer.source.signature import MaskFunction

from .arguments import Array, integers, known_offsets, whole
from .offsets import mask_at


def token_documents(offsets: Array) -> Array:
    """Document of each token: int64 [offsets[-1]]."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def document_starts(offsets: Array) -> mx.array:
    """First token of each token's document: int32 [offsets[-1]], sorted, different in every document."""
    return mx.array(offsets[token_documents(offsets)].astype(np.int32))


def document_ids(offsets: Any) -> mx.array:
    """Offsets of packed documents -> the document of each token, int32 [offsets[-1]].

    Padding after the last document has no entry; `document(offsets=...)` knows of it.

    Args:
        offsets: integers [documents + 1], running totals of the lengths from 0 on (also known as cu_seqlens).

    Raises:
        ValueError: offsets does not start at 0, or falls.

    Source: Krell et al., Efficient Sequence Packing without Cross-contamination, arXiv 2107.02027.

    Example:
        >>> from flextrace import mods
        >>> mods.document_ids([0, 2, 5])
        array([0, 0, 1, 1, 1], dtype=int32)
    """
    return mx.array(token_documents(known_offsets(offsets)).astype(np.int32))


def document(
    ids: Any = None, kv_ids: Any = None, *, offsets: Any = None, offset: int | mx.array | None = None
) -> MaskMod:
    """Tokens see their own document: ids[q_idx] == kv_ids[kv_idx].

    Args:
        ids: integers [q_len] or [B, q_len], the document of each query; sorted ids skip most tiles. Padding is a
            document of its own: give it a number that no other has.
        kv_ids: the same for keys; None for `ids`.
        offsets: instead of ids, integers [documents + 1]: running totals of the documents' lengths from 0 on. Tokens
            from offsets[-1] on are padding: they see nothing (a row of zeros), and nothing sees them.
        offset: position of the first query, an int or integers [] or [B] in an mx.array; see `causal`.

    Raises:
        ValueError: neither or both of ids and offsets are given, or a shape does not fit.

    Source: Krell et al., Efficient Sequence Packing without Cross-contamination, arXiv 2107.02027.

    Example:
        >>> import flextrace as flex
        >>> mask = flex.mods.document(offsets=[0, 4, 6, 12])
        >>> print(flex.create_block_mask(mask, None, None, 12, 12, BLOCK_SIZE=2).to_string())
        ##....
        ##....
        ..#...
        ...###
        ...###
        ...###
    """
    if (ids is None) == (offsets is None) or (offsets is not None and kv_ids is not None):
        raise ValueError("document takes ids (and kv_ids where keys differ), or offsets=, not both and not neither")
    if offsets is not None:
        return mask_at(_packed_documents(document_ids(offsets)), offset)
    shape = "[length] or [B, length]"
    ids = integers("ids", ids, (1, 2), shape)
    kv_ids = ids if kv_ids is None else integers("kv_ids", kv_ids, (1, 2), shape)

    @mask_mod
    def document(b: int, h: int, q_idx: int, kv_idx: int) -> Any:
        q_row = ids[b] if ids.ndim == 2 else ids
        kv_row = kv_ids[b] if kv_ids.ndim == 2 else kv_ids
        return q_row[q_idx] == kv_row[kv_idx]

    return mask_at(document, offset)


def _packed_documents(ids: mx.array) -> MaskMod:
    tokens = ids.size

    @mask_mod
    def document(b: int, h: int, q_idx: int, kv_idx: int) -> Any:
        return q_idx < tokens and kv_idx < tokens and ids[q_idx] == ids[kv_idx]

    return document


def causal_document(offsets: Any, *, offset: int | mx.array | None = None) -> MaskMod:
    """Causal inside each document: start[q_idx] <= kv_idx <= q_idx.

    Args:
        offsets: integers [documents + 1], running totals of the lengths from 0 on; tokens from offsets[-1] on are
            padding: they see nothing (a row of zeros), and nothing sees them.
        offset: position of the first query, an int or integers [] or [B] in an mx.array; see `causal`.

    Raises:
        ValueError: offsets does not start at 0, or falls.

    Source: Krell et al., Efficient Sequence Packing without Cross-contamination, arXiv 2107.02027.

    Example:
        >>> import flextrace as flex
        >>> mask = flex.mods.causal_document([0, 4, 6, 12])
        >>> print(flex.create_block_mask(mask, None, None, 12, 12, BLOCK_SIZE=2).to_string())
        +.....
        #+....
        ..+...
        ...+..
        ...#+.
        ...##+
    """
    start = document_starts(known_offsets(offsets))
    tokens = start.size

    @mask_mod
    def causal_document(b: int, h: int, q_idx: int, kv_idx: int) -> Any:
        return q_idx < tokens and start[q_idx] <= kv_idx <= q_idx

    return mask_at(causal_document, offset)


def per_document(mask: MaskMod | MaskFunction, offsets: Any, *, offset: int | mx.array | None = None) -> MaskMod:
    """Any mask inside each document, positions counted from the document's start.

    start[q_idx] == start[kv_idx] and mask(b, h, q_idx - start[q_idx], kv_idx - start[kv_idx])

    Args:
        mask: mask_mod or plain function of one document.
        offsets: integers [documents + 1], running totals of the lengths from 0 on; tokens from offsets[-1] on are
            padding: they see nothing (a row of zeros), and nothing sees them.
        offset: position of the first query, an int or integers [] or [B] in an mx.array; see `causal`.

    Raises:
        ValueError: offsets does not start at 0, or falls.
        TypeError: mask is no mask_mod.

    Source: Krell et al., Efficient Sequence Packing without Cross-contamination, arXiv 2107.02027.

    Example:
        >>> import mlx.core as mx, flextrace as flex
        >>> mask = flex.mods.per_document(flex.mods.prefix_lm(1), [0, 3, 6])
        >>> flex.create_mask(mask, None, None, 6, 6)[0, 0].astype(mx.int32)
        array([[1, 0, 0, 0, 0, 0],
               [1, 1, 0, 0, 0, 0],
               [1, 1, 1, 0, 0, 0],
               [0, 0, 0, 1, 0, 0],
               [0, 0, 0, 1, 1, 0],
               [0, 0, 0, 1, 1, 1]], dtype=int32)
    """
    inner, start = as_mod(mask, MaskMod, "per_document"), document_starts(known_offsets(offsets))
    tokens = start.size

    @mask_mod
    def per_document(b: int, h: int, q_idx: int, kv_idx: int) -> Any:
        if q_idx >= tokens or kv_idx >= tokens:
            return False
        q_start, kv_start = start[q_idx], start[kv_idx]
        return q_start == kv_start and inner(b, h, q_idx - q_start, kv_idx - kv_start)

    return mask_at(per_document, offset)


def batchify(mask: MaskMod | MaskFunction, length: int, *, offset: int | mx.array | None = None) -> MaskMod:
    """The mask of one sequence for a batch laid end to end, all of `length` tokens.

    q_idx // length == kv_idx // length and mask(b, h, q_idx % length, kv_idx % length)

    Args:
        mask: mask_mod or plain function of one sequence.
        length: tokens of each sequence.
        offset: position of the first query, an int or integers [] or [B] in an mx.array; see `causal`.

    Raises:
        ValueError: length is not a positive whole number.
        TypeError: mask is no mask_mod.

    Source: attention-gym's batchify, for FlexAttention (Dong et al., arXiv 2412.05496).

    Example:
        >>> import flextrace as flex
        >>> mask = flex.mods.batchify(flex.mods.causal, 4)
        >>> print(flex.create_block_mask(mask, None, None, 12, 12, BLOCK_SIZE=2).to_string())
        +.....
        #+....
        ..+...
        ..#+..
        ....+.
        ....#+
    """
    inner, length = as_mod(mask, MaskMod, "batchify"), whole("length", length)

    @mask_mod
    def batchify(b: int, h: int, q_idx: int, kv_idx: int) -> Any:
        return q_idx // length == kv_idx // length and inner(b, h, q_idx % length, kv_idx % length)

    return mask_at(batchify, offset)
