"""Kernel + call -> result: the inputs, scalars and grid of one launch, as a node of MLX's lazy graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import mlx.core as mx

from ..call import AttentionCall, Result
from ..gpu.arguments import bits, captured_arrays, words_of_captures
from ..gpu.extremes import extremes_of_blocks
from ..gpu.tile_lists import PARAMS, Tiles
from .attention.plan import Plan

# A tensor of so many bytes is read where it lies. To ask where costs more than to copy a smaller one, where need be.
IN_PLACE_BYTES = 4 << 20


Launch = Callable[..., Sequence[mx.array]]  # mx.fast.precompiled_cuda_kernel, of one kernel


class Launchable(Protocol):
    """A kernel, as `mx.fast.precompiled_cuda_kernel` launches it."""

    def launch(self, **call: Any) -> Sequence[mx.array]: ...


def run(launch: Launch, plan: Plan, tiles: Tiles, extremes: tuple[int, ...], call: AttentionCall) -> Result:
    """out, lse and max_scores of one call. Nothing is evaluated."""
    batch, query_heads, q_len, _ = call.q.shape
    grid = (-(-q_len // plan.bq) * plan.slices * plan.threads, query_heads, batch)
    tensors, in_place = [], 0
    for place, x in enumerate((call.q, call.k, call.v)):
        lies = x.nbytes >= IN_PLACE_BYTES
        in_place |= int(lies) << place
        # As bytes, rows whose columns do not lie together are copied, and no others.
        tensors += neighbours(x.view(mx.uint8), 3) if lies else [mx.contiguous(x)] * 4
    return attend(launch, tensors, grid, plan, tiles, extremes, call, (in_place,))


def neighbours(x: mx.array, axes: int = 4) -> list[mx.array]:
    """x, and what begins with the neighbours of its first element along the first `axes` of [batch, head, row, column]:
    x itself along an axis of one element, or that it lacks.

    All share its memory. By where they lie a kernel knows the strides, which MLX keeps from Python until x is
    evaluated, and does not hand to kernels that are compiled beforehand.
    """
    found = [x]
    for axis in range(axes):
        apart = axis < x.ndim and x.shape[axis] > 1
        found.append(mx.split(x, [1], axis=axis)[1] if apart else x)  # a split is made in a quarter of a slice's time
    return found


class Launched(Protocol):
    """What a launch takes of a plan."""

    @property
    def threads(self) -> int: ...

    @property
    def shared_bytes(self) -> int: ...


def attend(
    launch: Launch,
    tensors: list[mx.array],
    grid: tuple[int, int, int],
    plan: Launched,
    tiles: Tiles,
    extremes: tuple[int, ...],
    call: AttentionCall,
    scalars: tuple[int, ...] = (),
) -> Result:
    """A node of the attention kernel. tensors: how it gets q, k and v, as they lie. grid: in threads. scalars: those
    before the parameters."""
    batch, query_heads, q_len, _ = call.q.shape
    _, kv_heads, kv_len, value_dim = call.v.shape
    rows = (batch, query_heads, q_len)
    arrays = captured_arrays(call.mods, True)
    sizes = (query_heads, kv_heads, call.k.shape[0], q_len, kv_len, bits(call.scale))
    masks = (tiles.params[name] for name in PARAMS)
    out, lse, max_scores = launch(
        inputs=[*tensors, tiles.lists, *arrays, *(extremes_of_blocks(arrays[slot]) for slot in extremes)],
        output_shapes=[(*rows, max(1, value_dim)), rows, rows],
        output_dtypes=[call.q.dtype, mx.float32, mx.float32],
        scalars=[*scalars, *sizes, *masks, *words_of_captures(call.mods)],
        grid=grid,
        threadgroup=(plan.threads, 1, 1),
        shared_memory=plan.shared_bytes,
        ensure_row_contiguous=False,
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
