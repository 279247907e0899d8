"""What a BlockMask can do: parts, other lengths, algebra, runs, pickling; each against the dense mask of numpy."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from dense_masks import assert_stands_for, attended, dense

import flextrace as flex
from flextrace.block_mask import BlockRanges

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


# ---- parts ---------------------------------------------------------------------------------------------------------

ROWS = [0, -1, slice(1, 3), slice(2, None), slice(None, None, 2), [2, 0], slice(3, 3)]


@pytest.mark.sampled(2)
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


@pytest.mark.parametrize("lengths", [(10, 20), (75, 90), (20, 33), (64, 200)], ids=str)
def test_adjust_keeps_the_offset(lengths: tuple[int, int]) -> None:
    made = flex.create_block_mask(banded, None, None, 30, 90, BLOCK_SIZE=16, offset=37)._adjust(*lengths)
    assert made.offset == 37
    assert_stands_for(made, dense(banded, 1, 1, *lengths, 37), backend="ops")
    later = made.at_offset(41, 5)
    assert later.offset == 41
    assert_stands_for(later, dense(banded, 1, 1, 5, lengths[1], 41), backend="ops")


def test_lists_of_one_batch_and_head_are_a_mask_of_all() -> None:
    whole = flex.create_block_mask(banded, None, None, 64, 64, BLOCK_SIZE=8)
    lists = flex.BlockMask.from_kv_blocks(*whole.as_tuple()[2:6], BLOCK_SIZE=8, mask_mod=banded)
    made = np.array(flex.create_mask(lists.as_mask_mod(), 2, 3, 64, 64))
    assert (made == dense(banded, 2, 3, 64, 64, 0)).all() and made.any() and not made.all()


def test_lists_of_each_batch_and_head_are_a_mask_of_their_own() -> None:
    first = np.arange(2 * 3 * 4, dtype=np.int32).reshape(2, 3, 4, 1) % 5  # the one block of each row of blocks
    lists = flex.BlockMask.from_kv_blocks(np.ones((2, 3, 4), np.int32), first, BLOCK_SIZE=8, seq_lengths=(32, 40))
    made = np.array(flex.create_mask(lists.as_mask_mod(), 2, 3, 32, 40))
    assert (made == (np.arange(40) // 8 == np.repeat(first, 8, axis=2))).all()


def test_rows_of_lists_know_where_they_are() -> None:
    """`at_offset` counts rows from the start of the sequence, also of a part that starts later, and of lists."""
    whole = flex.create_block_mask(banded, None, None, 64, 64, BLOCK_SIZE=8)
    lists = flex.BlockMask.from_kv_blocks(*whole.as_tuple()[2:6], BLOCK_SIZE=8, mask_mod=banded)
    part = lists[:, :, 3:6]
    assert part.offset == 24 and not part.implied
    assert_stands_for(part.at_offset(29, 19), dense(banded, 1, 1, 19, 64, 29), backend="ops")
    assert_stands_for(part._adjust(17, 60), dense(banded, 1, 1, 17, 60, 24), backend="ops")
    assert part._adjust(17, 60).offset == 24
    for offset, q_len in ((23, 1), (29, 20), (0, 8)):
        with pytest.raises(ValueError, match="has the rows 24 to 48 only"):
            part.at_offset(offset, q_len)
    assert_stands_for(part.at_offset(24, 24), dense(banded, 1, 1, 24, 64, 24), backend="ops")


def test_chosen_rows_are_nowhere_in_the_sequence() -> None:
    chosen = flex.create_block_mask(banded, None, None, 64, 64, BLOCK_SIZE=8)[:, :, [0, 3, 4]]
    kept = dense(banded, 1, 1, 64, 64)[:, :, [*range(8), *range(24, 40)]]
    assert chosen.offset is None and chosen[:, :, 1:].offset is None
    assert_stands_for(chosen[:, :, 1:], kept[:, :, 8:], backend="ops")
    assert_stands_for(chosen._adjust(13, 64), kept[:, :, :13], backend="ops")
    assert_stands_for(~chosen & ~chosen, ~kept, backend="ops")
    assert_stands_for(chosen & (lambda b, h, q_idx, kv_idx: kv_idx > 9), kept & (np.arange(64) > 9), backend="ops")
    with pytest.raises(ValueError, match=r"holds 24 chosen rows of another one, which say nothing of 25"):
        chosen._adjust(25, 64)
    with pytest.raises(ValueError, match="ask that one for the rows at an offset"):
        chosen.at_offset(3, 1)
    with pytest.raises(ValueError, match=r"in which q_idx counts anew, and <mask_mod causal> reads q_idx"):
        chosen & causal
    with pytest.raises(ValueError, match="one BlockMask has chosen rows, the other offset 0"):
        chosen | flex.create_block_mask(causal, None, None, 24, 64, BLOCK_SIZE=8)


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


def test_mask_mods_combine_with_functions_on_either_side() -> None:
    mask, sizes = flex.mask_mod(banded), (1, 1, 30, 40)
    kept, lower = dense(banded, *sizes), dense(causal, *sizes)
    for made, want in (
        (causal & mask, kept & lower),
        (causal | mask, kept | lower),
        (mask & functools.partial(causal), kept & lower),
        (functools.partial(causal) | ~mask, ~kept | lower),
    ):
        np.testing.assert_array_equal(np.array(flex.create_mask(made, *sizes)), want)
    assert repr(causal & mask) == "<mask_mod (causal & banded)>"
    for combine in (lambda: mask & int, lambda: 3 | mask, lambda: mask & flex.score_mod(lambda s, b, h, q, k: s)):
        with pytest.raises(TypeError, match="unsupported operand"):
            combine()


def test_masks_are_neither_true_nor_false() -> None:
    mask = flex.mask_mod(causal)
    made = flex.create_block_mask(mask, None, None, 8, 8)
    for combine in (lambda: mask and mask, lambda: mask or mask, lambda: not mask, lambda: causal and not made):
        with pytest.raises(TypeError, match="neither true nor false: write `&`, `|` and `~` for and, or and not"):
            combine()
    with pytest.raises(TypeError, match="<score_mod <lambda>> is a function, neither true nor false: test `is None`"):
        bool(flex.score_mod(lambda s, b, h, q, k: s))
    for take, sign in ((flex.and_masks, "&"), (flex.or_masks, "|")):
        with pytest.raises(TypeError, match=rf"takes mask_mods; a BlockMask .* write `block_mask \{sign} other`"):
            take(causal, made)


@pytest.mark.parametrize("offset", [0, 19, 40])
def test_mask_mods_count_rows_of_the_sequence_beside_an_offset(offset: int) -> None:
    """Whatever is combined: the mask of all, seen from the offset on."""
    lengths = (24, 64)
    masks = [dense(mask, 2, 3, *lengths, offset) for mask in (banded, by_head, causal)]
    first, second, lower = masks

    def at(mask: Mask) -> flex.BlockMask:
        return flex.create_block_mask(mask, 2, 3, *lengths, BLOCK_SIZE=8, offset=offset)

    mods = flex.mask_mod(banded), flex.mask_mod(by_head), flex.mask_mod(causal)
    a, b, c = mods
    for made, mod, want in (
        (at(a) & by_head, a & b, first & second),
        (by_head & at(a), a & b, first & second),
        (b | at(a), a | b, first | second),
        (at(a) & at(b), a & b, first & second),
        (at(a) | at(b) & causal, a | (b & c), first | second & lower),
        (~at(a) & b, ~a & b, ~first & second),
        (~(at(a) & ~at(b)), ~(a & ~b), ~(first & ~second)),
        (flex.create_block_mask(a, 2, 3, 80, 64, BLOCK_SIZE=8).at_offset(offset, 24) & c, a & c, first & lower),
    ):
        assert made.offset == offset
        assert_stands_for(made, want, backend="ops")
        assert made == at(mod)
    part = (at(a) & b)[:, :, 1:]
    assert part.offset == offset + 8
    assert part == at(a)[:, :, 1:] & b
    assert_stands_for(part | c, (first & second | lower)[:, :, 8:], backend="ops")
    assert_stands_for((at(a) & b)._adjust(13, 60), (first & second)[:, :, :13, :60], backend="ops")


def test_lists_combine_at_an_offset_too() -> None:
    whole = flex.create_block_mask(banded, None, None, 64, 64, BLOCK_SIZE=8)
    lists = flex.BlockMask.from_kv_blocks(*whole.as_tuple()[2:6], BLOCK_SIZE=8, mask_mod=banded)[:, :, 3:6]
    kept, lower = dense(banded, 1, 1, 24, 64, 24), dense(causal, 1, 1, 24, 64, 24)
    assert_stands_for(lists & causal, kept & lower, backend="ops")
    assert_stands_for(~(~lists & causal), kept | ~lower, backend="ops")
    both = lists | flex.create_block_mask(causal, None, None, 24, 64, BLOCK_SIZE=8, offset=24)
    assert both.offset == 24
    assert_stands_for(both, kept | lower, backend="ops")


def test_masks_of_other_rows_do_not_combine() -> None:
    one = flex.create_block_mask(banded, None, None, 24, 64, BLOCK_SIZE=8, offset=8)
    for other in (flex.create_block_mask(causal, None, None, 24, 64, BLOCK_SIZE=8), one.at_offset(9, 24)):
        message = f"one BlockMask has offset 8, the other offset {other.offset}, so their rows are not the same"
        with pytest.raises(ValueError, match=message):
            one & other
        with pytest.raises(ValueError, match="make both with one offset, or write `block_mask & mask_mod`"):
            other | one


def test_parts_of_batches_combine_with_what_does_not_ask_which() -> None:
    whole = flex.create_block_mask(by_head, 2, 3, 40, 50, BLOCK_SIZE=8)
    kept, lower = dense(by_head, 2, 3, 40, 50), dense(causal, 2, 3, 40, 50)
    assert_stands_for(whole[:, 1:] & causal, (kept & lower)[:, 1:], backend="ops")
    assert_stands_for(whole[:, :2] & by_head, kept[:, :2], backend="ops")
    assert_stands_for(whole[1] & ~whole[1], kept[:1] & False, backend="ops")
    with pytest.raises(ValueError, match=r"in which h counts anew, and <mask_mod by_head> reads h: combine the whole"):
        whole[:, 1:] & by_head
    with pytest.raises(ValueError, match="in which b counts anew"):
        whole[1][:, :, :2] | (lambda b, h, q_idx, kv_idx: q_idx > b)


# ---- one batch or head for several ---------------------------------------------------------------------------------

CUTS = mx.array([45, 9, 20, 30])


def cut_by_batch(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx >= kv_idx or q_idx >= CUTS[b]


def cut_by_head(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx >= kv_idx or q_idx >= CUTS[h]


def one_of(axis: int) -> flex.BlockMask:
    return flex.create_block_mask((cut_by_batch, cut_by_head)[axis], 1, 1, 45, 45, BLOCK_SIZE=16)


@pytest.mark.parametrize(("axis", "name", "index"), [(0, "B", "b"), (1, "H", "h")], ids=["batch", "head"])
def test_blocks_of_one_do_not_serve_several_that_the_mask_tells_apart(axis: int, name: str, index: str) -> None:
    one, shape = one_of(axis), [1, 1, 45, 8]
    q = mx.random.normal(shape, key=mx.random.key(0))
    assert flex.flex_attention(q, q, q, block_mask=one, kernel_options={"BACKEND": "ops"}).shape == q.shape
    shape[axis] = 4
    several = mx.random.normal(shape, key=mx.random.key(0))
    cache = flex.Int8KV()
    cache.update(several, several)
    message = rf"made for {name}=1 and its mask depends on {index}, so .* create_block_mask\(\.\.\., {name}=4\)"
    for mask in (one, ~one, one & causal, one[:, :, 1:], one._adjust(33, 45), pickle.loads(pickle.dumps(one))):
        query = several[:, :, : mask.shape[2]]
        for key, options in (
            (several, {}),
            (several[:1] if axis == 0 else several, {"BACKEND": "ops"}),
            (several, {"PIPELINE": "staged"}),
            (several, {"SMOOTH_K": True}),
            (cache.key, {}),
        ):
            value = cache.value if key is cache.key else key
            with pytest.raises(ValueError, match=message):
                flex.flex_attention(query, key, value, block_mask=mask, kernel_options=options)
    many = flex.create_block_mask(cut_by_head, 4, 4, 45, 45, BLOCK_SIZE=16)
    for combine in (lambda: one & many, lambda: many | one):
        with pytest.raises(ValueError, match=message):
            combine()
    at = {index: 3}
    with pytest.raises(ValueError, match=message):
        flex.visualize.text(one, **at)
    with pytest.raises(ValueError, match=message):
        one.to_string(**{("batch", "head")[axis]: 3})
    with pytest.raises(ValueError, match=f"the mask depends on {index}, so create_mask needs {name}, not None"):
        flex.create_mask(one.mask_mod, None, None, 45, 45)


def test_a_part_of_one_batch_serves_all() -> None:
    whole = flex.create_block_mask(cut_by_batch, 4, None, 45, 45, BLOCK_SIZE=16)
    q = mx.random.normal((3, 2, 45, 8), key=mx.random.key(0))
    out = flex.flex_attention(q, q, q, block_mask=whole[1], kernel_options={"BACKEND": "ops"})
    np.testing.assert_allclose(np.array(out), attended(q, q, dense(cut_by_batch, 2, 1, 45, 45)[1:]), atol=2e-5)
    again = flex.create_block_mask(cut_by_batch, 3, None, 45, 45, BLOCK_SIZE=16)
    out = flex.flex_attention(q, q, q, block_mask=again, kernel_options={"BACKEND": "ops"})
    np.testing.assert_allclose(np.array(out), attended(q, q, dense(cut_by_batch, 3, 1, 45, 45)), atol=2e-5)


@pytest.mark.parametrize("backend", ["cpu", "ops"])
def test_lists_of_one_batch_serve_all_as_their_maker_says(backend: str) -> None:
    """Blocks that hold what any batch keeps, and a mask_mod that asks which it is."""
    counts, indices = mx.array([[[3, 3, 3]]]), mx.array([[[[0, 1, 2]] * 3]])
    lists = flex.BlockMask.from_kv_blocks(counts, indices, BLOCK_SIZE=16, mask_mod=cut_by_batch, seq_lengths=(45, 45))
    q = mx.random.normal((4, 1, 45, 8), key=mx.random.key(0))
    out = flex.flex_attention(q, q, q, block_mask=lists, kernel_options={"BACKEND": backend})
    np.testing.assert_allclose(np.array(out), attended(q, q, dense(cut_by_batch, 4, 1, 45, 45)), atol=2e-5)
    with pytest.raises(ValueError, match="made for B=1 and its mask depends on b"):
        flex.flex_attention(q, q, q, block_mask=~lists)


def test_pictures_are_of_heads_that_exist() -> None:
    made = flex.create_block_mask(by_head, 2, 3, 40, 50, BLOCK_SIZE=16)
    assert made.to_string(1, 2) == made[1, 2].to_string()
    one = flex.create_block_mask(causal, None, None, 40, 50, BLOCK_SIZE=16)
    assert one.to_string(7, 5) == one.to_string()
    for at, message in (((0, 3), "h is 3; this has h from 0 to 2"), ((2, 0), "b is 2"), ((0, -1), "head is -1")):
        with pytest.raises(ValueError, match=message):
            made.to_string(*at)


# ---- what is handed out ----------------------------------------------------------------------------------------------


def test_what_is_handed_out_changes_no_mask() -> None:
    """Equal masks share their blocks: whoever writes to what one of them gives changes none."""

    def made() -> flex.BlockMask:
        return flex.create_block_mask(causal, None, None, 64, 64, BLOCK_SIZE=16)

    mask = made()
    states_before, lists_before = mask.blocks.states(), [part.tolist() for part in mask.as_tuple()[2:10]]
    for part in mask.to_ranges():
        part[...] = 1
    for part in mask.as_tuple()[2:10]:
        part[...] = 3
    mask.kv_indices[0, 0, 1] = 2
    for again in (mask, made(), copy.copy(mask), copy.deepcopy(mask), pickle.loads(pickle.dumps(mask))):
        np.testing.assert_array_equal(again.blocks.states(), states_before)
        assert [part.tolist() for part in again.as_tuple()[2:10]] == lists_before
        blocks = again.blocks
        lists = flex.BlockMask.from_kv_blocks(*again.as_tuple()[2:6], BLOCK_SIZE=16)
        for held in (blocks, copy.deepcopy(blocks), pickle.loads(pickle.dumps(blocks)), copy.deepcopy(lists).blocks):
            for array in (held.offsets, held.first, held.end, held.state):
                with pytest.raises(ValueError, match="read-only"):
                    array[...] = 0
    first = np.zeros(1, np.int32)
    ranges = BlockRanges(np.array([0, 1]), first, np.ones(1, np.int32), np.ones(1, bool))
    own = flex.BlockMask.from_ranges(ranges, (8, 8), BLOCK_SIZE=8)
    first[0] = 5  # the caller's, before and after
    assert own.to_ranges().first.tolist() == [0]


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
    "empty, of two": ([0, 2, 2], [1, 3], [1, 4], [True, False], "ascending"),
}


def test_runs_that_touch_and_reach_the_end() -> None:
    """Two runs of one state that touch are one, two of different states stay; the last block may be named."""
    full = np.array([False, False, True, True])
    ranges = BlockRanges(np.array([0, 3, 4]), np.array([0, 1, 2, 3]), np.array([1, 2, 4, 4]), full)
    made = flex.BlockMask.from_ranges(ranges, (16, 32), BLOCK_SIZE=8)
    assert made.to_string() == "++##\n...#"
    assert [part.tolist() for part in made.to_ranges()] == [[0, 2, 3], [0, 2, 3], [2, 4, 4], [False, True, True]]


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


@pytest.mark.sampled(2)
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
