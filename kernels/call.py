"""What one attention call hands to a backend, and what it gets back. All checks are done before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from flextrace.tracer import Bound


@dataclass(frozen=True, eq=False)
class Blocks:
    """The tiles of a BlockMask, as contiguous int32 numpy arrays.

    kv_num_blocks, full_kv_num_blocks: [mask_batch, mask_heads, q_blocks]
    kv_indices, full_kv_indices: [mask_batch, mask_heads, q_blocks, columns]
    """

    kv_num_blocks: np.ndarray[Any, Any]
    kv_indices: np.ndarray[Any, Any]
    full_kv_num_blocks: np.ndarray[Any, Any] | None
    full_kv_indices: np.ndarray[Any, Any] | None
    q_block: int
    kv_block: int

    def states(self, kv_blocks: int) -> np.ndarray[Any, Any]:
        """int8 [mask_batch, mask_heads, q_blocks, kv_blocks]: 0 empty, 1 partial, 2 full."""
        states = np.zeros((*self.kv_num_blocks.shape, kv_blocks + 1), np.int8)  # one more column takes unused entries
        lists = ((self.kv_num_blocks, self.kv_indices, 1), (self.full_kv_num_blocks, self.full_kv_indices, 2))
        for counts, indices, state in lists:
            if counts is not None and indices is not None:
                used = np.arange(indices.shape[-1]) < counts[..., None]
                np.put_along_axis(states, np.where(used, indices, kv_blocks), np.int8(state), axis=-1)
        return states[..., :kv_blocks]


@dataclass(slots=True, eq=False)
class AttentionCall:
    """One checked call.

    q: [batch, query_heads, q_len, head_dim]; k: [1 or batch, kv_heads, kv_len, head_dim];
    v: [1 or batch, kv_heads, kv_len, value_dim], all of one dtype (float32, float16, bfloat16).
    """

    q: mx.array
    k: mx.array
    v: mx.array
    scale: float
    score_mod: Bound | None = None
    mask_mod: Bound | None = None
    blocks: Blocks | None = None
    want_lse: bool = False
    want_max: bool = False
    threads: int = 0  # 0: as many as the process may use


@dataclass(slots=True, eq=False)
class Result:
    """out: [batch, query_heads, q_len, value_dim], dtype of q; lse, max_scores: float32 [batch, query_heads, q_len]."""

    out: mx.array
    lse: mx.array | None
    max_scores: mx.array | None
