"""What a BlockMask can do: parts, other lengths, algebra, runs, pickling; each against the dense mask of numpy."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import flextrace as flex
from flextrace.block_input import BlockRanges

Mask = Callable[..., Any]
WINDOW = 20


@flex.mask_mod
def banded(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return abs(q_idx - kv_idx) < WINDOW


@flex.mask_mod
def by_head(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return (q_idx + h) % 4 >= 2 if b > 0 else kv_idx >= 30 * h


def documents(n: int) -> flex.MaskMod:
    ids = mx.array(np.sort(np.random.default_rng(0).integers(0, 6, n)))
    return flex.mask_mod(lambda b, h, q_idx, kv_idx: ids[q_idx] == ids[kv_idx])


def dense(mask: Mask, b: int, h: int, q_len: int, kv_len: int, q_from: int = 0) -> np.ndarray:
    out = np.zeros((b, h, q_len, kv_len), bool)
    for i, j, q, kv in np.ndindex(*out.shape):
        out[i, j, q, kv] = bool(mask(i, j, q + q_from, kv))
    return out


def states(kept: np.ndarray, rows: int, columns: int) -> np.ndarray:
    b, h, q_len, kv_len = kept.shape
    out = np.zeros((b, h, -(-q_len // rows), -(-kv_len // columns)), int)
    for i, j in np.ndindex(*out.shape[2:]):
        block = kept[:, :, i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
        out[:, :, i, j] = block.any((2, 3)).astype(int) + block.all((2, 3))
    return out


def assert_stands_for(made: flex.BlockMask, kept: np.ndarray, *, exact: bool = True) -> None:
    """The blocks are those of the dense mask, the mask_mod decides the same pairs, and attention follows."""
    assert made.shape == kept.shape
    want = states(kept, *made.BLOCK_SIZE)
    got = made.blocks.states()
    if exact:
        np.testing.assert_array_equal(got, want)
    else:  # made from lists: visited at least where something is kept, full at most where all is
        assert ((got > 0) | (want == 0)).all() and ((got < 2) | (want == 2)).all()
    b, h, q_len, kv_len = kept.shape
    np.testing.assert_array_equal(np.array(flex.create_mask(made.as_mask_mod(), b, h, q_len, kv_len)), kept)
    shown = 100 * (1 - np.repeat(np.repeat(got > 0, made.BLOCK_SIZE[0], 2), made.BLOCK_SIZE[1], 3)
                   [:, :, :q_len, :kv_len].mean()) if kept.size else 0.0  # fmt: skip
    assert made.sparsity() == pytest.approx(shown) and 0 <= made.sparsity() <= 100
    if kept.size:
        rng = np.random.default_rng(1)
        q, k = (mx.array(rng.normal(size=(b, h, n, 8)).astype(np.float32)) for n in (q_len, kv_len))
        out = flex.flex_attention(q, k, k, block_mask=made)
        scores = np.where(kept, np.array(q @ k.swapaxes(-1, -2)) / np.sqrt(8), -np.inf)
        weights = np.exp(scores - np.maximum(scores.max(-1, keepdims=True), -1e30))
        want_out = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-30) @ np.array(k)
        np.testing.assert_allclose(np.array(out), want_out, atol=2e-5)


# ---- parts ---------------------------------------------------------------------------------------------------------

ROWS = [0, -1, slice(1, 3), slice(2, None), slice(None, None, 2), [2, 0], slice(3, 3)]


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("mask", [banded, documents(90)], ids=["banded", "documents"])
def test_rows_of_blocks(mask: Mask, rows: Any) -> None:
    """A banded, ragged mask: blocks and mask_mod move together, unlike torch's."""
    q_len, block = 75, 16
    whole = flex.create_block_mask(mask, None, None, q_len, 90, BLOCK_SIZE=(block, 8))
    chosen = np.arange(5)[rows].reshape(-1)
    positions = np.concatenate([np.arange(75)[i * block : (i + 1) * block] for i in chosen] or [np.zeros(0, int)])
    kept = dense(mask, 1, 1, q_len, 90)[:, :, positions]
    part = whole[0, 0, rows]
    assert_stands_for(part, kept)
    if not isinstance(rows, list) and len(chosen) and (np.diff(chosen) == 1).all():
        assert part.offset == chosen[0] * block


def test_batches_and_heads() -> None:
    whole = flex.create_block_mask(by_head, 3, 4, 40, 50, BLOCK_SIZE=16)
    kept = dense(by_head, 3, 4, 40, 50)
    for index in (0, (1, 2), (slice(1, 3), [3, 1]), (slice(None), -1), ([2], slice(1, 3), slice(1, 3))):
        parts = index if isinstance(index, tuple) else (index,)
        want = kept
        for axis, part in enumerate(parts):
            chosen = np.arange((3, 4, 3)[axis])[part].reshape(-1)
            at = chosen if axis < 2 else np.concatenate([np.arange(40)[i * 16 : (i + 1) * 16] for i in chosen])
            want = want.take(at, axis)
        assert_stands_for(whole[index], want)


def test_a_part_of_a_part() -> None:
    whole = flex.create_block_mask(banded, None, None, 96, 96, BLOCK_SIZE=16)
    part = whole[:, :, 1:5][:, :, 2:]
    assert part.offset == 48 and part.shape == (1, 1, 32, 96)
    assert_stands_for(part, dense(banded, 1, 1, 32, 96, 48))


def test_one_batch_of_several_broadcasts() -> None:
    whole = flex.create_block_mask(by_head, 3, 4, 40, 50, BLOCK_SIZE=16)
    part = whole[2, 1]
    q = mx.random.normal((5, 2, 40, 8), key=mx.random.key(0))
    k = mx.random.normal((5, 2, 50, 8), key=mx.random.key(1))
    kept = mx.array(dense(by_head, 3, 4, 40, 50)[2, 1])
    want = mx.fast.scaled_dot_product_attention(q, k, k, scale=8**-0.5, mask=kept) * kept.any(axis=-1, keepdims=True)
    assert mx.abs(flex.flex_attention(q, k, k, block_mask=part) - want).max() < 1e-5


def test_indices_that_do_not_exist() -> None:
    whole = flex.create_block_mask(banded, None, None, 75, 90, BLOCK_SIZE=16)
    with pytest.raises(IndexError, match="q_blocks has 5 entries"):
        whole[0, 0, 5]
    with pytest.raises(IndexError, match=r"three axes of blocks to index \(B, H, q_blocks\), not 4"):
        whole[0, 0, 0, 0]
    with pytest.raises(ValueError, match="row 4 of blocks has 11 rows only, so it can only come last"):
        whole[0, 0, [4, 0]]


# ---- other lengths -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [(10, 20), (75, 90), (120, 33), (64, 200)], ids=str)
def test_adjust(lengths: tuple[int, int]) -> None:
    made = flex.create_block_mask(banded, None, None, 75, 90, BLOCK_SIZE=16)._adjust(*lengths)
    assert_stands_for(made, dense(banded, 1, 1, *lengths))


def test_queries_that_start_later() -> None:
    whole = flex.create_block_mask(banded, None, None, 64, 128, BLOCK_SIZE=16)
    for offset, q_len in ((0, 64), (37, 1), (100, 28)):
        later = whole.at_offset(offset, q_len)
        assert later.offset == offset
        assert_stands_for(later, dense(banded, 1, 1, q_len, 128, offset))
        direct = flex.create_block_mask(banded, None, None, q_len, 128, BLOCK_SIZE=16, offset=offset)
        assert direct == later and direct.offset == offset
        assert later.at_offset(3, 10) == whole.at_offset(3, 10)


# ---- algebra -------------------------------------------------------------------------------------------------------


def causal(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx >= kv_idx


def test_masks_combine() -> None:
    mask = flex.mask_mod(causal)
    sizes = (2, 3, 30, 40)
    a, b = dense(causal, *sizes), dense(by_head, *sizes)
    for made, want in (
        (mask & by_head, a & b),
        (mask | by_head, a | b),
        (~mask, ~a),
        (~(mask & ~by_head), ~(a & ~b)),
        (mask & causal, a),
    ):
        np.testing.assert_array_equal(np.array(flex.create_mask(made, *sizes)), want)
    assert repr(mask & ~by_head) == "<mask_mod (causal & ~by_head)>"
    with pytest.raises(TypeError, match="unsupported operand"):
        mask & 3  # type: ignore[operator]


def test_block_masks_combine() -> None:
    sizes = (2, 3, 45, 50)
    kept = {name: dense(mask, *sizes) for name, mask in (("causal", causal), ("banded", banded), ("by_head", by_head))}
    one = flex.create_block_mask(banded, None, None, 45, 50, BLOCK_SIZE=16)
    many = flex.create_block_mask(by_head, 2, 3, 45, 50, BLOCK_SIZE=16)
    assert_stands_for(one & many, kept["banded"] & kept["by_head"])
    assert_stands_for(many | one, kept["banded"] | kept["by_head"])
    assert_stands_for(~many, ~kept["by_head"])
    assert_stands_for(many & causal, kept["by_head"] & kept["causal"])
    assert_stands_for(flex.mask_mod(causal) & many, kept["by_head"] & kept["causal"])
    assert_stands_for(many & ~many, np.zeros(sizes, bool))
    with pytest.raises(ValueError, match=r"one BlockMask is for lengths \(45, 50\) .* make both alike"):
        one & flex.create_block_mask(banded, None, None, 45, 51, BLOCK_SIZE=16)
    with pytest.raises(ValueError, match="do not broadcast"):
        many & flex.create_block_mask(by_head, 3, 3, 45, 50, BLOCK_SIZE=16)


def test_masks_made_of_lists_combine_with_their_blocks() -> None:
    """The mask_mod decides only inside partial blocks, so the blocks are part of the mask."""
    counts, indices = mx.array([[[1, 1]]]), mx.array([[[[1, 0], [0, 0]]]])
    full = mx.array([[[0, 1]]]), mx.array([[[[0, 0], [1, 0]]]])
    made = flex.BlockMask.from_kv_blocks(counts, indices, *full, BLOCK_SIZE=8, mask_mod=causal, seq_lengths=(15, 16))
    kept = np.zeros((1, 1, 15, 16), bool)
    at = dense(causal, 1, 1, 15, 16)
    kept[:, :, :8, 8:], kept[:, :, 8:, :8], kept[:, :, 8:, 8:] = at[:, :, :8, 8:], at[:, :, 8:, :8], True
    assert_stands_for(made, kept, exact=False)
    assert_stands_for(~made, ~kept)
    assert_stands_for(made & banded, kept & dense(banded, 1, 1, 15, 16))
    assert_stands_for(made[:, :, 1], kept[:, :, 8:], exact=False)
    assert_stands_for(made._adjust(12, 10), kept[:, :, :12, :10])
    assert_stands_for(made.at_offset(3, 9), kept[:, :, 3:12])
    with pytest.raises(ValueError, match="lists or runs of blocks for lengths .*: make one with create_block_mask"):
        made._adjust(16, 16)
    with pytest.raises(
        ValueError, match=r"has the rows 0 to 15 only: make one with create_block_mask\(\.\.\., offset=9"
    ):
        made.at_offset(9, 9)


# ---- runs, equality, pickling --------------------------------------------------------------------------------------


def test_runs_there_and_back() -> None:
    made = flex.create_block_mask(by_head, 2, 3, 75, 90, BLOCK_SIZE=(16, 8))
    ranges = made.to_ranges()
    again = flex.BlockMask.from_ranges(ranges, (75, 90), 2, 3, (16, 8), by_head)
    np.testing.assert_array_equal(again.blocks.states(), made.blocks.states())
    assert again == made
    one = flex.create_block_mask(causal, None, None, 64, 64, BLOCK_SIZE=16).to_ranges()
    assert one.first.tolist() == [0, 0, 1, 0, 2, 0, 3] and one.end.tolist() == [1, 1, 2, 2, 3, 3, 4]
    assert one.full.tolist() == [False, True, False, True, False, True, False]
    assert one.offsets.tolist() == [0, 1, 3, 5, 7]


BAD_RUNS = {
    "offsets": ([0, 1], [0], [1], [True], "offsets must rise from 0 to the number of runs, 1, in 3 entries"),
    "shapes": ([0, 1, 1], [0], [1], [True, False], "have shapes"),
    "overlap": ([0, 2, 2], [0, 1], [2, 3], [True, True], "ascending, disjoint and inside the 4 blocks"),
    "outside": ([0, 1, 1], [3], [5], [True], "inside the 4 blocks of a row"),
    "empty": ([0, 1, 1], [3], [3], [True], "ascending"),
}


@pytest.mark.parametrize("case", BAD_RUNS)
def test_bad_runs(case: str) -> None:
    *parts, message = BAD_RUNS[case]
    ranges = BlockRanges(*(np.array(part) for part in parts))
    with pytest.raises(ValueError, match=message):
        flex.BlockMask.from_ranges(ranges, (16, 32), BLOCK_SIZE=8)


def test_equality() -> None:
    def window(n: int) -> flex.BlockMask:
        return flex.create_block_mask(lambda b, h, q, kv: abs(q - kv) < n, None, None, 64, 64, BLOCK_SIZE=16)

    assert window(20) == window(20) and hash(window(20)) == hash(window(20))
    assert window(20) != window(21)  # the same blocks, another mask inside
    assert np.array_equal(window(20).blocks.states(), window(21).blocks.states())
    assert window(20) != flex.create_block_mask(banded, None, None, 64, 63, BLOCK_SIZE=16)
    first, second = documents(64), documents(64)
    assert flex.create_block_mask(first, None, None, 64, 64) == flex.create_block_mask(second, None, None, 64, 64)
    assert window(20) != "a mask"


@pytest.mark.parametrize("mask", [banded, by_head, documents(75), ~banded & causal], ids=str)
def test_pickling(mask: flex.MaskMod) -> None:
    made = flex.create_block_mask(mask, 2, 3, 70, 75, BLOCK_SIZE=16)
    assert made.kv_indices.shape == (2, 3, 5, 5)  # asked for, and not pickled
    data = pickle.dumps(made)
    again = pickle.loads(data)
    assert again == made and "_by_rows" not in again.__dict__
    assert_stands_for(again, dense(mask, 2, 3, 70, 75))
    assert pickle.loads(pickle.dumps(again)) == made
    assert (pickle.loads(pickle.dumps(banded)) is banded) == (banded is globals()["banded"])


def test_what_is_shown() -> None:
    made = flex.create_block_mask(causal, None, None, 64, 64, BLOCK_SIZE=16)
    html = made._repr_html_()
    assert "6 full, 4 partial, 6 empty of 16 blocks, sparsity 37.50 %" in html and "BlockMask 1 x 1 x 64 x 64" in html
    assert html.count("<rect") == 7 + 1  # a box per run, and the frame
    large = flex.create_block_mask(causal, None, None, 20_000, 20_000)
    assert len(large.to_string(rows=10, columns=10).splitlines()) == 11
    assert large.to_string(rows=10, columns=10).startswith("+.........\n#+") or "+" in large.to_string(rows=10)
    assert made.nbytes < 200 and large.nbytes < 10_000
    assert flex.create_block_mask(causal, None, None, 0, 5)._repr_html_()
