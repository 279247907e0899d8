"""A key that a row does not attend to never reaches that row, whatever it holds: by every way to compute a call.

Keys and values hold inf, -inf and nan here and there. Rows that attend to them get what float64 numpy gives, and the
others what they would get without. Every head has a mask of its own, so that one kernel shows them all.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest
import reference
from backends import EVERY, STAGED, WAYS

import flextrace as flex

BATCH, HEADS, KV_HEADS, LENGTH = 2, 4, 2, 150  # more than one tile of keys, the last one cut
Array = np.ndarray

IDS = np.stack([np.repeat([0, 1, 2, 3], [40, 7, 60, 43]), np.repeat([4, 5, 6, 7], [3, 50, 70, 27])]).astype(np.int32)
ENDS = np.array([LENGTH - 20, 64], np.int32)
ids, ends = mx.array(IDS), mx.array(ENDS)


@flex.mask_mod
def by_head(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    """Causal; packed documents; a window; keys up to a length, and no row has the last ones."""
    if h == 0:
        return q_idx >= kv_idx
    if h == 1:
        return ids[b, q_idx] == ids[b, kv_idx]
    if h == 2:
        return (q_idx >= kv_idx) & (q_idx - kv_idx < 33)
    return (kv_idx < ends[b]) & (q_idx < 140)


@flex.score_mod
def by_score(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score if by_head(b, h, q_idx, kv_idx) else -float("inf")


def kept(q_len: int) -> Array:
    """by_head in numpy: bool [batch, heads, q_len, keys]."""
    q, kv = np.arange(q_len)[:, None], np.arange(LENGTH)
    heads = [
        np.broadcast_to(q >= kv, (BATCH, q_len, LENGTH)),
        IDS[:, :q_len, None] == IDS[:, None, :],
        np.broadcast_to((q >= kv) & (q - kv < 33), (BATCH, q_len, LENGTH)),
        (kv < ENDS[:, None, None]) & (q < 140),
    ]
    return np.stack(heads, axis=1)


HOW = ("mask_mod", "BlockMask", "score_mod", "both")


def mods(how: str, q_len: int) -> dict[str, Any]:
    if how == "score_mod":
        return {"score_mod": by_score}
    if how == "both":
        return {"score_mod": by_score, "block_mask": by_head}
    if how == "mask_mod":
        return {"block_mask": by_head}
    return {"block_mask": flex.create_block_mask(by_head, BATCH, HEADS, q_len, LENGTH, BLOCK_SIZE=(48, 40))}


# --- inputs -----------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """What is spoiled: "k", "v" or "kv", with infinities too or with nan alone; widths of k and v."""

    spoiled: str = "v"
    infinite: bool = True
    q_len: int = LENGTH
    dim: int = 8
    value_dim: int = 8
    dtype: str = "float32"
    seed: int = 0


class Inputs(NamedTuple):
    q: mx.array
    k: mx.array
    v: mx.array


def make_inputs(case: Case) -> Inputs:
    """Some keys of every head hold inf, -inf or nan in some columns, and one holds nothing else."""
    rng = np.random.default_rng(case.seed)
    sizes = (HEADS, case.q_len, case.dim), (KV_HEADS, LENGTH, case.dim), (KV_HEADS, LENGTH, case.value_dim)
    q, k, v = (rng.normal(size=(BATCH, *size)) for size in sizes)
    for name, x in (("k", k), ("v", v)):
        if name not in case.spoiled:
            continue
        for b, h in np.ndindex(BATCH, KV_HEADS):
            for value in (np.inf, -np.inf, np.nan) if case.infinite else (np.nan,):
                x[b, h, rng.integers(64, LENGTH), rng.random(x.shape[3]) < 0.3] = value
            x[b, h, rng.integers(64, LENGTH)] = np.inf if case.infinite and rng.random() < 0.5 else np.nan
    return Inputs(*(mx.array(x.astype(np.float32)).astype(getattr(mx, case.dtype)) for x in (q, k, v)))


@functools.lru_cache(maxsize=32)
def expected(case: Case) -> reference.Attention:
    q, k, v = (np.array(x.astype(mx.float32)).astype(np.float64) for x in make_inputs(case))
    mask = kept(case.q_len)
    with np.errstate(invalid="ignore"):
        return reference.attention(q, k, v, mask_mod=lambda *at: mask[at])


def check(way: str, how: str, case: Case) -> None:
    """A key that int8 cannot hold has the score nan for those who attend to it, whatever it held."""
    rounds = "int8" in way or "-q" in way
    case = case._replace(infinite=not (rounds and "k" in case.spoiled))
    q, k, v = make_inputs(case)
    assert_right(attend(q, k, v, WAYS[way], how), case, f"{way}, {how}, {case}", rounds)


def attend(q: mx.array, k: Any, v: Any, options: dict[str, Any], how: str) -> list[Array]:
    """out, lse, max_scores."""
    aux = flex.AuxRequest(lse=True, max_scores=True)
    out, rest = flex.flex_attention(
        q, k, v, **mods(how, q.shape[2]), enable_gqa=True, return_aux=aux, kernel_options=options
    )
    return [np.array(x.astype(mx.float32)) for x in (out, rest.lse, rest.max_scores)]


def assert_right(got: list[Array], case: Case, what: str, rounds: bool = False) -> None:
    """rounds: q and k went through int8. The maximum of a row with a score nan is not looked at: it means nothing."""
    want = expected(case)
    near = reference.Tolerance(0.08, 0.05, 0.05, 0.02) if rounds else reference.tolerance(case.dtype)
    out, lse, highest = got
    reference.assert_close(lse, want.lse, near.statistic_absolute, near.statistic_relative, f"lse of {what}")
    reference.assert_close(out, want.out, near.absolute, near.relative, f"out of {what}")
    clear = ~np.isnan(want.lse)
    statistic = near.statistic_absolute, near.statistic_relative
    reference.assert_close(highest[clear], want.max_scores[clear], *statistic, f"max_scores of {what}")


def test_there_is_something_to_see() -> None:
    """In each head some rows attend to what is not finite, and others, beside it in a tile, do not."""
    for case in (Case("v"), Case("k")):
        clean = np.isfinite(expected(case).out).all(axis=3)
        assert all(0.2 < clean[:, h].mean() < 0.9 for h in range(HEADS)), clean.mean(axis=2)
    assert np.isposinf(expected(Case("v")).out).any() and np.isneginf(expected(Case("v")).out).any()


# --- every way --------------------------------------------------------------------------------------------------

QUICK = [
    (way, how)
    for i, way in enumerate(WAYS)
    for how in (HOW if way == "cpu" else ("mask_mod", ("BlockMask", "score_mod", "both")[i % 3]))
]


@pytest.mark.sampled(8)
@pytest.mark.parametrize(("way", "how"), QUICK)
def test_what_a_row_does_not_attend_to_never_reaches_it(way: str, how: str) -> None:
    for spoiled in ("v", "k"):
        check(way, how, Case(spoiled))


def test_what_a_score_leaves_out_of_the_stages_never_reaches_a_row() -> None:
    check("cpu-staged", "score_mod", Case("v"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("way", ["cpu", "ops", "simulator"])
def test_in_half_precision(way: str, dtype: str) -> None:
    check(way, "mask_mod", Case("v", dtype=dtype))


# One row, packed when it is read; widths that are no multiple of anything, and wider than a tile of columns.
SHAPES = [
    Case("v", q_len=1, value_dim=17),
    Case("kv", q_len=13, dim=5, value_dim=40),
    Case("v", q_len=70, dim=16, value_dim=129),
]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("case", SHAPES, ids=["one row", "odd", "wide"])
@pytest.mark.parametrize("way", EVERY)
def test_in_other_shapes(way: str, case: Case) -> None:
    check(way, "mask_mod", case)


@pytest.mark.parametrize("quantise_value", [False, True])
@pytest.mark.parametrize("backend", STAGED)
def test_in_a_cache(backend: str, quantise_value: bool) -> None:
    """A token whose key or value is not finite is one that only those who attend to it see. What an int8 row held is
    not kept: all of it is nan."""
    case = Case("v", seed=1)
    q, k, v = make_inputs(case)
    cache = flex.Int8KV(quantise_value=quantise_value)
    cache.update(k, v)
    out, lse, _ = attend(q, cache.key, cache.value, {"BACKEND": backend}, "mask_mod")
    want = expected(case)
    if quantise_value:
        spoiled = np.repeat(~np.isfinite(np.array(v)).all(axis=3), HEADS // KV_HEADS, axis=1)[:, :, None] & kept(LENGTH)
        assert np.isnan(out[spoiled.any(axis=3)]).all()
        out, want = out[~spoiled.any(axis=3)], want._replace(out=want.out[~spoiled.any(axis=3)])
    reference.assert_close(out, want.out, 0.08, 0.05, f"out, {backend}")
    reference.assert_close(lse, want.lse, 0.05, 0.02, f"lse, {backend}")


@pytest.mark.long
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("way", WAYS)
def test_what_a_row_does_not_attend_to_never_reaches_it_long(way: str, how: str) -> None:
    cases = [Case(spoiled, dtype=dtype) for spoiled in ("v", "k", "kv") for dtype in ("float32", "float16", "bfloat16")]
    cases += [case._replace(dtype=dtype) for case in SHAPES for dtype in ("float32", "float16", "bfloat16")]
    cases += [Case("kv", seed=seed) for seed in range(1, 4 if "simulator" in way else 20)]
    for case in cases:
        check(way, how, case)
