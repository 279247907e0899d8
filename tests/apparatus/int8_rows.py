"""Calls of the fused Metal kernel with keys and values that are in int8 already, and what float64 numpy makes of them.

Rows of q are whole numbers times a power of two, which rounding leaves as they are: what differs is float rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import quant_reference
import reference
from apparatus.simulated import Shape, backend
from calls import attention_call, run_on
from reference import Array

import flextrace as flex
from flextrace.decorators import bound
from flextrace.kernels import AttentionCall, QKQuant, Result, Smoothing
from flextrace.kernels.simulator import SimulatorBackend, recording

SCALE = 0.3
UNIT = 1 / 64


class Rows(NamedTuple):
    """Row = values * scales + means: int8 [batch, heads, rows, columns], float32 [batch, heads, rows], and
    float32 [batch, heads, 1, columns]."""

    values: Array
    scales: Array
    means: Array

    def exact(self) -> Array:
        with np.errstate(invalid="ignore"):
            return self.values * self.scales[..., None].astype(np.float64) + self.means.astype(np.float64)


def rounded(x: Array, smooth: bool) -> Rows:
    """A row that is not finite has scale nan, one of zeros scale 0."""
    finite = np.where(np.isfinite(x), x, 0)
    means = finite.mean(axis=2, keepdims=True).astype(np.float32) * smooth
    values, scales = np.zeros(x.shape, np.int8), np.zeros(x.shape[:3], np.float32)
    for b, h in np.ndindex(*x.shape[:2]):
        values[b, h], scales[b, h] = quant_reference.quantise(x[b, h] - means[b, h], 1, np.zeros(x.shape[2]))
    return Rows(values, scales, means)


@dataclass
class Tensors:
    """q and v: float32 numbers that the dtype of the call has. v: Rows, or such an array."""

    q: Array
    k: Rows
    v: Rows | Array
    dtype: str


def tensors(shape: Shape, dtype: str, int8_values: bool = True, smooth: bool = True) -> Tensors:
    rng = np.random.default_rng(sum(shape))
    b, hq, lq, d, bkv, hkv, lkv, dv = shape
    q = rng.integers(-126, 127, size=(b, hq, lq, d)).astype(np.float32)
    q[..., rng.integers(d)] = 127
    k = rng.normal(size=(bkv, hkv, lkv, d)) + 2 * rng.normal(size=d)
    v = rng.normal(size=(bkv, hkv, lkv, dv)) + rng.normal(size=dv)
    v = np.array(mx.array(v).astype(getattr(mx, dtype)).astype(mx.float32))
    return Tensors(q * UNIT, rounded(k.astype(np.float32), smooth), rounded(v, smooth) if int8_values else v, dtype)


def cut(x: Array, spoil: float) -> mx.array:
    """A slice of a larger buffer, as a cache has it: what lies around is never to be read into a result."""
    room = np.full((*x.shape[:2], x.shape[2] + 9, *x.shape[3:]), spoil, x.dtype)
    room[:, :, 4 : 4 + x.shape[2]] = x
    return mx.array(room)[:, :, 4 : 4 + x.shape[2]]


def heads_last(x: mx.array) -> mx.array:
    """The same numbers with another order in memory, [batch, length, heads, ..]."""
    return mx.contiguous(x.swapaxes(1, 2)).swapaxes(1, 2)


def call_of(given: Tensors, add_back: bool = False, sliced: bool = True) -> AttentionCall:
    def laid(x: Array, spoil: float) -> mx.array:
        return cut(x, spoil) if sliced else mx.array(x)

    q, k, v = mx.array(given.q).astype(getattr(mx, given.dtype)), given.k, given.v
    values = laid(v.values, 99) if isinstance(v, Rows) else mx.array(v).astype(q.dtype)
    asked: dict[str, Any] = {"want_lse": True, "want_max": True}
    asked |= {"k_scales": laid(k.scales, np.nan), "quant": QKQuant("row", smooth_k=False)}
    if k.means.any() or add_back:
        asked["smoothing"] = Smoothing(mx.array(k.means), add_back=add_back)
    if isinstance(v, Rows):
        asked |= {"v_scales": laid(v.scales, np.nan), "v_means": mx.array(v.means) if v.means.any() else None}
    return attention_call(q, laid(k.values, 99), values, SCALE, **asked)


def run(
    call: AttentionCall,
    score_mod: Any = None,
    mask_mod: Any = None,
    order: str = "forward",
    block_size: Any = None,
    kernels: SimulatorBackend | None = None,
) -> Result:
    mask = None if mask_mod is None else flex.mask_mod(mask_mod)
    sizes = (*call.q.shape[:3], call.k.shape[2])
    if block_size is not None:
        call = call._replace(blocks=flex.create_block_mask(mask, *sizes, BLOCK_SIZE=block_size).blocks)
    call = call._replace(mods=bound(None if score_mod is None else flex.score_mod(score_mod), mask))
    with recording() as reports:
        result = run_on((kernels or backend(order)), call)
    assert all(reports[-1].buffers[name].unwritten == 0 for name in ("out", "lse", "max_scores"))
    return result


def expected(
    given: Tensors, score_mod: Any = None, mask_mod: Any = None, add_back: bool = False
) -> reference.Attention:
    """A key or value whose scale is nan shows in the rows that attend to it, and in no other."""
    q = given.q.astype(np.float64)
    ratio = q.shape[1] // given.k.values.shape[1]
    small = Rows(given.k.values, given.k.scales, np.zeros(1, np.float32)).exact()
    k, means = (np.repeat(x, ratio, axis=1) for x in (small, given.k.means.astype(np.float64)))
    values = given.v.exact() if isinstance(given.v, Rows) else given.v.astype(np.float64)
    v = np.repeat(values, ratio, axis=1)
    scores, term = SCALE * q @ k.swapaxes(-1, -2), SCALE * q @ means.swapaxes(-1, -2)
    scores = scores + term if add_back else scores
    if score_mod is not None:
        scores = reference.apply_score_mod(scores, score_mod)
    if mask_mod is not None:
        scores = np.where(reference.apply_mask_mod(mask_mod, scores.shape), scores, -np.inf)
    highest = scores.max(axis=-1, initial=-np.inf)
    weights = np.exp(scores - np.where(highest == -np.inf, 0.0, highest)[..., None])
    total = weights.sum(axis=-1)
    seen = np.where(total == 0, 1.0, total)[..., None]
    late = 0 if add_back else term[..., 0]
    with np.errstate(divide="ignore"):
        lse = highest + np.log(total) + late
    unknown = (weights != 0).astype(np.float64) @ np.isnan(v)
    out = np.where(unknown > 0, np.nan, weights / seen @ np.where(np.isnan(v), 0, v))
    return reference.Attention(out, lse, highest + late)


# Float rounding only. float16 and bfloat16: of the result; values that are not int8 meet rounded weights.
OUT = {"float32": 3e-5, "float16": 3e-3, "bfloat16": 2e-2}


def compare(given: Tensors, result: Result, want: reference.Attention) -> None:
    assert result.lse is not None and result.max_scores is not None and str(result.out.dtype).endswith(given.dtype)
    tolerance = OUT[given.dtype]
    np.testing.assert_allclose(np.array(result.out.astype(mx.float32)), want.out, tolerance, tolerance)
    np.testing.assert_allclose(np.array(result.lse), want.lse, 1e-4, 1e-4)
    known = ~np.isnan(want.lse)
    np.testing.assert_allclose(np.array(result.max_scores)[known], want.max_scores[known], 1e-4, 1e-4)
