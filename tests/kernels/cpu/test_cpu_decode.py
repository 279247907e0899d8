"""The cpu kernel for few query rows: heads that share keys are rows of one tile, keys are read in place, split over
threads. Against float64 numpy and the user's own functions (tests/reference.py)."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import reference
import zoo
from calls import attention_call
from decode_masks import MASKED

import flextrace as flex
from flextrace.kernels.cpu.launch import FEW_ROWS, FEW_SHARED
from flextrace.kernels.registry import backend_for
from flextrace.kernels.spec import ATTENTION, DECODE

BACKEND: Any = backend_for("cpu")
RNG = np.random.default_rng(0)
Array = np.ndarray


def normal(*size: int) -> Array:
    return np.random.default_rng(size).normal(size=size).astype(np.float32)


def kernel_of(q_len: int, heads: int, kv_heads: int, blocks: flex.BlockMask | None = None) -> str:
    q, k = mx.zeros((1, heads, q_len, 8)), mx.zeros((1, kv_heads, 300, 8))
    call = attention_call(q, k, k, 1.0, blocks=None if blocks is None else blocks.blocks)
    return str(BACKEND.spec(call).kernel)


def test_few_rows_have_their_own_kernel() -> None:
    assert kernel_of(1, 8, 8) == kernel_of(1, FEW_SHARED, 1) == kernel_of(FEW_ROWS, 4, 4) == DECODE
    assert kernel_of(1, FEW_SHARED + 1, 1) == kernel_of(FEW_ROWS + 1, 4, 4) == ATTENTION
    rows_of_two_blocks = flex.create_block_mask(lambda b, h, i, j: j >= i, None, None, 8, 300, BLOCK_SIZE=(4, 16))
    assert kernel_of(8, 1, 1, rows_of_two_blocks) == ATTENTION


def attend(q: Array, k: Array, v: Array, score: Any, mask: Any, dtype: str = "float32", threads: int = 2) -> Any:
    arrays = [mx.array(x).astype(getattr(mx, dtype)) for x in (q, k, v)]
    aux = flex.AuxRequest(lse=True, max_scores=True)
    options = {"BACKEND": "cpu", "NUM_THREADS": threads}
    return flex.flex_attention(*arrays, score, mask, enable_gqa=True, return_aux=aux, kernel_options=options)


def check(got: Any, want: reference.Attention, dtype: str = "float32") -> None:
    out, aux = got
    tolerance = reference.tolerance(dtype)
    reference.assert_close(out, want.out, tolerance.absolute, tolerance.relative, "out")
    statistics = tolerance.statistic_absolute, tolerance.statistic_relative
    reference.assert_close(aux.lse, want.lse, *statistics, "lse")
    reference.assert_close(aux.max_scores, want.max_scores, *statistics, "max_scores")


SIZES = {  # batch, query heads, kv heads, q_len, kv_len, head_dim, value_dim
    "one_row": (1, 4, 4, 1, 700, 32, 32),
    "groups_of_two": (2, 4, 2, 1, 1300, 64, 64),
    "groups_of_four": (1, 8, 2, 1, 2100, 16, 16),
    "groups_of_seven": (1, 7, 1, 2, 650, 40, 24),
    "sixteen_rows": (2, 4, 1, 4, 900, 24, 72),
    "fewer_keys_than_registers": (1, 3, 3, 3, 5, 7, 9),
    "groups_of_seventy_one": (1, 71, 1, 1, 513, 64, 80),
}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", SIZES)
def test_shapes(name: str, dtype: str) -> None:
    batch, heads, kv_heads, q_len, kv_len, head_dim, value_dim = SIZES[name]
    sizes = (batch, heads, q_len, head_dim), (batch, kv_heads, kv_len, head_dim), (batch, kv_heads, kv_len, value_dim)
    exact = [reference.array(normal(*size), dtype) for size in sizes]
    check(attend(*exact, None, None, dtype), reference.attention(*exact), dtype)


EXACT = [normal(2, 4, 3, 16), normal(2, 2, 1000, 16), normal(2, 2, 1000, 24)]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("as_blocks", [False, True], ids=["bare", "blocks"])
@pytest.mark.parametrize("name", MASKED)
def test_masks(name: str, as_blocks: bool) -> None:
    mask = MASKED[name]
    given = flex.create_block_mask(mask, 2, 4, 3, 1000, BLOCK_SIZE=(16, 48)) if as_blocks else mask
    check(attend(*EXACT, None, given), reference.attention(*EXACT, mask_mod=mask))


def test_heads_that_share_keys_and_end_in_different_registers() -> None:
    """Each keeps whole registers of keys, so that no tile is masked for itself."""

    def by_head(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return (kv_idx >= 144 * h + 32) & (kv_idx < 848 - 96 * h)

    want = reference.attention(*EXACT, mask_mod=by_head)
    blocks = flex.create_block_mask(by_head, 2, 4, 3, 1000, BLOCK_SIZE=(16, 48))
    for mask in (by_head, blocks):
        check(attend(*EXACT, None, mask), want)


FEW = {  # batch, query heads, kv heads, q_len, kv_len
    "one_row_a_head": (2, 4, 4, 1, 160),
    "two_rows": (1, 8, 2, 2, 333),
    "sevens": (1, 14, 2, 5, 270),
    "eight_rows": (2, 4, 1, 8, 160),
    "seventy_one_heads": (1, 71, 1, 1, 200),
}


@pytest.mark.sampled(150)
@pytest.mark.parametrize("shape", FEW)
@pytest.mark.parametrize("entry", zoo.ZOO.values(), ids=str)
def test_the_zoo(entry: zoo.Entry, shape: str) -> None:
    batch, heads, kv_heads, q_len, kv_len = FEW[shape]
    exact = [normal(batch, heads, q_len, 16), normal(batch, kv_heads, kv_len, 16), normal(batch, kv_heads, kv_len, 24)]

    def made(array: Callable[..., Any]) -> tuple[Any, Any]:
        mod = entry.make(batch, heads, q_len, kv_len, np.random.default_rng(1), array)
        return (mod, None) if entry.kind == "score" else (None, mod)

    (score, mask), want = made(zoo.mx_array), reference.attention(*exact, *made(reference.array))
    check(attend(*exact, score, mask), want)
    if mask is not None:
        blocks = flex.create_block_mask(mask, batch, heads, q_len, kv_len, BLOCK_SIZE=(16, 48))
        check(attend(*exact, score, blocks), want)


def test_sinks() -> None:
    """A sink takes its share of every row: exp(sink) beside exp(lse)."""
    logits = normal(4)
    out, lse = flex.flex_attention(*map(mx.array, EXACT), enable_gqa=True, return_lse=True, sinks=mx.array(logits))
    want = reference.attention(*EXACT)
    share = 1 / (1 + np.exp(logits[:, None] - want.lse))
    reference.assert_close(out, want.out * share[..., None], 2e-5, 2e-5, "out")
    reference.assert_close(lse, np.logaddexp(want.lse, logits[:, None]), 2e-5, 2e-5, "lse")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_keys_that_are_left_out_may_hold_anything(bad: float) -> None:
    q, k, v = (x.copy() for x in EXACT)
    k[:, :, 300:310], v[:, :, 300:310] = bad, bad
    mask = lambda b, h, i, j: (j < 300) | (j >= 310)  # noqa: E731
    check(attend(q, k, v, None, mask), reference.attention(*EXACT, mask_mod=mask))


def test_an_infinite_value_that_is_attended_to_stays() -> None:
    q, k, v = (x.copy() for x in EXACT)
    v[0, 0, 77, 3] = math.inf
    check(attend(q, k, v, None, None), reference.attention(q, k, v))


def test_a_query_that_is_not_finite_spoils_its_own_row_alone() -> None:
    q, k, v = (x.copy() for x in EXACT)
    q[0, 1, 2, 3], q[1, 3, 0, 0] = math.nan, math.inf
    out, aux = attend(q, k, v, None, None)
    with np.errstate(invalid="ignore"):
        want = reference.attention(q, k, v)
    assert np.isnan(want.out[0, 1, 2]).all() and np.isnan(want.lse).sum() == 2
    reference.assert_close(out, want.out, 2e-5, 2e-5, "out")
    reference.assert_close(aux.lse, want.lse, 2e-5, 2e-5, "lse")


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_same_bits_on_every_run(threads: int) -> None:
    runs = [[np.array(x).tobytes() for x in (out, aux.lse)] for out, aux in (
        attend(*EXACT, None, MASKED["window"], threads=threads) for _ in range(4)
    )]  # fmt: skip
    assert all(run == runs[0] for run in runs)


def test_views_of_a_larger_cache() -> None:
    cache = normal(1, 900, 2, 16)
    q, keys = normal(1, 4, 1, 16), np.swapaxes(cache, 1, 2)
    view = mx.array(cache).swapaxes(1, 2)
    for length in (1, 127, 128, 640):
        out = flex.flex_attention(mx.array(q), view[:, :, :length], view[:, :, :length], enable_gqa=True)
        want = reference.attention(q, keys[:, :, :length], keys[:, :, :length])
        reference.assert_close(out, want.out, 2e-5, 2e-5, f"{length} keys")
    odd = mx.array(normal(1, 2, 200, 32))[..., ::2]  # a column stride of 2
    out = flex.flex_attention(mx.array(q), odd, odd, enable_gqa=True)
    reference.assert_close(
        out, reference.attention(q, np.array(odd), np.array(odd)).out, 2e-5, 2e-5, "every other column"
    )


@pytest.mark.parametrize("kind", ["number", "array", "blocks"])
def test_a_growing_cache_compiles_nothing_after_the_first_step(kind: str) -> None:
    """A thousand steps over a view of a larger buffer, as mlx-lm's cache gives it."""
    buffer, exact = mx.array(normal(1, 2, 1200, 16)), normal(1, 2, 1200, 16)
    position: Any = 0

    def recent(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return q_idx + position - kv_idx < 64

    mask: Any = flex.mask_mod(recent)
    built = []
    for length in range(100, 1100):
        position = mx.array(length - 1) if kind == "array" else length - 1
        if kind == "blocks":
            mask = flex.create_block_mask(recent, None, None, 1, length)
        view = buffer[..., :length, :]
        out = flex.flex_attention(view[:, :, -1:], view, view, block_mask=mask, kernel_options={"BACKEND": "cpu"})
        built.append(BACKEND.built)
        if length % 333 == 0:
            seen = exact[:, :, length - 64 : length]
            want = reference.attention(exact[:, :, length - 1 : length], seen, seen)
            reference.assert_close(out, want.out, 2e-5, 2e-5, f"{length} keys")
    assert built[-1] == built[0]


def test_a_window_visits_its_own_tiles_alone() -> None:
    q, k = mx.array(normal(1, 8, 1, 16)), mx.array(normal(1, 2, 131072, 16))
    mask = flex.mask_mod(lambda b, h, i, j: j >= 131072 - 1024)
    call, counts = attention_call(q, k, k, 0.25, None, mask.bind()), np.zeros(4, np.int64)
    BACKEND.load(BACKEND.spec(call)).run(call, counts)
    skipped, masked, unmasked, _ = counts
    assert (skipped, masked + unmasked) == (2 * (1024 - 8), 2 * 8)


def test_few_rows_neither_round_keys_nor_smooth_them() -> None:
    """That would be a pass over all keys, to be less exact."""
    arrays = [mx.array(x) for x in EXACT]
    runs = [
        flex.flex_attention(*arrays, enable_gqa=True, kernel_options={"BACKEND": "cpu", **options})
        for options in ({}, {"QK_QUANT": "int8"}, {"SMOOTH_K": True})
    ]
    assert all(mx.array_equal(run, runs[0]) for run in runs)


ELSEWHERE = """
import hashlib, threading
import mlx.core as mx
import numpy as np
import flextrace as flex

stop = False
def spin():
    while not stop:
        np.ones(1 << 16).sum()
for _ in range(SPINNING):
    threading.Thread(target=spin, daemon=True).start()
rng = np.random.default_rng(0)
sizes = (1, 8, 1, 64), (1, 2, 5000, 64), (1, 2, 5000, 64)
q, k, v = (mx.array(rng.normal(size=size).astype(np.float16)) for size in sizes)
cache = flex.Int8KV(quantise_value=True)
cache.update(k, v)
mask = flex.mask_mod(lambda b, h, q_idx, kv_idx: kv_idx > 700)
for key, value in ((k, v), (cache.key, cache.value)):
    options = {"BACKEND": "cpu", "NUM_THREADS": 3}
    out, lse = flex.flex_attention(q, key, value, None, mask, enable_gqa=True, return_lse=True, kernel_options=options)
    print(hashlib.sha1(np.array(out).tobytes() + np.array(lse).tobytes()).hexdigest())
stop = True
"""


@pytest.mark.long
def test_the_same_bits_in_every_process_whatever_the_load() -> None:
    said = [
        subprocess.run(
            [sys.executable, "-c", ELSEWHERE.replace("SPINNING", number)], capture_output=True, text=True, check=True
        ).stdout
        for number in ("0", "0", "6")
    ]
    assert len(said[0].split()) == 2 and said[0] == said[1] == said[2]
