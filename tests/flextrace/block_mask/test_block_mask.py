"""BlockMask and its constructors against the dense mask, evaluated by the user's own function."""

from __future__ import annotations

import warnings
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from dense_masks import dense, states

import flextrace as flex
from flextrace.block_mask import lists as lists_module


def causal(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx >= kv_idx


def banded(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return abs(q_idx - kv_idx) < 20


def by_head(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return (q_idx + h) % 4 >= 2 if b > 0 else kv_idx >= 30 * h


def listed(counts: mx.array | None, indices: mx.array | None, n: int) -> np.ndarray:
    """bool [..., n] that lists of blocks stand for."""
    assert counts is not None and indices is not None
    c, i = np.array(counts), np.array(indices)
    out = np.zeros((*c.shape, n), bool)
    for at in np.ndindex(*c.shape):
        out[at][i[at][: c[at]]] = True
    return out


CASES = [(causal, 1, 1), (banded, 1, 1), (by_head, 2, 3), (flex.noop_mask, 1, 1)]


@pytest.mark.parametrize(("mask", "b", "h"), CASES, ids=lambda x: getattr(x, "__name__", str(x)))
@pytest.mark.parametrize("lengths", [(64, 64), (61, 90), (1, 40), (40, 1)], ids=str)
@pytest.mark.parametrize("block", [16, (16, 8), (7, 13), 128], ids=str)
def test_equals_the_dense_definition(mask: Any, b: int, h: int, lengths: tuple[int, int], block: Any) -> None:
    made = flex.create_block_mask(mask, b if b > 1 else None, h if h > 1 else None, *lengths, BLOCK_SIZE=block)
    kept = dense(mask, b, h, *lengths)
    np.testing.assert_array_equal(np.array(flex.create_mask(mask, b, h, *lengths)), kept)
    rows, columns = made.BLOCK_SIZE
    expected = states(kept, rows, columns)
    n_rows, n_columns = expected.shape[2:]
    np.testing.assert_array_equal(listed(made.kv_num_blocks, made.kv_indices, n_columns), expected == 1)
    np.testing.assert_array_equal(listed(made.full_kv_num_blocks, made.full_kv_indices, n_columns), expected == 2)
    turned = expected.swapaxes(2, 3)
    np.testing.assert_array_equal(listed(made.q_num_blocks, made.q_indices, n_rows), turned == 1)
    np.testing.assert_array_equal(listed(made.full_q_num_blocks, made.full_q_indices, n_rows), turned == 2)
    np.testing.assert_array_equal(np.array(made.to_dense()), expected > 0)
    assert made.shape == (b, h, *lengths)
    assert made.numel() == b * h * lengths[0] * lengths[1]
    visited = np.repeat(np.repeat(expected > 0, rows, 2)[:, :, : lengths[0]], columns, 3)[..., : lengths[1]]
    assert made.sparsity() == pytest.approx(100 * (1 - visited.mean()))
    assert made.kv_indices.dtype == mx.int32
    assert len(made.as_tuple()) == 13
    assert len(made.as_tuple(flatten=False)) == 11


def test_prints_a_picture() -> None:
    made = flex.create_block_mask(causal, None, None, 96, 96, BLOCK_SIZE=32)
    assert repr(made) == ("BlockMask(shape=(1, 1, 96, 96), BLOCK_SIZE=(32, 32), sparsity=33.33%)\n+..\n#+.\n##+")
    coarse = repr(flex.create_block_mask(causal, None, None, 9000, 32, BLOCK_SIZE=32)).splitlines()
    assert len(coarse) == 1 + 57 + 1 and coarse[1] == "+" and coarse[2] == "#"
    assert coarse[-1] == "(one character stands for 5 x 1 blocks)"


def test_combinations() -> None:
    q_idx, kv_idx = np.arange(70)[:, None], np.arange(70)
    both = flex.create_mask(flex.and_masks(causal, flex.mask_mod(banded)), None, None, 70, 70)
    np.testing.assert_array_equal(np.array(both)[0, 0], (q_idx >= kv_idx) & (abs(q_idx - kv_idx) < 20))
    either = flex.create_mask(flex.or_masks(causal, banded), None, None, 70, 70)
    np.testing.assert_array_equal(np.array(either)[0, 0], (q_idx >= kv_idx) | (abs(q_idx - kv_idx) < 20))
    assert flex.and_masks()(0, 0, 1, 2) is True
    assert flex.or_masks()(0, 0, 1, 2) is False
    with pytest.raises(TypeError, match="and_masks takes a mask_mod"):
        flex.and_masks(flex.score_mod(lambda s, b, h, q, k: s))


@pytest.mark.parametrize("backend", ["cpu", "ops"])
def test_from_kv_blocks_with_and_without_a_mask_mod(backend: str) -> None:
    made = flex.create_block_mask(banded, None, None, 100, 100, BLOCK_SIZE=16)
    again = flex.BlockMask.from_kv_blocks(
        made.kv_num_blocks,
        np.array(made.kv_indices).astype(np.int64),
        made.full_kv_num_blocks,
        made.full_kv_indices,
        BLOCK_SIZE=16,
        mask_mod=banded,
        seq_lengths=(100, 100),
    )
    q = mx.random.normal((2, 2, 100, 8), key=mx.random.key(0))
    options = {"BACKEND": backend}
    expected = flex.flex_attention(q, q, q, block_mask=banded, kernel_options=options)
    assert mx.abs(flex.flex_attention(q, q, q, block_mask=again, kernel_options=options) - expected).max() < 1e-5
    blocks_only = flex.BlockMask.from_kv_blocks(mx.array([[[1, 2]]]), mx.array([[[[0, 0], [0, 1]]]]), BLOCK_SIZE=50)
    coarse = flex.flex_attention(q, q, q, block_mask=blocks_only, kernel_options=options)
    expected = flex.flex_attention(
        q, q, q, block_mask=lambda b, h, q_idx, kv_idx: q_idx // 50 >= kv_idx // 50, kernel_options=options
    )
    assert mx.abs(coarse - expected).max() < 1e-5


def lists(counts: Any, indices: Any, **more: Any) -> Any:
    return flex.BlockMask.from_kv_blocks(mx.array(counts), mx.array(indices), BLOCK_SIZE=8, **more)


BAD = {
    "counts shape": (lambda: lists([1], [[[[0]]]]), ValueError, r"kv_num_blocks is int32 of shape \(1,\); expected"),
    "float": (lambda: lists([[[1.0]]], [[[[0]]]]), ValueError, "kv_num_blocks is float32"),
    "rows": (lambda: lists([[[1, 1]]], [[[[0]]]]), ValueError, r"kv_num_blocks has shape \(1, 1, 2\)"),
    "count": (lambda: lists([[[2]]], [[[[0]]]]), ValueError, "kv_num_blocks holds 2 to 2; its lists have 1 entries"),
    "index": (lambda: lists([[[1]]], [[[[3]]]]), ValueError, "kv_indices names block 3 to 3; there are 1 blocks"),
    "next index": (lambda: lists([[[1]]], [[[[1]]]]), ValueError, "kv_indices names block 1 to 1; there are 1 blocks"),
    "half": (
        lambda: lists([[[1]]], [[[[0]]]], full_kv_num_blocks=mx.array([[[0]]])),
        ValueError,
        "full_kv_num_blocks and full_kv_indices go together",
    ),
    "full index": (
        lambda: lists([[[1]]], [[[[0]]]], full_kv_num_blocks=mx.array([[[1]]]), full_kv_indices=mx.array([[[[-1]]]])),
        ValueError,
        "full_kv_indices names block -1",
    ),
    "block size": (
        lambda: flex.create_block_mask(causal, None, None, 8, 8, BLOCK_SIZE=0),
        ValueError,
        "BLOCK_SIZE is 0; expected a positive int",
    ),
    "length": (lambda: flex.create_block_mask(causal, None, None, -1, 8), ValueError, "Q_LEN is -1"),
    "batch": (
        lambda: flex.create_mask(causal, 0, None, 8, 8),
        ValueError,
        "B is 0; expected a whole number from 1 on or",
    ),
    "heads needed": (
        lambda: flex.create_block_mask(by_head, 2, None, 8, 8),
        ValueError,
        "the mask depends on h, so create_block_mask needs H, not None",
    ),
    "score": (
        lambda: flex.create_block_mask(flex.score_mod(lambda s, b, h, q, k: s), None, None, 8, 8),
        TypeError,
        "mask_mod takes a mask_mod",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_errors(case: str) -> None:
    call, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        call()


def test_large_lists_say_their_size(fresh_notices: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """From LARGE_LIST on once, and more than there is memory is an error before any work; counts are always there."""
    made = flex.create_block_mask(banded, None, None, 256, 512, BLOCK_SIZE=16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _ = made.kv_indices
    monkeypatch.setattr(lists_module, "LARGE_LIST", 4 * 16 * 32)
    with pytest.warns(flex.FlextraceWarning, match=r"full_q_indices takes 0 MB: .* each of 1 x 1 x 16 x 32 blocks"):
        _ = made.full_q_indices
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _ = made.q_indices  # once per process
        _ = flex.create_block_mask(banded, None, None, 255, 496, BLOCK_SIZE=16).kv_indices
    rows, columns = 2**12, 2**40
    none = flex.BlockRanges(np.zeros(rows + 1, int), *np.zeros((3, 0), int))
    absurd = flex.BlockMask.from_ranges(none, (rows, columns), BLOCK_SIZE=1)
    assert absurd.kv_num_blocks.tolist() == [[[0] * rows]] and absurd.sparsity() == 100
    for name in ("kv_indices", "full_kv_indices", "q_indices", "full_q_indices"):
        with pytest.raises(MemoryError, match=rf"^{name} takes 18,014,398,509 MB: .*`to_ranges\(\)`, in 0.0 MB"):
            getattr(absurd, name)
