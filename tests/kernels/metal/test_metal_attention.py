"""The fused Metal kernel, run in the simulator with all checks on, against float64 numpy."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import reference
import zoo
from apparatus.simulated import DTYPES, ORDERS, SHAPES, backend, check, inputs
from calls import attention_call, run_on

import flextrace as flex
from flextrace.kernels import Blocks
from flextrace.kernels.metal import MetalBackend
from flextrace.kernels.simulator import SimulatorBackend


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name: str, dtype: str) -> None:
    check(SHAPES[name], dtype)


PAIRS = [
    (("alibi", "causal"), "ragged"),
    (("softcap", "document_ids"), "gqa"),
    (("infinite_pairs_and_rows", "sliding_window"), "ragged"),
    (("relative_bias", "empty_rows"), "odd_dims"),
    (("causal_as_score_mod", "padding_lengths"), "kv_batch_one"),
    (("half_precision_captures", "empty"), "ragged"),
    (("per_head_loop", "video_heads"), "tile_edges"),
    (("graphormer_spatial", "natten_2d"), "dim_80"),
    (("mla_rope",), "dim_256"),
    (("causal",), "dim_520"),
]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("names", "shape"), PAIRS, ids=lambda x: "-".join(x) if isinstance(x, tuple) else x)
def test_mods(names: tuple[str, ...], shape: str) -> None:
    """Each pair in one dtype and lane order, turning."""
    turn = PAIRS.index((names, shape))
    check(SHAPES[shape], DTYPES[turn % 3], names, ORDERS[turn % len(ORDERS)])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("names", [(), ("causal",), ("alibi", "document_ids")], ids=lambda names: "-".join(names))
def test_lane_orders(names: tuple[str, ...], order: str) -> None:
    check((1, 2, 100, 24, 1, 1, 140, 24), "float32", names, order)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("entry", list(zoo.ZOO)[::6])
def test_lane_orders_of_the_zoo(entry: str) -> None:
    """test_zoo.py runs all of it with the lanes in their own order."""
    turn = list(zoo.ZOO).index(entry) // 6
    shape = ("odd_dims", "gqa", "ragged")[turn % 3]
    for order in ORDERS:
        check(SHAPES[shape], DTYPES[turn % 3], (entry,), order)


@pytest.mark.long
@pytest.mark.parametrize("order", ORDERS[1:])
@pytest.mark.parametrize("entry", zoo.ZOO)
def test_lane_orders_of_the_whole_zoo(entry: str, order: str) -> None:
    for dtype in DTYPES:
        check(SHAPES["gqa"], dtype, (entry,), order)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("block_size", [128, (64, 32), 16, (5, 11), (1, 75)], ids=str)
@pytest.mark.parametrize("names", [("causal",), ("softcap", "document_ids"), ("empty_rows",)], ids="-".join)
def test_block_masks(names: tuple[str, ...], block_size: Any) -> None:
    check((1, 2, 140, 16, 1, 2, 150, 16), "float32", names, block_size=block_size)


def test_a_block_mask_without_mask_mod_keeps_whole_blocks() -> None:
    q, k, v = inputs((1, 1, 40, 8, 1, 1, 60, 8), "float32")
    counts, indices = np.array([[[1, 0, 2]]], np.int32), np.array([[[[2, 0], [0, 0], [0, 1]]]], np.int32)
    blocks = Blocks.from_lists(counts, indices, None, None, 16, 20, kv_blocks=3)
    out = run_on(backend(), attention_call(q, k, v, 1.0, None, None, blocks)).out
    keep = np.zeros((3, 3), bool)
    keep[0, 2] = keep[2, 0] = keep[2, 1] = True
    want = reference.attention(*(np.array(x) for x in (q, k, v)), None, lambda b, h, i, j: keep[i // 16, j // 20], 1.0)
    reference.assert_close(out, want.out, 2e-5, 2e-5, "blocks of a list")


# ---- scores at the limits -----------------------------------------------------------------------------------------


def attend(mod: Any, mask: Any = None, n: int = 40) -> Any:
    q, k, v = inputs((1, 1, n, 8, 1, 1, n, 8), "float32")
    bound = [None if f is None else make(f).bind() for f, make in ((mod, flex.score_mod), (mask, flex.mask_mod))]
    return v, run_on(backend(), attention_call(q, k, v, 1.0, *bound, want_lse=True, want_max=True))


def test_the_lowest_finite_score_is_attended_to() -> None:
    lowest = float(np.finfo(np.float32).min)
    v, result = attend(lambda score, b, h, q_idx, kv_idx: score * 0 + lowest)
    mean = np.array(v).mean(axis=2, keepdims=True)
    np.testing.assert_allclose(np.array(result.out), np.broadcast_to(mean, v.shape), atol=1e-5)
    assert np.all(np.array(result.max_scores) == np.float32(lowest))


def test_a_row_that_a_score_mod_makes_minus_infinity_gives_zero() -> None:
    v, result = attend(lambda score, b, h, q_idx, kv_idx: -np.inf if q_idx < 33 else score)
    assert np.all(np.array(result.out)[:, :, :33] == 0) and np.all(np.array(result.lse)[..., :33] == -np.inf)
    assert np.all(np.array(result.max_scores)[..., :33] == -np.inf)
    assert np.isfinite(np.array(result.lse)[..., 33:]).all()
    assert v.shape == result.out.shape


def test_no_keys_no_rows() -> None:
    q = mx.ones((2, 3, 5, 8))
    none = mx.zeros((2, 3, 0, 8))
    result = run_on(backend(), attention_call(q, none, none, 1.0, want_lse=True, want_max=True))
    assert mx.all(result.out == 0) and mx.all(result.lse == -mx.inf) and mx.all(result.max_scores == -mx.inf)
    assert run_on(backend(), attention_call(none, q, q, 1.0)).out.shape == (2, 3, 0, 8)
    no_columns = mx.zeros((2, 3, 5, 0))
    assert run_on(backend(), attention_call(q, q, no_columns, 1.0)).out.shape == (2, 3, 5, 0)
    out = run_on(backend(), attention_call(no_columns, no_columns, q, 1.0)).out
    assert mx.all(out == 1)


# ---- captures -----------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_captures_of_every_kind_in_both_address_spaces() -> None:
    kinds = ["bool_", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float16", "bfloat16", "float32"]
    for size in (5, 40):  # MLX passes fewer than eight elements in the constant address space
        for kind in kinds:
            values = np.random.default_rng(0).integers(0, 2, size=size)
            table, zero = mx.array(values).astype(getattr(mx, kind)), mx.array(1).astype(getattr(mx, kind))
            v, result = attend(lambda s, b, h, q, kv, t=table, z=zero: s + t[kv - 50] * 2.0 - z, n=40)
            exact = values.astype(np.float64)

            def plain(s: Any, b: Any, h: Any, q: Any, kv: Any, exact: Any = exact) -> Any:
                i = kv - 50  # wraps once, then is clamped
                i = np.clip(np.where(i < 0, i + len(exact), i), 0, len(exact) - 1)
                return s + exact[i] * 2.0 - 1.0

            q, k, _ = inputs((1, 1, 40, 8, 1, 1, 40, 8), "float32")
            scores = plain(np.array(q @ k.swapaxes(-1, -2)), 0, 0, 0, np.arange(40))
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            want = weights / weights.sum(axis=-1, keepdims=True) @ np.array(v)
            np.testing.assert_allclose(np.array(result.out), want, atol=3e-5, err_msg=f"{kind} {size}")


def test_a_reversed_numpy_array_of_one_element() -> None:
    """Contiguous to numpy, with a stride that MLX refuses."""
    table = np.full((1, 1), 2.0, np.float32)[::-1, ::-1]
    assert table.flags.c_contiguous and min(table.strides) < 0
    _, result = attend(lambda score, b, h, q_idx, kv_idx: score * 0 + table[0, kv_idx])
    assert mx.all(result.max_scores == 2)


def test_numbers_are_read_at_every_call_by_one_kernel() -> None:
    slope, cut, on = 0.5, 7, True
    mine = SimulatorBackend()
    mask = flex.mask_mod(lambda b, h, q_idx, kv_idx: q_idx + cut >= kv_idx if on else kv_idx < 5)
    score = flex.score_mod(lambda s, b, h, q_idx, kv_idx: s - slope * abs(q_idx - kv_idx))
    q, k, v = inputs((1, 1, 40, 8, 1, 1, 40, 8), "float32")
    for slope, cut in ((0.5, 7), (-0.25, -9), (1e39, 3)):
        got = run_on(mine, attention_call(q, k, v, 1.0, score.bind(), mask.bind())).out
        bound = float(np.float32(min(slope, 3e38)))
        want = reference.attention(
            *(np.array(x) for x in (q, k, v)),
            lambda s, b, h, i, j, bound=bound: s - bound * abs(i - j),
            lambda b, h, i, j, cut=cut: i + cut >= j,
            1.0,
        )
        if slope < 1e38:
            reference.assert_close(got, want.out, 2e-5, 2e-5, f"slope {slope}, cut {cut}")
    assert len(mine.kernels) == 1


def test_an_integer_beyond_int32_is_refused() -> None:
    ids = mx.array([2**40, 1] * 20)
    with pytest.raises(OverflowError, match="outside int32, the integer type of kernels; renumber"):
        attend(lambda score, b, h, q_idx, kv_idx: score + ids[kv_idx])


# ---- the launch ---------------------------------------------------------------------------------------------------


def test_the_launch_is_lazy_and_works_inside_compile() -> None:
    """Neither inputs nor captures are evaluated: with a stand-in for MLX's lazy kernel, mx.compile traces it."""
    launches: list[dict[str, Any]] = []

    def factory(**definition: Any) -> Any:
        def launch(**arguments: Any) -> list[mx.array]:
            launches.append(definition | arguments)
            shapes = zip(arguments["output_shapes"], arguments["output_dtypes"], strict=True)
            total = sum(x.astype(mx.float32).sum() for x in arguments["inputs"][:3])
            return [mx.full(shape, total).astype(dtype) for shape, dtype in shapes]

        return launch

    lazy = MetalBackend(factory)
    slopes = mx.ones(9) * 2  # not evaluated yet

    def mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score * slopes[h]

    @mx.compile
    def compiled(q: mx.array) -> mx.array:
        bound = flex.score_mod(mod).bind()
        return run_on(lazy, attention_call(q, q, q, 1.0, bound, want_lse=True)).out * 2

    assert compiled(mx.ones((1, 2, 70, 16))).shape == (1, 2, 70, 16)
    launch = launches[0]
    assert launch["ensure_row_contiguous"] is False
    assert launch["grid"] == (2 * 128, 2, 1) and launch["threadgroup"] == (128, 1, 1)
    assert launch["name"].startswith("flextrace_attention_") and launch["name"].endswith("_d_float32")
