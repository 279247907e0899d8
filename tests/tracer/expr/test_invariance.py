"""Shifts of the score and documents of a mask: proofs on the zoo, on written-out cases, and on random expressions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import zoo

import flextrace as flex
from flextrace import mods
from flextrace.tracer.expr.evaluate import NUMPY, run
from flextrace.tracer.expr.invariance import document_ids, shifts_with_score
from flextrace.tracer.expr.node import KV_IDX, Q_IDX, SCORE, Expr, apply, const, walk
from flextrace.tracer.expr.simplify import simplify

NEITHER = {"softcap", "softcap_array_functions", "sigmoid_activation", "relu_activation", "leaky_early_return"}
NEITHER |= {"math_functions", "powers", "temperature_0d", "per_head_list", "per_head_loop", "walrus_elif_augmented"}
NEITHER |= {"builtins_min_max_abs", "bound_method", "nested_decorated"}


def bound(mod: Callable[..., Any]) -> Any:
    return flex.score_mod(mod).bind()


def invariant(mod: Callable[..., Any]) -> bool:
    traced = bound(mod)
    return shifts_with_score(traced.trace.expr, traced.numbers)


@pytest.mark.parametrize("entry", zoo.SCORE_MODS, ids=str)
def test_zoo(entry: zoo.Entry) -> None:
    mod = entry.make(2, 3, 16, 16, np.random.default_rng(0))
    assert invariant(mod) == (entry.name not in NEITHER)


@pytest.mark.parametrize("entry", [e for e in zoo.SCORE_MODS if e.name not in NEITHER], ids=str)
def test_the_users_function_shifts(entry: zoo.Entry) -> None:
    """What is called invariant is so in plain Python, up to float rounding."""
    import reference

    mod = entry.make(2, 3, 16, 16, np.random.default_rng(0), reference.array)
    rng = np.random.default_rng(1)
    for _ in range(20):
        index = [int(rng.integers(n)) for n in (2, 3, 16, 16)]
        score, c = rng.normal(), 10 * rng.normal()
        before, after = (reference.number(mod(s, *index)) for s in (float(score), float(score + c)))
        assert after == pytest.approx(before + c, abs=1e-5) or before == after == -math.inf


CAP, ONE, ZERO, MINUS_INFINITY = 30.0, 1.0, 0.0, -math.inf
INVARIANT: dict[str, Callable[..., Any]] = {
    "half and half": lambda s, b, h, q, k: 0.5 * s + s * 0.5 + k,
    "three minus two": lambda s, b, h, q, k: 3 * s - q - (2 * s - k),
    "divided": lambda s, b, h, q, k: s / 2 + s / 4 + s / 4,
    "thirds": lambda s, b, h, q, k: s / 3 + s / 3 + s / 3 + k,
    "negated twice": lambda s, b, h, q, k: -(k - s),
    "larger of two": lambda s, b, h, q, k: max(s + q, s - k),
    "larger of score and -inf": lambda s, b, h, q, k: max(s, -math.inf),
    "compares what moves together": lambda s, b, h, q, k: s + 1 if s + q > s + 2 * k else s - 1,
    "function of a difference": lambda s, b, h, q, k: s + math.tanh((s + k) - s),
    "always -inf": lambda s, b, h, q, k: -math.inf,
    "captured -inf": lambda s, b, h, q, k: s if q >= k else MINUS_INFINITY,
    "times a captured 1": lambda s, b, h, q, k: s * ONE + k,
    "nested wheres": lambda s, b, h, q, k: (s if q > k else (s + 1 if q == k else -math.inf)) - 2 * h,
}
NOT_INVARIANT: dict[str, Callable[..., Any]] = {
    "a constant": lambda s, b, h, q, k: 0.0,
    "twice": lambda s, b, h, q, k: s + s,
    "negative": lambda s, b, h, q, k: -s,
    "nearly one": lambda s, b, h, q, k: 0.1 * s + 0.9 * s,  # float32's 0.1 and 0.9 do not add up to 1
    "threshold on the score": lambda s, b, h, q, k: s if s > 0 else -math.inf,
    "one branch": lambda s, b, h, q, k: s if q > k else 0.0,
    "clipped": lambda s, b, h, q, k: min(s, 10.0),
    "absolute": lambda s, b, h, q, k: abs(s),
    "rounded": lambda s, b, h, q, k: math.floor(s) * 1.0,
    "squared": lambda s, b, h, q, k: s * s,
    "by the index": lambda s, b, h, q, k: s * k,
    "index divided by it": lambda s, b, h, q, k: k / s,
    "divided by infinity": lambda s, b, h, q, k: k + s / math.inf,
    "divided by zero": lambda s, b, h, q, k: k + s / ZERO,
    "times infinity": lambda s, b, h, q, k: s * math.inf + k,
    "floor of a quotient": lambda s, b, h, q, k: s // 1.0,
    "a number minus it": lambda s, b, h, q, k: k - s,
    "four over a quarter": lambda s, b, h, q, k: 4.0 / (s / 4),
    "larger of it and twice it": lambda s, b, h, q, k: max(s, 2 * s),
    "smaller of twice it and it": lambda s, b, h, q, k: min(s + s, s),
    "compares it with twice it": lambda s, b, h, q, k: s if s + q < 2 * s else s - 1,
    "either it or twice it": lambda s, b, h, q, k: s if q > k else s + s,
    "cancelled": lambda s, b, h, q, k: s - s + k,
    "remainder": lambda s, b, h, q, k: s % 2.0,
    "softcap": lambda s, b, h, q, k: CAP * math.tanh(s / CAP),
    "times a captured number": lambda s, b, h, q, k: s * CAP,
    "times two captured numbers": lambda s, b, h, q, k: s * ONE * CAP + k,
    "zero times": lambda s, b, h, q, k: s * 0.0 + k,
}


@pytest.mark.parametrize("name", INVARIANT)
def test_invariant(name: str) -> None:
    assert invariant(INVARIANT[name])


@pytest.mark.parametrize("name", NOT_INVARIANT)
def test_not_invariant(name: str) -> None:
    assert not invariant(NOT_INVARIANT[name])


def test_captured_numbers_prove_nothing_without_their_values() -> None:
    for name in ("captured -inf", "times a captured 1"):
        assert not shifts_with_score(bound(INVARIANT[name]).trace.expr)


def test_mods_of_the_library() -> None:
    for mod in (
        mods.alibi(4),
        mods.relative_bias(np.zeros((4, 5))),
        mods.sandwich(4, 16),
        mods.t5_bias(np.ones((8, 4))),
    ):
        assert invariant(mod), mod
    for mod in (mods.softcap(30.0), mods.activation("sigmoid"), mods.activation("relu")):
        assert not invariant(mod), mod


# -- random expressions ------------------------------------------------------------------------------------------


class Maker:
    """Random float expressions over the score, half of them made to be invariant in ways that are easy to get wrong."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def choose(self, *options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def make(self, depth: int) -> Expr:
        if depth == 0:
            return self.choose(SCORE, SCORE, self.free(0))
        kind = self.choose("sum", "sum", "sum", "scaled", "scaled", "order", "where", "function", "shifted")
        if kind == "sum":
            return apply(self.choose("add", "sub"), self.make(depth - 1), self.make(depth - 1))
        if kind == "scaled":
            factor = const(self.choose(0.5, 2.0, -1.0, 0.25, 3.0, -0.5, 0.0))
            return apply(self.choose("mul", "div"), self.make(depth - 1), factor)
        if kind == "order":
            return apply(self.choose("min", "max"), self.make(depth - 1), self.make(depth - 1))
        if kind == "where":
            return apply("where", self.condition(depth - 1), self.make(depth - 1), self.make(depth - 1))
        if kind == "shifted":
            return apply("add", SCORE, self.free(depth - 1))
        return apply(self.choose("tanh", "abs", "neg", "floor", "sin"), self.make(depth - 1))

    def free(self, depth: int) -> Expr:
        if depth == 0:
            return self.choose(const(self.choose(1.5, -2.0, -math.inf)), apply("to_float", self.choose(Q_IDX, KV_IDX)))
        return apply(self.choose("sub", "mul"), apply("to_float", Q_IDX), self.free(depth - 1))

    def condition(self, depth: int) -> Expr:
        if self.rng.random() < 0.5:
            return apply("lt", KV_IDX, Q_IDX)
        return apply(self.choose("lt", "le"), self.make(depth), self.make(depth))


def in_float64(expr: Expr, score: np.ndarray, q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """The expression in exact enough arithmetic: `evaluate` rounds to float32."""
    table = {**NUMPY, "to_float": lambda a: np.asarray(a, np.float64)}
    values = {"score": score, "q_idx": q, "kv_idx": k}

    def leaf(node: Expr) -> Any:
        if node.op == "const":
            return np.float64(node.value) if node.dtype == "float" else np.asarray(node.value)
        return values["score" if node.op == "score" else node.value]

    with np.errstate(all="ignore"):
        found = run(expr, leaf, lambda node, args: None, table)
    return np.broadcast_to(found, score.shape)


def counterexample(expr: Expr, rng: np.random.Generator) -> bool:
    """Whether f(s + c) differs from f(s) + c somewhere. Dyadic numbers, so that sums and comparisons are exact."""
    score, c = (rng.integers(-(2**12), 2**12, size=300) / 64 for _ in range(2))
    q, k = (rng.integers(0, 50, size=300).astype(np.int32) for _ in range(2))
    before, after = in_float64(expr, score, q, k) + c, in_float64(expr, score + c, q, k)
    with np.errstate(invalid="ignore"):
        near = abs(before - after) < 1e-6 * (1 + abs(before))
    return not ((before == after) | (np.isnan(before) & np.isnan(after)) | near).all()


def fuzz(seed: int, rounds: int) -> tuple[int, int]:
    """(proven, not proven though no counterexample was found); fails on a false proof."""
    rng = np.random.default_rng(seed)
    maker, proven, missed = Maker(rng), 0, 0
    for _ in range(rounds):
        expr = simplify(maker.make(int(rng.integers(1, 5))))
        if shifts_with_score(expr):
            assert not counterexample(expr, rng), f"said to be invariant: {expr}"
            proven += any(node is SCORE for node in walk(expr))
        else:
            missed += not counterexample(expr, rng)
    return proven, missed


def test_random_expressions() -> None:
    proven, missed = fuzz(0, 3000)
    assert proven > 500
    assert missed < proven / 2, (proven, missed)  # those are inf and nan in disguise


@pytest.mark.long
def test_many_random_expressions() -> None:
    assert fuzz(1, 100_000)[0] > 5000


def test_the_fuzzer_finds_planted_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proof that takes one branch of `where` for both, or forgets a factor, is found out."""
    from flextrace.tracer.expr import invariance

    for name, wrong in (("_same", lambda a, b: a), ("_times", lambda shift, factor: shift)):
        with monkeypatch.context() as patch:
            patch.setattr(invariance, name, wrong)
            with pytest.raises(AssertionError, match="said to be invariant"):
                fuzz(0, 3000)


# -- documents ---------------------------------------------------------------------------------------------------


def found(mask: Callable[..., Any]) -> Any:
    return document_ids(flex.mask_mod(mask).expr)


IDS = mx.array([0, 0, 1, 1])
BATCHED = mx.array([[0, 0, 1, 1], [0, 1, 1, 1]])
SQUARE = mx.array([[0, 1, 2, 3]] * 4)


def test_ids_of_one_array() -> None:
    ids = found(lambda b, h, q, k: IDS[q] == IDS[k])
    assert (str(ids.rows), str(ids.keys), ids.starts) == ("array0[q_idx]", "array0[kv_idx]", False)
    swapped = found(lambda b, h, q, k: IDS[k] == IDS[q])
    assert swapped == ids


def test_ids_by_batch_as_one_of_several_conjuncts() -> None:
    ids = found(lambda b, h, q, k: q >= k and BATCHED[b, q] == BATCHED[b, k] and q - k < 3)
    assert (str(ids.rows), str(ids.keys)) == ("array0[b, q_idx]", "array0[b, kv_idx]")


def test_early_return() -> None:
    def mask(b, h, q, k):
        if IDS[q] != IDS[k]:
            return False
        return q >= k

    assert str(found(mask).rows) == "array0[q_idx]"


def test_starts() -> None:
    for mask in (mods.causal_document([0, 2, 4]), lambda b, h, q, k: k <= q and k >= IDS[q]):
        ids = found(mask)
        assert (str(ids.rows), str(ids.keys), ids.starts) == ("array0[q_idx]", "array0[kv_idx]", True)


def test_starts_by_batch() -> None:
    ids = found(lambda b, h, q, k: k <= q and k >= BATCHED[b, q])
    assert (str(ids.rows), str(ids.keys), ids.starts) == ("array0[b, q_idx]", "array0[b, kv_idx]", True)


def test_masks_of_the_library() -> None:
    causal = mods.causal
    for mask in (
        mods.document(IDS),
        mods.document(BATCHED, IDS),
        mods.document(offsets=[0, 2, 4]),
        mods.per_document(causal, [0, 2, 4]),
        mods.batchify(causal, 2),
        flex.and_masks(causal, mods.document(IDS)),
    ):
        ids = found(mask)
        assert ids is not None and not ids.starts, mask
    for mask in (causal, mods.prefix_lm(2), mods.shared_prefix([0, 2, 4], [0, 0]), ~mods.document(IDS)):
        assert found(mask) is None, mask


def test_arrays_before_arithmetic() -> None:
    ids = found(lambda b, h, q, k: q // 2 == k // 2 and IDS[q] == IDS[k])
    assert str(ids.rows) == "array0[q_idx]"


@pytest.mark.parametrize(
    "mask",
    [
        lambda b, h, q, k: IDS[q] == IDS[k] or k < 2,
        lambda b, h, q, k: IDS[q] <= IDS[k],
        lambda b, h, q, k: IDS[q] == q,
        lambda b, h, q, k: IDS[(q + k) % 4] == IDS[k],
        lambda b, h, q, k: BATCHED[h % 2, q] == BATCHED[h % 2, k],
        lambda b, h, q, k: IDS[q] <= k,
        lambda b, h, q, k: IDS[q] <= k and k != q,
        lambda b, h, q, k: IDS[q] <= k and q <= k,
        lambda b, h, q, k: IDS[q] < k and k <= q,
        lambda b, h, q, k: IDS[q // 2] <= k and k <= q // 2,
        lambda b, h, q, k: SQUARE[q, q] <= k and k <= q,
        lambda b, h, q, k: SQUARE[h % 4, q] <= k and k <= q,
        lambda b, h, q, k: IDS[q] == IDS[b],
        lambda b, h, q, k: IDS[q] == 1,
        lambda b, h, q, k: IDS[q + 1] <= k and k <= q,
        lambda b, h, q, k: not (IDS[q] == IDS[k] and q >= k),
        lambda b, h, q, k: int(4 * math.cos(q / 6)) == int(4 * math.cos(k / 6)),
        lambda b, h, q, k: IDS[int(q * 0.1)] == IDS[int(k * 0.1)],
        lambda b, h, q, k: (1 if q / 3 > 2.0 else 0) == (1 if k / 3 > 2.0 else 0),
    ],
)
def test_what_keeps_documents_together(mask: Callable[..., Any]) -> None:
    assert found(mask) is None


def test_a_mask_keeps_equal_ids_only() -> None:
    """On every mask of the zoo in which ids are recognised (starts are checked by value, in int8/smoothing.py)."""
    recognised = []
    for entry in zoo.MASK_MODS:
        mask = flex.mask_mod(entry.make(2, 3, 24, 24, np.random.default_rng(3))).bind()
        ids = document_ids(mask.trace.expr)
        if ids is None:
            continue
        recognised.append(entry.name)
        axes = np.ix_(range(2), range(3), range(24), range(24))
        values = dict(zip(("b", "h", "q_idx", "kv_idx"), axes, strict=True))
        arrays = [np.array(a) for a in mask.arrays]
        keep, rows, keys = (
            np.broadcast_to(flex.tracer.evaluate(e, values, numbers=mask.numbers, arrays=arrays), (2, 3, 24, 24))
            for e in (mask.trace.expr, ids.rows, ids.keys)
        )
        assert (rows == keys)[keep].all(), entry.name
    assert {"document_ids", "document_offsets", "packed_causal_document", "and_masks"} <= set(recognised)
