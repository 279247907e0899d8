"""The Metal stage kernels in the simulator, with all checks on, and tensors and lists to give them."""

from __future__ import annotations

import functools
from typing import Any

import mlx.core as mx
import numpy as np

from flextrace.kernels.metal import MetalBackend
from flextrace.kernels.metal.stages.stages import MetalStages
from flextrace.kernels.simulator import metal_kernel
from flextrace.kernels.stages.protocol import BlockLists

Array = np.ndarray[Any, Any]


@functools.lru_cache(maxsize=8)
def stages(order: str = "forward") -> MetalStages:
    return MetalBackend(functools.partial(metal_kernel, lane_order=order)).stages()


def tensor(*shape: int, dtype: mx.Dtype = mx.float32, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng([seed, *shape]).normal(size=shape)).astype(dtype)


def listed(blocks: BlockLists, shape: tuple[int, ...]) -> Array:
    """int8 of that shape: 0 in no list, 1 in a partial block, 2 in a full one."""
    state = np.zeros(shape, np.int8)
    counts, indices, full_counts, full_indices = (np.array(x) for x in blocks[:4])
    for value, number, index in ((1, counts, indices), (2, full_counts, full_indices)):
        for b, h, row in np.ndindex(shape[0], shape[1], number.shape[2]):
            at = (min(b, number.shape[0] - 1), min(h, number.shape[1] - 1), row)
            for block in index[at][: number[at]]:
                rows = slice(row * blocks.q_block, (row + 1) * blocks.q_block)
                state[b, h, rows, block * blocks.kv_block : (block + 1) * blocks.kv_block] = value
    return state


def lists_of(mask_batch: int, mask_heads: int, q_blocks: int, kv_blocks: int, block: tuple[int, int]) -> BlockLists:
    """Random lists: each block in none of them, the first or the second; the second has a spare column."""
    state = np.random.default_rng(3).integers(0, 3, (mask_batch, mask_heads, q_blocks, kv_blocks))
    made = []
    for value in (1, 2):
        made += [(state == value).sum(axis=-1), np.argsort(state != value, axis=-1, kind="stable")]
    made[3] = np.concatenate([made[3], np.full((*made[3].shape[:3], 1), -1)], axis=-1)
    return BlockLists(*(mx.array(x.astype(np.int32)) for x in made), *block)
