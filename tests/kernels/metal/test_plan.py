"""Tile plans hold to their memory model, and tile lists say of every score what the BlockMask says."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import flextrace as flex
from flextrace.kernels.call import Blocks
from flextrace.kernels.gpu.tile_lists import ASK, CUT_TILES, LOOK_UP, NO_MASK, WHOLE_TILES, tiles_for
from flextrace.kernels.metal.attention.plan import FEW, MANY, plan_for
from flextrace.kernels.metal.device import FRAGMENT, THREADGROUP_BYTES
from flextrace.kernels.metal.scoring import Scoring

DIMS = [*range(1, 130), 160, 192, 200, 256, 320, 512, 576, 1024]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_head_dim_has_a_plan_within_limits(dtype: str) -> None:
    for head_dim in DIMS:
        for value_dim in (head_dim, 64, 3):
            plan = plan_for(head_dim, value_dim, dtype)
            assert plan.spilled <= MANY and plan.threadgroup_bytes <= THREADGROUP_BYTES
            assert plan.bq >= 64 or max(head_dim, value_dim) > 128
            assert plan.bk % FRAGMENT == plan.bd % FRAGMENT == plan.bv % FRAGMENT == 0
            assert -(-head_dim // 8) * 8 % plan.bd == 0, "no padding beyond a fragment, so no product in vain"
            assert plan.bv * plan.value_tiles * plan.value_slices >= value_dim
            assert plan.bv * plan.value_tiles * (plan.value_slices - 1) < value_dim, "no slice without columns"
            assert plan.row_fragments * plan.bk // 8 * 2 <= 32


QUANTISED = {
    "keys": Scoring(True),
    "smoothed": Scoring(False, True),
    "smoothed queries": Scoring(True, True, True),
    "keys and values": Scoring(True, int8_values=True),
    "all": Scoring(True, True, True, True, True),
}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_kernels_have_a_plan_within_limits(kind: str, dtype: str) -> None:
    for head_dim in DIMS:
        for value_dim in (head_dim, 64, 3):
            plan, plain = plan_for(head_dim, value_dim, dtype, QUANTISED[kind]), plan_for(head_dim, value_dim, dtype)
            assert plan.spilled <= MANY and plan.threadgroup_bytes <= THREADGROUP_BYTES
            assert plan.bv * plan.value_tiles * plan.value_slices >= value_dim
            assert plan.row_fragments * plan.bk // 8 * 2 <= 32 and plan.staged * plan.element_bytes % 4 == 0
            assert plan.value_slices <= max(plain.value_slices, 2), "scores are computed as often"
            assert plan.barriers_per_pair() <= 2 * plain.barriers_per_pair(), "no narrow tiles for a few registers"


def test_the_model_counts_what_quantising_adds() -> None:
    """Registers of plans cut alike: a scale and a term per row fragment, 64 bits for the scores of a mean, a scale in
    each lane for keys and for values; int8 on its way takes 16 bits, and a thread reads whole pieces."""
    for dtype in ("float16", "float32"):
        plain = plan_for(64, 64, dtype)
        assert plain.row_fragments == 2
        more = {name: replace(plain, scoring=s).registers - plain.registers for name, s in QUANTISED.items()}
        assert more == {
            "keys": 3,
            "smoothed": 2,
            "smoothed queries": 9,
            "keys and values": 4,
            "all": 10,
        }
    memory = {name: plan_for(64, 64, "float16", s).threadgroup_bytes for name, s in QUANTISED.items()}
    assert plan_for(64, 64, "float16").threadgroup_bytes == memory["smoothed"] == 2 * 32 * (64 * 2 + 16) + 32
    assert memory["keys"] == memory["smoothed"] + 4 * 32, "values are as wide as before"
    assert memory["all"] == 2 * 16 * (64 + 16) + 64 + 8 * 16, "two fragments of rows, and half as many keys"


def test_the_plain_plans_stay() -> None:
    cuts = {
        (64, "float16"): (2, 4, 32, 64, 64),
        (64, "float32"): (2, 8, 16, 64, 64),
        (80, "float16"): (2, 8, 16, 80, 80),
        (96, "bfloat16"): (1, 8, 32, 96, 96),
        (128, "float16"): (1, 8, 16, 128, 128),
        (128, "float32"): (1, 8, 16, 128, 128),
        (192, "float32"): (2, 12, 16, 96, 96),
        (256, "float16"): (2, 12, 16, 256, 256),
        (512, "float32"): (1, 12, 16, 64, 64),
    }
    for (dim, dtype), cut in cuts.items():
        plan = plan_for(dim, dim, dtype)
        assert (plan.row_fragments, plan.simdgroups, plan.bk, plan.bd, plan.bv) == cut, f"{dim} {dtype}"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_usual_head_dims_keep_their_registers(dtype: str) -> None:
    """Queries in registers, the scores computed once, and few registers in memory up to D 128."""
    for dims in ((64, 64), (80, 80), (96, 96), (128, 128), (192, 128), (192, 192), (256, 256)):
        plan = plan_for(*dims, dtype)
        assert plan.q_in_registers and plan.value_slices == 1 and plan.spilled <= FEW
        assert plan.bq >= 64 if max(dims) <= 128 else plan.bq >= 48
        wider = replace(plan, row_fragments=2)
        assert plan.row_fragments == 2 or not wider.fits() or plan.parts > 1, "one where registers ask for it"
        assert plan.parts == 1 or not replace(plan, parts=1, row_fragments=1, simdgroups=8).fits()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("dims", [(512, 512), (576, 512)])
def test_simdgroups_share_the_rows_of_large_head_dims(dims: tuple[int, int], dtype: str) -> None:
    plan = plan_for(*dims, dtype)
    assert plan.parts == 4 and plan.q_in_registers and plan.value_slices == 1
    scores = plan.simdgroups * plan.row_fragments * 8 * plan.bk * 4
    assert plan.threadgroup_bytes == plan.staged * plan.element_bytes + 8 * plan.simdgroups + scores


def expand(blocks: Blocks, dtype: str, q_len: int, kv_len: int) -> tuple[int, np.ndarray[Any, Any]]:
    """What the kernel makes of the lists: per score 0 not visited, 1 ask mask_mod, 2 keep."""
    plan = plan_for(64, 64, dtype)
    tiles = tiles_for(blocks, plan, q_len, kv_len)
    mask_batches, mask_heads, q_blocks, kv_blocks, q_block, kv_block = tiles.params.values()
    q_tiles = -(-q_len // plan.bq)
    lists, lines = np.array(tiles.lists), mask_batches * mask_heads * q_tiles
    shape = (mask_batches, mask_heads, q_blocks, kv_blocks)
    states = lists[lines + 1 + 2 * lists[lines] :].view(np.uint8)[: np.prod(shape)]
    if tiles.mode == CUT_TILES:
        states = states.reshape(shape)
    offsets, (ends, entries) = lists[: lines + 1], lists[lines + 1 :][: 2 * lists[lines]].reshape(2, -1)
    scores = np.zeros((mask_batches, mask_heads, q_len, kv_len), np.int8)
    for line, (b, h, t) in enumerate(np.ndindex(mask_batches, mask_heads, q_tiles)):
        runs = slice(offsets[line], offsets[line + 1])
        assert (np.diff(ends[runs], prepend=0) > 0).all() and (entries[runs] >= 0).all(), "no run is empty"
        visited = [
            4 * i + entries[runs][np.searchsorted(ends[runs], i, side="right")] for i in range(max([0, *ends[runs]]))
        ]
        assert visited == sorted(visited)
        for entry in visited:
            q = np.arange(t * plan.bq, min((t + 1) * plan.bq, q_len))[:, None]
            kv = np.arange(entry // 4 * plan.bk, min((entry // 4 + 1) * plan.bk, kv_len))
            cut = states[b, h, q // q_block, kv // kv_block] if entry % 4 == LOOK_UP else None
            scores[b, h, q, kv] = {ASK: np.int8(1), NO_MASK: np.int8(2), LOOK_UP: cut}[entry % 4]
    return tiles.mode, scores


@pytest.mark.parametrize("block_size", [128, 64, (64, 32), 32, 16, 7, (5, 11), (1, 53), (200, 300)], ids=str)
def test_tile_lists_expand_to_the_block_states(block_size: Any) -> None:
    q_len, kv_len = 150, 210
    q_block, kv_block = block_size if isinstance(block_size, tuple) else (block_size, block_size)
    states = np.random.default_rng(0).integers(0, 3, size=(2, 3, -(-q_len // q_block), -(-kv_len // kv_block)))
    lists = []
    for state in (1, 2):
        order = np.argsort(states != state, axis=-1, kind="stable").astype(np.int32)
        lists += [(states == state).sum(axis=-1).astype(np.int32), order]
    blocks = Blocks.from_lists(*lists, q_block, kv_block)
    mode, scores = expand(blocks, "float32", q_len, kv_len)
    expected = states.repeat(q_block, axis=2)[:, :, :q_len].repeat(kv_block, axis=3)[..., :kv_len]
    # A tile with a live block is visited as a whole, and asks the states for each score.
    np.testing.assert_array_equal(scores, expected)
    plan = plan_for(64, 64, "float32")
    aligned = q_block % plan.bq == 0 and kv_block % plan.bk == 0
    assert mode == (WHOLE_TILES if aligned else CUT_TILES) or block_size == (200, 300)


def test_random_tile_lists_of_odd_lengths() -> None:
    rng = np.random.default_rng(1)
    for _ in range(40):
        (q_len, kv_len), (q_block, kv_block) = rng.integers(1, 300, size=2), rng.integers(1, 90, size=2)
        shape = (1, 2, -(-q_len // q_block), -(-kv_len // kv_block))
        states = rng.choice(3, size=shape, p=rng.dirichlet([1, 1, 1]))
        _, scores = expand(Blocks.from_states(states, q_block, kv_block), "float32", q_len, kv_len)
        expected = states.repeat(q_block, axis=2)[:, :, :q_len].repeat(kv_block, axis=3)[..., :kv_len]
        np.testing.assert_array_equal(scores, expected, err_msg=f"{q_len} {kv_len} {q_block} {kv_block}")


@pytest.mark.parametrize("block_size", [128, 96], ids=["whole tiles", "cut tiles"])
def test_a_window_over_131072_tokens_has_short_lists(block_size: int) -> None:
    """A dense list of tiles would take 33 MB, and a state per block 1 MB more."""
    length = 131_072
    mask = flex.mask_mod(lambda b, h, q_idx, kv_idx: (q_idx >= kv_idx) & (q_idx - kv_idx < 1024))
    blocks = flex.create_block_mask(mask, None, None, length, length, BLOCK_SIZE=block_size).blocks
    tracemalloc.start()
    tiles = tiles_for(blocks, plan_for(64, 64, "float32"), length, length)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
    assert tiles.mode == (WHOLE_TILES if block_size == 128 else CUT_TILES)
    assert tiles.lists.nbytes < 200e3 + (0 if block_size == 128 else blocks.states().size)


def test_tile_lists_of_a_million_tokens_are_small() -> None:
    """Causal over 1,048,576 tokens: 16,384 lines of two runs."""
    count = 2**20 // 128
    row = np.repeat(np.arange(count), 2)
    first, end = np.zeros(2 * count, int), np.arange(2 * count) // 2
    first[1::2], end[1::2] = end[1::2], end[1::2] + 1
    blocks = Blocks.from_runs((1, 1, count, count), row[1:], first[1:], end[1:], np.tile([2, 1], count)[1:], 128, 128)
    assert tiles_for(blocks, plan_for(64, 64, "float32"), 2**20, 2**20).lists.nbytes < 400e3


def test_tile_lists_are_remembered_with_the_block_mask() -> None:
    mask = flex.mask_mod(lambda b, h, q_idx, kv_idx: q_idx >= kv_idx)
    blocks = flex.create_block_mask(mask, None, None, 256, 256).blocks
    plan = plan_for(64, 64, "float32")
    assert tiles_for(blocks, plan, 256, 256) is tiles_for(blocks, plan, 256, 256)
    assert tiles_for(blocks, plan_for(256, 256, "float32"), 256, 256) is not tiles_for(blocks, plan, 256, 256)


def test_small_inputs_stay_out_of_the_constant_address_space() -> None:
    none = tiles_for(None, plan_for(8, 8, "float32"), 1, 1)
    assert none.lists.size >= 8
    one = mx.zeros((1, 1, 1), mx.int32)
    blocks = Blocks.from_lists(np.array(one), np.zeros((1, 1, 1, 1), np.int32), None, None, 128, 128)
    tiles = tiles_for(blocks, plan_for(8, 8, "float32"), 1, 1)
    assert tiles.lists.size >= 8
