"""The ops backend over several tiles, which only long sequences would need."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import reference
from calls import attention_spec, formulas

import flextrace as flex
from flextrace.kernels import backend_for
from flextrace.kernels.loading import state
from flextrace.kernels.ops import backend as ops

RNG = np.random.default_rng(0)


def window(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return abs(q_idx - kv_idx) < 40 and q_idx != 7


@pytest.mark.parametrize("how", ["mask_mod", "BlockMask", "BlockMask by head"])
def test_tiles_agree_with_one_tile(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    q, k, v = (mx.random.normal((2, 4, 300, 16), key=mx.random.key(i)) for i in range(3))
    heads = 4 if how.endswith("head") else None
    mask = window if how == "mask_mod" else flex.create_block_mask(window, None, heads, 300, 300, BLOCK_SIZE=(32, 50))

    def run() -> tuple[np.ndarray, np.ndarray]:
        out, lse = flex.flex_attention(q, k, v, None, mask, return_lse=True, kernel_options={"BACKEND": "ops"})
        return np.array(out), np.array(lse)

    whole = run()
    tiles: list[tuple[slice, slice]] = []
    scores = ops._Inputs.scores

    def counted(self: Any, s: mx.array, rows: slice, columns: slice) -> mx.array:
        tiles.append((rows, columns))
        return scores(self, s, rows, columns)

    monkeypatch.setattr(ops, "TILE_SCORES", 1)
    monkeypatch.setattr(ops._Inputs, "scores", counted)
    tiled = run()
    for a, b in zip(whole, tiled, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert len(tiles) == (9 if how == "mask_mod" else 7)  # a BlockMask leaves out the two far corners


def test_its_stages_print() -> None:
    backend = backend_for("ops")
    assert backend.unavailable() is None
    assert backend.text(attention_spec()) == "plain attention"
    text = backend.text(attention_spec(None, flex.mask_mod(window).trace()))
    assert text == "mask: (abs((q_idx - kv_idx)) < 40) and (q_idx != 7)"
    assert state(backend, formulas()) == "memory"


# --- values that are not finite, and that some rows do not attend to ---------------------------------------------


def spoiled() -> tuple[mx.array, mx.array, mx.array]:
    q, k, v = (mx.random.normal((2, 2, 50, 8), key=mx.random.key(i)) for i in range(3))
    for key, value in ((20, mx.inf), (30, -mx.inf), (40, mx.nan)):
        v[:, :, key, key // 10] = value
    v[:, :, 45, 2:4] = -mx.inf
    return q, k, v


def causal(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx >= kv_idx


def attend(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    return flex.flex_attention(q, k, v, block_mask=causal, kernel_options={"BACKEND": "ops"})


def in_numpy(q: mx.array, k: mx.array, v: mx.array) -> np.ndarray:
    exact = (np.array(x).astype(np.float64) for x in (q, k, v))
    return reference.attention(*exact, mask_mod=causal).out


@pytest.mark.parametrize("tile_scores", [1, ops.TILE_SCORES])
@pytest.mark.parametrize("inside", ["nothing", "compile", "vmap", "grad"])
def test_values_left_out_stay_out_inside_transformations(
    inside: str, tile_scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "TILE_SCORES", tile_scores)
    q, k, v = (mx.concatenate([x] * 3, axis=2) for x in spoiled())  # longer than the smallest tile
    if inside == "compile":
        got = mx.compile(attend)(q, k, v)
    elif inside == "vmap":
        got = mx.vmap(lambda *x: attend(*(y[None] for y in x))[0])(q, k, v)
    elif inside == "grad":
        seen = []

        def loss(*x: mx.array) -> mx.array:
            seen.append(attend(*x))
            return mx.where(mx.isfinite(seen[0]), seen[0], 0.0).sum()

        mx.eval(mx.grad(loss)(q, k, v))
        got = seen[0]
    else:
        got = attend(q, k, v)
    reference.assert_close(got, in_numpy(q, k, v), 2e-5, 2e-5, inside)
    assert np.isposinf(np.array(got)).any() and np.isneginf(np.array(got)[:, :, :100]).any()


def test_a_value_left_out_spoils_no_gradient() -> None:
    """Rows before the first value that is not finite: gradients of everything they attend to, and 0 of the others."""
    q, k, v = spoiled()
    clean = mx.where(mx.isfinite(v), v, 0.0)

    def loss(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return (attend(q, k, v)[:, :, :20] ** 2).sum()

    got, want = (mx.grad(loss, argnums=(0, 1, 2))(q, k, x) for x in (v, clean))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(np.array(a), np.array(b), atol=1e-6)


def test_marks_change_nothing_of_finite_values(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, _ = spoiled()
    plain = attend(q, k, k), mx.grad(lambda x: (attend(q, x, x) ** 2).sum())(k)
    monkeypatch.setattr(ops, "_is_finite", lambda v: False)
    marked = attend(q, k, k), mx.grad(lambda x: (attend(q, x, x) ** 2).sum())(k)
    for a, b in zip(plain, marked, strict=True):
        np.testing.assert_array_equal(np.array(a), np.array(b))


# ---- gradients -----------------------------------------------------------------------------------------------------


def dense(q: mx.array, k: mx.array, v: mx.array, formula: Callable[[mx.array], mx.array]) -> mx.array:
    """Causal attention with a formula of all scores at once."""
    scores = formula(q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]))
    causal = mx.arange(q.shape[2])[:, None] >= mx.arange(k.shape[2])
    return mx.softmax(mx.where(causal, scores, -mx.inf), axis=-1) @ v


def loss_of(attention: Callable[..., mx.array]) -> Callable[..., mx.array]:
    return lambda *inputs: (attention(*inputs) ** 2).sum()


HOSTILE: dict[str, tuple[Callable[..., Any], Callable[[mx.array], mx.array]]] = {
    "root": (
        lambda s: mx.sqrt(s) if s > 0 else 0.0,
        lambda s: mx.where(s > 0, mx.sqrt(mx.where(s > 0, s, 1.0)), 0.0),
    ),
    "quotient": (
        lambda s: 1 / s if mx.abs(s) > 0.25 else s,
        lambda s: mx.where(mx.abs(s) > 0.25, 1 / (s + (s == 0)), s),
    ),
    "largest": (
        lambda s: mx.maximum(mx.log(s), -1.0) if s > 0 else -1.0,
        lambda s: mx.where(s > math.exp(-1), mx.log(mx.maximum(s, 0.1)), -1.0),
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_branch_that_is_not_taken_spoils_no_gradient(name: str) -> None:
    """Where its slope is infinite: here at scores of 0, which whole rows have."""
    q, k, v = (mx.array(RNG.normal(size=(1, 2, 24, 8)).astype(np.float32)) for _ in range(3))
    q = mx.where(mx.arange(24)[:, None] < 5, 0.0, q)
    mod, formula = HOSTILE[name]
    score_mod = flex.score_mod(lambda score, b, h, q_idx, kv_idx: mod(score))
    options = {"BACKEND": "ops"}
    mine = loss_of(lambda q, k, v: flex.flex_attention(q, k, v, score_mod, flex.mods.causal, kernel_options=options))
    got = mx.grad(mine, argnums=(0, 1, 2))(q, k, v)
    want = mx.grad(loss_of(lambda *inputs: dense(*inputs, formula)), argnums=(0, 1, 2))(q, k, v)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(np.array(a), np.array(b), rtol=1e-3, atol=1e-4)


def test_a_score_that_the_mask_leaves_out_spoils_no_gradient() -> None:
    """Where the score_mod's slope is infinite."""
    q, k = (mx.array(RNG.normal(size=(1, 2, 24, 8)).astype(np.float32)) for _ in range(2))
    k = mx.where(mx.arange(24)[:, None] < 20, k, 0.0)
    root = flex.score_mod(lambda score, b, h, q_idx, kv_idx: mx.sqrt(score * score))
    near = flex.mask_mod(lambda b, h, q_idx, kv_idx: kv_idx < 20)

    def loss(q: mx.array, k: mx.array) -> mx.array:
        return (flex.flex_attention(q, k, k, root, near, kernel_options={"BACKEND": "ops"}) ** 2).sum()

    def same(q: mx.array, k: mx.array) -> mx.array:
        scores = q @ k[:, :, :20].swapaxes(-1, -2) / math.sqrt(8)
        return ((mx.softmax(abs(scores), axis=-1) @ k[:, :, :20]) ** 2).sum()

    for got, want in zip(*(mx.grad(f, argnums=(0, 1))(q, k) for f in (loss, same)), strict=True):
        np.testing.assert_allclose(np.array(got), np.array(want), rtol=1e-3, atol=1e-4)


def test_second_derivatives_forward_mode_and_maps_of_gradients() -> None:
    q, k, v = (mx.array(RNG.normal(size=(1, 2, 12, 8)).astype(np.float32)) for _ in range(3))
    cap, along = mx.array([0.5, 2.0]), mx.array(RNG.normal(size=q.shape).astype(np.float32))

    def mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any, cap: mx.array) -> Any:
        return cap[h] * mx.tanh(score / cap[h]) + score * score * cap[0]

    def mine(q: mx.array, cap: mx.array) -> mx.array:
        score_mod = flex.score_mod(functools.partial(mod, cap=cap))
        out = flex.flex_attention(q, k, v, score_mod, flex.mods.causal, kernel_options={"BACKEND": "ops"})
        return (out**2).sum()

    def same(q: mx.array, cap: mx.array) -> mx.array:
        heads = cap.reshape(1, 2, 1, 1)
        return loss_of(dense)(q, k, v, lambda s: heads * mx.tanh(s / heads) + s * s * cap[0])

    def all_of(loss: Callable[[mx.array, mx.array], mx.array]) -> list[mx.array]:
        gradient = mx.grad(loss, argnums=(0, 1))
        second = mx.grad(lambda q, cap: (gradient(q, cap)[0] * along).sum(), argnums=(0, 1))(q, cap)
        forward = mx.jvp(loss, [q, cap], [along, mx.ones(2)])[1]
        mapped = mx.vmap(mx.grad(lambda cap: loss(q, cap)))(mx.stack([cap, 2 * cap]))
        return [*gradient(q, cap), *second, *forward, mapped]

    for got, want in zip(all_of(mine), all_of(same), strict=True):
        np.testing.assert_allclose(np.array(got), np.array(want), rtol=2e-3, atol=2e-3)
