"""Kernel + call -> result: the inputs, template arguments and grid of one launch, as a node of MLX's lazy graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from flextrace.tracer import Bound

from ..call import AttentionCall, Result
from ..mods import readable
from .generate import OUTPUTS, KernelText
from .plan import plan_for
from .tiles import SMALLEST, tiles_for

Launch = Callable[..., Sequence[mx.array]]
Factory = Callable[..., Any]  # mx.fast.metal_kernel, or what stands in for it


def run(kernel: Launch, call: AttentionCall) -> Result:
    """out, lse and max_scores of one call; nothing is evaluated."""
    batch, query_heads, q_len, head_dim = call.q.shape
    kv_batches, kv_heads, kv_len, value_dim = call.v.shape
    rows = (batch, query_heads, q_len)
    if batch * query_heads * q_len == 0 or kv_len == 0:
        empty = mx.full(rows, -mx.inf, mx.float32)
        return _result(call, mx.zeros((*rows, value_dim), call.q.dtype), empty, empty)
    dtype = str(call.q.dtype).removeprefix("mlx.core.")
    plan = plan_for(max(1, head_dim), max(1, value_dim), dtype)
    tiles = tiles_for(call.blocks, plan, q_len, kv_len)
    sizes = (query_heads, kv_heads, kv_batches, q_len, kv_len)
    mods = [mod for mod in (call.score_mod, call.mask_mod) if mod is not None]
    params = np.array([*sizes, _bits(call.scale), *tiles.words, *_numbers(mods)], np.int32)
    out, lse, max_scores = kernel(
        inputs=[
            *(_in_device_memory(x) for x in (call.q, call.k, call.v)),
            *(mx.array(params), tiles.lists, tiles.states),
            *(_readable(mod, array) for mod in mods for array in mod.arrays),
        ],
        template=[("T", call.q.dtype), *plan.template(), ("BLOCKS", tiles.mode)],
        grid=(-(-q_len // plan.bq) * plan.value_slices * plan.threads, query_heads, batch),
        threadgroup=(plan.threads, 1, 1),
        output_shapes=[(*rows, max(1, value_dim)), rows, rows],
        output_dtypes=[call.q.dtype, mx.float32, mx.float32],
    )
    return _result(call, out[..., :value_dim] if value_dim == 0 else out, lse, max_scores)


def make(metal_kernel: Factory, text: KernelText, spaces: str) -> Launch:
    """MLX's callable for a kernel text. `spaces` sets apart kernels whose captures lie in other address spaces."""
    kernel: Launch = metal_kernel(
        name=f"{text.name}_{spaces}" if spaces else text.name,
        input_names=list(text.inputs),
        output_names=list(OUTPUTS),
        source=text.body,
        header=text.header,
        ensure_row_contiguous=False,
    )
    return kernel


def address_spaces(call: AttentionCall) -> str:
    """Per captured array: c where MLX passes it in the constant address space, d in device."""
    mods = [mod for mod in (call.score_mod, call.mask_mod) if mod is not None]
    return "".join("c" if array.size < SMALLEST else "d" for mod in mods for array in mod.arrays)


def _result(call: AttentionCall, out: mx.array, lse: mx.array, max_scores: mx.array) -> Result:
    return Result(out, lse if call.want_lse else None, max_scores if call.want_max else None)


def _in_device_memory(x: mx.array) -> mx.array:
    """The array with so many columns that MLX does not pass it in the constant address space."""
    return x if x.size >= SMALLEST else mx.pad(x, [(0, 0), (0, 0), (0, 0), (0, SMALLEST)])


def _numbers(mods: Sequence[Bound]) -> list[int]:
    """Captured numbers as 32-bit words."""
    return [
        _bits(float(number)) if capture.dtype == "float" else int(number)
        for mod in mods
        for capture, number in zip(mod.trace.numbers, mod.numbers, strict=True)
    ]


def _bits(number: float) -> int:
    with np.errstate(over="ignore"):  # beyond float32: infinite
        return int(np.float32(number).view(np.int32))


def _readable(mod: Bound, array: mx.array | np.ndarray[Any, Any]) -> mx.array:
    """A captured array as the kernel reads it: Metal has no float64."""
    given = readable(mod, array)
    return given.astype(mx.float32, stream=mx.cpu) if given.dtype == mx.float64 else given
