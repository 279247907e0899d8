"""Patterns of reads: expected ones for formulas of papers; of random indices, what they say is so at every position."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import random_masks

import flextrace as flex
from flextrace import mods, tracer
from flextrace.tracer.expr.access import Pattern, Site, pattern_of, sites
from flextrace.tracer.expr.node import INDICES, KV_IDX, Q_IDX, SCORE, B, Expr, H, apply, const

A1, A2, A3, A4 = (mx.zeros((8,) * ndim) for ndim in (1, 2, 3, 4))
ALONE = mx.array(2.0)
IDS, OF_BATCH = mx.zeros((8,), mx.int32), mx.zeros((2, 8), mx.int32)
WINDOWS = mx.zeros((8, 8), mx.int32)


def t5_bucket(distance: Any, bidirectional: bool, buckets: int = 32, farthest: int = 128) -> Any:
    """As T5's own code, with its logarithm."""
    start = 0
    if bidirectional:
        buckets //= 2
        start = mx.where(distance > 0, buckets, 0)
        distance = abs(distance)
    else:
        distance = -mx.minimum(distance, 0)
    single = buckets // 2
    grown = mx.log(mx.maximum(distance, 1) / single) / math.log(farthest / single) * (buckets - single)
    return start + mx.where(distance < single, distance, mx.minimum(single + grown.astype(mx.int32), buckets - 1))


def if_later(h: Any, q: Any, k: Any) -> Any:
    return 0 if k > q else q - k


FORMULAS: dict[str, tuple[Callable[..., Any], Pattern]] = {
    "per head": (lambda s, b, h, q, k: s * A1[h], Pattern.ROW),
    "alibi": (lambda s, b, h, q, k: s + A1[h] * (k - q), Pattern.ROW),
    "temperature": (lambda s, b, h, q, k: s / ALONE, Pattern.ROW),
    "per batch and head": (lambda s, b, h, q, k: s + A2[b, h], Pattern.ROW),
    "grouped heads": (lambda s, b, h, q, k: s + A1[h // 4], Pattern.ROW),
    "per query": (lambda s, b, h, q, k: s + A2[h, q], Pattern.ROW),
    "per document of the query": (lambda s, b, h, q, k: s + A1[OF_BATCH[b, q]], Pattern.ROW),
    "one element": (lambda s, b, h, q, k: s + A1[-1], Pattern.ROW),
    "per key": (lambda s, b, h, q, k: s + A1[k], Pattern.COLUMN),
    "per head and key": (lambda s, b, h, q, k: s + A2[h][k], Pattern.COLUMN),
    "per document of the key": (lambda s, b, h, q, k: s + A2[b, IDS[k]], Pattern.COLUMN),
    "every other key": (lambda s, b, h, q, k: s + A1[k // 2], Pattern.COLUMN),
    "difference": (lambda s, b, h, q, k: s + A2[h, q - k + 7], Pattern.DIAGONAL),
    "difference the other way": (lambda s, b, h, q, k: s + A1[(k + 3) - (q - h)], Pattern.DIAGONAL),
    "symmetric": (lambda s, b, h, q, k: s + A1[abs(q - k)], Pattern.DIAGONAL),
    "twice the difference": (lambda s, b, h, q, k: s + A1[2 * q - 2 * k], Pattern.DIAGONAL),
    "shifted difference": (lambda s, b, h, q, k: s + A1[((q << 1) - k * 2) >> 1], Pattern.DIAGONAL),
    "negated": (lambda s, b, h, q, k: s + A1[-(k - q)], Pattern.DIAGONAL),
    "inverted": (lambda s, b, h, q, k: s + A1[~k + q], Pattern.DIAGONAL),
    "clipped": (lambda s, b, h, q, k: s + A2[h, min(max(k - q, -3), 3) + 3], Pattern.DIAGONAL),
    "clipped by mx": (lambda s, b, h, q, k: s + A2[h, mx.clip(k - q, -3, 3) + 3], Pattern.DIAGONAL),
    "wrapped": (lambda s, b, h, q, k: s + A1[(q - k) % 8], Pattern.DIAGONAL),
    "T5 encoder": (lambda s, b, h, q, k: s + A2[t5_bucket(k - q, True), h], Pattern.DIAGONAL),
    "T5 decoder": (lambda s, b, h, q, k: s + A2[t5_bucket(k - q, False), h], Pattern.DIAGONAL),
    "buckets in a table": (lambda s, b, h, q, k: s + A2[IDS[abs(q - k)], h], Pattern.DIAGONAL),
    "later keys are one": (lambda s, b, h, q, k: s + A1[if_later(h, q, k)], Pattern.DIAGONAL),
    "same position": (lambda s, b, h, q, k: s + A1[1 if q == k else 0], Pattern.DIAGONAL),
    "same shifted position": (lambda s, b, h, q, k: s + A1[1 if q + 5 == k else 0], Pattern.DIAGONAL),
    "earlier of the two": (lambda s, b, h, q, k: s + A1[q - min(q, k)], Pattern.DIAGONAL),
    "product of ramps": (lambda s, b, h, q, k: s * A2[h, q - k] + A2[h, q - k], Pattern.DIAGONAL),
    "dense": (lambda s, b, h, q, k: s + A4[b, h, q, k], Pattern.DENSE),
    "dense without batches": (lambda s, b, h, q, k: s + A3[h, q, k], Pattern.DENSE),
    "dense transposed": (lambda s, b, h, q, k: s + A3[h, k, q], Pattern.DENSE),
    "dense of grouped heads": (lambda s, b, h, q, k: s + A3[h // 2, q, k], Pattern.DENSE),
    "dense of all": (lambda s, b, h, q, k: s + A2[q, k], Pattern.DENSE),
    "Swin": (lambda s, b, h, q, k: s + A2[WINDOWS[q, k], h], Pattern.TABLE),
    "documents of both": (lambda s, b, h, q, k: s + A2[IDS[q], IDS[k]], Pattern.TABLE),
    "sum": (lambda s, b, h, q, k: s + A1[q + k], Pattern.TABLE),
    "dense with a stride": (lambda s, b, h, q, k: s + A2[q // 2, k], Pattern.TABLE),
    "dense with an offset, which is clamped": (lambda s, b, h, q, k: s + A2[q + 1, k], Pattern.TABLE),
    "row of both": (lambda s, b, h, q, k: s + A3[q, q, k], Pattern.TABLE),
    "order of sums, which wrap": (lambda s, b, h, q, k: s + A1[1 if q + 5 < k else 0], Pattern.TABLE),
    "either position": (lambda s, b, h, q, k: s + A1[q - (k if h > 2 else 2 * k)], Pattern.TABLE),
    "either difference": (lambda s, b, h, q, k: s + A1[(q if h > 2 else k + h) - k], Pattern.DIAGONAL),
    "difference of blocks": (lambda s, b, h, q, k: s + A1[q // 2 - k // 2], Pattern.TABLE),
    "of the score": (lambda s, b, h, q, k: s + A1[int(s)], Pattern.TABLE),
    "difference and score": (lambda s, b, h, q, k: s + A2[q - k, int(s)], Pattern.TABLE),
    "uneven difference": (lambda s, b, h, q, k: s + A1[2 * q - k], Pattern.TABLE),
    "difference in floats": (lambda s, b, h, q, k: s + A1[int(float(q) - float(k))], Pattern.TABLE),
}


def of(mod: Callable[..., Any]) -> list[Site]:
    return list(
        sites(flex.score_mod(lambda score, b, h, q_idx, kv_idx: mod(score, b, h, q_idx, kv_idx)).bind().trace.expr)
    )


@pytest.mark.parametrize("name", FORMULAS)
def test_formulas(name: str) -> None:
    mod, pattern = FORMULAS[name]
    assert [site.pattern for site in of(mod)] == [pattern]


def test_mods_of_the_library() -> None:
    table = [[0.0] * 4 for _ in range(32)]
    for mod, pattern in (
        (mods.alibi([0.5, 0.25]), Pattern.ROW),
        (mods.alibi([0.5, 0.25], symmetric=True), Pattern.ROW),
        (mods.relative_bias([[-1.0, 0.0, 1.0]]), Pattern.DIAGONAL),
        (mods.t5_bias(table), Pattern.DIAGONAL),
        (mods.t5_bias(table, bidirectional=False), Pattern.DIAGONAL),
    ):
        assert {site.pattern for site in sites(mod.expr)} == {pattern}


def test_what_a_site_says() -> None:
    half = A4.astype(mx.float16)
    row, dense = of(lambda s, b, h, q, k: s * A2[b, h] + half[b, h // 2, k, q])
    assert (dense.slot, dense.element) == (1, "float16")
    assert (row.slot, row.element, row.slope, row.varies) == (0, "float32", SCORE, {"b", "h"})
    assert row.axes == {"b": 0, "h": 1} and dense.axes == {"b": 0, "kv_idx": 2, "q_idx": 3}
    assert dense.varies == set(INDICES) and dense.slope.value == 1


def test_own_elements() -> None:
    (site,) = of(lambda s, b, h, q, k: s + A3[h, q, k])
    sizes = (1, 8, 8, 8)
    assert site.is_own(INDICES, (8, 8, 8), sizes)
    assert not site.is_own(INDICES, (8, 8, 8), (2, 8, 8, 8)) and site.is_own(INDICES[1:], (8, 8, 8), (2, 8, 8, 8))
    for axis in range(3):  # a kernel clamps what is outside
        shape = tuple(7 if i == axis else 8 for i in range(3))
        assert not site.is_own(INDICES, shape, sizes)
    (grouped,) = of(lambda s, b, h, q, k: s + A3[h // 2, q, k])
    assert grouped.is_own(("q_idx", "kv_idx"), (8, 8, 8), sizes) and not grouped.is_own(("h",), (8, 8, 8), sizes)


# ---- random indices, by brute force -----------------------------------------------------------------------------

BASES = (0, 100, 2**24 - 2, 2**31 - 12)  # at the last positions sums wrap
NEAR = 7
Q, K = np.ogrid[:NEAR, :NEAR]


def elements(load: Expr, case: random_masks.Case, base: int, score: float) -> np.ndarray:
    """[b, h, q_idx, kv_idx, axis]: the indices that a load has, before they are clamped; positions from `base` on."""
    near = np.arange(base, base + NEAR)
    at: dict[str, Any] = dict(zip(INDICES, np.ix_([0, 1], [0, 3], near, near), strict=True))
    given = {"numbers": case.numbers, "arrays": case.arrays}
    found = [tracer.evaluate(arg, {**at, "score": score}, **given) for arg in load.args]
    return np.stack([np.broadcast_to(indices, (2, 2, NEAR, NEAR)) for indices in found], axis=-1)


def holds(pattern: Pattern, load: Expr, case: random_masks.Case) -> bool:
    """Whether what a pattern says is so at all positions that are looked at."""
    if pattern is Pattern.TABLE:
        return True
    near = [elements(load, case, base, 0.5) for base in BASES]
    if any((elements(load, case, base, -3.75) != found).any() for base, found in zip(BASES, near, strict=True)):
        return False
    if pattern is Pattern.DENSE:
        each = [of_head for found in near for of_head in found.reshape(4, NEAR * NEAR, -1)]
        return all(len(np.unique(of_head, axis=0)) == NEAR * NEAR for of_head in each)
    if pattern is Pattern.DIAGONAL:
        first = near[0][:, :, np.maximum(Q - K, 0), np.maximum(K - Q, 0)]
        return all((found == first).all() for found in near)  # at every base the same
    return all((found == (found[:, :, :, :1] if pattern is Pattern.ROW else found[:, :, :1])).all() for found in near)


def random_load(rng: np.random.Generator) -> tuple[Expr, random_masks.Case]:
    """A read whose indices are random ints of which many are made of differences of positions."""
    case = random_masks.random_case(rng, "int")

    def difference() -> Expr:
        q, k = (Q_IDX, KV_IDX) if rng.random() < 0.5 else (KV_IDX, Q_IDX)
        factor = const(int(rng.choice([1, 1, 2, 3, -1, 2**16, 2**31 - 1, -(2**31)])))
        if rng.random() < 0.3:
            q, k = (apply("mul", x, factor) for x in (q, k))
        node = apply("sub", apply("add", q, part(0)), k) if rng.random() < 0.8 else apply("sub", q, k)
        return node

    def part(depth: int) -> Expr:
        leaves = [H, B, const(int(rng.integers(-9, 9))), const(2**31 - 1), const(5)]
        leaves += [Q_IDX, KV_IDX] if rng.random() < 0.2 else []
        if depth <= 0:
            return leaves[rng.integers(len(leaves))]
        kind = rng.choice(["difference"] * 4 + ["unary", "binary", "binary", "where", "float", "load"])
        if kind == "difference":
            return difference()
        if kind == "unary":
            return apply(str(rng.choice(["neg", "abs", "bit_not"])), part(depth - 1))
        if kind == "where":
            compared = apply(str(rng.choice(["lt", "le", "eq", "ne"])), part(depth - 1), part(depth - 2))
            return apply("where", compared, part(depth - 1), part(depth - 1))
        if kind == "float":
            return apply("to_int", apply("sqrt", apply("abs", apply("to_float", part(depth - 1)))))
        if kind == "load":
            return apply("load", part(depth - 1), value=(len(case.arrays) - 1, "int32"))
        ops = ["add", "sub", "mul", "min", "max", "floor_div", "mod", "shl", "shr", "bit_and", "bit_xor"]
        return apply(str(rng.choice(ops)), part(depth - 1), part(depth - 1))

    case = case._replace(arrays=(*case.arrays, rng.integers(-3, 3, 5).astype(np.int32)))
    if rng.random() < 0.25:
        options = [H, B, Q_IDX, KV_IDX, Q_IDX]
        return apply("load", *(options[i] for i in rng.integers(5, size=3)), value=(0, "float32")), case
    args = [part(3) for _ in range(rng.integers(1, 3))]
    if rng.random() < 0.2:
        args[0] = case.expr
    return apply("load", *args, value=(0, "float32")), case


def check_patterns(seeds: range) -> Counter[Pattern]:
    counted: Counter[Pattern] = Counter()
    for seed in seeds:
        load, case = random_load(np.random.default_rng(seed))
        pattern = pattern_of(load)
        assert holds(pattern, load, case), (load, pattern)
        counted[pattern] += 1
    return counted


def test_patterns_hold_for_random_indices() -> None:
    counted = check_patterns(range(250))
    assert all(counted[pattern] >= 5 for pattern in Pattern), counted


@pytest.mark.long
def test_patterns_hold_for_many_random_indices() -> None:
    check_patterns(range(1000, 20000))
