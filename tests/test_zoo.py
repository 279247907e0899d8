"""The zoo -> attention on each backend, against plain Python and float64 numpy (tests/reference.py).

The quick run compiles each mod once, float32, on one shape that rotates with the entry; `long` runs every
shape and dtype. The simulator runs the Metal kernels with all of its checks: a finding is an error. A failure names
the entry, shape, dtype and backend: all that is needed to run it again.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest
import reference
import zoo
from backends import EVERY as EVERY_BACKEND

import flextrace as flex

BACKENDS = EVERY_BACKEND  # parametrised on top, so that it varies fastest and shares the reference
DTYPES = ("float32", "float16", "bfloat16")


class Shape(NamedTuple):
    """q: [B, Hq, Lq, D], k: [Bkv, Hkv, Lkv, D], v: [Bkv, Hkv, Lkv, Dv]."""

    B: int
    Hq: int
    Lq: int
    D: int
    Bkv: int
    Hkv: int
    Lkv: int
    Dv: int


SHAPES = {
    "ragged": Shape(2, 2, 37, 16, 2, 2, 53, 16),
    "odd_dims": Shape(1, 3, 20, 17, 1, 3, 33, 9),
    "gqa": Shape(2, 6, 18, 32, 2, 2, 23, 32),
    "kv_batch_one": Shape(3, 2, 16, 8, 1, 2, 40, 24),
    "short_q": Shape(2, 4, 1, 64, 2, 1, 150, 64),
    "long_q": Shape(1, 2, 90, 40, 1, 2, 7, 48),
    "tiny": Shape(1, 2, 3, 4, 1, 2, 5, 4),
    "one": Shape(1, 1, 1, 1, 1, 1, 1, 1),
    "tile_edges": Shape(1, 2, 130, 64, 1, 2, 200, 64),
    "length_512": Shape(1, 1, 512, 32, 1, 1, 512, 32),
}
QUICK_SHAPES = [name for name in SHAPES if name != "length_512"]  # a call in plain Python for each of its scores
# The quick run leaves out the two shapes that show little, and "tile_edges", which is slow in plain Python.
ROTATION = ("ragged", "odd_dims", "gqa", "kv_batch_one", "ragged", "long_q", "gqa", "short_q")
QUICK = [
    pytest.param(entry, ROTATION[i % len(ROTATION)], id=f"{entry}-{ROTATION[i % len(ROTATION)]}")
    for i, entry in enumerate(zoo.ZOO.values())
]
SIMULATED_AT_TIMES = [pytest.param(b, marks=pytest.mark.sampled(6)) if b == "simulator" else b for b in BACKENDS]
EVERY = pytest.mark.parametrize("entry", zoo.ZOO.values(), ids=str)


def seed(*names: str) -> int:
    return zlib.crc32("/".join(names).encode())


class Inputs(NamedTuple):
    """q, k, v in MLX, and the same numbers in float64."""

    arrays: tuple[mx.array, ...]
    exact: tuple[np.ndarray, ...]


def make_inputs(shape: Shape, dtype: str = "float32") -> Inputs:
    rng = np.random.default_rng(seed(str(shape)))
    sizes = (shape[:4], shape[4:7] + shape[3:4], shape[4:])
    arrays = tuple(mx.array(rng.normal(size=size)).astype(getattr(mx, dtype)) for size in sizes)
    return Inputs(arrays, tuple(np.array(x.astype(mx.float32)).astype(np.float64) for x in arrays))


def make(entry: zoo.Entry, shape: Shape, array: Callable[..., Any] = zoo.mx_array) -> tuple[Any | None, Any | None]:
    """(score_mod, mask_mod), one of them None, still plain functions."""
    rng = np.random.default_rng(seed(entry.name))
    mod = entry.make(shape.B, shape.Hq, shape.Lq, shape.Lkv, rng, array)
    return (mod, None) if entry.kind == "score" else (None, mod)


@functools.lru_cache(maxsize=8)
def expected(score: str, mask: str, name: str, dtype: str, scale: float | None = None) -> reference.Attention:
    """The reference for zoo entries by name ("" for none): slow, so the backends share it."""
    shape = SHAPES[name]
    score_mod = make(zoo.ZOO[score], shape, reference.array)[0] if score else None
    mask_mod = make(zoo.ZOO[mask], shape, reference.array)[1] if mask else None
    return reference.attention(*make_inputs(shape, dtype).exact, score_mod, mask_mod, scale)


def attend(
    inputs: tuple[mx.array, ...],
    score_mod: Any,
    block_mask: Any,
    backend: str,
    scale: float | None = None,
) -> tuple[mx.array, Any]:
    q, k, v = inputs
    return flex.flex_attention(
        q,
        k,
        v,
        score_mod=score_mod,
        block_mask=block_mask,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
        return_aux=flex.AuxRequest(lse=True, max_scores=True),
        kernel_options={"BACKEND": backend},
    )


def compare(got: tuple[mx.array, Any], want: reference.Attention, dtype: str, what: str) -> None:
    out, aux = got
    tolerance = reference.tolerance(dtype)
    assert out.dtype == getattr(mx, dtype), f"{what}: out is {out.dtype}"
    assert aux.lse.dtype == mx.float32 and aux.max_scores.dtype == mx.float32, what
    statistic = (tolerance.statistic_absolute, tolerance.statistic_relative)
    reference.assert_close(aux.max_scores, want.max_scores, *statistic, f"max_scores of {what}")
    reference.assert_close(aux.lse, want.lse, *statistic, f"lse of {what}")
    reference.assert_close(out, want.out, tolerance.absolute, tolerance.relative, f"out of {what}")


def check(entry: zoo.Entry, name: str, dtype: str, backend: str) -> None:
    shape = SHAPES[name]
    score_mod, mask_mod = make(entry, shape)
    score_mod = flex.score_mod(score_mod) if score_mod is not None else None
    mask_mod = flex.mask_mod(mask_mod) if mask_mod is not None else None
    names = (entry.name, "") if entry.kind == "score" else ("", entry.name)
    got = attend(make_inputs(shape, dtype).arrays, score_mod, mask_mod, backend)
    compare(got, expected(*names, name, dtype), dtype, f"{entry}, {name} {shape}, {dtype}, {backend}")


# --- every entry ------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", SIMULATED_AT_TIMES)
@pytest.mark.parametrize(("entry", "name"), QUICK)
def test_zoo(backend: str, entry: zoo.Entry, name: str) -> None:
    check(entry, name, "float32", backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.long
@EVERY
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_zoo_every_shape_and_dtype(backend: str, dtype: str, name: str, entry: zoo.Entry) -> None:
    check(entry, name, dtype, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_without_mods(backend: str, dtype: str, name: str) -> None:
    got = attend(make_inputs(SHAPES[name], dtype).arrays, None, None, backend)
    compare(got, expected("", "", name, dtype), dtype, f"no mod, {name}, {dtype}, {backend}")


@pytest.mark.parametrize("backend", SIMULATED_AT_TIMES)
@pytest.mark.parametrize("name", QUICK_SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_causal_on_every_shape(backend: str, dtype: str, name: str) -> None:
    check(zoo.ZOO["causal"], name, dtype, backend)


@EVERY
def test_called_with_numbers_a_mod_is_the_users_function(entry: zoo.Entry) -> None:
    """The decorated mod on MLX captures and the plain function on numpy captures agree; no kernel runs."""
    shape = SHAPES["ragged"]
    plain = next(mod for mod in make(entry, shape, reference.array) if mod is not None)
    mod = next(mod for mod in make(entry, shape) if mod is not None)
    mod = flex.score_mod(mod) if entry.kind == "score" else flex.mask_mod(mod)
    rng = np.random.default_rng(0)
    for _ in range(10):
        index = [int(rng.integers(n)) for n in (shape.B, shape.Hq, shape.Lq, shape.Lkv)]
        arguments = [float(rng.normal()), *index] if entry.kind == "score" else index
        got, want = reference.number(mod(*arguments)), reference.number(plain(*arguments))
        assert got == pytest.approx(want, rel=1e-5, abs=1e-5), (entry.name, arguments)


def test_the_table_is_large_enough() -> None:
    assert len(zoo.SCORE_MODS) >= 25 and len(zoo.MASK_MODS) >= 20 and len(zoo.ZOO) >= 45


# --- inputs as they come ----------------------------------------------------------------------------


def transposed(x: mx.array) -> mx.array:
    """[B, H, L, D] as a view of [B, L, H, D]: what `reshape(B, L, H, D).transpose(0, 2, 1, 3)` gives."""
    return mx.contiguous(x.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)


def sliced(x: mx.array) -> mx.array:
    """A view into the middle of a larger buffer: an offset, and strides that fit nothing."""
    larger = mx.pad(x, [(1, 0), (1, 2), (3, 1), (5, 2)], constant_values=float("nan"))
    _, H, L, D = x.shape
    return larger[1:, 1 : 1 + H, 3 : 3 + L, 5 : 5 + D]


def every_second(x: mx.array) -> mx.array:
    """Head dim with stride 2, and the rows backwards in memory."""
    spread = mx.stack([x, mx.full(x.shape, float("nan"), x.dtype)], axis=-1).reshape(*x.shape[:3], -1)
    return mx.contiguous(spread[:, :, ::-1])[:, :, ::-1, ::2]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("view", [transposed, sliced, every_second])
@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_inputs(backend: str, dtype: str, view: Callable[[mx.array], mx.array]) -> None:
    inputs = tuple(view(x) for x in make_inputs(SHAPES["ragged"], dtype).arrays)
    _, mask_mod = make(zoo.ZOO["causal"], SHAPES["ragged"])
    got = attend(inputs, None, flex.mask_mod(mask_mod), backend)
    compare(got, expected("", "causal", "ragged", dtype), dtype, f"{view.__name__}, {dtype}, {backend}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_query_key_and_value_from_one_projection(backend: str) -> None:
    B, H, L, D = 2, 3, 41, 8
    packed = mx.array(np.random.default_rng(0).normal(size=(B, L, 3 * H * D)).astype(np.float32))
    q, k, v = (x.transpose(0, 2, 1, 3) for x in mx.split(packed.reshape(B, L, 3 * H, D), 3, axis=2))
    want = reference.attention(*(np.array(x) for x in (q, k, v)))
    compare(attend((q, k, v), None, None, backend), want, "float32", f"one projection, {backend}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_key_and_value_broadcast_over_heads(backend: str) -> None:
    """Stride 0: one key head seen by all."""
    inputs = make_inputs(SHAPES["ragged"])
    q, k, v = inputs.arrays
    k, v = (mx.broadcast_to(x[:1, :1], x.shape) for x in (k, v))
    want = reference.attention(*(np.array(x) for x in (q, k, v)))
    compare(attend((q, k, v), None, None, backend), want, "float32", f"broadcast, {backend}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_captured_arrays_may_be_views(backend: str) -> None:
    shape = SHAPES["ragged"]
    table = np.random.default_rng(0).normal(size=(2 * shape.Lkv, shape.Lq)).astype(np.float32)
    view, exact = mx.array(table).T[:, ::2], table.T[:, ::2]

    def mod(score, b, h, q_idx, kv_idx):
        return score + view[q_idx, kv_idx]

    inputs = make_inputs(shape)
    got = attend(inputs.arrays, flex.score_mod(mod), None, backend)
    want = reference.attention(*inputs.exact, lambda score, b, h, q, kv: score + exact[q, kv])
    compare(got, want, "float32", f"captured view, {backend}")


# --- a score mod and a mask together ----------------------------------------------------------------

COMBINATIONS = [
    ("alibi", "causal", "ragged"),
    ("softcap", "document_ids", "gqa"),
    ("infinite_pairs_and_rows", "sliding_window", "ragged"),
    ("relative_bias", "empty_rows", "odd_dims"),
    ("causal_as_score_mod", "padding_lengths", "kv_batch_one"),
    ("per_head_loop", "video_heads", "tile_edges"),
    ("half_precision_captures", "empty", "ragged"),
]


@pytest.mark.parametrize("backend", SIMULATED_AT_TIMES)
@pytest.mark.parametrize(("score", "mask", "name"), COMBINATIONS)
def test_score_mod_with_mask(backend: str, score: str, mask: str, name: str) -> None:
    """Directly and as a BlockMask, with a scale of the caller's."""
    shape = SHAPES[name]
    score_mod = flex.score_mod(make(zoo.ZOO[score], shape)[0])
    mask_mod = flex.mask_mod(make(zoo.ZOO[mask], shape)[1])
    want = expected(score, mask, name, "float32", 0.4)
    arrays = make_inputs(shape).arrays
    what = f"{score} with {mask}, {name}, {backend}"
    compare(attend(arrays, score_mod, mask_mod, backend, scale=0.4), want, "float32", what)
    block_mask = flex.create_block_mask(mask_mod, shape.B, shape.Hq, shape.Lq, shape.Lkv, BLOCK_SIZE=16)
    what += ", BlockMask"
    compare(attend(arrays, score_mod, block_mask, backend, scale=0.4), want, "float32", what)


# --- BlockMask --------------------------------------------------------------------------------------

BLOCK_SIZES = [128, 16, 7, (5, 11), (32, 8), (1, 53)]
BLOCK_MASKS = ["causal", "document_ids", "natten_2d", "checkerboard_heads", "empty_rows", "empty", "noop"]


def block_sizes(block_size: int | tuple[int, int]) -> tuple[int, int]:
    return (block_size, block_size) if isinstance(block_size, int) else block_size


def dense_blocks(dense: np.ndarray, block_size: int | tuple[int, int]) -> np.ndarray:
    """bool [B, H, q_len, kv_len] -> bool [B, H, q_blocks, kv_blocks]: has the block anything to compute?"""
    (q_block, kv_block), (B, H, Lq, Lkv) = block_sizes(block_size), dense.shape
    padded = np.pad(dense, [(0, 0), (0, 0), (0, -Lq % q_block), (0, -Lkv % kv_block)])
    rows, columns = padded.shape[2] // q_block, padded.shape[3] // kv_block
    return padded.reshape(B, H, rows, q_block, columns, kv_block).any(axis=(3, 5))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mask", BLOCK_MASKS)
@pytest.mark.parametrize("block_size", BLOCK_SIZES, ids=str)
def test_block_mask_equals_its_mask(backend: str, block_size: Any, mask: str) -> None:
    shape = SHAPES["ragged"]
    mask_mod = flex.mask_mod(make(zoo.ZOO[mask], shape)[1])
    block_mask = flex.create_block_mask(mask_mod, shape.B, shape.Hq, shape.Lq, shape.Lkv, BLOCK_SIZE=block_size)
    got = attend(make_inputs(shape).arrays, None, block_mask, backend)
    what = f"{mask} in blocks of {block_size}, {backend}"
    compare(got, expected("", mask, "ragged", "float32"), "float32", what)


@pytest.mark.parametrize("backend", BACKENDS)
def test_block_mask_broadcasts_over_batch_and_heads(backend: str) -> None:
    shape = SHAPES["gqa"]
    mask_mod = flex.mask_mod(make(zoo.ZOO["causal"], shape)[1])
    block_mask = flex.create_block_mask(mask_mod, None, None, shape.Lq, shape.Lkv, BLOCK_SIZE=8)
    assert block_mask.kv_num_blocks.shape[:2] == (1, 1)
    got = attend(make_inputs(shape).arrays, None, block_mask, backend)
    compare(got, expected("", "causal", "gqa", "float32"), "float32", f"broadcast BlockMask, {backend}")


@pytest.mark.parametrize("entry", zoo.MASK_MODS, ids=str)
def test_create_mask_is_the_dense_mask(entry: zoo.Entry) -> None:
    shape = SHAPES["ragged"]
    sizes = (shape.B, shape.Hq, shape.Lq, shape.Lkv)
    want = reference.apply_mask_mod(make(entry, shape, reference.array)[1], sizes)
    got = flex.create_mask(flex.mask_mod(make(entry, shape)[1]), *sizes)
    np.testing.assert_array_equal(np.array(got), want, err_msg=entry.name)


@pytest.mark.parametrize("entry", zoo.MASK_MODS, ids=str)
@pytest.mark.parametrize("block_size", [16, (5, 11)], ids=str)
def test_block_mask_covers_the_dense_mask(block_size: Any, entry: zoo.Entry) -> None:
    """Partial plus full blocks are those with something to compute, and a full block has nothing to mask."""
    shape = SHAPES["ragged"]
    sizes = (shape.B, shape.Hq, shape.Lq, shape.Lkv)
    dense = reference.apply_mask_mod(make(entry, shape, reference.array)[1], sizes)
    block_mask = flex.create_block_mask(flex.mask_mod(make(entry, shape)[1]), *sizes, BLOCK_SIZE=block_size)
    live = dense_blocks(dense, block_size)
    np.testing.assert_array_equal(np.array(block_mask.to_dense()).astype(bool), live, err_msg=entry.name)
    counts = np.array(block_mask.kv_num_blocks)
    if block_mask.full_kv_num_blocks is not None:
        full_counts = np.array(block_mask.full_kv_num_blocks)
        full_indices = np.array(block_mask.full_kv_indices)
        counts = counts + full_counts
        q_block, kv_block = block_sizes(block_size)
        for b, h, row in np.ndindex(*full_counts.shape):
            for column in full_indices[b, h, row, : full_counts[b, h, row]]:
                rows = slice(row * q_block, (row + 1) * q_block)
                columns = slice(column * kv_block, (column + 1) * kv_block)
                assert dense[b, h, rows, columns].all(), (entry.name, b, h, row, column)
    np.testing.assert_array_equal(counts, live.sum(axis=-1), err_msg=entry.name)
