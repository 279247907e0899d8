"""The CUDA stage kernels on the host, thread by thread: right against float64; what they refuse; what compilers say."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import reference
import zoo
from apparatus.cuda.simulated import simulated_cuda
from apparatus.cuda_compiler import compile_cuda

import flextrace as flex
from flextrace.decorators import bound
from flextrace.doctor.stages import STAGES as CHECKS
from flextrace.kernels.cuda.attention.plan import LEAST_SHARED_BYTES, SHARED_BYTES
from flextrace.kernels.cuda.backend import CudaBackend
from flextrace.kernels.cuda.stages.plan import ProductPlan, plan_of
from flextrace.kernels.cuda.stages.text import STAGES, StageVariant, stage_text
from flextrace.kernels.spec import Formulas
from flextrace.kernels.stages.protocol import BlockLists
from flextrace.mods import causal
from flextrace.stages import block_sparse_matmul, matmul, score_mod, softmax

DTYPES = ("float32", "float16", "bfloat16")
ORDERS = ("forward", "reverse", "shuffled")


def tensor(*shape: int, dtype: str = "float32", seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng([seed, *shape]).normal(size=shape)).astype(getattr(mx, dtype))


def exact(x: mx.array) -> Any:
    return np.array(x.astype(mx.float32)).astype(np.float64)


# ---- the pipeline --------------------------------------------------------------------------------------------------


def check_pipeline(names: tuple[str, ...], dtype: str, order: str = "forward", block_size: Any = None) -> None:
    """Attention of 4 heads on 2, some values of keys that the first rows leave out infinite and nan."""
    sizes = (2, 4, 37, 45)
    q, k, v = (tensor(2, heads, rows, 24, dtype=dtype) for heads, rows in ((4, 37), (2, 45), (2, 45)))
    entries = [zoo.ZOO[name] for name in names]
    ours, plain = (
        {e.kind: e.make(*sizes, np.random.default_rng(1), array) for e in entries}
        for array in (zoo.mx_array, reference.array)
    )
    if "mask" in ours:
        v[:, :, 40:, ::5] = mx.inf
        v[:, :, 43:, 1] = mx.nan
    want = reference.attention(*(exact(x) for x in (q, k, v)), plain.get("score"), plain.get("mask"), 0.3)
    mask = ours.get("mask")
    with simulated_cuda(80, order=order):
        out, aux = flex.flex_attention(
            *(q, k, v),
            score_mod=ours.get("score"),
            block_mask=mask if block_size is None else flex.create_block_mask(mask, *sizes, BLOCK_SIZE=block_size),
            scale=0.3,
            enable_gqa=True,
            kernel_options={"BACKEND": "cuda", "PIPELINE": "staged"},
            return_aux=flex.AuxRequest(lse=True, max_scores=True),
        )
    near = reference.tolerance(dtype)
    reference.assert_close(out, want.out, near.absolute, near.relative, f"out of {names}, {dtype}")
    for name in ("lse", "max_scores"):
        got = getattr(aux, name)
        reference.assert_close(got, getattr(want, name), near.statistic_absolute, near.statistic_relative, name)


def test_staged_attention_is_right() -> None:
    check_pipeline(("softcap", "causal"), "float16")


MODS = [(), ("alibi",), ("causal",), ("relative_bias", "document_ids"), ("softcap", "empty_rows")]


@pytest.mark.long
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("names", MODS, ids="-".join)
def test_staged_attention_is_right_in_every_order_of_lanes(names: tuple[str, ...], dtype: str, order: str) -> None:
    check_pipeline(names, dtype, order)


@pytest.mark.long
@pytest.mark.parametrize("block_size", [128, 16, (5, 11), (1, 45)], ids=str)
@pytest.mark.parametrize("mask", ["causal", "checkerboard_heads", "empty_rows"])
def test_staged_attention_reads_block_masks(mask: str, block_size: Any) -> None:
    check_pipeline(("softcap", mask), "float32", block_size=block_size)


# ---- single stages -------------------------------------------------------------------------------------------------


def test_the_checks_of_doctor_are_of_every_stage() -> None:
    assert list(CHECKS) == list(STAGES)


@pytest.mark.long
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_is_right(stage: str, dtype: str, order: str) -> None:
    with simulated_cuda(80, order=order):
        CHECKS[stage](CudaBackend().stages(), dtype)


def test_blocks_are_listed_by_what_is_kept_of_them() -> None:
    with simulated_cuda(80):
        CHECKS["block_mask"](CudaBackend().stages(), "float32")


def test_a_row_of_nothing_has_no_weights() -> None:
    with simulated_cuda(80):
        weights, largest, sums = softmax(mx.array([[-mx.inf, -mx.inf], [0.0, 0.0]]), normalise=False, backend="cuda")
    assert weights.tolist() == [[0, 0], [1, 1]] and largest.tolist() == [-mx.inf, 0] and sums.tolist() == [0, 2]


TILES = [None, (16, 8), (32, 64), (8, 8, 8), (32, 16, 16), (64, 128, 8), (128, 24, 40)]
SHAPES = [  # batch, heads, batch of b, heads of b, m, n, k
    (1, 1, 1, 1, 1, 1, 1),
    (2, 4, 1, 2, 21, 37, 19),
    (2, 2, 2, 2, 33, 70, 48),
    (1, 3, 1, 1, 64, 16, 40),
]
MATMULS = [*itertools.product(TILES, SHAPES, itertools.product((False, True), repeat=2), DTYPES)]


def check_matmul(tiles: tuple[int, ...] | None, shape: tuple[int, ...], turned: tuple[bool, bool], dtype: str) -> None:
    batch, heads, b_batch, b_heads, m, n, k = shape
    a, b = tensor(batch, heads, m, k, dtype=dtype), tensor(b_batch, b_heads, k, n, dtype=dtype, seed=1)
    want = exact(a) @ exact(b).repeat(heads // b_heads, axis=1)
    a, b = (x.swapaxes(-1, -2) if turn else x for x, turn in zip((a, b), turned, strict=True))
    with simulated_cuda(80):
        got = matmul(a, b, tiles=tiles, transpose_a=turned[0], transpose_b=turned[1], dtype=mx.float32, backend="cuda")
    np.testing.assert_allclose(np.array(got), want, atol=2e-5, rtol=2e-5)


def test_a_matmul_is_right_where_tiles_are_cut() -> None:
    check_matmul((32, 24, 8), (2, 4, 1, 2, 37, 37, 19), (True, False), "float16")


@pytest.mark.long
@pytest.mark.parametrize("tiles", TILES, ids=str)
def test_a_matmul_is_right_in_any_tiles(tiles: tuple[int, ...] | None) -> None:
    for given in MATMULS:
        if given[0] == tiles:
            check_matmul(*given)


@pytest.mark.long
def test_what_no_list_names_is_not_read() -> None:
    """Nan lies in unlisted blocks of a. Indices that name no block, and those beyond the number, are passed over."""
    lists = BlockLists(
        *(mx.array(x, mx.int32) for x in ([[[2, 1]]], [[[[1, 9], [0, 1]]]], [[[0, 1]]], [[[[0], [2]]]])), 16, 16
    )
    listed = np.array([[0, 1, 0], [1, 0, 1]]).repeat(16, 0).repeat(16, 1)[:20, :45]
    a = mx.where(mx.array(listed), tensor(1, 1, 20, 45), mx.nan)
    b = tensor(1, 1, 45, 24, seed=1)
    with simulated_cuda(80):
        got = block_sparse_matmul(a, b, lists, backend="cuda")
        scores = score_mod(a, lambda score, b, h, q_idx, kv_idx: score + 1, blocks=lists, backend="cuda")
    np.testing.assert_allclose(np.array(got), np.where(listed, exact(a), 0) @ exact(b), atol=1e-5)
    np.testing.assert_allclose(np.array(scores), np.where(listed, exact(a) + 1, -np.inf), atol=1e-6)


# ---- tiles ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tiles", [(20, 16), (8, 8, 4)])
def test_tiles_are_multiples_of_8(tiles: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"sides must be positive multiples of 8; use .* say \((24, 16|8, 8, 8)\)"):
        plan_of("float16", tiles, 64, 80)


@pytest.mark.parametrize("architecture", [80, 86, 90])
@pytest.mark.parametrize(("tiles", "k"), [((256, 256), 64), ((64, 64), 4096), ((8, 8), 1 << 20), ((512, 8, 2048), 8)])
def test_tiles_that_do_not_fit_are_refused_with_some_that_do(tiles: tuple[int, ...], k: int, architecture: int) -> None:
    with pytest.raises(ValueError, match="shared memory and registers of a block") as error:
        plan_of("float32", tiles, k, architecture)
    named = tuple(int(side) for side in str(error.value).rpartition("(")[2].rstrip(")").split(","))
    plan = plan_of("float32", named, k, architecture)
    shared = SHARED_BYTES.get(architecture, LEAST_SHARED_BYTES)
    assert max(plan.shared_bytes(False), plan.shared_bytes(True)) <= shared and plan.threads <= 1024


# ---- texts ---------------------------------------------------------------------------------------------------------

PRODUCTS = [
    ("matmul", {"TRANSPOSE_B": "false"}),
    ("matmul", {"TRANSPOSE_B": "true"}),
    ("block_sparse_matmul", {"LISTED": "true", "SAMPLED": "true", "TRANSPOSE_B": "true"}),
    ("block_sparse_matmul", {"LISTED": "true"}),
]


@pytest.mark.sampled(24)
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", range(len(PRODUCTS)))
def test_products_spill_nothing(case: int, dtype: str, architecture: str, tmp_path: Path) -> None:
    stage, constants = PRODUCTS[case]
    variant = StageVariant(dtype, dtype, tuple((constants | ProductPlan(dtype).constants()).items()))
    report = compile_cuda(stage_text(stage, Formulas(), variant).text, architecture, tmp_path)
    assert report.spilled == 0 and report.registers <= 168, report.said


@pytest.mark.sampled(10)
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("stage", sorted(set(STAGES) - {stage for stage, _ in PRODUCTS}))
def test_stages_compile(stage: str, architecture: str, tmp_path: Path) -> None:
    slopes = mx.array([0.5, 0.25])
    score = flex.score_mod(lambda score, b, h, q_idx, kv_idx: mx.tanh(score) * slopes[h])
    mods = bound(score if stage == "score_mod" else None, flex.mask_mod(causal)).formulas
    given = mods if STAGES[stage].mods else Formulas()
    report = compile_cuda(stage_text(stage, given, StageVariant()).text, architecture, tmp_path)
    assert report.spilled <= 32, report.said
