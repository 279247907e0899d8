"""A call that would keep the GPU for long is several launches of some query rows each, with the same bits."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from apparatus.simulated import ORDERS, SHAPES, Shape, backend, inputs, mods
from calls import attention_call, run_on
from zoo import mx_array

import flextrace as flex
from flextrace.kernels import AttentionCall
from flextrace.kernels.metal import MetalBackend, launch
from flextrace.kernels.metal.attention.plan import plan_for
from flextrace.kernels.metal.launch import MOST_MULTIPLIES, tiles_at_once
from flextrace.kernels.simulator import recording

LONG: Shape = (2, 4, 300, 16, 2, 2, 100, 24)


def call(shape: Shape, dtype: str, names: tuple[str, ...], blocks: Any = None, **rest: Any) -> AttentionCall:
    made = mods(shape, names, mx_array)
    score = flex.score_mod(made["score"]) if "score" in made else None
    mask = flex.mask_mod(made["mask"]) if "mask" in made else None
    lists = None
    if blocks is not None:
        assert mask is not None
        lists = flex.create_block_mask(mask, shape[0], shape[1], shape[2], shape[6], BLOCK_SIZE=blocks).blocks
    bound = [None if mod is None else mod.bind() for mod in (score, mask)]
    return attention_call(*inputs(shape, dtype), 0.3, *bound, lists, want_lse=True, want_max=True, **rest)


def check(
    made: AttentionCall, launches: int, most: int, monkeypatch: pytest.MonkeyPatch, order: str = "forward"
) -> None:
    """One launch and several give the same bits; each row of scores is visited by one of them."""
    results, counts = [], []
    for limit in (MOST_MULTIPLIES, most):
        monkeypatch.setattr(launch, "MOST_MULTIPLIES", limit)
        with recording() as reports:
            results.append(run_on(backend(order), made))
        reports = [report for report in reports if "attention" in report.kernel]
        assert len(reports) == (1 if limit == MOST_MULTIPLIES else launches)
        counts.append([sum(r.matrix_multiplies for r in reports), sum(r.buffers["k"].read for r in reports)])
        assert all(r.buffers[name].unwritten == 0 for r in reports for name in ("out", "lse", "max_scores"))
    assert counts[0] == counts[1]
    for name in ("out", "lse", "max_scores"):
        one, other = (getattr(result, name) for result in results)
        assert one.shape == other.shape and one.dtype == other.dtype and mx.array_equal(one, other), name


@pytest.mark.parametrize(
    ("names", "dtype", "blocks"),
    [
        ((), "float32", None),
        (("alibi", "causal"), "float16", None),
        (("relative_bias", "document_ids"), "bfloat16", None),
        (("causal",), "float32", 128),
        (("alibi", "document_ids"), "float32", (20, 24)),
    ],
)
@pytest.mark.parametrize("launches", [2, 3, 5])
def test_the_bits_are_the_same(
    names: tuple[str, ...], dtype: str, blocks: Any, launches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five tiles of 64 rows, of which the last is cut."""
    tile = 2 * 4 * 64 * 100 * (16 + 24)
    check(call(LONG, dtype, names, blocks), launches, {2: 3, 3: 2, 5: 1}[launches] * tile, monkeypatch)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", ["long_q", "dim_520", "tile_edges"])
def test_other_shapes_and_lane_orders(shape: str, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, dims = SHAPES[shape][2], SHAPES[shape][3::4]
    tiles = -(-rows // plan_for(*dims, "float32").bq)
    check(call(SHAPES[shape], "float32", ("causal",)), tiles, 1, monkeypatch, order)


def test_asynchronous_copies_and_quantised_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    check(call(LONG, "float32", ("causal",), async_copy=True), 5, 1, monkeypatch)
    q, k, v = inputs(LONG, "float16")
    for options in ({"QK_QUANT": "int8"}, {"QK_QUANT": "int8", "SMOOTH_Q": True}, {"SMOOTH_K": True}):
        found = []
        for limit in (MOST_MULTIPLIES, 1):
            monkeypatch.setattr(launch, "MOST_MULTIPLIES", limit)
            found.append(
                flex.flex_attention(
                    q, k, v, return_lse=True, enable_gqa=True, kernel_options={"BACKEND": "simulator", **options}
                )
            )
        assert all(mx.array_equal(one, other) for one, other in zip(*found, strict=True)), options


def test_launches_are_even_and_hold_to_the_limit() -> None:
    rng = np.random.default_rng(0)
    for _ in range(2000):
        tiles, multiplies = int(rng.integers(1, 5000)), int(math.exp(rng.uniform(0, math.log(2**45))))
        count = tiles_at_once(tiles, multiplies)
        assert 1 <= count <= tiles
        assert count == 1 or count * multiplies <= MOST_MULTIPLIES
        launches = -(-tiles // count)
        assert launches == 1 or -(-tiles // (launches - 1)) * multiplies > MOST_MULTIPLIES, "no more than are needed"
        assert count * launches - tiles < launches, "each but the last takes as many as any"
    assert tiles_at_once(7, 0) == 7
    assert tiles_at_once(2048, 64 * 131072 * 128) == 512, "131,072 tokens of one head: four launches of about a second"
    assert tiles_at_once(64, 32 * 64 * 4096 * 128) == 64, "4,096 tokens of 32 heads: one"


def zeros(**definition: Any) -> Any:
    return lambda **call: [mx.zeros(s, t) for s, t in zip(call["output_shapes"], call["output_dtypes"], strict=True)]


def test_launches_are_begun_one_by_one_but_not_inside_a_transformation(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    real = mx.async_eval
    monkeypatch.setattr(mx, "async_eval", lambda *arrays: (begun.append(len(arrays)), real(*arrays)))
    lazy = MetalBackend(zeros)
    q, k, v = inputs(LONG, "float32")

    def out(q: mx.array) -> mx.array:
        return run_on(lazy, attention_call(q, k, v, 0.3)).out

    out(q)
    assert begun == []
    monkeypatch.setattr(launch, "MOST_MULTIPLIES", 1)
    assert out(q).shape == (2, 4, 300, 24) and begun == [3] * 5
    assert mx.compile(out)(q).shape == (2, 4, 300, 24)
    assert mx.vmap(lambda q: out(q[None])[0])(q).shape == (2, 4, 300, 24)
