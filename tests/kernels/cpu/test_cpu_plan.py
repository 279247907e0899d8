"""How the cpu kernel cuts a call: rounds of packed heads, threads, the tiles that a job visits, means per batch.

Each test needs one line of jobs.h, attention.h, walk.h or launch.py: without it, wrong numbers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest
import quant_reference
import reference
from calls import attention_call, run_on

import flextrace as flex
from flextrace.kernels import backend_for
from flextrace.kernels.int8_types import Smoothing

Array = np.ndarray


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def attend(q: Any, k: Any, v: Any, mask: Any = None, threads: int = 1, **options: Any) -> mx.array:
    options = {"BACKEND": "cpu", "NUM_THREADS": threads, **options}
    q, k, v = map(mx.array, (q, k, v))
    return flex.flex_attention(q, k, v, block_mask=mask, enable_gqa=True, kernel_options=options)


def assert_attention(got: mx.array, q: Array, k: Array, v: Array, keep: Array | None = None) -> None:
    """keep: bool, broadcasts to [batch, heads, q_len, kv_len]."""
    k, v = (x.repeat(q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    scores = q.astype(np.float64) @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1])
    scores = scores if keep is None else np.where(keep, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    expected = weights / weights.sum(axis=-1, keepdims=True) @ v
    reference.assert_close(got, expected, *reference.tolerance("float32")[:2], "out")


# ---- rounds: 16 MB of packed keys and values at a time -------------------------------------------------------------


class Packed(NamedTuple):
    """Heads of 8 MB minus a bit: two to a round. Each is read more than once, or nothing would be packed ahead."""

    q: Array
    k: Array
    v: Array

    @classmethod
    def heads(cls, heads: int, q_len: int) -> Packed:
        k, v = (normal(1, heads, 12000, 80, seed=seed) for seed in (1, 2))
        return cls(normal(1, 2 * heads, q_len, 80), k, v)


def test_the_last_round_packs_the_heads_that_are_left() -> None:
    inputs = Packed.heads(3, 13)
    assert_attention(attend(*inputs), *inputs)


def test_a_round_waits_for_the_readers_of_the_one_before() -> None:
    """Rows enough for a reader to take longer than packing does; more threads than processors, so that some reader
    is at work while another thread comes to the next round."""
    inputs = Packed.heads(5, 40)
    assert_attention(attend(*inputs, threads=16), *inputs)


# ---- visits: a thread keeps what it found for one head as long as the next has the same -----------------------------


def listed(lists: Array) -> flex.BlockMask:
    """A BlockMask without a mask_mod: lists[batch, head, row of blocks, column of blocks] are True where it attends."""
    counts = lists.sum(axis=-1)
    order = np.argsort(~lists, axis=-1, kind="stable")
    return flex.BlockMask.from_kv_blocks(
        mx.array(counts.astype(np.int32)), mx.array(order.astype(np.int32)), BLOCK_SIZE=16
    )


@pytest.mark.parametrize("shape", [(1, 3), (3, 1), (2, 2)], ids=["by head", "by batch", "by both"])
def test_block_lists_that_differ_need_no_mask_mod(shape: tuple[int, int]) -> None:
    batch, heads = shape
    lists = np.random.default_rng(3).random((batch, heads, 4, 4)) < 0.5
    lists[..., 0] |= ~lists.any(axis=-1)
    q, k, v = (normal(batch, heads, 64, 16, seed=seed) for seed in range(3))
    keep = lists.repeat(16, axis=2).repeat(16, axis=3)
    assert_attention(attend(q, k, v, listed(lists)), q, k, v, keep)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["b", "h"])
def test_a_mask_of_the_batch_or_the_head_is_looked_at_for_each(name: str) -> None:
    mask = {
        "b": lambda b, h, q_idx, kv_idx: kv_idx >= 600 * b,
        "h": lambda b, h, q_idx, kv_idx: kv_idx >= 600 * h,
    }[name]
    q, k, v = (normal(2, 2, 5, 16, seed=seed) for seed in range(3))
    k, v = (normal(2, 2, 1300, 16, seed=seed) for seed in (1, 2))
    starts = np.arange(2)[:, None] if name == "b" else np.arange(2)[None]
    keep = np.arange(1300) >= 600 * np.broadcast_to(starts, (2, 2))[:, :, None, None]
    assert_attention(attend(q, k, v, mask), q, k, v, keep)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("width", [4, 16, 32, 64])
def test_a_gap_of_whole_registers_is_masked(width: int, first: int) -> None:
    """All rows keep the same keys, and no register of keys holds one that is kept and one that is not."""
    q, (k, v) = normal(1, 1, 20, 16), (normal(1, 1, 600, 16, seed=seed) for seed in (1, 2))
    mask = flex.mask_mod(lambda b, h, q_idx, kv_idx: (kv_idx // width) % 2 == first)
    keep = np.arange(600) // width % 2 == first
    for chosen in (mask, flex.create_block_mask(mask, None, None, 20, 600, BLOCK_SIZE=16)):
        assert_attention(attend(q, k, v, chosen), q, k, v, keep)


# ---- means and int8 --------------------------------------------------------------------------------------------------


def assert_smoothed(q: Array, k: Array, v: Array, smoothing: Smoothing, keep: Array, **fields: Any) -> None:
    """Any means give the same scores, if those subtracted are those added back; or else lse is wrong by what they
    differ."""
    call = attention_call(*map(mx.array, (q, k, v)), 0.25, smoothing=smoothing, threads=1, want_lse=True, **fields)
    got = run_on(backend_for("cpu"), call)
    scores = np.where(keep, q.astype(np.float64) @ np.swapaxes(k, -1, -2) / 4, -np.inf)
    total = np.exp(scores).sum(axis=-1)
    reference.assert_close(got.lse, np.log(total), 1e-4, 1e-5, "lse")
    reference.assert_close(got.out, np.exp(scores) / total[..., None] @ v, 1e-4, 1e-5, "out")


def test_one_batch_of_keys_is_packed_for_each_batch_of_means() -> None:
    q, (k, v) = normal(2, 2, 40, 16), (normal(1, 2, 90, 16, seed=seed) for seed in (1, 2))
    means = mx.array(8 * normal(2, 2, 1, 16, seed=4))
    assert_smoothed(q, k, v, Smoothing(means, add_back=True), np.array(True))


def test_one_batch_of_keys_is_packed_for_each_batch_of_groups() -> None:
    """Two documents, which each batch cuts elsewhere."""
    q, (k, v) = normal(2, 2, 40, 16), (normal(1, 2, 90, 16, seed=seed) for seed in (1, 2))
    key_groups = (np.arange(90) >= np.array([[30], [70]])).astype(np.int32)
    row_groups = (np.arange(40) >= np.array([[10], [25]])).astype(np.int32)
    rows, keys = mx.array(row_groups), mx.array(key_groups)
    mask = flex.mask_mod(lambda b, h, q_idx, kv_idx: rows[b, q_idx] == keys[b, kv_idx]).bind()
    means = mx.array(8 * normal(1, 2, 2, 16, seed=4))
    keep = row_groups[:, None, :, None] == key_groups[:, None, None, :]
    assert_smoothed(q, k, v, Smoothing(means, keys, rows, add_back=True), keep, mask_mod=mask)


@pytest.mark.parametrize(("q_block", "k_block"), [(128, 64), (16, 100), (100, 16)])
def test_blocks_of_rows_and_of_keys_have_scales_of_their_own(q_block: int, k_block: int) -> None:
    """Magnitudes that grow along both, so that a block of another size has another scale."""
    q, k = normal(1, 2, 300, 32), normal(1, 2, 300, 32, seed=1)
    q, k = (x * np.exp(np.linspace(-3, 1, 300, dtype=np.float32))[:, None] for x in (q, k))
    v = normal(1, 2, 300, 32, seed=2)
    quant = flex.QKQuant("block", smooth_k=False, q_block=q_block, k_block=k_block)
    got = np.array(attend(q, k, v, QK_QUANT=quant))
    expected = quant_reference.attention(q, k, v, quant, None, None, 32**-0.5, None, None).out
    assert abs(got - expected).mean() < 1e-5
