"""What is subtracted from the keys: means and groups beside plain numpy, and where they fall back to one group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import quant_reference
import reference
from calls import attention_call

import flextrace as flex
from flextrace import mods
from flextrace.exact import exact_attention, quantised_attention
from flextrace.int8.smoothing import smoothing
from flextrace.kernels import BACKENDS, AttentionCall, QKQuant, backend_for

RNG = np.random.default_rng(0)
QUANTISING = [
    name
    for name in BACKENDS
    if backend_for(name, to_run=False).quantises and backend_for(name, to_run=False).unavailable() is None
]
L = 48
OFFSETS = [0, 10, 11, 30, 48]


def make_call(
    mask: Any = None, score: Any = None, batch: int = 2, kv_batch: int = 2, dtype: mx.Dtype = mx.float32, **more: Any
) -> AttentionCall:
    rng = np.random.default_rng(1)  # its own, so that no test depends on those that ran before
    q, k, v = (
        mx.array(rng.normal(size=(b, h, L, 8)) + 3).astype(dtype) for b, h in ((batch, 4), (kv_batch, 2), (kv_batch, 2))
    )
    bound = None if mask is None else flex.MaskMod(mask).bind()
    return attention_call(q, k, v, 0.3, None if score is None else flex.ScoreMod(score).bind(), bound, **more)


def check_means(call: AttentionCall, ids: np.ndarray | None) -> None:
    """Each key's mean is that of its document; rows find the same one."""
    made = smoothing(call)
    k = np.array(call.k.astype(mx.float32))
    ids = np.zeros((1, L), int) if ids is None else np.atleast_2d(ids)
    means = np.array(made.means)
    assert means.shape[:2] == k.shape[:2] and means.dtype == np.float32 and np.isfinite(means).all()
    groups = np.zeros((1, L), int) if made.key_groups is None else np.array(made.key_groups)
    for b, h in np.ndindex(*k.shape[:2]):
        want = quant_reference.key_means(k[b, h], ids[b % len(ids)])
        np.testing.assert_allclose(means[b, h][groups[b % len(groups)]], want, atol=2e-6)


DOCUMENTS = np.repeat(np.arange(4), np.diff(OFFSETS))
SCATTERED = RNG.integers(0, 5, size=L) * 7 - 3
BY_BATCH = np.stack([DOCUMENTS, np.sort(RNG.integers(0, 9, size=L))])
IDS = {"documents": DOCUMENTS, "scattered": SCATTERED, "by batch": BY_BATCH}


def mask_of(ids: np.ndarray, kind: Callable[[np.ndarray], Any] = mx.array) -> Callable[..., Any]:
    array = kind(ids)
    if ids.ndim == 2:
        return lambda b, h, q, k: array[b, q] == array[b, k]
    return lambda b, h, q, k: array[q] == array[k] and q >= k


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("name", IDS)
def test_means_of_documents(name: str, dtype: mx.Dtype) -> None:
    call = make_call(mask_of(IDS[name]), dtype=dtype)
    check_means(call, IDS[name])
    made = smoothing(call)
    assert made.key_groups is not None and made.row_groups is not None
    assert made.key_groups.dtype == made.row_groups.dtype == mx.int32
    np.testing.assert_array_equal(np.array(made.key_groups), np.array(made.row_groups))
    assert made.means.shape[2] == len(np.unique(IDS[name]))


def test_one_mean() -> None:
    for call in (make_call(), make_call(mods.causal), make_call(mods.causal, kv_batch=1, dtype=mx.bfloat16)):
        made = smoothing(call)
        assert made.key_groups is None and made.row_groups is None and made.means.shape[2] == 1
        check_means(call, None)


def test_starts_of_documents() -> None:
    check_means(make_call(mods.causal_document(OFFSETS)), DOCUMENTS)


@pytest.mark.parametrize(
    "start",
    [
        np.arange(L) // 2,  # not the first token of anything
        np.where(np.arange(L) < 20, 0, 10),  # 10 is a token of document 0
        np.where(np.arange(L) < 20, 0, -1),
        np.where(np.arange(L) < 20, -1, 20),
        np.arange(L)[::-1].copy(),
    ],
    ids=["halves", "overlap", "negative", "negative first", "falling"],
)
def test_what_only_looks_like_starts(start: np.ndarray) -> None:
    array = mx.array(start.astype(np.int32))
    made = smoothing(make_call(lambda b, h, q, k: k >= array[q] and k <= q))
    assert made.key_groups is None


def test_masks_without_arrays() -> None:
    check_means(make_call(mods.batchify(mods.causal, 12)), np.arange(L) // 12)


def test_rows_of_documents_without_keys() -> None:
    rows, keys = mx.array(np.full(L, 5)), mx.array(np.full(L, 6))
    made = smoothing(make_call(mods.document(rows, keys)))
    assert made.row_groups is not None and made.row_groups.tolist() == [[0] * L]


def test_keys_shared_by_batches_with_other_documents() -> None:
    """One batch of keys cannot be smoothed in two ways: one mean."""
    assert smoothing(make_call(mask_of(BY_BATCH), kv_batch=1)).key_groups is None
    same = smoothing(make_call(mask_of(np.stack([DOCUMENTS] * 2)), kv_batch=1))
    assert same.key_groups is not None and same.key_groups.shape == (1, L)


def test_block_masks() -> None:
    """Full blocks of create_block_mask hold one document; those of lists may hold any."""
    mask = flex.mask_mod(mask_of(DOCUMENTS))
    made = flex.create_block_mask(mask, None, None, L, L, BLOCK_SIZE=2)
    assert made.full_kv_num_blocks is not None and int(made.full_kv_num_blocks.sum()) > 0
    assert smoothing(make_call(mask, blocks=made.blocks)).key_groups is not None
    everything = flex.create_block_mask(flex.noop_mask, None, None, L, L, BLOCK_SIZE=16)
    assert smoothing(make_call(mask, blocks=everything.blocks)).key_groups is None
    by_batch = flex.mask_mod(mask_of(BY_BATCH))
    made = flex.create_block_mask(by_batch, 2, None, L, L, BLOCK_SIZE=2)
    assert smoothing(make_call(by_batch, blocks=made.blocks)).key_groups is not None
    swapped = made.blocks.select(np.array([1, 0]), np.arange(1), np.arange(L // 2))
    assert smoothing(make_call(by_batch, blocks=swapped)).key_groups is None


def one_full_block(mask: Any) -> flex.BlockMask:
    """All of the scores as one block that its maker says is full."""
    one, none = mx.array([[[1]]]), mx.array([[[0]]])
    return flex.BlockMask.from_kv_blocks(
        none, none[..., None], one, none[..., None], BLOCK_SIZE=L, mask_mod=mask, seq_lengths=(L, L)
    )


FIRST_OF_EACH = (np.where(np.arange(L) < 20, 0, 1), np.zeros(L, int))  # ids whose first is 0; 24 of them are not


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("rows", "keys"), [FIRST_OF_EACH, FIRST_OF_EACH[::-1]], ids=["rows", "keys"])
def test_a_full_block_that_starts_in_one_document_and_ends_in_another(rows: np.ndarray, keys: np.ndarray) -> None:
    """Its first row and first key are of the same document, so only a look at all of it finds the other one."""
    of_rows, of_keys = mx.array(rows), mx.array(keys)
    mask = flex.mask_mod(lambda b, h, q_idx, kv_idx: of_rows[q_idx] == of_keys[kv_idx])
    blocks = one_full_block(mask)
    call = make_call(mask, blocks=blocks.blocks)
    assert smoothing(call).key_groups is None
    q, k, v = (x.astype(mx.float32) for x in (call.q, call.k, call.v))
    smooth, plain = (
        flex.flex_attention(q, k, v, block_mask=blocks, enable_gqa=True, kernel_options={"SMOOTH_K": on})
        for on in (True, False)
    )
    np.testing.assert_allclose(np.array(smooth), np.array(plain), atol=2e-5)


def test_a_full_block_that_joins_two_documents() -> None:
    """Its rows are all of one document and its keys all of another."""
    rows, keys = mx.array(np.zeros(L, int)), mx.array(np.ones(L, int))
    mask = flex.mask_mod(lambda b, h, q_idx, kv_idx: rows[q_idx] == keys[kv_idx])
    blocks = one_full_block(mask)
    assert smoothing(make_call(mask, blocks=blocks.blocks)).key_groups is None


@pytest.mark.parametrize("mask", [None, mask_of(DOCUMENTS)], ids=["no mask", "documents"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_counts_as_zero(bad: float, mask: Any) -> None:
    call = make_call(mask)
    k = np.array(call.k)
    k[0, 1, 5] = bad
    call = call._replace(k=mx.array(k))
    check_means(call, None if mask is None else DOCUMENTS)


def test_sums_beyond_float32() -> None:
    call = make_call()
    call = call._replace(k=mx.full(call.k.shape, 3e38))
    np.testing.assert_allclose(np.array(smoothing(call).means), 3e38, rtol=1e-5)


def test_nothing_to_smooth() -> None:
    call = make_call(mods.document(offsets=OFFSETS))
    call = call._replace(k=call.k[:, :, :0], v=call.v[:, :, :0])
    assert smoothing(call).means.tolist() == np.zeros((2, 2, 1, 8)).tolist()


def test_changed_ids_are_read_again() -> None:
    ids = mx.array(DOCUMENTS)

    def mask(b, h, q, k):
        return ids[q] == ids[k]

    assert smoothing(make_call(mask)).means.shape[2] == 4
    ids = mx.array(DOCUMENTS * 0)
    assert smoothing(make_call(mask)).means.shape[2] == 1


@pytest.mark.parametrize(("mod", "add_back"), [(None, False), (mods.alibi(4), False), (mods.softcap(20.0), True)])
def test_add_back(mod: Any, add_back: bool) -> None:
    assert smoothing(make_call(score=mod)).add_back == add_back


def test_inside_compile() -> None:
    """Lazily: ids that are captured are known, ids that are an argument are not."""
    call = make_call(mask_of(DOCUMENTS))
    seen = []

    def means(k: mx.array, ids: mx.array | None = None) -> mx.array:
        mask = mask_of(DOCUMENTS) if ids is None else lambda b, h, q, kv: ids[q] == ids[kv]
        inner = attention_call(call.q, k, call.v, 0.3, None, flex.MaskMod(mask).bind())
        made = smoothing(inner)
        seen.append(made.key_groups is not None)
        return made.means

    got = mx.compile(means)(call.k)
    np.testing.assert_allclose(np.array(got), np.array(smoothing(call).means), atol=1e-6)
    assert mx.compile(means)(call.k, mx.array(DOCUMENTS)).shape == (2, 2, 1, 8)
    assert seen == [True, False]


@pytest.mark.sampled(7)
@pytest.mark.parametrize("backend", QUANTISING)
@pytest.mark.parametrize("name", [None, "causal", *IDS])
@pytest.mark.parametrize("score", [None, mods.alibi(4), mods.softcap(3.0)], ids=str)
def test_smoothing_is_exact(name: str | None, score: Any, backend: str) -> None:
    """Without rounding, by groups and row terms, a kernel's result and lse are those of the keys as they are."""
    mask = None if name is None else mods.causal if name == "causal" else mask_of(IDS[name])
    plain = mask if name is None or name == "causal" else mask_of(IDS[name], np.asarray)
    call = make_call(mask)
    got, lse = flex.flex_attention(
        *(call.q, call.k, call.v, score, mask, call.scale),
        enable_gqa=True,
        return_lse=True,
        kernel_options={"BACKEND": backend, "SMOOTH_K": True},
    )
    want = reference.attention(*(np.array(x) for x in (call.q, call.k, call.v)), score, plain, call.scale)
    # Without its row term a row would be off by about 7. A score is a sum of 8 products of about 10, in float32.
    tolerance = 8 * 10 * 2.0**-23 * call.scale * 8
    reference.assert_close(got, want.out, 2e-5, 2e-5, "out")
    reference.assert_close(lse, want.lse, tolerance, 2e-6, "lse")


@pytest.mark.parametrize("score", [None, mods.alibi(4), mods.softcap(30.0)], ids=str)
@pytest.mark.parametrize("mask", [None, mods.causal, mask_of(DOCUMENTS), mask_of(BY_BATCH), mask_of(SCATTERED)])
def test_smoothing_leaves_less_to_round(mask: Any, score: Any) -> None:
    """Scores are near 20: a lower cap would make all of them equal, and leave nothing to round."""
    call = make_call(mask, score, quant=QKQuant("row"))
    call = call._replace(smoothing=smoothing(call))
    exact, got = exact_attention(call), quantised_attention(call)
    plain = make_call(mask, score, quant=QKQuant("row", smooth_k=False))
    plain = plain._replace(q=call.q, k=call.k, v=call.v)
    assert abs(got.out - exact.out).mean() < 0.7 * abs(quantised_attention(plain).out - exact.out).mean()
