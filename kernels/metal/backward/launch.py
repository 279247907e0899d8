"""BackwardCall -> gradients: the launches of the gradient kernels, as nodes of MLX's lazy graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import mlx.core as mx
import numpy as np

from ...blocks import Blocks
from ...call import AttentionCall, BackwardCall, Gradients
from ...spec import KernelSpec
from ..arguments import captured_arrays, flat, in_device_memory, words_of_captures
from ..attention.tile_lists import tiles_for
from ..kernel import Launchable, Variant, capture_kinds
from ..launch import extremes_of_blocks, in_launches, slots_by_blocks
from ..params import AttentionParams, words
from .plan import GradientPlan, gradient_plan
from .text import KEY, QUERY, TIES

Load = Callable[[KernelSpec], Launchable]


def gradients(call: BackwardCall, load: Load) -> Gradients:
    """Gradients of one call, nothing evaluated; `load` gives a kernel of text.py."""
    attention = call.call
    q, k, v = attention.q, attention.k, attention.v
    if q.size // max(1, q.shape[3]) == 0 or k.shape[2] == 0:  # no row, or nothing that a row could attend to
        return Gradients(mx.zeros_like(q), mx.zeros_like(k), mx.zeros_like(v))
    run = _Launches(call, load)
    statistics = [call.lse, _delta(call)]
    if call.d_max_scores is not None:
        largest, ties = run(TIES, False, [q, k], [(1, mx.float32), (1, mx.float32)])
        largest, ties = (x.reshape(call.lse.shape) for x in (largest, ties))
        statistics += [largest, mx.where(ties > 0, call.d_max_scores / mx.maximum(ties, 1), 0)]
    inputs = [q, k, v, call.d_out]
    tail = [flat(mx.stack(statistics))]
    head, value = (max(1, x.shape[3]) for x in (q, v))
    (d_q,) = run(QUERY, False, inputs, [(head, q.dtype)], tail)
    d_k, d_v = run(KEY, True, inputs, [(head, k.dtype), (value, v.dtype)], tail)
    return Gradients(d_q[..., : q.shape[3]], d_k[..., : k.shape[3]], d_v[..., : v.shape[3]])


def _delta(call: BackwardCall) -> mx.array:
    """What the gradients of a row's scores have in common, float32 [batch, query_heads, q_len]."""
    delta = (call.d_out.astype(mx.float32) * call.out.astype(mx.float32)).sum(-1)
    return delta if call.d_lse is None else delta - call.d_lse


class _Launches:
    """What the launches of one call share."""

    def __init__(self, call: BackwardCall, load: Load) -> None:
        self.call: AttentionCall = call.call
        self.with_max = call.d_max_scores is not None
        self.load = load
        mods = self.call.mods
        self.variant = Variant(by_blocks=slots_by_blocks(self.call), kinds=capture_kinds(mods.arrays))

    def __call__(
        self,
        kernel: str,
        of_keys: bool,
        tensors: Sequence[mx.array],
        outputs: Sequence[tuple[int, mx.Dtype]],
        tail: Sequence[mx.array] = (),
    ) -> Sequence[mx.array]:
        """The outputs of a kernel, each [batch, heads, rows, columns], of q or, `of_keys`, of k."""
        call = self.call
        batch, query_heads, q_len, head_dim = call.q.shape
        kv_batches, kv_heads, kv_len, value_dim = call.v.shape
        made = self.load(KernelSpec(kernel, call.mods.formulas, self.variant))
        dtype = str(call.q.dtype).removeprefix("mlx.core.")
        plan = replace(gradient_plan(of_keys, max(1, head_dim), max(1, value_dim), dtype), with_max=self.with_max)
        blocks = _turned(call.blocks) if of_keys else call.blocks
        rows, others = (kv_len, q_len) if of_keys else (q_len, kv_len)
        tiles = tiles_for(blocks, plan, rows, others)
        params = AttentionParams(
            query_heads=query_heads,
            kv_heads=kv_heads,
            kv_batches=kv_batches,
            q_len=rows,
            kv_len=others,
            scale=call.scale,
            **tiles.params,
            first_tile=0,
        )
        arrays = captured_arrays(call.mods, made.text.packed)
        extremes = [extremes_of_blocks(arrays[slot]) for slot in made.text.extremes]
        groups = (kv_heads, kv_batches) if of_keys else (query_heads, batch)

        def launched(first_tile: int, count: int) -> Sequence[mx.array]:
            *before, first = words(params._replace(first_tile=first_tile))
            some = (groups[1], groups[0], min(rows - first_tile * plan.bq, count * plan.bq))
            return made.launch(
                inputs=[
                    *(in_device_memory(x) for x in tensors),
                    *(_words([*before[:-6], first]), _words([*before[-6:], batch // kv_batches])),
                    *(flat(_words(words_of_captures(call.mods))), tiles.lists, *tail, *arrays, *extremes),
                ],
                template=[("T", call.q.dtype), *plan.template(), ("BLOCKS", tiles.mode)],
                grid=(count * plan.slices * plan.threads, *groups),
                threadgroup=(plan.threads, 1, 1),
                output_shapes=[(*some, columns) for columns, _ in outputs],
                output_dtypes=[kind for _, kind in outputs],
            )

        return in_launches(launched, -(-rows // plan.bq), _multiplies(call, plan))


def _words(numbers: Sequence[int]) -> mx.array:
    return mx.array(np.array(numbers, np.int32))


def _multiplies(call: AttentionCall, plan: GradientPlan) -> int:
    """Multiplications of one tile of rows, in all heads, unmasked."""
    batch, query_heads, q_len, head_dim = call.q.shape
    kv_len, value_dim = call.v.shape[2:]
    others = q_len if plan.of_keys else kv_len
    products = (2 * head_dim + 2 * value_dim) if plan.of_keys else (2 * head_dim + value_dim)
    return batch * query_heads * plan.bq * others * products


def _turned(blocks: Blocks | None) -> Blocks | None:
    return None if blocks is None else blocks.transposed
