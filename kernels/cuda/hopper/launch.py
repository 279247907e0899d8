"""The Hopper kernel and a call -> result: two nodes of MLX's lazy graph, tensor maps and then the attention."""

from __future__ import annotations

import mlx.core as mx

from ...call import AttentionCall, Result
from ...gpu.tile_lists import Tiles
from ..launch import Launch, attend
from .maps import tensor_maps
from .plan import HEAD_GROUP, HopperPlan


def run_hopper(
    launch: Launch, maps: Launch, plan: HopperPlan, tiles: Tiles, extremes: tuple[int, ...], call: AttentionCall
) -> Result:
    """out, lse and max_scores of one call. Nothing is evaluated. maps: of maps.cu."""
    batch, query_heads, q_len, _ = call.q.shape
    tensors = [mx.contiguous(x) for x in (call.q, call.k, call.v)]  # both nodes are to see the same memory
    tensors.insert(0, tensor_maps(maps, tensors, (plan.bq, plan.bk, plan.bk), plan.dtype))
    grid = (HEAD_GROUP * -(-q_len // plan.bq) * plan.threads, -(-query_heads // HEAD_GROUP), batch)
    return attend(launch, tensors, grid, plan, tiles, extremes, call)
