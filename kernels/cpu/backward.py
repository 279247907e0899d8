"""BackwardCall -> gradients on the CPU: fills the kernel's Backward and runs it on MLX's own buffers."""

from __future__ import annotations

import struct
from collections.abc import Callable

import mlx.core as mx
import numpy as np

from flextrace.tracer import Pattern

from ..buffers import locate, locate_aligned, new_array
from ..call import BackwardCall, Gradients
from .launch import address_of, run_kernel, thread_count
from .params import Backward, packed

Q_TILE, KV_TILE = 96, 128  # rows of a query tile, at most, and keys of a tile
MOST_BYTES = 2**30  # of memory for the gradients of captured arrays, beside those themselves
REST = packed(Backward, "d_out")


def differentiate(entry: Callable[..., int], call: BackwardCall) -> Gradients:
    """Run the backward kernel; what is not evaluated yet is.

    Raises:
        MemoryError: no room for one head of packed keys and values with their gradients.
        ValueError: what a thread needs for the gradients of captured arrays is more than MOST_BYTES.
        OverflowError: a captured integer array holds a value outside int32.
        KeyboardInterrupt: Ctrl-C, or what else the handler of a signal raises; seen between two jobs.
    """
    forward, d_out = call.call._replace(threads=_threads(call)), call.d_out
    q, k, v = forward.q, forward.k, forward.v
    d_max_scores = call.d_max_scores
    if d_max_scores is not None and not d_max_scores.any():  # it would cost a second look at all scores
        d_max_scores = None
    rows = [None if x is None else mx.contiguous(x) for x in (call.lse, call.max_scores, call.d_lse, d_max_scores)]
    out = mx.contiguous(call.out)
    mx.eval(*forward.arrays, out, d_out, *rows)
    arrays = tuple(forward.mods.arrays[slot] for slot in call.wanted)
    sums = [_zeros(array.shape) for array in arrays]
    if q.size == 0 or k.size == 0 or v.size == 0:
        return Gradients(mx.zeros_like(q), mx.zeros_like(k), mx.zeros_like(v), tuple(map(mx.zeros_like, arrays)))
    (dq, dq_at), (dk, dk_at), (dv, dv_at) = (new_array(x.shape, x.dtype) for x in (q, k, v))
    lse, max_scores, d_lse, d_max = rows
    d_lse_at, d_max_at = (0 if x is None else locate(x)[0] for x in (d_lse, d_max))
    d_out, d_out_at, d_out_strides = locate_aligned(d_out)
    gradients = struct.pack(f"={len(sums)}Q", *(at for _, at in sums))
    rest = REST.pack(
        *(d_out_at, *d_out_strides, d_lse_at, d_max_at, dq_at, dk_at, dv_at, k.shape[0], address_of(gradients))
    )
    run_kernel(entry, forward, (out, lse, max_scores), rest)
    return Gradients(dq, dk, dv, tuple(sum.astype(array.dtype) for (sum, _), array in zip(sums, arrays, strict=True)))


def _threads(call: BackwardCall) -> int:
    """How many threads may run, each with its own sums for the sites (captures.h)."""
    mods, kv_len = call.call.mods, call.call.k.shape[2]
    keys = (kv_len + KV_TILE - 1) // KV_TILE * KV_TILE
    wanted = call.call.threads or thread_count()
    bytes_of = dict.fromkeys(call.wanted, 0)
    for site in mods.formulas.sites:
        if site.slot in bytes_of:
            table = mods.arrays[site.slot].size
            floats = {Pattern.TABLE: table, Pattern.DENSE: Q_TILE * keys, Pattern.ROW: Q_TILE}
            bytes_of[site.slot] += 4 * floats.get(site.pattern, keys + 2 * Q_TILE)
    needed = sum(bytes_of.values())
    if needed <= MOST_BYTES:
        return min(wanted, MOST_BYTES // max(1, needed))
    largest = max(bytes_of, key=bytes_of.__getitem__)
    raise ValueError(
        f"the gradient of {mods.formulas.arrays[largest].name} needs {needed >> 20} MB of sums for each thread, which "
        f"is over {MOST_BYTES >> 20} MB: its indices depend on data of both sides or on the score. Index it by one "
        'side, by q_idx - kv_idx, or by q_idx and kv_idx themselves, make it smaller, or use {"BACKEND": "ops"}'
    )


def _zeros(shape: tuple[int, ...]) -> tuple[mx.array, int]:
    made = mx.array(np.zeros(shape, np.float32))
    return made, locate(made)[0] if made.size else 0
