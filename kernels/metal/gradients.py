"""BackwardCall -> gradients, nothing evaluated: which kernels run, and what passes from one to the next."""

from __future__ import annotations

import mlx.core as mx

from flextrace.tracer import Pattern

from ..call import BackwardCall, Gradients
from ..gpu.arguments import flat
from ..gpu.captured import array_gradients, check_memory, wanted_sites
from .backward.launch import Launches, Load
from .backward.text import KEY, QUERY, TIES


def gradients(call: BackwardCall, load: Load) -> Gradients:
    """Gradients of one call; `load` gives a kernel of text.py.

    Raises:
        ValueError: more arrays are captured than a Metal kernel has buffers, or their gradients need too much memory.
    """
    q, k, v = call.call.q, call.call.k, call.call.v
    if q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] == 0:  # no row, or nothing that a row could attend to
        nothing = tuple([mx.zeros_like(call.call.mods.arrays[slot]) for slot in call.wanted])
        return Gradients(mx.zeros_like(q), mx.zeros_like(k), mx.zeros_like(v), nothing)
    run = Launches(call, load)
    check_memory(call, run)
    statistics = [call.lse, _delta(call)]
    if call.d_max_scores is not None:
        largest, ties = run.rows(TIES, [q, k], [(1, mx.float32), (1, mx.float32)])
        largest, ties = (x.reshape(call.lse.shape) for x in (largest, ties))
        statistics += [largest, mx.where(ties > 0, call.d_max_scores / mx.maximum(ties, 1), 0)]
    tail = [flat(mx.stack(statistics))]
    head, value = run.dims
    row_sites, column_sites = (wanted_sites(call, pattern) for pattern in (Pattern.ROW, Pattern.COLUMN))
    d_q, of_rows = run.rows(QUERY, run.tensors, [(head, q.dtype)], tail, row_sites)
    d_k, d_v, of_columns = run.rows(KEY, run.tensors, [(head, k.dtype), (value, v.dtype)], tail, column_sites)
    arrays = array_gradients(call, run, of_rows, of_columns, tail) if call.wanted else ()
    return Gradients(d_q[..., : q.shape[3]], d_k[..., : k.shape[3]], d_v[..., : v.shape[3]], arrays)


def _delta(call: BackwardCall) -> mx.array:
    """What the gradients of a row's scores have in common, float32 [batch, query_heads, q_len]."""
    delta = (call.d_out.astype(mx.float32) * call.out.astype(mx.float32)).sum(-1)
    return delta if call.d_lse is None else delta - call.d_lse
