"""Kernel + call -> result: the inputs, scalars and grid of one launch, as a node of MLX's lazy graph."""

from __future__ import annotations

import math
from typing import Protocol

import mlx.core as mx

from ..call import AttentionCall, Result
from ..gpu.arguments import bits, captured_arrays, words_of_captures
from ..gpu.extremes import extremes_of_blocks
from ..gpu.tile_lists import Tiles
from .attention.plan import Plan


def run(cubin: bytes, name: str, plan: Plan, tiles: Tiles, extremes: tuple[int, ...], call: AttentionCall) -> Result:
    """out, lse and max_scores of one call. Nothing is evaluated."""
    batch, query_heads, q_len, _ = call.q.shape
    grid = (-(-q_len // plan.bq) * plan.slices * plan.threads, query_heads, batch)
    return attend(cubin, name, [call.q, call.k, call.v], grid, plan, tiles, extremes, call)


class Launched(Protocol):
    """What a launch takes of a plan."""

    @property
    def threads(self) -> int: ...

    @property
    def shared_bytes(self) -> int: ...


def attend(
    cubin: bytes,
    name: str,
    tensors: list[mx.array],
    grid: tuple[int, int, int],
    plan: Launched,
    tiles: Tiles,
    extremes: tuple[int, ...],
    call: AttentionCall,
) -> Result:
    """A node of the attention kernel. tensors: how it gets q, k and v. grid: in threads."""
    batch, query_heads, q_len, _ = call.q.shape
    _, kv_heads, kv_len, value_dim = call.v.shape
    rows = (batch, query_heads, q_len)
    arrays = captured_arrays(call.mods, False)
    sizes = (query_heads, kv_heads, call.k.shape[0], q_len, kv_len, bits(call.scale))
    masks = (
        tiles.params[key] for key in ("mask_batches", "mask_heads", "q_blocks", "kv_blocks", "q_block", "kv_block")
    )
    out, lse, max_scores = mx.fast.precompiled_cuda_kernel(
        name=name,
        compiled_source=cubin,
        inputs=[*tensors, tiles.lists, *arrays, *(extremes_of_blocks(arrays[slot]) for slot in extremes)],
        output_shapes=[(*rows, max(1, value_dim)), rows, rows],
        output_dtypes=[call.q.dtype, mx.float32, mx.float32],
        scalars=[*sizes, *masks, *words_of_captures(call.mods)],
        grid=grid,
        threadgroup=(plan.threads, 1, 1),
        shared_memory=plan.shared_bytes,
        ensure_row_contiguous=True,
    )
    return _result(call, out[..., :value_dim] if value_dim == 0 else out, lse, max_scores)


def empty(call: AttentionCall) -> Result | None:
    """The result where there is no row or no key; None where there are some."""
    rows, value_dim = call.q.shape[:3], call.v.shape[3]
    if math.prod(rows) and call.k.shape[2]:
        return None
    nothing = mx.full(rows, -mx.inf, mx.float32)
    return _result(call, mx.zeros((*rows, value_dim), call.q.dtype), nothing, nothing)


def _result(call: AttentionCall, out: mx.array, lse: mx.array, max_scores: mx.array) -> Result:
    return Result(out, lse if call.want_lse else None, max_scores if call.want_max else None)
