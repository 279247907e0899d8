"""What the stage kernels hand to each other, and what a backend provides of them. All checks are done before."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import mlx.core as mx

from flextrace.tracer import Bound

from ..call import Mods


class BlockLists(NamedTuple):
    """Which blocks of keys each block of queries reads: partial ones, where a mask_mod decides inside, and full ones.

    kv_num_blocks, full_kv_num_blocks: int32 [mask_batch, mask_heads, q_blocks]
    kv_indices, full_kv_indices: int32 [mask_batch, mask_heads, q_blocks, columns], ascending; entries beyond the
        number are unused. The two lists may differ in their number of columns.
    q_block, kv_block: rows and columns of a block
    """

    kv_num_blocks: mx.array
    kv_indices: mx.array
    full_kv_num_blocks: mx.array
    full_kv_indices: mx.array
    q_block: int
    kv_block: int


class SoftmaxParts(NamedTuple):
    """weights: [..., S]; max_scores, sums: float32 [...]; natural units."""

    weights: mx.array
    max_scores: mx.array
    sums: mx.array


class OutputParts(NamedTuple):
    """out: [..., D]; lse, max_scores: float32 [...]."""

    out: mx.array
    lse: mx.array
    max_scores: mx.array


class Stages(Protocol):
    """The stage kernels of one backend.

    Tensors have any strides. Any size may be 0: the result then is what the definition gives (a sum over nothing is
    0, a row of no scores has max -inf and sum 0), without a launch where there is nothing to compute.
    """

    def matmul(
        self,
        a: mx.array,
        b: mx.array,
        *,
        transpose_a: bool,
        transpose_b: bool,
        tiles: tuple[int, ...] | None,
        dtype: mx.Dtype,
    ) -> mx.array:
        """a: [B, H, M, K], or [B, H, K, M] if transpose_a; b: [1 or B, Hb, K, N], or [1 or B, Hb, N, K] if
        transpose_b; Hb divides H -> [B, H, M, N] of `dtype`. tiles: (BM, BN), (BM, BN, BK) or None; ValueError where
        they do not fit."""

    def scale(self, x: mx.array, factor: float) -> mx.array:
        """x of any shape -> x * factor, dtype of x."""

    def score_mod(self, scores: mx.array, mods: Mods, blocks: BlockLists | None) -> mx.array:
        """float32 [B, H, L, S] -> float32. With `blocks`: unlisted blocks become -inf, and mask_mod is asked in partial
        blocks only. Without: it is asked everywhere."""

    def softmax(self, x: mx.array, *, normalise: bool, dtype: mx.Dtype) -> SoftmaxParts:
        """float32 [..., S], at least one axis -> weights of `dtype`, statistics [...]."""

    def block_mask(
        self, mask_mod: Bound, batch: int, heads: int, q_len: int, kv_len: int, block_size: tuple[int, int]
    ) -> BlockLists:
        """Lists of [batch, heads, q_blocks] and [batch, heads, q_blocks, kv_blocks]; unused entries are 0."""

    def block_sparse_matmul(
        self, a: mx.array, b: mx.array, blocks: BlockLists, *, transpose_b: bool, dtype: mx.Dtype
    ) -> mx.array:
        """transpose_b: a [B, H, L, D], b [1 or B, Hb, S, D] -> [B, H, L, S], -inf in unlisted blocks. Otherwise:
        a [B, H, L, S], read in listed blocks only, b [1 or B, Hb, S, D] -> [B, H, L, D]."""

    def attention_output(self, product: mx.array, max_scores: mx.array, sums: mx.array, dtype: mx.Dtype) -> OutputParts:
        """product: float32 [..., D]; max_scores, sums: float32 [...] -> out [..., D] of `dtype`, lse, max_scores."""
