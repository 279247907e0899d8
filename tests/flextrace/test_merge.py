"""merge_attention: two attentions over disjoint keys, against attention over all of them, forward and backward."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import reference

import flextrace as flex


def tensors(b: int, h: int, q_len: int, kv_len: int, dim: int = 8) -> tuple[mx.array, mx.array, mx.array]:
    rng = np.random.default_rng(3)
    shapes = ((b, h, q_len, dim), (b, h, kv_len, dim), (b, h, kv_len, dim))
    return tuple(mx.array(rng.normal(size=shape).astype(np.float32)) for shape in shapes)  # type: ignore[return-value]


def halves(split: int, mask_mod: Any) -> tuple[list[mx.array], tuple[mx.array, mx.array]]:
    """Attention over keys [0, split) and [split, 20), each with the mask shifted to its keys, and over all of them."""
    q, k, v = tensors(2, 2, 12, 20)
    late = flex.mask_mod(lambda b, h, q_idx, kv_idx: mask_mod(b, h, q_idx, kv_idx + split))

    def attend(keys: slice, mask: Any) -> tuple[mx.array, mx.array]:
        options = {"BACKEND": "ops"}
        k_part, v_part = k[:, :, keys], v[:, :, keys]
        return flex.flex_attention(q, k_part, v_part, block_mask=mask, return_lse=True, kernel_options=options)

    first, second = attend(slice(0, split), mask_mod), attend(slice(split, 20), late)
    return [*first, *second], attend(slice(0, 20), mask_mod)


MERGED = {
    "all": lambda b, h, q_idx, kv_idx: True,
    "causal, second half empty for most rows": lambda b, h, q_idx, kv_idx: kv_idx <= q_idx,
    "first half empty": lambda b, h, q_idx, kv_idx: kv_idx >= 10,
    "both halves empty for some rows": lambda b, h, q_idx, kv_idx: q_idx % 3 == 0 and kv_idx != 4,
    "nothing": lambda b, h, q_idx, kv_idx: kv_idx < 0,
}


@pytest.mark.parametrize("mask_mod", MERGED.values(), ids=MERGED)
@pytest.mark.parametrize("split", [1, 10, 17])
def test_merge_is_attention_over_all_keys(mask_mod: Any, split: int) -> None:
    (out, lse, out2, lse2), (whole, whole_lse) = halves(split, mask_mod)
    for merged, merged_lse in (
        flex.merge_attention(out, lse, out2, lse2),
        flex.merge_attention(out2, lse2, out, lse),
        mx.compile(flex.merge_attention)(out, lse, out2, lse2),
    ):
        reference.assert_close(merged, np.array(whole, float), 2e-6, 2e-6, "out")
        reference.assert_close(merged_lse, np.array(whole_lse, float), 2e-6, 2e-6, "lse")


def test_merge_of_many_parts_in_any_order() -> None:
    q, k, v = tensors(1, 2, 8, 21)
    whole, whole_lse = flex.flex_attention(q, k, v, return_lse=True)
    parts = [flex.flex_attention(q, k[:, :, i::3], v[:, :, i::3], return_lse=True) for i in (2, 0, 1)]
    out, lse = parts[0]
    for part in parts[1:]:
        out, lse = flex.merge_attention(out, lse, *part)
    reference.assert_close(out, np.array(whole, float), 2e-6, 2e-6, "out")
    reference.assert_close(lse, np.array(whole_lse, float), 2e-6, 2e-6, "lse")


def test_merge_keeps_the_dtype_and_survives_large_lse() -> None:
    out = mx.ones((2, 3), dtype=mx.bfloat16)
    merged, lse = flex.merge_attention(out, mx.array([300.0, -mx.inf]), 3 * out, mx.array([300.0, -500.0]))
    assert merged.dtype == mx.bfloat16 and lse.dtype == mx.float32
    np.testing.assert_allclose(np.array(merged.astype(mx.float32)), [[2] * 3, [3] * 3])
    np.testing.assert_allclose(np.array(lse), [300 + math.log(2), -500], rtol=1e-6)


@pytest.mark.parametrize("mask_mod", MERGED.values(), ids=MERGED)
def test_gradient_through_merge(mask_mod: Any) -> None:
    q, k, v = tensors(1, 2, 9, 14)
    late = flex.mask_mod(lambda b, h, q_idx, kv_idx: mask_mod(b, h, q_idx, kv_idx + 6))
    options = {"BACKEND": "ops"}
    weight, weight_lse = tensors(1, 2, 9, 1)[0], tensors(1, 2, 9, 9)[0][..., 0]

    def score(out: mx.array, lse: mx.array) -> mx.array:
        return (out * weight).sum() + (mx.where(lse == -mx.inf, 0.0, lse) * weight_lse).sum()

    def merged(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        first = flex.flex_attention(
            q, k[:, :, :6], v[:, :, :6], block_mask=mask_mod, return_lse=True, kernel_options=options
        )
        second = flex.flex_attention(
            q, k[:, :, 6:], v[:, :, 6:], block_mask=late, return_lse=True, kernel_options=options
        )
        return score(*flex.merge_attention(*first, *second))

    def whole(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return score(*flex.flex_attention(q, k, v, block_mask=mask_mod, return_lse=True, kernel_options=options))

    for got, expected in zip(mx.grad(merged, (0, 1, 2))(q, k, v), mx.grad(whole, (0, 1, 2))(q, k, v), strict=True):
        assert np.isfinite(np.array(got)).all()
        np.testing.assert_allclose(np.array(got), np.array(expected), atol=2e-5)


def test_shapes_that_do_not_fit_are_named() -> None:
    out, lse = mx.ones((2, 3)), mx.ones((3,))
    with pytest.raises(ValueError, match="lse that of out without its last axis"):
        flex.merge_attention(out, lse, out, lse)
