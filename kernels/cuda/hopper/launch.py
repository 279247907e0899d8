"""The Hopper kernel and a call -> result: two nodes of MLX's lazy graph, tensor maps and then the attention."""

from __future__ import annotations

import mlx.core as mx

from ...call import AttentionCall, Result
from ...gpu.tile_lists import Tiles
from ..launch import attend
from .maps import MAP_BYTES, shaped_maps
from .plan import HEAD_GROUP, HopperPlan

MAPS, LANES = 3, 32


def run_hopper(
    cubin: bytes,
    name: str,
    maps_cubin: bytes,
    maps_name: str,
    plan: HopperPlan,
    tiles: Tiles,
    extremes: tuple[int, ...],
    call: AttentionCall,
) -> Result:
    """out, lse and max_scores of one call. Nothing is evaluated."""
    batch, query_heads, q_len, _ = call.q.shape
    tensors = [mx.contiguous(x) for x in (call.q, call.k, call.v)]  # both nodes are to see the same memory
    boxes = tuple((x.shape, rows) for x, rows in zip(tensors, (plan.bq, plan.bk, plan.bk), strict=True))
    (maps,) = mx.fast.precompiled_cuda_kernel(
        name=maps_name,
        compiled_source=maps_cubin,
        inputs=[shaped_maps(boxes, plan.dtype), *tensors],
        output_shapes=[((MAPS + 1) * MAP_BYTES,)],
        output_dtypes=[mx.uint8],
        scalars=[],
        grid=(MAPS * LANES, 1, 1),
        threadgroup=(MAPS * LANES, 1, 1),
    )
    grid = (HEAD_GROUP * -(-q_len // plan.bq) * plan.threads, -(-query_heads // HEAD_GROUP), batch)
    return attend(cubin, name, [maps, *tensors], grid, plan, tiles, extremes, call)
