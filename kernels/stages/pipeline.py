"""AttentionCall -> Result by the stage kernels, one after the other: every intermediate can be looked at.

    scores = Q K^T; scaled = scale * scores; modified = mask(score_mod(scaled)); weights = exp(modified - max);
    product = weights V; out = product / sums

This is attention as it is written down, in quadratic memory: for understanding and checking the fused kernel.
"""

from __future__ import annotations

import mlx.core as mx

from flextrace.tracer import Bound
from flextrace.tracer.expr.node import B, H, leaves

from ..blocks import FULL, PARTIAL
from ..call import AttentionCall, Result
from .protocol import BlockLists, Stages

BLOCK_SIZE = (128, 128)  # of the BlockMask made for a bare mask_mod
LISTS = ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices")


def run_staged(stages: Stages, call: AttentionCall) -> Result:
    """Attention by stages, with all intermediates in the order of the stages.

    kv_num_blocks, kv_indices, full_kv_num_blocks, full_kv_indices: the block lists, where there is a mask
    scores, scaled, modified: float32 [batch, query_heads, q_len, kv_len]; -inf in blocks that the lists leave out
    weights: the same shape, exp(modified - max_scores); float16 where value is float16, float32 elsewhere
    max_scores, sums: float32 [batch, query_heads, q_len]
    product: float32 [batch, query_heads, q_len, value_dim]
    out, lse: as the call returns them
    """
    q, k, v = call.q, call.k, call.v
    blocks = _blocks(stages, call)
    if blocks is None:
        scores = stages.matmul(q, k, transpose_a=False, transpose_b=True, tiles=None, dtype=mx.float32)
    else:
        scores = stages.block_sparse_matmul(q, k, blocks, transpose_b=True, dtype=mx.float32)
    scaled = stages.scale(scores, call.scale)
    modified = stages.score_mod(scaled, call.mods, blocks)
    half = v.dtype == mx.float16
    weights, maxima, sums = stages.softmax(modified, normalise=False, dtype=mx.float16 if half else mx.float32)
    if blocks is None and call.mods.score is None:
        product = stages.matmul(weights, v, transpose_a=False, transpose_b=False, tiles=None, dtype=mx.float32)
    else:  # a weight of 0 leaves its key out, whatever its value is
        listed = _one_full_block(q.shape[2], k.shape[2]) if blocks is None else blocks
        product = stages.block_sparse_matmul(weights, v, listed, transpose_b=False, dtype=mx.float32)
    out, lse, max_scores = stages.attention_output(product, maxima, sums, q.dtype)
    intermediates: dict[str, mx.array] = {} if blocks is None else dict(zip(LISTS, blocks[:4], strict=True))
    intermediates |= {"scores": scores, "scaled": scaled, "modified": modified, "weights": weights}
    intermediates |= {"max_scores": maxima, "sums": sums, "product": product, "out": out, "lse": lse}
    return Result(
        out, lse if call.want_lse else None, max_scores if call.want_max else None, intermediates=intermediates
    )


def _blocks(stages: Stages, call: AttentionCall) -> BlockLists | None:
    """The lists of the call's BlockMask, or of one made on the device for its mask_mod."""
    blocks = call.blocks
    if blocks is not None:
        partial, indices, full, full_indices = (
            mx.array(x) for s in (PARTIAL, FULL) for x in (blocks.counts(s), blocks.indices(s))
        )
        return BlockLists(partial, indices, full, full_indices, blocks.q_block, blocks.kv_block)
    mask = call.mods.mask
    if mask is None:
        return None
    batch, heads, q_len, _ = call.q.shape
    batch, heads = mask_shape(mask, batch, heads)
    return stages.block_mask(mask, batch, heads, q_len, call.k.shape[2], BLOCK_SIZE)


def _one_full_block(q_len: int, kv_len: int) -> BlockLists:
    """The lists of a mask that leaves every key to every row."""
    none, one = mx.zeros((1, 1, 1), mx.int32), mx.ones((1, 1, 1), mx.int32)
    return BlockLists(none, none[..., None], one, none[..., None], max(q_len, 1), max(kv_len, 1))


def mask_shape(mask_mod: Bound, batch: int, heads: int) -> tuple[int, int]:
    """How many batches and heads its BlockMask needs: one where the mask does not ask which it is."""
    used = leaves(mask_mod.trace.expr, ("index",))
    return batch if B in used else 1, heads if H in used else 1
