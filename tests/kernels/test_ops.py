"""The ops backend over several tiles, which only long sequences would need."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import flextrace as flex
from flextrace.kernels import backend_for
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
    assert backend.source(None, None) == "plain attention"
    text = backend.source(None, flex.mask_mod(window).trace())
    assert text == "mask: (abs((q_idx - kv_idx)) < 40) and (q_idx != 7)"
    assert backend.prepare(None, None) == "memory"
