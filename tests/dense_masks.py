"""Dense masks by the user's own function, position by position, and what a BlockMask has to be for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import flextrace as flex


def dense(mask: Callable[..., Any], b: int, h: int, q_len: int, kv_len: int, q_from: int = 0) -> np.ndarray:
    out = np.zeros((b, h, q_len, kv_len), bool)
    for i, j, q, kv in np.ndindex(*out.shape):
        out[i, j, q, kv] = bool(mask(i, j, q + q_from, kv))
    return out


def states(kept: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """0 empty, 1 partial, 2 full per block, by looking at every block."""
    b, h, q_len, kv_len = kept.shape
    out = np.zeros((b, h, -(-q_len // rows), -(-kv_len // columns)), int)
    for i, j in np.ndindex(*out.shape[2:]):
        block = kept[:, :, i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
        out[:, :, i, j] = block.any((2, 3)).astype(int) + block.all((2, 3))
    return out


def assert_stands_for(
    made: flex.BlockMask, kept: np.ndarray, *, exact: bool = True, backend: str | None = None
) -> None:
    """The blocks are those of the dense mask, the mask_mod decides the same pairs, and attention follows."""
    assert made.shape == kept.shape
    want = states(kept, *made.BLOCK_SIZE)
    got = made.blocks.states()
    if exact:
        np.testing.assert_array_equal(got, want)
    else:  # made from lists, which may call any block partial
        assert (got[got != 1] == want[got != 1]).all()
    b, h, q_len, kv_len = kept.shape
    np.testing.assert_array_equal(np.array(flex.create_mask(made.as_mask_mod(), b, h, q_len, kv_len)), kept)
    visited = np.repeat(np.repeat(got > 0, made.BLOCK_SIZE[0], 2), made.BLOCK_SIZE[1], 3)[:, :, :q_len, :kv_len]
    shown = 100 * (1 - visited.mean()) if kept.size else 0.0
    assert made.sparsity() == pytest.approx(shown) and 0 <= made.sparsity() <= 100
    if kept.size:
        rng = np.random.default_rng(1)
        q, k = (mx.array(rng.normal(size=(b, h, n, 8)).astype(np.float32)) for n in (q_len, kv_len))
        options = None if backend is None else {"BACKEND": backend}
        out = flex.flex_attention(q, k, k, block_mask=made, kernel_options=options)
        np.testing.assert_allclose(np.array(out), attended(q, k, kept), atol=2e-5)


def attended(q: mx.array, k: mx.array, kept: np.ndarray) -> np.ndarray:
    """Attention with keys as values under a dense mask, in float64; a row that keeps nothing gives 0."""
    scores = np.where(
        kept, np.array(q, np.float64) @ np.array(k, np.float64).swapaxes(-1, -2) / np.sqrt(q.shape[-1]), -np.inf
    )
    weights = np.exp(scores - np.maximum(scores.max(-1, keepdims=True), -1e30))
    return weights / np.maximum(weights.sum(-1, keepdims=True), 1e-30) @ np.array(k, np.float64)
