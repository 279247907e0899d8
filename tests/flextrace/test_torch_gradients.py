"""The same mods in torch's eager flex_attention, differentiated by torch in float64: skipped where torch is missing.

torch refuses gradients on the CPU in public; its eager formula has them, once that check is taken out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import flextrace as flex

torch = pytest.importorskip("torch")
theirs = pytest.importorskip("torch.nn.attention.flex_attention")

B, H, L, LK, D = 2, 4, 70, 150, 16
RNG = np.random.default_rng(4)
CAPTURED = {"slopes": RNG.normal(size=(H,)), "bias": RNG.normal(size=(H, L + LK)), "gate": RNG.normal(size=(B, L))}
Mod = Callable[..., Any]
# What a user writes is the same text for both.
MODS: dict[str, tuple[Callable[[Any, Any], Mod], Mod | None]] = {
    "alibi, causal": (
        lambda c, tanh: lambda s, b, h, i, j: s + c["slopes"][h] * (j - i),
        lambda b, h, i, j: i >= j,
    ),
    "relative bias": (lambda c, tanh: lambda s, b, h, i, j: s + c["bias"][h, i - j + LK], None),
    "gated softcap in a window": (
        lambda c, tanh: lambda s, b, h, i, j: 4 * tanh(s * c["gate"][b, i] / 4) - c["slopes"][h],
        lambda b, h, i, j: (i - j < 20) & (j - i < 90),
    ),
}


@pytest.mark.parametrize("name", MODS)
def test_gradients_are_torch_s(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, mask = MODS[name]
    sizes = (B, H, L, D), (B, 2, LK, D), (B, 2, LK, D), (B, H, L, D)
    arrays = [np.random.default_rng(n).normal(size=size) for n, size in enumerate(sizes)]
    d_out = arrays.pop()

    monkeypatch.setattr(theirs, "_validate_device", lambda *_: None)
    inputs = [torch.tensor(each, requires_grad=True) for each in (*arrays, *CAPTURED.values())]
    captured = dict(zip(CAPTURED, inputs[3:], strict=True))
    blocks = mask and theirs.create_block_mask(mask, B, H, L, LK, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is not compiled
        out = theirs.flex_attention(*inputs[:3], make(captured, torch.tanh), block_mask=blocks, enable_gqa=True)
    (out * torch.tensor(d_out)).sum().backward()

    def ours(q: mx.array, k: mx.array, v: mx.array, *given: mx.array) -> list[mx.array]:
        mod = make(dict(zip(CAPTURED, given, strict=True)), mx.tanh)
        return [flex.flex_attention(q, k, v, mod, mask, enable_gqa=True, kernel_options={"BACKEND": "cpu"})]

    given = [mx.array(each.astype(np.float32)) for each in (*arrays, *CAPTURED.values())]
    _, got = mx.vjp(ours, given, [mx.array(d_out.astype(np.float32))])
    for array, mine, tensor in zip(["q", "k", "v", *CAPTURED], got, inputs, strict=True):
        exact = np.zeros(mine.shape) if tensor.grad is None else tensor.grad.numpy()
        worth = 2e-5 * max(1.0, float(np.abs(exact).max()))
        np.testing.assert_allclose(np.array(mine), exact, atol=worth, rtol=2e-5, err_msg=f"the gradient of {array}")
