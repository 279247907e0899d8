"""The ops backend over several tiles, which only long sequences would need."""

from __future__ import annotations

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
