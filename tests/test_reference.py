"""The float64 reference itself -> checked by hand-made cases and by MLX's own attention."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
import reference


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape)


def test_matches_mlx_attention_with_grouped_heads_and_a_causal_mask() -> None:
    q, k, v = normal(2, 4, 9, 8), normal(2, 2, 9, 8), normal(2, 2, 9, 8)
    got = reference.attention(q, k, v, mask_mod=lambda b, h, q_idx, kv_idx: q_idx >= kv_idx)
    arrays = (mx.array(x.astype(np.float32)) for x in (q, k, v))
    want = mx.fast.scaled_dot_product_attention(*arrays, scale=8**-0.5, mask="causal")
    np.testing.assert_allclose(got.out, np.array(want), atol=1e-5)


def test_one_key_and_value_batch_serves_all() -> None:
    q, k, v = normal(3, 2, 5, 4), normal(1, 2, 6, 4), normal(1, 2, 6, 7)
    got = reference.attention(q, k, v)
    want = reference.attention(q, np.repeat(k, 3, axis=0), np.repeat(v, 3, axis=0))
    assert got.out.shape == (3, 2, 5, 7)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-14)


def test_lse_and_max_are_of_the_modified_scores() -> None:
    q, k, v = normal(1, 1, 3, 4), normal(1, 1, 5, 4), normal(1, 1, 5, 4)
    got = reference.attention(q, k, v, lambda score, b, h, q_idx, kv_idx: 2 * score + kv_idx, scale=0.5)
    scores = 2 * (0.5 * q @ k.swapaxes(-1, -2)) + np.arange(5)
    np.testing.assert_allclose(got.max_scores, scores.max(-1))
    np.testing.assert_allclose(got.lse, np.log(np.exp(scores).sum(-1)))
    np.testing.assert_allclose(got.out, np.exp(scores - got.lse[..., None]) @ v)


@pytest.mark.parametrize("by_score_mod", [False, True])
def test_a_row_with_nothing_to_attend_to(by_score_mod: bool) -> None:
    q, k, v = normal(1, 2, 4, 4), normal(1, 2, 6, 4), normal(1, 2, 6, 3)
    if by_score_mod:
        got = reference.attention(q, k, v, lambda score, b, h, q, kv: score if q != 2 else -np.inf)
    else:
        got = reference.attention(q, k, v, mask_mod=lambda b, h, q, kv: q != 2)
    assert (got.out[:, :, 2] == 0).all()
    assert (got.lse[:, :, 2] == -np.inf).all() and (got.max_scores[:, :, 2] == -np.inf).all()
    others = [0, 1, 3]
    np.testing.assert_allclose(got.out[:, :, others], reference.attention(q, k, v).out[:, :, others])


def test_captured_arrays_keep_their_rounded_values() -> None:
    assert reference.array([1.0 + 2**-9], "bfloat16")[0] == 1.0
    assert reference.array([1.0 + 2**-9], "float16")[0] == 1.0 + 2**-9
    assert reference.array([300], "uint8")[0] == 44
    assert reference.array([2**30 + 1], "int32").dtype == np.int64
    assert reference.array([0, 1], "bool").dtype == bool


def test_tolerance_by_name_and_dtype() -> None:
    assert reference.tolerance(mx.bfloat16) is reference.tolerance("bfloat16")
    assert reference.tolerance(np.dtype("float32")) is reference.tolerance(mx.float32)


def test_assert_close_says_what_differs() -> None:
    reference.assert_close(mx.array([1.0, -np.inf]), np.array([1.0, -np.inf]), 1e-6, 0, "same")
    for wrong in ([1.1, -np.inf], [1.0, np.inf], [1.0, np.nan]):
        with pytest.raises(AssertionError, match="lse of alibi"):
            reference.assert_close(mx.array(wrong), np.array([1.0, -np.inf]), 1e-6, 0, "lse of alibi")
    with pytest.raises(AssertionError, match="shape"):
        reference.assert_close(mx.array([1.0]), np.array([[1.0]]), 1e-6, 0, "out")


def test_a_key_that_is_not_attended_to_may_hold_anything() -> None:
    q, k, v = normal(1, 2, 6, 4), normal(1, 2, 6, 4), normal(1, 2, 6, 3)
    clean = reference.attention(q, k, v, mask_mod=lambda b, h, q_idx, kv_idx: q_idx >= kv_idx)
    v[:, :, 2, 0], v[:, :, 3, 0], v[:, :, 4, 1] = np.inf, -np.inf, np.nan
    by_mask = reference.attention(q, k, v, mask_mod=lambda b, h, q_idx, kv_idx: q_idx >= kv_idx)
    by_score = reference.attention(q, k, v, lambda s, b, h, q_idx, kv_idx: s if q_idx >= kv_idx else -np.inf)
    want = clean.out.copy()
    want[:, :, 2, 0], want[:, :, 3:, 0], want[:, :, 4:, 1] = np.inf, np.nan, np.nan
    for got in (by_mask, by_score):
        np.testing.assert_allclose(got.out, want)
        np.testing.assert_array_equal(got.lse, clean.lse)
