"""Formulas -> the text of CUDA gradient kernels: each compiles, within registers, and fits a block; no GPU needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import zoo
from apparatus.cuda_compiler import compile_cuda

import flextrace as flex
from flextrace.decorators import bound
from flextrace.kernels.cuda.attention.plan import SHARED_BYTES
from flextrace.kernels.cuda.backend import CudaBackend
from flextrace.kernels.cuda.backward.hopper.plan import hopper_gradient_plan
from flextrace.kernels.cuda.backward.plan import gradient_plan
from flextrace.kernels.cuda.backward.text import (
    KEY,
    PAIRS,
    QUERY,
    SEGMENTS,
    TERMS,
    GradientVariant,
    gradient_specs,
    gradient_text,
)
from flextrace.kernels.gpu.extremes import looked_up
from flextrace.kernels.spec import Formulas
from flextrace.mods import causal, softcap

DTYPES = ("float16", "bfloat16", "float32")
DIMS = [(64, 64), (80, 80), (96, 96), (128, 128), (256, 256), (192, 128), (576, 512), (5, 3)]
SPILLED = 256  # bytes of a thread, at most


def formulas(score_mod: Any = None, mask_mod: Any = None) -> Formulas:
    score = None if score_mod is None else flex.score_mod(score_mod)
    return bound(score, None if mask_mod is None else flex.mask_mod(mask_mod)).formulas


def check(
    kernel: str, mods: Formulas, variant: GradientVariant, architecture: str, folder: Path, spilled: int = SPILLED
) -> None:
    report = compile_cuda(gradient_text(kernel, mods, variant).text, architecture, folder)
    assert report.registers <= 255 and report.spilled <= spilled, report.said


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kernel", [QUERY, KEY])
@pytest.mark.parametrize("dim", [64, 128])
def test_nothing_is_spilled_where_training_goes(dim: int, kernel: str, tmp_path: Path) -> None:
    """Head dims 64 and 128 of 16 bits; those of d_k and d_v have the most sums."""
    plan = gradient_plan(kernel == KEY, dim, dim, "bfloat16", 90)
    check(kernel, formulas(None, causal), GradientVariant(plan), "sm_80", tmp_path, 32 if kernel == QUERY else 128)


@pytest.mark.sampled(16)
@pytest.mark.parametrize("kernel", [QUERY, KEY])
@pytest.mark.parametrize(
    "mods", [(None, None), (None, causal), (softcap(30.0), causal)], ids=["none", "causal", "both"]
)
@pytest.mark.parametrize("dims", [(64, 64), (128, 128), (72, 128), (128, 8)])
def test_hopper_multiplies_beside_its_arithmetic(
    dims: tuple[int, int], mods: tuple[Any, Any], kernel: str, tmp_path: Path
) -> None:
    plan = hopper_gradient_plan(kernel == KEY, *dims, "bfloat16", mods[1] is not None)
    assert plan is not None and plan.shared_bytes <= SHARED_BYTES[90]
    text = gradient_text(kernel, formulas(*mods), GradientVariant(plan)).text
    report = compile_cuda(text, "sm_90a", tmp_path)
    assert report.spilled <= 64, report.said
    beside = mods[1] is None or all(
        columns % 64 == 0 for columns in dims
    )  # HopperGradientPlan says what the others are
    assert not beside or "serialized" not in report.said, report.said


def test_what_hopper_does_not_take_is_for_the_other_kernel() -> None:
    for dims, dtype in (((64, 64), "float32"), ((4, 64), "float16"), ((64, 130), "bfloat16"), ((192, 128), "float16")):
        assert hopper_gradient_plan(False, *dims, dtype, True) is None


@pytest.mark.long
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("entry", zoo.ZOO.values(), ids=str)
def test_the_zoo_compiles(entry: zoo.Entry, architecture: str, dtype: str, tmp_path: Path) -> None:
    mod = entry.make(2, 4, 130, 150, np.random.default_rng(0))
    mods = formulas(mod, None) if entry.kind == "score" else formulas(None, mod)
    for kernel, spec in gradient_specs(mods, 80).items():
        of_keys = spec.kernel == KEY
        words = spec.variant.plan.words_of_pair
        plan = gradient_plan(of_keys, 64, 64, dtype, 80, words_of_pair=words)
        variant = spec.variant._replace(plan=plan, extremes=looked_up(mods))
        report = compile_cuda(gradient_text(spec.kernel, mods, variant).text, architecture, tmp_path)
        assert report.spilled <= 2 * SPILLED, f"{kernel}: {report.said}"


@pytest.mark.long
@pytest.mark.parametrize("blocks", [0, 1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", DIMS)
def test_every_head_dim_compiles(dims: tuple[int, int], dtype: str, blocks: int, tmp_path: Path) -> None:
    for kernel in (QUERY, KEY):
        plan = gradient_plan(kernel == KEY, *dims, dtype, 80, with_max=True)
        variant = GradientVariant(plan, blocks)
        spilled = SPILLED if max(dims) <= 256 or dtype != "float32" else 1024
        check(kernel, formulas(softcap(30.0), causal), variant, "sm_80", tmp_path, spilled)


@pytest.mark.parametrize("architecture", [*SHARED_BYTES, 120])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", [*DIMS, (1024, 1024)])
def test_plans_fit_the_shared_memory_of_each_architecture(dims: tuple[int, int], dtype: str, architecture: int) -> None:
    for of_keys in (False, True):
        try:
            plan = gradient_plan(of_keys, *dims, dtype, architecture, with_max=True)
        except ValueError as error:
            assert "use fewer columns per head" in str(error) and max(dims) > 256
            continue
        assert plan.shared_bytes <= SHARED_BYTES.get(architecture, 99 << 10)
        assert plan.sums * plan.slices >= (sum(dims) if of_keys else dims[0]) and plan.threads in (32, 64, 128, 256)


def test_a_kernel_of_gradients_is_shown_by_its_name() -> None:
    table = mx.zeros(300)
    bias = flex.score_mod(lambda score, b, h, q_idx, kv_idx: score + table[q_idx - kv_idx + 150])
    backend = CudaBackend()
    named = backend.named(bound(bias, None).formulas)
    assert list(named)[-3:] == ["backward_query", "backward_key", "backward_pairs_0"]
    assert "INLINE auto score_gradient(int b" in backend.text(named["backward_query"])
    assert "void sum_pairs(" in bias.source("cuda", kernel="backward_pairs_0")


def test_names_of_kernels_tell_texts_apart() -> None:
    plan = gradient_plan(False, 64, 64, "float16", 90)
    mods = formulas(lambda score, b, h, q_idx, kv_idx: score * 2.0)
    variants = [GradientVariant(p, blocks) for p in (plan, replace(plan, with_max=True)) for blocks in (0, 1)]
    names = {gradient_text(QUERY, mods, variant).name for variant in variants}
    assert len(names) == 4 and all(name.startswith("flextrace_backward_query_") for name in names)
    small = gradient_text(SEGMENTS, Formulas(), GradientVariant()), gradient_text(TERMS, Formulas(), variants[0])
    assert PAIRS not in {text.name.rpartition("_")[0] for text in small}
