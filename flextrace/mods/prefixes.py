"""Parameters -> mask_mod: prefixes that more than one query, or more than one document, sees."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from flextrace.decorators import MaskMod, mask_mod

from .arguments import integers, known_integers, known_offsets, whole
from .offsets import causal_at, mask_at
from .packed import document_starts, token_documents


def prefix_lm(prefix: Any, *, offset: int | mx.array | None = None) -> MaskMod:
    """A prefix that everyone sees, causal after it: kv_idx < prefix or kv_idx <= q_idx.

    Args:
        prefix: length of the prefix, one number or integers [B] for a prefix of each batch entry.
        offset: position of the first query, an int or integers [] or [B] in an mx.array; see `causal`.

    Raises:
        ValueError: prefix is negative or of another shape.

    Source: Raffel et al., T5, arXiv 1910.10683 (prefix LM).

    Example:
        >>> from flextrace import mods
        >>> mods.prefix_lm(3).expr
        (kv_idx < number0) or (kv_idx <= q_idx)
        >>> mods.prefix_lm([3, 5]).expr
        (kv_idx < array0[b]) or (kv_idx <= q_idx)
    """
    by_batch = np.ndim(prefix) > 0
    length: Any = (
        integers("prefix", prefix, (1,), "[B], or one number") if by_batch else whole("prefix", prefix, at_least=0)
    )

    @mask_mod
    def prefix_lm(b: int, h: int, q_idx: int, kv_idx: int) -> Any:
        return kv_idx < (length[b] if by_batch else length) or kv_idx <= q_idx

    return causal_at(prefix_lm, offset)


def shared_prefix(offsets: Any, prefix_of: Any, *, offset: int | mx.array | None = None) -> MaskMod:
    """Continuations that share a prompt kept once: causal inside a document, and all of its prefix document.

    start[q_idx] <= kv_idx <= q_idx, or prefix_start[q_idx] <= kv_idx < prefix_stop[q_idx]

    Args:
        offsets: integers [documents + 1], running totals of the lengths from 0 on; tokens from offsets[-1] on are
            padding: they see nothing (a row of zeros), and nothing sees them.
        prefix_of: integers [documents], the prefix document of each; a document without one (and a prefix itself)
            names itself.
        offset: position of the first query, an int or integers [] or [B] in an mx.array; see `causal`.

    Raises:
        ValueError: offsets does not start at 0, or falls; prefix_of names no document.

    Source: Juravsky et al., Hydragen, arXiv 2402.05099; in training, shared prompts of sampled continuations.

    Example:
        >>> import flextrace as flex
        >>> mask = flex.mods.shared_prefix([0, 4, 6, 8], prefix_of=[0, 0, 0])
        >>> print(flex.create_block_mask(mask, None, None, 8, 8, BLOCK_SIZE=2).to_string())
        +...
        #+..
        ##+.
        ##.+
    """
    known = known_offsets(offsets)
    prefix = known_integers("prefix_of", prefix_of, 1, "[documents]")
    documents = len(known) - 1
    if len(prefix) != documents or prefix.min() < 0 or prefix.max() >= documents:
        raise ValueError(
            f"prefix_of is {prefix.tolist()}; expected {documents} numbers of documents, 0 to {documents - 1}"
        )
    ids = token_documents(known)
    begin, end = known[prefix], np.where(prefix == np.arange(documents), known[prefix], known[prefix + 1])
    start, prefix_start, prefix_stop = (
        document_starts(known),
        mx.array(begin[ids].astype(np.int32)),
        mx.array(end[ids].astype(np.int32)),
    )

    tokens = start.size

    @mask_mod
    def shared_prefix(b: int, h: int, q_idx: int, kv_idx: int) -> Any:
        if q_idx >= tokens:
            return False
        return start[q_idx] <= kv_idx <= q_idx or prefix_start[q_idx] <= kv_idx < prefix_stop[q_idx]

    return mask_at(shared_prefix, offset)
