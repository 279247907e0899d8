"""AttentionCall -> result in MLX operations: tiles of scores with an online softmax (arXiv 1805.02867).

Runs wherever MLX runs, also inside mx.compile, mx.vmap and mx.grad; never forms the full score matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import mlx.core as mx
import numpy as np

from ..backend import Built, needs_values
from ..call import AttentionCall, BackwardCall, Gradients, Result
from ..spec import ATTENTION, Formulas, KernelSpec
from ..stages.protocol import Stages
from .table import evaluate, evaluate_score

TILE_SCORES = 2**23  # scores held at once, over all heads


class OpsBackend:
    """Attention in MLX array operations."""

    name = "ops"
    lazy = True
    quantises = False
    keeps_gradients = False
    forward: tuple[str, ...] = (ATTENTION,)
    kernels = None

    def unavailable(self) -> str | None:
        return None

    def spec(self, call: AttentionCall) -> KernelSpec:
        return KernelSpec(ATTENTION, call.mods.formulas)

    def named(self, mods: Formulas) -> dict[str, KernelSpec]:
        return {"attention": KernelSpec(ATTENTION, mods)}

    def text(self, spec: KernelSpec) -> str:
        parts = [f"{mod.kind.removesuffix('_mod')}: {mod.expr}" for mod in spec.mods.present]
        return "\n".join(parts or ["plain attention"])

    def key(self, spec: KernelSpec) -> str | None:
        return None

    def load(self, spec: KernelSpec) -> OpsBackend:
        return self

    def build(self, call: AttentionCall, gradients: bool = False) -> list[Built]:
        return []

    def stages(self, threads: int = 0) -> Stages:
        raise ValueError(
            "the ops backend has no stage kernels; choose the cpu, metal, cuda or simulator backend for them, or leave "
            'kernel_options={"PIPELINE": "staged"} out'
        )

    def backward(self, call: BackwardCall) -> Gradients:
        """By MLX's own differentiation of `run`."""
        forward = call.call._replace(want_lse=True, want_max=call.d_max_scores is not None)
        cotangents = [call.d_out, mx.zeros_like(call.lse) if call.d_lse is None else call.d_lse]
        if call.d_max_scores is not None:
            cotangents.append(call.d_max_scores)

        def outputs(q: mx.array, k: mx.array, v: mx.array, *arrays: mx.array) -> list[mx.array]:
            mods = forward.mods.with_arrays(dict(zip(call.wanted, arrays, strict=True)))
            found = self.run(forward._replace(q=q, k=k, v=v, mods=mods))
            return [part for part in (found.out, found.lse, found.max_scores) if part is not None]

        primals = [forward.q, forward.k, forward.v, *(forward.mods.arrays[slot] for slot in call.wanted)]
        _, (dq, dk, dv, *arrays) = mx.vjp(outputs, primals, cotangents)
        return Gradients(dq, dk, dv, tuple(arrays))

    def run(self, call: AttentionCall) -> Result:
        batch, heads, q_len, _ = call.q.shape
        kv_heads, kv_len, value_dim = call.v.shape[1:]
        if batch * heads * q_len == 0:
            none = mx.zeros((batch, heads, q_len))
            out = mx.zeros((batch, heads, q_len, value_dim), dtype=call.q.dtype)
            return Result(out, none if call.want_lse else None, none if call.want_max else None)
        groups = heads // kv_heads
        split = (batch, kv_heads, groups)
        q = call.q.astype(mx.float32).reshape(*split, q_len, call.q.shape[-1]) * call.scale
        k = call.k.astype(mx.float32)[:, :, None].swapaxes(-1, -2)
        v = call.v.astype(mx.float32)[:, :, None]
        keys_may_be_left_out = bool(call.mods.present) or call.blocks is not None
        inputs, values = _Inputs(call, split), _Values.of(v, keys_may_be_left_out)
        multiply = cast("Callable[..., mx.array]", _product) if keys_may_be_left_out else mx.matmul
        tile = max(128, int(math.sqrt(TILE_SCORES / max(1, batch * heads))) // 128 * 128)
        outs, lses, maxima = [], [], []
        for q_first in range(0, q_len, tile):
            rows = slice(q_first, min(q_first + tile, q_len))
            m = mx.full((*split, rows.stop - rows.start, 1), -mx.inf)
            total = mx.zeros_like(m)
            acc = infinities = mx.zeros((*split, rows.stop - rows.start, value_dim))
            for columns in _visited(call, rows, kv_len, tile):
                s = inputs.scores(multiply(q[..., rows, :], k[..., columns]), rows, columns)
                m_new = mx.maximum(m, s.max(axis=-1, keepdims=True))
                safe = mx.where(m_new == -mx.inf, 0.0, m_new)  # a row without keys so far
                p = mx.exp(s - safe)
                shrink = mx.exp(m - safe)
                total = total * shrink + p.sum(axis=-1, keepdims=True)
                acc = acc * shrink + p @ values.finite[..., columns, :]
                if values.marks is not None:
                    infinities = infinities + _sum_of_marked(p, values.marks[..., columns, :])
                m = m_new
            empty = total == 0
            outs.append(mx.where(empty, 0.0, acc / mx.where(empty, 1.0, total) + infinities))
            lses.append(mx.where(empty, -mx.inf, m + mx.log(mx.where(empty, 1.0, total))))
            maxima.append(m)

        def joined(parts: list[mx.array], width: int) -> mx.array:
            return mx.concatenate(parts, axis=3).reshape(batch, heads, q_len, width)

        return Result(
            joined(outs, value_dim).astype(call.q.dtype),
            joined(lses, 1)[..., 0] if call.want_lse else None,
            joined(maxima, 1)[..., 0] if call.want_max else None,
        )


PLUS, MINUS = 1.0, 4096.0  # more than a tile has keys, and sums of both are exact in float32


class _Values(NamedTuple):
    """v, with 0 where it is infinite or nan, and marks of these: PLUS for inf, MINUS for -inf, both for nan; no marks
    where there are none, or where every row attends to all keys.

    A product with a weight of 0 would spoil rows that do not attend to them. Inside mx.compile and mx.vmap, which hide
    values, there are marks always, for one more product.
    """

    finite: mx.array
    marks: mx.array | None

    @staticmethod
    def of(v: mx.array, keys_may_be_left_out: bool) -> _Values:
        if not keys_may_be_left_out or _is_finite(v):
            return _Values(v, None)
        plus, minus = (mx.where((v == x) | mx.isnan(v), mark, 0.0) for x, mark in ((mx.inf, PLUS), (-mx.inf, MINUS)))
        return _Values(mx.where(mx.isfinite(v), v, 0.0), plus + minus)


@mx.custom_function
def _product(q: mx.array, k: mx.array) -> mx.array:
    """q @ k; what a row does not attend to never reaches its gradient either, whatever it holds: 0 * inf would."""
    return q @ k


@_product.vjp
def _of_finite_parts(primals: Sequence[mx.array], cotangent: mx.array, _: Any) -> list[mx.array]:
    finite = [mx.where(mx.isfinite(x), x, 0.0) for x in primals]
    gradients: list[mx.array] = mx.vjp(lambda q, k: [q @ k], finite, [cotangent])[1]
    return gradients


def _is_finite(v: mx.array) -> bool:
    """Whether all of it is; False where MLX does not let us see it."""
    try:
        return bool(mx.isfinite(v).all())
    except (ValueError, RuntimeError) as error:
        if not needs_values(error):
            raise
        return False


def _sum_of_marked(weights: mx.array, marks: mx.array) -> mx.array:
    """The sum of the marked values whose weight is not 0: 0, inf, -inf or nan."""
    sums = mx.stop_gradient((weights > 0).astype(mx.float32) @ marks)
    minus = mx.floor(sums / MINUS)
    return mx.where(sums > minus * MINUS, mx.inf, 0.0) + mx.where(minus > 0, -mx.inf, 0.0)


def _visited(call: AttentionCall, rows: slice, kv_len: int, tile: int) -> Iterator[slice]:
    """The tiles of keys to compute for these rows: with a BlockMask, those that it leaves."""
    live = None if call.blocks is None else _live_columns(call, rows)
    for first in range(0, kv_len, tile):
        columns = slice(first, min(first + tile, kv_len))
        if live is None or live[columns].any():
            yield columns


def _live_columns(call: AttentionCall, rows: slice) -> np.ndarray:
    """Per key: whether any block of these rows, in any batch and head, holds it."""
    blocks = call.blocks
    assert blocks is not None
    touched = slice(rows.start // blocks.q_block, -(-rows.stop // blocks.q_block))
    dense = _states(call)[:, :, touched].any(axis=(0, 1, 2))
    return np.repeat(dense, blocks.kv_block)


def _states(call: AttentionCall) -> np.ndarray:
    assert call.blocks is not None
    return call.blocks.states()


class _Inputs:
    """Scores of one tile -> scores after score_mod and mask, at their positions."""

    def __init__(self, call: AttentionCall, split: tuple[int, int, int]) -> None:
        self.call = call
        batch, kv_heads, groups = split
        self.b = mx.arange(batch, dtype=mx.int32).reshape(-1, 1, 1, 1, 1)
        self.h = mx.arange(kv_heads * groups, dtype=mx.int32).reshape(1, kv_heads, groups, 1, 1)
        self.arrays = call.mods.readable()
        self.states = None if call.blocks is None else mx.array(_states(call))

    def scores(self, scores: mx.array, rows: slice, columns: slice) -> mx.array:
        q_idx = mx.arange(rows.start, rows.stop, dtype=mx.int32).reshape(-1, 1)
        kv_idx = mx.arange(columns.start, columns.stop, dtype=mx.int32)
        values = {"score": scores, "b": self.b, "h": self.h, "q_idx": q_idx, "kv_idx": kv_idx}
        call, formulas = self.call, self.call.mods.formulas
        if formulas.score_expr is not None:
            found = evaluate_score(formulas.score_expr, values, call.mods.numbers, self.arrays)
            scores = mx.broadcast_to(found, scores.shape)
        mask = formulas.mask_expr
        keep = None if mask is None else evaluate(mask, values, call.mods.numbers, self.arrays)
        if self.states is not None and call.blocks is not None:
            state = self.states[:, :, q_idx // call.blocks.q_block, kv_idx // call.blocks.kv_block]
            # [mask_batch, mask_heads, q, kv] -> [batch or 1, kv_heads or 1, groups or 1, q, kv]
            heads = self.h.shape[1:3] if state.shape[1] > 1 else (1, 1)
            state = state.reshape(state.shape[0], *heads, *state.shape[2:])
            keep = (state > 0) if keep is None else (state == 2) | ((state == 1) & keep)
        return scores if keep is None else mx.where(keep, scores, -mx.inf)
