"""BackwardCall -> gradients, nothing evaluated: which kernels run, and what passes from one to the next."""

from __future__ import annotations

import mlx.core as mx

from flextrace.tracer import Pattern

from ..call import BackwardCall, Gradients
from ..gpu.captured import array_gradients, check_memory, wanted_sites
from .backward.launch import Launches, Load


def gradients(call: BackwardCall, load: Load, architecture: int) -> Gradients:
    """Gradients of one call; `load` gives a kernel of backward/text.py.

    Raises:
        ValueError: head dims do not fit a block, or the gradients of captured arrays need too much memory.
    """
    q, k, v = call.call.q, call.call.k, call.call.v
    if q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] == 0:  # no row, or nothing that a row could attend to
        nothing = tuple([mx.zeros_like(call.call.mods.arrays[slot]) for slot in call.wanted])
        return Gradients(mx.zeros_like(q), mx.zeros_like(k), mx.zeros_like(v), nothing)
    run = Launches(call, load, architecture)
    check_memory(call, run)
    terms = run.terms(call, run.ties() if run.with_max else ())
    row_sites, column_sites = (wanted_sites(call, pattern) for pattern in (Pattern.ROW, Pattern.COLUMN))
    d_q, of_rows = run.query(terms, row_sites)
    d_k, d_v, of_columns = run.key(terms, column_sites)
    arrays = array_gradients(call, run, of_rows, of_columns, [terms]) if call.wanted else ()
    return Gradients(d_q[..., : q.shape[3]], d_k[..., : k.shape[3]], d_v[..., : v.shape[3]], arrays)
