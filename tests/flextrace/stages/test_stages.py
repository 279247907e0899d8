"""Each stage function on each backend that has stages, against float64 numpy."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import reference
import zoo
from backends import STAGED

import flextrace as flex
from flextrace.kernels import BlockLists, OutputParts, SoftmaxParts
from flextrace.stages import attention_output, block_mask, block_sparse_matmul, matmul, scale, score_mod, softmax
from flextrace.tracer import Traces

EVERY = pytest.mark.parametrize("backend", STAGED)
DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
# One rounding of the result; the sums are float32.
ROUNDING = {"float32": 2e-6, "float16": 1e-3, "bfloat16": 8e-3}


def normal(*shape: int, dtype: str = "float32", seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng([seed, *shape]).normal(size=shape)).astype(DTYPES[dtype])


def exact(x: mx.array) -> np.ndarray:
    return np.array(x.astype(mx.float32)).astype(np.float64)


def close(got: mx.array, want: np.ndarray, tolerance: float) -> None:
    assert got.shape == want.shape
    np.testing.assert_allclose(exact(got), want, atol=tolerance, rtol=tolerance)


def strided(x: mx.array) -> mx.array:
    """The same numbers in the middle of a larger buffer, the last axis with stride 2."""
    spread = mx.stack([x, mx.full(x.shape, float("nan"), x.dtype)], axis=-1).reshape(*x.shape[:-1], -1)
    framed = mx.pad(spread, [(1, 2)] * x.ndim, constant_values=float("nan"))
    return framed[tuple(slice(1, n - 2) for n in framed.shape)][..., ::2]


def causal(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx >= kv_idx


def banded(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return abs(q_idx - kv_idx) <= 3 + b + 4 * h


# ---- matmul ------------------------------------------------------------------------------------------------------

SIZES = [(1, 1, 1), (3, 5, 2), (17, 33, 9), (64, 64, 64), (70, 40, 65), (1, 100, 1), (33, 7, 130)]  # M, N, K


def product_error(a: mx.array, b: mx.array, dtype: str, steps: int) -> float:
    """Half products are rounded on metal; sums in float32."""
    both_half = a.dtype == b.dtype == mx.float16
    return ROUNDING[dtype] * max(1, steps) ** 0.5 * 4 + (2e-3 * max(1, steps) ** 0.5 if both_half else 0)


@pytest.mark.sampled(2)
@EVERY
@pytest.mark.parametrize("transposes", [(False, False), (True, False), (False, True), (True, True)], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_matmul(backend: str, size: tuple[int, int, int], transposes: tuple[bool, bool]) -> None:
    m, n, k = size
    a = normal(*((k, m) if transposes[0] else (m, k)))
    b = normal(*((n, k) if transposes[1] else (k, n)), seed=1)
    got = matmul(a, b, transpose_a=transposes[0], transpose_b=transposes[1], backend=backend)
    want = (exact(a).T if transposes[0] else exact(a)) @ (exact(b).T if transposes[1] else exact(b))
    assert got.dtype == mx.float32
    close(got, want, product_error(a, b, "float32", k))


@EVERY
@pytest.mark.parametrize("tiles", [(16, 16), (32, 32), (16, 16, 8), (32, 16, 16), (8, 64, 32)], ids=str)
def test_matmul_in_tiles_of_2_and_3_dimensions(backend: str, tiles: tuple[int, ...]) -> None:
    a, b = normal(2, 3, 37, 21), normal(2, 3, 21, 45, seed=1)
    close(matmul(a, b, tiles=tiles, backend=backend), exact(a) @ exact(b), 3e-5)


@pytest.mark.sampled(2)
@EVERY
@pytest.mark.parametrize("b_dtype", DTYPES)
@pytest.mark.parametrize("a_dtype", DTYPES)
def test_matmul_dtypes(backend: str, a_dtype: str, b_dtype: str) -> None:
    a, b = normal(20, 24, dtype=a_dtype), normal(24, 30, dtype=b_dtype, seed=1)
    want = exact(a) @ exact(b)
    got = matmul(a, b, backend=backend)
    assert got.dtype == DTYPES[a_dtype]
    close(got, want, product_error(a, b, a_dtype, 24))
    for dtype in DTYPES:
        got = matmul(a, b, dtype=DTYPES[dtype], backend=backend)
        assert got.dtype == DTYPES[dtype]
        close(got, want, product_error(a, b, dtype, 24))


@EVERY
@pytest.mark.parametrize(
    ("a_leading", "b_leading"),
    [((2, 6), (2, 2)), ((2, 4), (1, 4)), ((3, 2), (1, 1)), ((4,), (2,)), ((2, 3), ()), ((3,), (1, 1)), ((), (1, 1))],
    ids=str,
)
def test_matmul_broadcasts_batch_and_heads(
    backend: str, a_leading: tuple[int, ...], b_leading: tuple[int, ...]
) -> None:
    a, b = normal(*a_leading, 9, 10), normal(*b_leading, 10, 11, seed=1)
    wide = exact(a).reshape((1,) * (2 - len(a_leading)) + a.shape)
    keys = exact(b).reshape((1,) * (2 - len(b_leading)) + b.shape)
    keys = np.repeat(keys, wide.shape[1] // keys.shape[1], axis=1)
    axes = max(a.ndim, b.ndim)
    got = matmul(a, b, backend=backend)
    assert got.ndim == axes
    close(got, (wide @ keys).reshape((wide @ keys).shape[4 - axes :]), 3e-5)


@EVERY
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transpose", [False, True])
def test_matmul_strided_inputs(backend: str, transpose: bool, dtype: str) -> None:
    a, b = normal(2, 2, 18, 13, dtype=dtype), normal(2, 2, 13, 20, dtype=dtype, seed=1)
    want = exact(a) @ exact(b)
    if transpose:
        a, b = (mx.contiguous(x.swapaxes(-1, -2)) for x in (a, b))
    got = matmul(strided(a), strided(b), transpose_a=transpose, transpose_b=transpose, backend=backend)
    close(got, want, product_error(a, b, dtype, 13))
    broadcast = mx.broadcast_to(a[:1, :1], a.shape)
    got = matmul(broadcast, b, transpose_a=transpose, transpose_b=transpose, backend=backend)
    keys = exact(b).swapaxes(-1, -2) if transpose else exact(b)
    rows = exact(broadcast).swapaxes(-1, -2) if transpose else exact(broadcast)
    close(got, rows @ keys, product_error(broadcast, b, dtype, 13))


@EVERY
@pytest.mark.parametrize("size", [(0, 3, 4), (3, 0, 4), (3, 4, 0), (0, 0, 0)], ids=str)
def test_matmul_of_nothing(backend: str, size: tuple[int, int, int]) -> None:
    m, n, k = size
    got = matmul(mx.ones((m, k)), mx.ones((k, n)), backend=backend)
    close(got, np.zeros((m, n)), 0)
    assert matmul(mx.ones((0, 2, m, k)), mx.ones((1, 1, k, n)), backend=backend).shape == (0, 2, m, n)


# ---- scale -------------------------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 130), (2, 3, 5, 17), (2, 1, 2, 3, 9), (0, 4), (4, 0)], ids=str)
def test_scale(backend: str, shape: tuple[int, ...], dtype: str) -> None:
    x = normal(*shape, dtype=dtype)
    got = scale(x, -0.3, backend=backend)
    assert got.dtype == x.dtype
    close(got, exact(x) * np.float32(-0.3), ROUNDING[dtype])
    if x.ndim and x.size:
        close(scale(strided(x), 2, backend=backend), exact(x) * 2, ROUNDING[dtype])


@EVERY
def test_scale_keeps_infinities_and_nan(backend: str) -> None:
    got = np.array(scale(mx.array([mx.inf, -mx.inf, mx.nan, 0.0]), 0.5, backend=backend))
    np.testing.assert_array_equal(got, [np.inf, -np.inf, np.nan, 0])


# ---- score_mod ---------------------------------------------------------------------------------------------------


def mods_of(names: tuple[str, ...], shape: tuple[int, ...], array: Callable[..., Any]) -> dict[str, Any]:
    made = [zoo.ZOO[name] for name in names]
    return {e.kind: e.make(*shape, np.random.default_rng(0), array) for e in made}


@pytest.mark.sampled(2)
@EVERY
@pytest.mark.parametrize(
    "names",
    [(), ("alibi",), ("causal",), ("softcap", "document_ids"), ("relative_bias", "checkerboard_heads")],
    ids=str,
)
def test_score_mod(backend: str, names: tuple[str, ...]) -> None:
    shape = (2, 3, 19, 37)
    scores = normal(*shape)
    ours, plain = mods_of(names, shape, zoo.mx_array), mods_of(names, shape, reference.array)
    want = exact(scores)
    if "score" in plain:
        want = reference.apply_score_mod(want, plain["score"])
    if "mask" in plain:
        want = np.where(reference.apply_mask_mod(plain["mask"], shape), want, -np.inf)
    got = score_mod(scores, ours.get("score"), ours.get("mask"), backend=backend)
    assert got.dtype == mx.float32
    close(got, want, 2e-5)
    close(score_mod(strided(scores), ours.get("score"), ours.get("mask"), backend=backend), want, 2e-5)


@EVERY
def test_score_mod_takes_functions_decorated_mods_and_bounds(backend: str) -> None:
    scores = normal(1, 2, 5, 9)
    want = np.where(np.arange(5)[:, None] >= np.arange(9), exact(scores), -np.inf)
    bound = Traces().bind(causal, "mask_mod")
    for mask in (causal, flex.mask_mod(causal), bound):
        close(score_mod(scores, mask_mod=mask, backend=backend), want, 0)


@EVERY
def test_score_mod_asks_the_mask_in_partial_blocks_only(backend: str) -> None:
    """Full blocks are kept whatever mask_mod says, unlisted ones are -inf whatever score_mod says."""
    scores = normal(2, 2, 10, 21)
    lists = BlockLists(
        kv_num_blocks=mx.array([[[1, 0, 1]]]),
        kv_indices=mx.array([[[[0, 0, 0], [0, 0, 0], [2, 0, 0]]]]),
        full_kv_num_blocks=mx.array([[[1, 2, 0]]]),
        full_kv_indices=mx.array([[[[2, 1, 1], [0, 1, 0], [0, 0, 0]]]]),
        q_block=4,
        kv_block=8,
    )
    states = np.array([[1, 0, 2], [2, 2, 0], [0, 0, 1]]).repeat(4, 0)[:10].repeat(8, 1)[:, :21]
    kept = reference.apply_mask_mod(causal, scores.shape)

    def plus(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return 1.0 if h == 1 else score + b

    want = reference.apply_score_mod(exact(scores), plus)
    want = np.where((states == 2) | ((states == 1) & kept), want, -np.inf)
    close(score_mod(scores, plus, causal, blocks=lists, backend=backend), want, 1e-6)


@EVERY
@pytest.mark.parametrize("shape", [(0, 1, 2, 3), (1, 0, 2, 3), (1, 1, 0, 3), (1, 1, 3, 0)], ids=str)
def test_score_mod_of_nothing(backend: str, shape: tuple[int, ...]) -> None:
    assert score_mod(mx.zeros(shape), mask_mod=causal, backend=backend).shape == shape


@EVERY
def test_a_captured_integer_outside_int32(backend: str) -> None:
    ids = mx.array([1, 2**40, 3])
    with pytest.raises(OverflowError, match="holds a value outside int32.*renumber"):
        mx.eval(score_mod(mx.zeros((1, 1, 3, 3)), mask_mod=lambda b, h, q, kv: ids[q] == ids[kv], backend=backend))


# ---- softmax -----------------------------------------------------------------------------------------------------


def softmax_of(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    highest = x.max(axis=-1, initial=-np.inf)
    weights = np.exp(x - np.where(highest == -np.inf, 0, highest)[..., None])
    return weights, highest, weights.sum(axis=-1)


@EVERY
@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 127, 513, 1024, 2500])
def test_softmax_of_any_row_length(backend: str, length: int) -> None:
    x = normal(3, length) * 5
    weights, highest, sums = softmax_of(exact(x))
    close(softmax(x, backend=backend), weights / sums[:, None], 3e-6)
    got = softmax(x, normalise=False, backend=backend)
    assert isinstance(got, SoftmaxParts) and got.sums.dtype == got.max_scores.dtype == mx.float32
    close(got.weights, weights, 3e-6)
    close(got.max_scores, highest, 0)
    close(got.sums, sums, 3e-6)


@EVERY
@pytest.mark.parametrize("shape", [(40,), (2, 3, 4, 40), (2, 2, 2, 2, 40)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_shapes_strides_and_dtypes(backend: str, dtype: str, shape: tuple[int, ...]) -> None:
    x = normal(*shape)
    weights, _, sums = softmax_of(exact(x))
    for given in (x, strided(x)):
        got = softmax(given, dtype=DTYPES[dtype], backend=backend)
        assert got.dtype == DTYPES[dtype]
        close(got, weights / sums[..., None], ROUNDING[dtype])


@EVERY
def test_softmax_rows_of_minus_infinity_and_large_scores(backend: str) -> None:
    x = np.full((5, 700), -np.inf)
    x[1, 650] = 3.0  # all but one, in a later tile
    x[2, :] = np.linspace(-1e4, 1e4, 700)
    x[3, 0] = -1e30
    x[4, ::2] = 88.0
    weights, highest, sums = softmax_of(x.astype(np.float32).astype(np.float64))
    got = softmax(mx.array(x.astype(np.float32)), normalise=False, backend=backend)
    close(got.weights, weights, 3e-6)
    close(got.max_scores, highest, 0)
    close(got.sums, sums, 3e-6)
    normalised = softmax(mx.array(x.astype(np.float32)), backend=backend)
    close(normalised, weights / np.where(sums == 0, 1, sums)[:, None], 3e-6)


@EVERY
def test_softmax_keeps_nan_in_its_row(backend: str) -> None:
    x = np.zeros((3, 40), np.float32)
    x[1, 35] = np.nan
    got = np.array(softmax(mx.array(x), backend=backend))
    assert np.isnan(got[1]).all() and not np.isnan(got[[0, 2]]).any()


@EVERY
@pytest.mark.parametrize("shape", [(3, 0), (0, 3), (0,), (0, 0)], ids=str)
def test_softmax_of_nothing(backend: str, shape: tuple[int, ...]) -> None:
    got = softmax(mx.zeros(shape), normalise=False, backend=backend)
    assert got.weights.shape == shape
    close(got.max_scores, np.full(shape[:-1], -np.inf), 0)
    close(got.sums, np.zeros(shape[:-1]), 0)


# ---- block_mask --------------------------------------------------------------------------------------------------


def states_of(lists: BlockLists, kv_blocks: int) -> np.ndarray:
    """0 empty, 1 partial, 2 full; and the lists are ascending, and 0 where unused."""
    counts, indices, full_counts, full_indices = (np.array(x) for x in lists[:4])
    states = np.zeros((*counts.shape, kv_blocks), int)
    for state, n, table in ((1, counts, indices), (2, full_counts, full_indices)):
        assert table.shape == states.shape and table.dtype == n.dtype == np.int32
        for at in np.ndindex(*counts.shape):
            used = table[at][: n[at]]
            assert (np.diff(used) > 0).all() and (table[at][n[at] :] == 0).all()
            states[(*at, used)] = state
    return states


def dense_states(dense: np.ndarray, q_block: int, kv_block: int) -> np.ndarray:
    rows, columns = range(0, dense.shape[2], q_block), range(0, dense.shape[3], kv_block)
    states = np.zeros((*dense.shape[:2], len(rows), len(columns)), int)
    for i, r in enumerate(rows):
        for j, c in enumerate(columns):
            block = dense[:, :, r : r + q_block, c : c + kv_block]
            states[:, :, i, j] = block.any(axis=(2, 3)).astype(int) + block.all(axis=(2, 3))
    return states


@pytest.mark.sampled(2)
@EVERY
@pytest.mark.parametrize("block_size", [128, 16, 7, (5, 11), (32, 8), (1, 53)], ids=str)
@pytest.mark.parametrize("name", ["causal", "document_ids", "checkerboard_heads", "empty_rows", "empty", "noop"])
def test_block_mask_equals_the_dense_definition(backend: str, name: str, block_size: Any) -> None:
    shape = (2, 2, 37, 53)
    ours, plain = mods_of((name,), shape, zoo.mx_array)["mask"], mods_of((name,), shape, reference.array)["mask"]
    got = block_mask(ours, *shape, block_size, backend=backend)
    q_block, kv_block = (block_size, block_size) if isinstance(block_size, int) else block_size
    want = dense_states(reference.apply_mask_mod(plain, shape), q_block, kv_block)
    assert (got.q_block, got.kv_block) == (q_block, kv_block)
    np.testing.assert_array_equal(states_of(got, want.shape[3]), want)


@EVERY
def test_block_mask_over_many_blocks(backend: str) -> None:
    """More blocks in a row than a threadgroup has threads; a mask that alternates."""

    def stripes(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return (kv_idx // 4) % 3 != 0 and (kv_idx % 4 != 1 or kv_idx // 4 % 2 == 0)

    kept = np.array([stripes(0, 0, 0, kv) for kv in range(3001)]).reshape(1, 1, 1, -1)
    got = block_mask(stripes, None, None, 3, 3001, (2, 4), backend=backend)
    want = dense_states(np.broadcast_to(kept, (1, 1, 3, 3001)), 2, 4)
    np.testing.assert_array_equal(states_of(got, want.shape[3]), want)


@EVERY
def test_block_mask_without_batch_and_heads(backend: str) -> None:
    got = block_mask(causal, None, None, 9, 9, 3, backend=backend)
    assert got.kv_num_blocks.tolist() == [[[1, 1, 1]]] and got.full_kv_num_blocks.tolist() == [[[0, 1, 2]]]


@pytest.mark.parametrize(("axis", "name", "index"), [(0, "B", "b"), (1, "H", "h")], ids=["batch", "head"])
def test_lists_of_one_batch_do_not_serve_several_that_the_mask_tells_apart(axis: int, name: str, index: str) -> None:
    def mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return kv_idx <= q_idx + (b, h)[axis]

    shape = [1, 1, 6, 6]
    lists = block_mask(mask, 1, 1, 6, 6, 2, backend="cpu")
    assert score_mod(mx.zeros(shape), None, mask, blocks=lists, backend="cpu").shape == (1, 1, 6, 6)
    shape[axis] = 3
    with pytest.raises(ValueError, match=rf"blocks are of {name}=1 and the mask depends on {index}, .* {name}=3"):
        score_mod(mx.zeros(shape), None, mask, blocks=lists, backend="cpu")
    causal_lists = block_mask(causal, None, None, 6, 6, 2, backend="cpu")
    assert score_mod(mx.zeros(shape), None, causal, blocks=causal_lists, backend="cpu").shape == tuple(shape)


@EVERY
@pytest.mark.parametrize("lengths", [(0, 5), (5, 0), (0, 0)], ids=str)
def test_block_mask_of_nothing(backend: str, lengths: tuple[int, int]) -> None:
    got = block_mask(causal, 2, 1, *lengths, 4, backend=backend)
    rows, columns = (-(-n // 4) for n in lengths)
    assert got.kv_num_blocks.shape == (2, 1, rows) and got.kv_indices.shape == (2, 1, rows, columns)
    assert (
        np.array(got.kv_num_blocks).sum() == np.array(got.full_kv_num_blocks).sum() == 0
    )  # mx.sum of nothing is noise


# ---- block_sparse_matmul -----------------------------------------------------------------------------------------


@pytest.mark.sampled(3)
@EVERY
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", [64, 16, (5, 11), (1, 40)], ids=str)
@pytest.mark.parametrize("shape", [(2, 4, 37, 53, 24, 2, 2), (2, 2, 20, 33, 9, 1, 2), (1, 1, 70, 5, 40, 1, 1)], ids=str)
def test_block_sparse_matmul(backend: str, shape: tuple[int, ...], block_size: Any, dtype: str) -> None:
    """Both products, with grouped heads, a batch of keys for all, a mask for all batches or each."""
    batch, heads, q_len, kv_len, dim, kv_batch, kv_heads = shape
    lists = block_mask(banded, batch, heads, q_len, kv_len, block_size, backend="cpu")
    dense = reference.apply_mask_mod(banded, (batch, heads, q_len, kv_len))
    live = dense_states(dense, lists.q_block, lists.kv_block) > 0
    live = live.repeat(lists.q_block, 2)[:, :, :q_len].repeat(lists.kv_block, 3)[..., :kv_len]
    q = normal(batch, heads, q_len, dim, dtype=dtype)
    k = normal(kv_batch, kv_heads, kv_len, dim, dtype=dtype, seed=1)
    keys = np.broadcast_to(exact(k).repeat(heads // kv_heads, 1), (batch, heads, kv_len, dim))
    want = np.where(live, exact(q) @ keys.swapaxes(-1, -2), -np.inf)
    for given in ((q, k), (strided(q), strided(k))):
        got = block_sparse_matmul(*given, lists, transpose_b=True, backend=backend)
        assert got.dtype == mx.float32
        close(got, want, product_error(q, k, "float32", dim))

    weights = normal(batch, heads, q_len, kv_len, seed=2)
    poisoned = mx.where(mx.array(live), weights, mx.nan)  # what is not listed is never read
    for given in ((poisoned, k), (strided(poisoned), strided(k))):
        got = block_sparse_matmul(*given, lists, dtype=DTYPES[dtype], backend=backend)
        assert got.dtype == DTYPES[dtype]
        close(got, np.where(live, exact(weights), 0) @ keys, ROUNDING[dtype] * 20)


@EVERY
def test_block_sparse_matmul_mask_broadcasts(backend: str) -> None:
    lists = block_mask(causal, None, None, 19, 19, 4, backend="cpu")
    q, k = normal(2, 4, 19, 8), normal(1, 2, 19, 8, seed=1)
    live = (np.arange(19)[:, None] // 4 >= np.arange(19) // 4)[None, None]
    want = np.where(live, exact(q) @ exact(k).repeat(2, 1).swapaxes(-1, -2), -np.inf)
    close(block_sparse_matmul(q, k, lists, transpose_b=True, backend=backend), want, 3e-5)


@EVERY
@pytest.mark.parametrize("sizes", [(0, 4, 3), (4, 0, 3), (4, 4, 0)], ids=str)
def test_block_sparse_matmul_of_nothing(backend: str, sizes: tuple[int, int, int]) -> None:
    q_len, kv_len, dim = sizes
    lists = block_mask(lambda b, h, q_idx, kv_idx: kv_idx < 2, None, None, q_len, kv_len, 2, backend="cpu")
    q, k = mx.ones((1, 2, q_len, dim)), mx.ones((1, 2, kv_len, dim))
    want = np.broadcast_to(np.where(np.arange(kv_len) < 2, float(dim), -np.inf), (1, 2, q_len, kv_len))
    close(block_sparse_matmul(q, k, lists, transpose_b=True, backend=backend), want, 0)
    got = block_sparse_matmul(mx.ones((1, 2, q_len, kv_len)), k, lists, backend=backend)
    close(got, np.full((1, 2, q_len, dim), min(kv_len, 2.0)), 0)


# ---- attention_output --------------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (5, 9), (2, 3, 11, 40), (2, 1, 2, 3, 130)], ids=str)
def test_attention_output(backend: str, shape: tuple[int, ...], dtype: str) -> None:
    product, highest = normal(*shape), normal(*shape[:-1], seed=1) * 20
    sums = mx.abs(normal(*shape[:-1], seed=2)) + 0.5
    want = exact(product) / exact(sums)[..., None]
    given = (product, highest, sums)
    for inputs in (given, tuple(strided(x) if x.ndim else x for x in given)):
        got = attention_output(*inputs, DTYPES[dtype], backend=backend)
        assert isinstance(got, OutputParts) and got.out.dtype == DTYPES[dtype] and got.lse.dtype == mx.float32
        close(got.out, want, ROUNDING[dtype])
        close(got.lse, exact(highest) + np.log(exact(sums)), 3e-6)
        close(got.max_scores, exact(highest), 0)


@EVERY
def test_attention_output_of_rows_that_attend_to_nothing(backend: str) -> None:
    got = attention_output(mx.zeros((2, 4)), mx.array([-mx.inf, 1.0]), mx.array([0.0, 1.0]), backend=backend)
    close(got.out, np.zeros((2, 4)), 0)
    close(got.lse, np.array([-np.inf, 1.0]), 0)
    for shape in ((0, 4), (3, 0)):
        got = attention_output(mx.zeros(shape), mx.zeros(shape[:1]), mx.ones(shape[:1]), backend=backend)
        assert got.out.shape == shape and got.lse.shape == shape[:1]


# ---- errors ------------------------------------------------------------------------------------------------------

LISTS = BlockLists(mx.zeros((1, 1, 2), mx.int32), mx.zeros((1, 1, 2, 2), mx.int32), *[None] * 2, 4, 4)  # type: ignore[arg-type]
LISTS = LISTS._replace(full_kv_num_blocks=LISTS.kv_num_blocks, full_kv_indices=LISTS.kv_indices)
A, S = mx.ones((2, 3)), mx.ones((1, 1, 8, 8))
BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "matmul: no array": (
        lambda: matmul(np.ones((2, 3)), A),
        TypeError,
        "a is an ndarray; convert it with mx.array(...)",
    ),
    "matmul: integers": (lambda: matmul(A, A.astype(mx.int32)), TypeError, "b is int32; make it float32, float16 or"),
    "matmul: one axis": (lambda: matmul(A[0], A), ValueError, "a has shape (3,); expected 2 to 4 axes"),
    "matmul: inner": (lambda: matmul(A, A), ValueError, "a has 3 steps, b has 2; they must be equal: see transpose_a"),
    "matmul: batch": (
        lambda: matmul(mx.ones((2, 1, 3, 3)), mx.ones((3, 1, 3, 3))),
        ValueError,
        "batch sizes: a 2, b 3; b needs 2, or 1 for all",
    ),
    "matmul: heads": (
        lambda: matmul(mx.ones((4, 3, 3)), mx.ones((3, 3, 3))),
        ValueError,
        "the 4 heads of a must be a multiple of the 3 heads of b",
    ),
    "matmul: tiles": (
        lambda: matmul(A, A, transpose_b=True, tiles=(8,)),
        ValueError,
        "tiles is (8,); expected positive ints (BM, BN) or (BM, BN, BK), or None",
    ),
    "matmul: tile of 0": (
        lambda: matmul(A, A, transpose_b=True, tiles=(8, 0)),
        ValueError,
        "tiles is (8, 0); expected",
    ),
    "matmul: dtype": (
        lambda: matmul(A, A, transpose_b=True, dtype=mx.int32),
        TypeError,
        "dtype is int32; expected mx.float32, mx.float16 or mx.bfloat16, or None",
    ),
    "scale: factor": (lambda: scale(A, "2"), TypeError, "factor is '2'; expected a number"),  # type: ignore[arg-type]
    "scale: integers": (lambda: scale(mx.array(1), 2), TypeError, "x is int32; make it float32"),
    "score_mod: axes": (lambda: score_mod(A), ValueError, "expected 4 axes: [batch, heads, q_len, kv_len]"),
    "score_mod: dtype": (
        lambda: score_mod(S.astype(mx.float16)),
        TypeError,
        "scores is float16; make it float32 with .astype(mx.float32)",
    ),
    "score_mod: no function": (
        lambda: score_mod(S, 3),
        TypeError,
        "score_mod takes a score_mod: a function, a decorated one or a Bound, not an int",
    ),
    "score_mod: other kind": (
        lambda: score_mod(S, flex.mask_mod(causal)),
        TypeError,
        "score_mod takes a score_mod; causal is a mask_mod",
    ),
    "score_mod: not traceable": (
        lambda: score_mod(S, mask_mod=lambda b, h, q, kv: print(q)),
        flex.TraceError,
        "print",
    ),
    "score_mod: blocks": (
        lambda: score_mod(S, blocks=3),
        TypeError,
        "blocks is an int; expected BlockLists as block_mask",
    ),  # type: ignore[arg-type]
    "softmax: scalar": (lambda: softmax(mx.array(1.0)), ValueError, "x has shape (); expected at least 1 axis"),
    "softmax: dtype of x": (lambda: softmax(A.astype(mx.bfloat16)), TypeError, "x is bfloat16; make it float32"),
    "softmax: dtype": (lambda: softmax(A, dtype="float16"), TypeError, "dtype is 'float16'; expected mx.float32"),  # type: ignore[call-overload]
    "block_mask: none": (lambda: block_mask(None, 1, 1, 8, 8), TypeError, "mask_mod is None; without a mask every"),
    "block_mask: H": (
        lambda: block_mask(banded, 1, None, 8, 8),
        ValueError,
        "the mask depends on h, so block_mask needs H, not None",
    ),
    "block_mask: B": (lambda: block_mask(causal, 0, 1, 8, 8), ValueError, "B is 0; expected a whole number from 1 on"),
    "block_mask: length": (lambda: block_mask(causal, 1, 1, -1, 8), ValueError, "q_len is -1; expected a whole number"),
    "block_mask: size": (
        lambda: block_mask(causal, 1, 1, 8, 8, (4, 0)),
        ValueError,
        "block_size is (4, 0); expected a positive int, or (rows, columns)",
    ),
    "block_sparse_matmul: rows": (
        lambda: block_sparse_matmul(mx.ones((1, 1, 9, 4)), S[..., :4], LISTS, transpose_b=True),
        ValueError,
        "blocks.kv_num_blocks has shape (1, 1, 2); expected batch 1 or 1, heads 1 or 1 and 3 rows of blocks for 9",
    ),
    "block_sparse_matmul: dtype of lists": (
        lambda: block_sparse_matmul(S, S, LISTS._replace(kv_indices=LISTS.kv_indices.astype(mx.float32))),
        TypeError,
        "blocks.kv_indices is float32 of shape (1, 1, 2, 2); expected an int32 mx.array of 4 axes",
    ),
    "block_sparse_matmul: no lists": (
        lambda: block_sparse_matmul(S, S, flex.create_block_mask(causal, 1, 1, 8, 8)),  # type: ignore[arg-type]
        TypeError,
        "blocks is a BlockMask; expected BlockLists as block_mask gives them (of a BlockMask m: BlockLists(m.kv_num",
    ),
    "block_sparse_matmul: inner": (
        lambda: block_sparse_matmul(S, S[:, :, :4], LISTS),
        ValueError,
        "a has 8 keys, b has 4",
    ),
    "block_sparse_matmul: columns": (
        lambda: block_sparse_matmul(S, S[..., :4], LISTS, transpose_b=True),
        ValueError,
        "a has 8 columns, b has 4",
    ),
    "attention_output: shapes": (
        lambda: attention_output(A, mx.ones(2), mx.ones(3)),
        ValueError,
        "sums has shape (3,); expected (2,), product's without its last axis",
    ),
    "backend": (
        lambda: scale(A, 2, backend="tpu"),
        ValueError,
        "unknown backend 'tpu'; known: metal, cuda, simulator, cpu",
    ),
    "ops": (
        lambda: scale(A, 2, backend="ops"),
        ValueError,
        "the ops backend has no stage kernels; choose the cpu, metal",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case: str) -> None:
    call, kind, message = BAD[case]
    with pytest.raises(kind, match=re.escape(message)):
        call()


def test_inside_transformations_the_cpu_says_what_to_do() -> None:
    with pytest.raises(flex.BackendUnavailable, match="cpu backend needs values, which .* call scale outside them"):
        mx.compile(lambda x: scale(x, 2.0, backend="cpu"))(A)


CALLS: dict[str, Callable[[mx.array], mx.array]] = {
    "matmul": lambda x: matmul(x, A, transpose_b=True, backend="cpu"),
    "scale": lambda x: scale(x, 2.0, backend="cpu"),
    "score_mod": lambda x: score_mod(x[None, None], mask_mod=causal, backend="cpu"),
    "softmax": lambda x: softmax(x, backend="cpu"),
    "attention_output": lambda x: attention_output(x, x[:, 0], x[:, 1], backend="cpu").out,
}


@pytest.mark.parametrize("name", CALLS)
def test_a_gradient_is_an_error_not_zero(name: str) -> None:
    with pytest.raises(flex.GradientError, match=f"{name} has no backward pass; differentiate the same formula in MLX"):
        mx.grad(lambda x: CALLS[name](x).sum())(A)


def test_the_backend_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXTRACE_BACKEND", "ops")
    with pytest.raises(ValueError, match="the ops backend has no stage kernels"):
        scale(A, 2.0)
