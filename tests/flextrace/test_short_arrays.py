"""Captured arrays that are too short for a call: refused before any work, wherever a mod meets the sizes of a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from backends import EVERY

import flextrace as flex
from flextrace import stages

IDS = mx.array([0, 0, 0, 1, 1, 1, 1, 2, 2, 2])
SLOPES = mx.array([0.5, 0.25, 0.125, 0.0625])
LENGTHS = mx.array([7])


def biased(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score + SLOPES[h] * (kv_idx - q_idx)


def same(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return IDS[q_idx] == IDS[kv_idx]


def real(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return kv_idx < LENGTHS[b]


def inlined(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return not same(b, h, q_idx, kv_idx)


class Model:
    def __init__(self) -> None:
        self.tables = {"bias": np.zeros((2, 10), np.float32)}

    def __call__(self, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score + self.tables["bias"][b, kv_idx]


def queries(batch: int = 2, heads: int = 8, length: int = 24) -> mx.array:
    return mx.ones((batch, heads, length, 8))


IDS_OF_24 = (
    r"IDS has 10 entries along axis 0; q_idx indexes it, for 24 queries, so it needs 24: make it longer, or read it "
)
CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    "slopes": (lambda: attend(biased), r"biased: SLOPES has 4 entries along axis 0; h indexes it, for 8 query heads"),
    "ids": (lambda: attend(None, same), f"same: {IDS_OF_24}under a condition, as in `x if q_idx < 10 else y`"),
    "one length": (lambda: attend(None, real), "real: LENGTHS has 1 entry along axis 0; b indexes it, for 2 batches"),
    "causal and ids": (lambda: attend(None, flex.mods.causal & flex.mask_mod(same)), IDS_OF_24),
    "ids and causal": (lambda: attend(None, flex.mask_mod(same) & flex.mods.causal), IDS_OF_24),
    "an inlined mod": (lambda: attend(None, inlined), f"inlined: {IDS_OF_24}"),
    "an attribute": (
        lambda: attend(Model()),
        r"tables\['bias'\] has 10 entries along axis 1; kv_idx indexes it, for 24",
    ),
    "a mod of the library": (
        lambda: attend(flex.mods.alibi(4)),
        "alibi: slopes has 4 entries along axis 0; h indexes it, for 8",
    ),
    "ids of the library": (lambda: attend(None, flex.mods.document(IDS)), "document: ids has 10 entries along axis 0"),
    "create_block_mask": (lambda: flex.create_block_mask(same, None, None, 24, 24), IDS_OF_24),
    "create_block_mask at an offset": (
        lambda: flex.create_block_mask(same, None, None, 6, 10, offset=5),
        "q_idx indexes it, for 6 queries from position 5 on, so it needs 11",
    ),
    "create_mask": (lambda: flex.create_mask(same, 2, None, 10, 24), "kv_idx indexes it, for 24 keys"),
    "at_offset": (
        lambda: flex.create_block_mask(same, None, None, 10, 10).at_offset(8, 4),
        "for 4 queries from position 8 on, so it needs 12",
    ),
    "other lengths": (lambda: flex.create_block_mask(same, None, None, 10, 10)._adjust(11, 10), "for 11 queries"),
    "and of a BlockMask": (
        lambda: flex.create_block_mask(flex.mods.causal, None, None, 24, 24) & flex.mask_mod(same),
        IDS_OF_24,
    ),
    "a stage": (lambda: stages.score_mod(mx.zeros((2, 8, 24, 24)), biased, backend="cpu"), "biased: SLOPES has 4"),
    "the stage of masks": (lambda: stages.block_mask(same, None, None, 24, 24, 8, backend="cpu"), IDS_OF_24),
    "the staged pipeline": (lambda: attend(biased, PIPELINE="staged", BACKEND="cpu"), "biased: SLOPES has 4"),
    "int8": (lambda: attend(biased, QK_QUANT="int8", BACKEND="cpu"), "biased: SLOPES has 4"),
}


def attend(score_mod: Any = None, mask: Any = None, **options: Any) -> mx.array:
    q = queries()
    return flex.flex_attention(q, q, q, score_mod, mask, kernel_options=options)


@pytest.mark.parametrize("call", CALLS)
def test_a_short_array_is_refused(call: str) -> None:
    make, words = CALLS[call]
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("backend", EVERY)
def test_it_is_refused_before_any_work(backend: str) -> None:
    with pytest.raises(ValueError, match="SLOPES has 4 entries"):
        attend(biased, BACKEND=backend)


def test_an_int8_cache_is_as_long_as_its_tokens() -> None:
    cache = flex.Int8KV()
    k = queries(1, 2, 9)
    cache.update(k, k)
    ids = mx.zeros((9,), mx.int32)
    mask = flex.mask_mod(lambda b, h, q_idx, kv_idx: ids[kv_idx] == 0)
    flex.flex_attention(queries(1, 2, 1), cache.key, cache.value, block_mask=mask)
    cache.update(k[:, :, :1], k[:, :, :1])
    with pytest.raises(ValueError, match="ids has 9 entries along axis 0; kv_idx indexes it, for 10 keys"):
        flex.flex_attention(queries(1, 2, 1), cache.key, cache.value, block_mask=mask)


def test_slices_of_a_block_mask_read_what_the_whole_reads() -> None:
    ids = mx.arange(40) // 7
    whole = flex.create_block_mask(lambda b, h, q_idx, kv_idx: ids[q_idx] == ids[kv_idx], None, None, 40, 40, 8)
    part = whole[:, :, 2:]
    assert part.offset == 16 and np.array(flex.create_mask(part.mask_mod, None, None, 24, 40)).any()
    with pytest.raises(ValueError, match="for 25 queries from position 16 on, so it needs 41"):
        flex.create_mask(part.mask_mod, None, None, 25, 40)


def test_a_guarded_read_past_the_end_is_as_python_has_it() -> None:
    """The same as with an array that is long enough."""
    n, q = 10, queries(1, 1)
    padded = mx.concatenate([IDS, mx.full((14,), 77)])

    def guarded(ids: mx.array) -> mx.array:
        def mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            if q_idx >= n:
                return kv_idx >= n
            return (kv_idx < n) & (ids[kv_idx] == ids[q_idx])

        def score(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            return score + mx.where(kv_idx < n, ids[kv_idx], 0.5)

        v = mx.random.normal((1, 1, 24, 8), key=mx.random.key(0))
        return flex.flex_attention(q, q, v, score, mask, kernel_options={"BACKEND": "cpu"})

    np.testing.assert_array_equal(np.array(guarded(IDS)), np.array(guarded(padded)))


def test_a_picture_shows_as_much_as_the_arrays_have() -> None:
    assert "first 10 rows and keys" in flex.mask_mod(same)._repr_html_()
    outside = flex.mask_mod(lambda b, h, q_idx, kv_idx: IDS[q_idx + 50] == 0)
    assert "no picture" in outside._repr_html_() and "which is outside of it" in outside._repr_html_()
