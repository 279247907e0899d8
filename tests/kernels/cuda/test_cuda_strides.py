"""q, k and v that do not lie row after row are read where they lie, with the bits of contiguous ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import mlx.core as mx
import numpy as np
import pytest
from apparatus.cuda.simulated import simulated_cuda

import flextrace as flex
from flextrace.kernels.buffers import locate
from flextrace.kernels.cuda import launch

B, H, L, D = 2, 3, 80, 16


def wide(*shape: int) -> mx.array:
    return mx.array(np.random.default_rng(len(shape)).normal(size=shape)).astype(mx.float16)


# How x: [B, H, L, D] comes to lie so, and whether it is read in place.
VIEWS: dict[str, tuple[Callable[[], mx.array], bool]] = {
    "row_after_row": (lambda: wide(B, H, L, D), True),
    "tokens_first": (lambda: wide(B, L, H, D).transpose(0, 2, 1, 3), True),
    "a_cache_that_is_not_full": (lambda: wide(B, H, 2 * L, D)[:, :, :L], True),
    "a_part_of_all_projections": (lambda: wide(B, L, 3, H, D)[:, :, 1].transpose(0, 2, 1, 3), True),
    "an_odd_column_on": (lambda: wide(B, H, L, D + 3)[..., 3:], True),
    "heads_first": (lambda: wide(H, B, L, D).swapaxes(0, 1), True),
    "rows_backwards": (lambda: wide(B, H, L, D)[:, :, ::-1], True),
    "one_head_for_all": (lambda: mx.broadcast_to(wide(B, 1, L, D), (B, H, L, D)), True),
    "columns_apart": (lambda: wide(B, H, L, 2 * D)[..., ::2], False),
    "columns_are_rows": (lambda: wide(B, H, D, L).swapaxes(2, 3), False),
}


def attend(arrays: list[mx.array], least: int) -> tuple[Any, list[mx.array]]:
    """The result, and the arrays that the kernel was given in place of these."""
    with simulated_cuda() as simulated, mock.patch.object(launch, "IN_PLACE_BYTES", least):
        out = flex.flex_attention(*arrays, None, flex.mods.causal, kernel_options={"BACKEND": "cuda"})
    return np.array(out), simulated.inputs[-1][0:12:4]


@pytest.mark.sampled(5)
@pytest.mark.parametrize("which", ["q", "k", "v"])
@pytest.mark.parametrize("name", VIEWS)
def test_tensors_are_read_where_they_lie(name: str, which: str) -> None:
    make, in_place = VIEWS[name]
    arrays = [wide(B, H, L, D) * factor for factor in (1.0, 0.5, 2.0)]
    at = "qkv".index(which)
    arrays[at] = make()
    mx.eval(arrays)
    out, given = attend(arrays, 0)
    plain, _ = attend([mx.contiguous(x) for x in arrays], 1 << 40)
    assert (out == plain).all()
    assert (locate(given[at])[0] == locate(arrays[at])[0]) == in_place


def test_all_at_once_with_one_batch_entry_and_groups_of_heads() -> None:
    q, k, v = (
        wide(1, L, 4, D).transpose(0, 2, 1, 3),
        wide(1, 2, 99, D)[:, :, :70],
        wide(1, 90, 2, 8).swapaxes(1, 2)[:, :, :70],
    )
    outs = [np.array(_grouped(q, k, v, least)) for least in (0, 1 << 40)]
    assert (outs[0] == outs[1]).all()


def _grouped(q: mx.array, k: mx.array, v: mx.array, least: int) -> mx.array:
    with simulated_cuda(), mock.patch.object(launch, "IN_PLACE_BYTES", least):
        return flex.flex_attention(q, k, v, enable_gqa=True, kernel_options={"BACKEND": "cuda"})
