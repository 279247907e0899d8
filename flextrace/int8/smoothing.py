"""AttentionCall -> Smoothing: the means that are subtracted from the keys (SageAttention, arXiv 2410.02367).

Exact for any means: scale * q . k = scale * q . (k - m) + scale * q . m, and the last term is one number for all keys
that share m. Under a document mask each document has its own, so that packed sequences do not learn of each other.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from flextrace.kernels.blocks import FULL, Array, Blocks
from flextrace.kernels.call import AttentionCall
from flextrace.kernels.int8_types import Smoothing
from flextrace.kernels.products import factors
from flextrace.tracer import Bound, evaluate
from flextrace.tracer.expr.invariance import DocumentIds, document_ids
from flextrace.tracer.expr.node import Expr, leaves

REMEMBERED = 16  # maps of documents


def smoothing(call: AttentionCall) -> Smoothing:
    """What to subtract from the keys of a call, and whether the mod needs the row term back. Nothing of q, k and v is
    evaluated.

    Elements that are infinite or nan count as 0 in a mean. Where MLX hides the ids of documents (arrays that
    mx.compile or mx.vmap replaces), and where a BlockMask's full blocks connect documents, all keys share one mean.
    """
    groups = _groups_of(call)
    k, count = call.k, 1 if groups is None else groups.number
    segments = None if groups is None else groups.segments
    means, add_back = _means(k, segments, count), call.mods.needs_row_term
    if groups is None:
        return Smoothing(means, add_back=add_back, averages=True)
    return Smoothing(means, groups.keys, groups.rows, add_back, averages=True)


def smoothed(call: AttentionCall) -> AttentionCall:
    """The call, its smoothing added where it asks for it."""
    return call._replace(smoothing=smoothing(call)) if call.smooth_k else call


# -- documents ---------------------------------------------------------------------------------------------------


class Segments(NamedTuple):
    """The keys of one batch, group by group: order (None: as they lie) and [groups, 2] first and end."""

    order: mx.array | None
    ranges: mx.array


class Groups(NamedTuple):
    """keys: int32 [1 or batch, kv_len]; rows: int32 [1 or batch, q_len]; segments: of each batch of keys."""

    number: int
    keys: mx.array
    rows: mx.array
    segments: list[Segments]


def _groups_of(call: AttentionCall) -> Groups | None:
    mask = call.mods.mask
    found = None if mask is None else document_ids(mask.trace.expr)
    if mask is None or found is None or not call.q.size or not call.k.size:
        return None
    used = {node.value[0] for side in (found.rows, found.keys) for node in leaves(side, ("load",))}
    try:
        arrays = [_for_numpy(a) if slot in used else np.zeros(1) for slot, a in enumerate(mask.arrays)]
    except (ValueError, RuntimeError):  # MLX's refusal to evaluate inside a transformation
        return None
    ids = _ids(found, mask, arrays, call)
    return None if ids is None or not _full_blocks_agree(call.blocks, *ids) else _remembered(*ids)


def _for_numpy(array: mx.array | Array) -> Array:
    if isinstance(array, mx.array) and array.dtype == mx.bfloat16:
        array = array.astype(mx.float32)
    return np.asarray(array)


def _ids(found: DocumentIds, mask: Bound, arrays: list[Array], call: AttentionCall) -> tuple[Array, Array] | None:
    """The ids of rows and of keys, [1 or batch, length] each, if the mask keeps equal ids only and k has the batches
    that those of the keys need."""
    (batch, _, q_len, _), (kv_batch, _, kv_len, _) = call.q.shape, call.k.shape

    def evaluated(expr: Expr, index: str, length: int) -> Array:
        batches = batch if "b" in expr.varies else 1
        values = {"b": np.arange(batches)[:, None], index: np.arange(length)}
        found = evaluate(expr, values, numbers=mask.numbers, arrays=arrays)
        ids = np.broadcast_to(found, (batches, length))
        return ids[:1] if (ids == ids[:1]).all() else ids

    if found.starts:
        start = evaluated(found.keys, "kv_idx", max(q_len, kv_len))
        own = np.take_along_axis(start, start.clip(0, start.shape[1] - 1), axis=1)
        falls = (start[:, 1:] < start[:, :-1]).any()
        if falls or (start < 0).any() or (start > np.arange(start.shape[1])).any() or (own != start).any():
            return None
        rows, keys = start[:, :q_len], start[:, :kv_len]
    else:
        rows, keys = evaluated(found.rows, "q_idx", q_len), evaluated(found.keys, "kv_idx", kv_len)
    return None if keys.shape[0] > kv_batch else (rows, keys)


def _full_blocks_agree(blocks: Blocks | None, rows: Array, keys: Array) -> bool:
    """Whether full blocks, which run no mask, hold one document only: those of lists that a caller made may not."""
    if blocks is None:
        return True
    full = np.flatnonzero(blocks.state == FULL)
    mask_batch, mask_heads, q_blocks, _ = blocks.shape
    of_batch, q_block = np.divmod(blocks.rows[full], mask_heads * q_blocks)
    first_row = q_block % q_blocks * blocks.q_block
    first_key = blocks.first[full].astype(np.int64) * blocks.kv_block
    end_row = np.minimum(first_row + blocks.q_block, rows.shape[1])
    end_key = np.minimum(blocks.end[full].astype(np.int64) * blocks.kv_block, keys.shape[1])
    inside = (first_row < end_row) & (first_key < end_key)
    for b in range(max(mask_batch, len(rows), len(keys))):
        chosen = inside & (of_batch == (b if mask_batch > 1 else 0))
        row, key = (ids[b if len(ids) > 1 else 0] for ids in (rows, keys))
        agree = row[first_row[chosen]] == key[first_key[chosen]]
        for ids, first, end in ((row, first_row, end_row), (key, first_key, end_key)):
            change = np.concatenate([[0], np.cumsum(ids[1:] != ids[:-1])])
            agree &= change[first[chosen]] == change[end[chosen] - 1]
        if not agree.all():
            return False
    return True


_known: OrderedDict[Any, Groups] = OrderedDict()
_lock = threading.Lock()


def _remembered(rows: Array, keys: Array) -> Groups:
    name = tuple((ids.shape, hashlib.sha1(np.ascontiguousarray(ids).data).digest()) for ids in (rows, keys))
    with _lock:
        groups = _known.get(name)
        if groups is not None:
            _known.move_to_end(name)
            return groups
    groups = _numbered(rows, keys)
    with _lock:
        _known[name] = groups
        while len(_known) > REMEMBERED:
            _known.popitem(last=False)
    return groups


def _numbered(rows: Array, keys: Array) -> Groups:
    """Documents by number, 0 to count - 1; a row of a document without keys attends to nothing, and is of group 0."""
    documents, key_groups = np.unique(keys, return_inverse=True)
    key_groups = key_groups.reshape(keys.shape)
    at = np.searchsorted(documents, rows).clip(max=len(documents) - 1)
    row_groups = np.where(documents[at] == rows, at, 0)
    segments = []
    for ids in key_groups:
        order = np.argsort(ids, kind="stable")
        ends = np.cumsum(np.bincount(ids, minlength=len(documents)))
        ranges = np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1).astype(np.uint32)
        sorted_already = bool((ids[1:] >= ids[:-1]).all())
        segments.append(Segments(None if sorted_already else mx.array(order.astype(np.int32)), mx.array(ranges)))
    keys_at, rows_at = (mx.array(groups.astype(np.int32)) for groups in (key_groups, row_groups))
    return Groups(len(documents), keys_at, rows_at, segments)


# -- means -------------------------------------------------------------------------------------------------------


def mean_of_rows(rows: mx.array) -> mx.array:
    """Over the rows [batch, heads, rows, columns] as far as they are finite, without overflow: float32
    [batch, heads, 1, columns]."""
    return _shares(rows).sum(axis=2, keepdims=True)


def _shares(rows: mx.array) -> mx.array:
    """What each row adds to that mean."""
    x = rows.astype(mx.float32)
    return mx.where(mx.abs(x) < mx.inf, x, 0.0) * (1 / rows.shape[2])


def _means(k: mx.array, segments: list[Segments] | None, count: int) -> mx.array:
    """The mean of each group of keys: float32 [kv_batches, kv_heads, count, head_dim]."""
    batch, heads, length, head_dim = k.shape
    if not k.size:
        return mx.zeros((batch, heads, count, head_dim))
    if segments is None:
        return mean_of_rows(k)
    means, x = [], _shares(k)
    ones = mx.ones((1, length))
    for b in range(batch):
        order, ranges = segments[b if len(segments) > 1 else 0]
        rows = x[b].swapaxes(0, 1).reshape(length, heads * head_dim)
        first, *others = factors(rows if order is None else rows[order])
        sums = mx.segmented_mm(ones, first, ranges)
        for other in others:
            sums = sums + mx.segmented_mm(ones, other, ranges)
        sizes = (ranges[:, 1] - ranges[:, 0]).astype(mx.float32)
        share = length / mx.maximum(sizes, 1.0)
        means.append((sums[:, 0] * share[:, None]).reshape(count, heads, head_dim).swapaxes(0, 1))
    return mx.stack(means)
