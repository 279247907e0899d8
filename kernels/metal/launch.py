"""Kernel + call -> result: the inputs, template arguments and grid of one launch, as a node of MLX's lazy graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np

from ..call import AttentionCall, Result
from ..gpu.arguments import captured_arrays, flat, in_device_memory, words_of_captures
from ..gpu.extremes import extremes_of_blocks
from ..gpu.tile_lists import tiles_for
from .attention.plan import plan_for
from .int8.quantise import Operands
from .kernel import Launch
from .params import AttentionParams, paired, words
from .scoring import Scoring
from .text import KernelText

# The work of one launch, at most. macOS ends a command buffer that keeps the GPU for several seconds; M1, with 8 cores,
# makes 1.3e12 multiplications of float32 a second at most, so this many take it about a second at half of that.
MOST_MULTIPLIES = 2**39


def run(kernel: Launch, call: AttentionCall, made: Operands, text: KernelText) -> Result:
    """out, lse and max_scores of one call, by one launch, or several of some rows each where one would take long.

    Nothing is evaluated; but several launches are begun one by one, except inside MLX's transformations.
    """
    batch, query_heads, q_len, head_dim = call.q.shape
    _, kv_heads, kv_len, value_dim = call.v.shape
    rows = (batch, query_heads, q_len)
    if batch * query_heads * q_len == 0 or kv_len == 0:
        empty = mx.full(rows, -mx.inf, mx.float32)
        return Result(mx.zeros((*rows, value_dim), call.q.dtype), *_asked_for(call, empty, empty))
    dtype = str(call.q.dtype).removeprefix("mlx.core.")
    plan = plan_for(max(1, head_dim), max(1, value_dim), dtype, text.scoring)
    tiles = tiles_for(call.blocks, plan, q_len, kv_len)
    kv_batches = made.k.shape[0]  # of one batch of k there may be several, each less means of its own
    params = AttentionParams(
        query_heads=query_heads,
        kv_heads=kv_heads,
        kv_batches=kv_batches,
        q_len=q_len,
        kv_len=kv_len,
        scale=call.scale,
        **tiles.params,
        first_tile=0,
    )
    arrays = captured_arrays(call.mods, text.packed)
    captured = words_of_captures(call.mods)
    of_captures = flat(_ints(captured))
    before = [in_device_memory(x) for x in (made.q, made.k, of_batches(call.v, kv_batches))]
    behind = [
        *(tiles.lists, *arrays),
        *(extremes_of_blocks(arrays[slot]) for slot in text.extremes),
        *factors(call, made, text.scoring),
    ]

    def launched(first_tile: int, count: int) -> Sequence[mx.array]:
        """One launch, of so many tiles of query rows."""
        sizes = words(params._replace(first_tile=first_tile))
        numbers = [flat(_ints([*sizes, *captured]))] if text.packed else [paired(sizes), of_captures]
        some = (batch, query_heads, min(q_len - first_tile * plan.bq, count * plan.bq))
        return kernel(
            inputs=[*before, *numbers, *behind],
            template=[("T", call.q.dtype), *plan.template(), ("BLOCKS", tiles.mode)],
            grid=(count * plan.value_slices * plan.threads, query_heads, batch),
            threadgroup=(plan.threads, 1, 1),
            output_shapes=[(*some, max(1, value_dim)), some, some],
            output_dtypes=[call.q.dtype, mx.float32, mx.float32],
        )

    multiplies = batch * query_heads * plan.bq * kv_len * (head_dim + value_dim)
    out, lse, max_scores = in_launches(launched, -(-q_len // plan.bq), multiplies, join_rows)
    return finished(call, made, text.scoring, out[..., :value_dim] if value_dim == 0 else out, lse, max_scores)


def in_launches(
    launched: Callable[[int, int], Sequence[mx.array]],
    tiles: int,
    multiplies: int,
    join: Callable[[Sequence[Sequence[mx.array]]], Sequence[mx.array]],
) -> Sequence[mx.array]:
    """What a kernel gives for all tiles of rows, by one launch, or by several, begun one by one, whose outputs `join`
    makes one of.

    launched: from the first tile of a launch and their count. multiplies: of one tile, unmasked.
    """
    at_once = tiles_at_once(tiles, multiplies)
    if at_once == tiles:
        return launched(0, tiles)
    parts = []
    for first in range(0, tiles, at_once):
        parts.append(launched(first, min(at_once, tiles - first)))
        _begin(parts[-1])
    return join(parts)


def join_rows(parts: Sequence[Sequence[mx.array]]) -> Sequence[mx.array]:
    """Outputs of several launches, rows along axis 2."""
    return [mx.concatenate(list(some), axis=2) for some in zip(*parts, strict=True)]


def tiles_at_once(tiles: int, multiplies: int) -> int:
    """How many tiles of query rows one launch takes, as evenly as may be; `multiplies`: of one of them, unmasked."""
    most = max(1, MOST_MULTIPLIES // multiplies) if multiplies else tiles
    return -(-tiles // -(-tiles // most))


def _begin(arrays: Sequence[mx.array]) -> None:
    """Have MLX hand over what it has encoded so far: it waits for 40 kernels, or for 40 million elements that they
    read, before it commits a command buffer, and a buffer has one time limit for all of them."""
    async_eval: Callable[..., None] = mx.async_eval
    try:
        async_eval(*arrays)
    except ValueError as error:
        if "transformation" not in str(error):
            raise  # inside one, they are begun when its results are


def finished(
    call: AttentionCall, made: Operands, scoring: Scoring, out: mx.array, lse: mx.array, max_scores: mx.array
) -> Result:
    """What a kernel gives as the result of its call."""
    if made.row_terms is not None and not scoring.add_back:  # -inf, of a row that attends to nothing, stays
        lse, max_scores = lse + made.row_terms, max_scores + made.row_terms
    return Result(out, *_asked_for(call, lse, max_scores))


def _asked_for(call: AttentionCall, lse: mx.array, max_scores: mx.array) -> tuple[mx.array | None, mx.array | None]:
    return lse if call.want_lse else None, max_scores if call.want_max else None


def _ints(numbers: Sequence[int]) -> mx.array:
    return mx.array(np.array(numbers, np.int32))


def of_batches(x: mx.array, batches: int) -> mx.array:
    """Values, or what belongs to them, one for each batch of keys."""
    return x if x.shape[0] == batches else mx.broadcast_to(x, (batches, *x.shape[1:]))


def factors(call: AttentionCall, made: Operands, scoring: Scoring) -> list[mx.array]:
    """The inputs that `scoring` names, in that order. Scales of keys stay where they lie, as k and v do."""
    given = made._asdict() | {"value_scales": call.v_scales, "value_means": call.v_means}
    for name in ("value_scales", "value_means"):
        given[name] = None if given[name] is None else of_batches(given[name], made.k.shape[0])
    return [in_device_memory(given[name]) if name in scoring.strided else flat(given[name]) for name in scoring.inputs]
