"""What one attention call hands to a backend, and what it gets back. All checks are done before."""

from __future__ import annotations

from dataclasses import dataclass, field

import mlx.core as mx

from flextrace.tracer import Bound

from .blocks import Blocks
from .quant_types import QKQuant, Smoothing


@dataclass(slots=True, eq=False)
class AttentionCall:
    """One checked call.

    q: [batch, query_heads, q_len, head_dim]; k: [1 or batch, kv_heads, kv_len, head_dim];
    v: [1 or batch, kv_heads, kv_len, value_dim], all of one dtype (float32, float16, bfloat16); or k, or k and v,
    in int8 with the scales of their rows, which asks for `quant` by rows that smooths neither.
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
    threads: int = 0  # cpu; 0: as many as the process may use
    async_copy: bool = False  # metal, simulator: copy tiles of k and v by simdgroup_async_copy
    staged: bool = False  # one kernel after the other instead of the fused one
    quant: QKQuant | None = None  # q and k become int8
    smoothing: Smoothing | None = None  # of k; that of q is quant.smooth_q
    # k that is int8 already, less the means of `smoothing`: float32 [as k without head_dim], nan for a special row
    k_scales: mx.array | None = None
    # v that is int8 already: v = v * v_scales + v_means, [as v without value_dim] and [as v with length 1] or None
    v_scales: mx.array | None = None
    v_means: mx.array | None = None


@dataclass(slots=True, eq=False)
class Result:
    """out: [batch, query_heads, q_len, value_dim], dtype of q; lse, max_scores: float32 [batch, query_heads, q_len].

    notice: which option was not followed, why, and the remedy; the caller says it once.
    intermediates: what each stage gave, by name and in order, if the call was staged.
    """

    out: mx.array
    lse: mx.array | None
    max_scores: mx.array | None
    notice: str | None = None
    intermediates: dict[str, mx.array] = field(default_factory=dict)
