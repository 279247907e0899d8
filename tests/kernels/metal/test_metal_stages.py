"""The Metal stage kernels in the simulator, with all checks on, against float64 numpy."""

from __future__ import annotations

import functools
import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import reference
import zoo
from apparatus.simulated_stages import Array, listed, lists_of, stages, tensor
from apparatus.stage_launches import Recorder

from flextrace.kernels.call import Mods
from flextrace.kernels.metal import MetalBackend
from flextrace.tracer import Bound, Kind, Traces

TOLERANCE = {mx.float32: 1e-5, mx.float16: 2e-3, mx.bfloat16: 1.6e-2}
TRACES = Traces()


def exact(x: mx.array) -> Array:
    return np.array(x.astype(mx.float32)).astype(np.float64)


def close(got: mx.array, want: Array, dtype: mx.Dtype, terms: int = 1) -> None:
    """terms: how many products of size 1 each element sums."""
    assert got.dtype == dtype
    tolerance = TOLERANCE[dtype]
    reference.assert_close(got, want, tolerance * math.sqrt(terms), tolerance, "stage")


def mods(*names: str, shape: tuple[int, ...]) -> tuple[dict[str, Bound], dict[str, Any]]:
    """Zoo entries bound, and as plain Python functions."""
    ours, plain = {}, {}
    for name in names:
        entry = zoo.ZOO[name]
        kind: Kind = "score_mod" if entry.kind == "score" else "mask_mod"
        ours[kind] = TRACES.bind(entry.make(*shape, np.random.default_rng(0), zoo.mx_array), kind)
        plain[kind] = entry.make(*shape, np.random.default_rng(0), reference.array)
    return ours, plain


# ---- matmul -------------------------------------------------------------------------------------------------------

SHAPES = [  # batch, heads, batch of b, heads of b, M, N, K
    (1, 1, 1, 1, 1, 1, 1),
    (2, 4, 1, 2, 21, 37, 19),
    (2, 2, 2, 2, 33, 70, 45),
    (1, 3, 1, 1, 64, 9, 40),
]
TILES = [None, (16, 8), (32, 64), (8, 8, 8), (32, 16, 16), (64, 64, 8)]
KINDS = [
    (mx.float32, mx.float32, mx.float32),
    (mx.float16, mx.float16, mx.float16),
    (mx.bfloat16, mx.bfloat16, mx.bfloat16),
    (mx.float16, mx.float32, mx.bfloat16),
    (mx.float32, mx.bfloat16, mx.float32),
]


def check_matmul(
    shape: tuple[int, ...],
    kind: tuple[mx.Dtype, ...] = KINDS[0],
    flips: tuple[bool, bool] = (False, False),
    tiles: tuple[int, ...] | None = None,
    order: str = "forward",
) -> None:
    batch, heads, b_batch, b_heads, m, n, k = shape
    a = tensor(batch, heads, *((k, m) if flips[0] else (m, k)), dtype=kind[0])
    b = tensor(b_batch, b_heads, *((n, k) if flips[1] else (k, n)), dtype=kind[1], seed=1)
    got = stages(order).matmul(a, b, transpose_a=flips[0], transpose_b=flips[1], tiles=tiles, dtype=kind[2])
    left, right = (np.swapaxes(exact(x), -1, -2) if flip else exact(x) for x, flip in zip((a, b), flips, strict=True))
    close(got, left @ np.repeat(right, heads // b_heads, axis=1), kind[2], k)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("tiles", TILES, ids=str)
def test_matmul_of_ragged_sizes(tiles: tuple[int, ...] | None) -> None:
    for shape in SHAPES:
        check_matmul(shape, tiles=tiles)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("flips", [(True, False), (False, True), (True, True)], ids=str)
@pytest.mark.parametrize("tiles", [None, (16, 24), (16, 32, 8)], ids=str)
def test_matmul_of_transposed_operands(flips: tuple[bool, bool], tiles: tuple[int, ...] | None) -> None:
    for shape in SHAPES[:3]:
        check_matmul(shape, KINDS[0], flips, tiles)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", KINDS[1:], ids=lambda kind: "-".join(str(d)[9:] for d in kind))
def test_matmul_of_other_dtypes(kind: tuple[mx.Dtype, ...]) -> None:
    check_matmul(SHAPES[1], kind, (False, True), (16, 8))
    check_matmul(SHAPES[2], kind, (True, False))


@pytest.mark.parametrize("order", ["reverse", "shuffled"])
def test_matmul_in_other_lane_orders(order: str) -> None:
    for tiles in ((32, 32), (32, 16, 8)):
        check_matmul(SHAPES[2], tiles=tiles, order=order)


def test_strided_operands_are_read_where_they_lie() -> None:
    base = tensor(1, 40, 3, 60)
    a = base[:, ::2].transpose(0, 2, 1, 3)[..., ::-2]  # steps, another order of axes, backwards
    b = mx.broadcast_to(tensor(30, 1, seed=1), (1, 1, 30, 17))  # stride 0
    recorder = Recorder()
    MetalBackend(recorder).stages().matmul(a, b, transpose_a=False, transpose_b=False, tiles=None, dtype=mx.float32)
    assert recorder.launches[0].call["inputs"][0] is a and recorder.launches[0].call["inputs"][1] is b
    assert recorder.launches[0].definition["ensure_row_contiguous"] is False
    got = stages().matmul(a, b, transpose_a=False, transpose_b=False, tiles=(16, 16, 8), dtype=mx.float32)
    close(got, exact(a) @ exact(b), mx.float32, 30)


# ---- scale, attention_output, softmax -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=lambda d: str(d)[9:])
@pytest.mark.parametrize("shape", [(), (3,), (7, 5), (2, 3, 300), (2, 2, 9, 33), (2, 1, 3, 4, 5)], ids=str)
def test_scale(shape: tuple[int, ...], dtype: mx.Dtype) -> None:
    x = tensor(*shape, dtype=dtype)
    close(stages().scale(x, 0.37), exact(x) * 0.37, dtype)
    if x.ndim > 1:
        turned = mx.swapaxes(x, 0, -1)
        close(stages().scale(turned, -2.5), exact(turned) * -2.5, dtype)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=lambda d: str(d)[9:])
def test_attention_output(dtype: mx.Dtype) -> None:
    for shape in ((1, 1, 1, 1), (2, 3, 19, 17), (1, 2, 3, 200), (5, 8), (2, 3, 0)):
        product = tensor(*shape)
        sums, largest = mx.abs(tensor(*shape[:-1], seed=1)) + 1, tensor(*shape[:-1], seed=2)
        empty = np.arange(sums.size).reshape(sums.shape) % 3 == 1
        sums, largest = mx.where(mx.array(empty), 0.0, sums), mx.where(mx.array(empty), -mx.inf, largest)
        out, lse, again = stages().attention_output(product, largest, sums, dtype)
        total = np.where(empty, 1, exact(sums))
        close(out, np.where(empty[..., None], 0, exact(product) / total[..., None]), dtype)
        close(lse, np.where(empty, -np.inf, exact(largest) + np.log(total)), mx.float32)
        assert again is largest


def softmax_of(x: Array) -> tuple[Array, Array, Array]:
    """Weights before division, maxima, sums."""
    largest = x.max(axis=-1)
    weights = np.exp(x - np.where(largest == -np.inf, 0, largest)[..., None])
    return weights, largest, weights.sum(axis=-1)


@pytest.mark.parametrize("columns", [1, 31, 128, 700, 1024, 1500])
@pytest.mark.parametrize("normalise", [True, False])
def test_softmax(columns: int, normalise: bool) -> None:
    for order in ("forward", "reverse", "shuffled") if columns in (700, 1500) else ("forward",):
        x = tensor(1, 3, 6, columns) * 8
        x[0, 1, 2] = -mx.inf
        x[0, 2, :, columns // 3 :] = -mx.inf  # for a row of 1 or 2 columns: nothing left
        x[0, 0, 1, : columns // 2] = -3.4028235e38  # the lowest finite score is a score
        got = stages(order).softmax(x, normalise=normalise, dtype=mx.float32)
        weights, largest, sums = softmax_of(exact(x))
        close(got.weights, weights / np.where(sums == 0, 1, sums)[..., None] if normalise else weights, mx.float32)
        close(got.max_scores, largest, mx.float32)
        close(got.sums, sums, mx.float32)


def test_softmax_of_other_dtypes_shapes_and_strides() -> None:
    for dtype, shape in ((mx.float16, (5,)), (mx.bfloat16, (40, 7)), (mx.float16, (2, 1, 2, 5, 6))):
        x = mx.swapaxes(tensor(*reversed(shape)), 0, -1) if len(shape) == 2 else tensor(*shape)
        got = stages().softmax(x, normalise=True, dtype=dtype)
        weights, largest, sums = softmax_of(exact(x))
        close(got.weights, weights / sums[..., None], dtype)
        close(got.max_scores, largest, mx.float32)
        close(got.sums, sums, mx.float32)


# ---- the stages with mods and lists -------------------------------------------------------------------------------

SIZE = (2, 2, 37, 53)


@functools.lru_cache(maxsize=64)
def dense(name: str) -> Array:
    return reference.apply_mask_mod(mods(name, shape=SIZE)[1]["mask_mod"], SIZE)


MASKS = ["causal", "sliding_window", "document_ids", "padding_lengths", "empty_rows", "noop", "natten_2d", "prefix_lm"]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("block_size", [(5, 11), (16, 16), (128, 128), (1, 1)], ids=str)
@pytest.mark.parametrize("name", MASKS)
def test_block_mask_is_what_the_dense_mask_says(name: str, block_size: tuple[int, int]) -> None:
    """Every list, its order and its unused entries; (1, 1) has more blocks than one turn looks at."""
    got = stages("shuffled").block_mask(mods(name, shape=SIZE)[0]["mask_mod"], *SIZE, block_size)
    mask, (rows, columns) = dense(name), (-(-SIZE[2] // block_size[0]), -(-SIZE[3] // block_size[1]))
    shape = (*SIZE[:2], rows, columns)
    expected = [np.zeros(s, np.int32) for s in [shape[:3], shape] * 2]
    for index in np.ndindex(shape):
        b, h, row, column = index
        block = mask[b, h, row * block_size[0] :, column * block_size[1] :][: block_size[0], : block_size[1]]
        if block.any():
            number, entries = expected[2:] if block.all() else expected[:2]
            entries[b, h, row, number[b, h, row]] = column
            number[b, h, row] += 1
    for one, want in zip(got[:4], expected, strict=True):
        assert one.dtype == mx.int32
        np.testing.assert_array_equal(np.array(one), want)
    assert (got.q_block, got.kv_block) == block_size


SCORES = [("alibi",), ("softcap", "causal"), ("relative_bias", "sliding_window"), ("document_ids",), ()]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("names", SCORES, ids="-".join)
def test_score_mod(names: tuple[str, ...]) -> None:
    ours, plain = mods(*names, shape=SIZE)
    score, mask = ours.get("score_mod"), ours.get("mask_mod")
    x = tensor(SIZE[0], SIZE[2], SIZE[1], SIZE[3]).transpose(0, 2, 1, 3)
    changed = reference.apply_score_mod(exact(x), plain["score_mod"]) if "score_mod" in plain else exact(x)
    keep = np.ones(SIZE, bool) if mask is None else reference.apply_mask_mod(plain["mask_mod"], SIZE)
    close(stages().score_mod(x, Mods(score, mask), None), np.where(keep, changed, -np.inf), mx.float32)
    if mask is not None:
        blocks = stages().block_mask(mask, *SIZE, (5, 11))
        close(stages("reverse").score_mod(x, Mods(score, mask), blocks), np.where(keep, changed, -np.inf), mx.float32)
        # In full blocks the mask_mod is not asked: another one changes nothing there.
        none = TRACES.bind(lambda b, h, q_idx, kv_idx: False, "mask_mod")
        full = listed(blocks, SIZE) == 2
        close(stages().score_mod(x, Mods(score, none), blocks), np.where(full, changed, -np.inf), mx.float32)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("block", [(5, 11), (16, 8), (64, 70)], ids=str)
@pytest.mark.parametrize("mask_shape", [(1, 1), (2, 4)], ids=str)
def test_block_sparse_matmul(block: tuple[int, int], mask_shape: tuple[int, int]) -> None:
    batch, heads, m, n, dim = 2, 4, 37, 53, 20
    blocks = lists_of(*mask_shape, -(-m // block[0]), -(-n // block[1]), block)
    live = listed(blocks, (batch, heads, m, n)) > 0
    q, k, v = tensor(batch, heads, m, dim), tensor(1, 2, n, dim, seed=1), tensor(batch, 1, n, 9, seed=2)
    for order in ("forward", "reverse", "shuffled") if block == (5, 11) else ("forward",):
        scores = stages(order).block_sparse_matmul(q, k, blocks, transpose_b=True, dtype=mx.float32)
        product = exact(q) @ np.repeat(exact(k), 2, axis=1).swapaxes(-1, -2)
        close(scores, np.where(live, product, -np.inf), mx.float32, dim)
        weights = mx.where(mx.array(live), mx.abs(scores), mx.nan)  # what is not listed must not be read
        out = stages(order).block_sparse_matmul(weights, v, blocks, transpose_b=False, dtype=mx.float32)
        close(out, np.where(live, np.abs(product), 0) @ np.repeat(exact(v), 4, axis=1), mx.float32, 20 * n)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", [KINDS[1], KINDS[2], (mx.float32, mx.bfloat16, mx.float32)], ids=str)
def test_block_sparse_matmul_of_other_dtypes(kind: tuple[mx.Dtype, ...]) -> None:
    blocks = lists_of(1, 1, 3, 3, (16, 16))
    live = listed(blocks, (1, 2, 40, 48)) > 0
    q, k = tensor(1, 2, 40, 24, dtype=kind[0]), tensor(1, 1, 48, 24, dtype=kind[1], seed=1)
    got = stages().block_sparse_matmul(q, k, blocks, transpose_b=True, dtype=mx.float32)
    want = np.where(live, exact(q) @ exact(k).swapaxes(-1, -2), -np.inf)
    close(got, want, mx.float32, 24)
    p = tensor(1, 2, 40, 48, dtype=kind[0])
    got = stages().block_sparse_matmul(p, k, blocks, transpose_b=False, dtype=kind[2])
    close(got, np.where(live, exact(p), 0) @ exact(k), kind[2], 48)
