"""Kernel + call -> result, where q and k are to be multiplied as whole numbers: a node of MLX's lazy graph."""

from __future__ import annotations

import mlx.core as mx

from ...call import AttentionCall, Result
from ...gpu.tile_lists import Tiles
from ..attention.plan import Plan
from ..launch import Launch, attend
from .operands import operands


def run_rounded(launch: Launch, plan: Plan, tiles: Tiles, extremes: tuple[int, ...], call: AttentionCall) -> Result:
    """out, lse and max_scores of one call."""
    made = operands(call)
    batch, query_heads, q_len, _ = call.q.shape
    grid = (-(-q_len // plan.bq) * plan.slices * plan.threads, query_heads, batch)
    add_back = plan.scoring is not None and plan.scoring.add_back
    tensors = [made.q, made.k, made.v, made.row_scales, made.key_scales]
    given = (made.row_terms if add_back else None, made.mean_rows, made.mean_scores)
    tensors = [mx.contiguous(x) for x in (*tensors, *given) if x is not None]
    sized = call._replace(k=made.k, v=made.v)
    result = attend(launch, tensors, grid, plan, tiles, extremes, sized)
    if made.row_terms is not None and not add_back:  # -inf, of a row that attends to nothing, stays
        result.lse = None if result.lse is None else result.lse + made.row_terms
        result.max_scores = None if result.max_scores is None else result.max_scores + made.row_terms
    return result
