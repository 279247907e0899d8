"""Formulas -> CUDA text: every mod compiles for each architecture, within registers; no GPU is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import zoo
from apparatus.cuda_compiler import compile_cuda

import flextrace as flex
from flextrace.decorators import bound
from flextrace.kernels.cuda.attention.plan import SHARED_BYTES, plan_for
from flextrace.kernels.cuda.generate import attention_text
from flextrace.kernels.cuda.hopper.plan import hopper_plan
from flextrace.kernels.cuda.hopper.text import hopper_text
from flextrace.kernels.gpu.extremes import looked_up
from flextrace.kernels.spec import Formulas
from flextrace.mods import alibi, causal, document, softcap

DTYPES = ("float16", "bfloat16", "float32")
SPILLED = 256  # bytes of a thread, at most


def formulas(score_mod: Any = None, mask_mod: Any = None) -> Formulas:
    score = None if score_mod is None else flex.score_mod(score_mod)
    return bound(score, None if mask_mod is None else flex.mask_mod(mask_mod)).formulas


def text_of(
    mods: Formulas,
    dtype: str = "float16",
    dims: tuple[int, int] = (64, 64),
    blocks: int = 0,
    architecture: str = "sm_80",
) -> str:
    hopper = hopper_plan(*dims, dtype, bool(mods.present), mods.mask is not None) if architecture == "sm_90a" else None
    if hopper is not None:
        return hopper_text(mods, hopper, blocks, looked_up(mods)).text
    return attention_text(mods, plan_for(*dims, dtype, 90), blocks, looked_up(mods)).text


def check(text: str, architecture: str, folder: Path) -> None:
    report = compile_cuda(text, architecture, folder)
    assert report.registers <= 255 and report.spilled <= SPILLED, report.said
    assert "serialized" not in report.said


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
def test_scores_and_masks_that_capture_compile(architecture: str, tmp_path: Path) -> None:
    ids = mx.zeros((2, 512), mx.int32)
    mods = formulas(alibi(4), document(ids) & causal)
    check(text_of(mods, "bfloat16", architecture=architecture), architecture, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("entry", zoo.ZOO.values(), ids=str)
def test_the_zoo_compiles(entry: zoo.Entry, architecture: str, dtype: str, tmp_path: Path) -> None:
    mod = entry.make(2, 4, 130, 150, np.random.default_rng(0))
    mods = formulas(mod, None) if entry.kind == "score" else formulas(None, mod)
    check(text_of(mods, dtype, architecture=architecture), architecture, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("blocks", [0, 1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", [(64, 64), (80, 80), (96, 96), (128, 128), (256, 256), (192, 128), (576, 512), (5, 3)])
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
def test_every_head_dim_compiles(
    architecture: str, dims: tuple[int, int], dtype: str, blocks: int, tmp_path: Path
) -> None:
    check(text_of(formulas(softcap(30.0), causal), dtype, dims, blocks, architecture), architecture, tmp_path)


@pytest.mark.parametrize("architecture", [*SHARED_BYTES, 120])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", [(1, 1), (64, 64), (128, 128), (192, 128), (256, 256), (576, 512), (1024, 1024)])
def test_plans_fit_the_shared_memory_of_each_architecture(dims: tuple[int, int], dtype: str, architecture: int) -> None:
    try:
        plan = plan_for(*dims, dtype, architecture)
    except ValueError as error:
        assert "use fewer columns per head" in str(error) and max(dims) > 512
        return
    assert plan.shared_bytes <= SHARED_BYTES.get(architecture, 99 << 10)
    assert plan.slices * plan.values >= dims[1] and plan.threads in (32, 64, 128)


def test_a_quotient_by_a_constant_is_a_product_in_half_precision_alone() -> None:
    mods = formulas(lambda score, b, h, q_idx, kv_idx: score / 30.0)
    assert "special::div(" not in text_of(mods).split("struct Mods")[1].split("struct AttentionParams")[0]
    assert "return score * 0.033333335f;" in text_of(mods)
    assert "special::div(score, 30.0f)" in text_of(mods, "float32")


def test_what_is_the_same_for_a_row_is_computed_before_its_keys() -> None:
    slopes = mx.array([0.5, 0.25])
    text = text_of(formulas(lambda score, b, h, q_idx, kv_idx: score + slopes[h] * 2.0 * kv_idx))
    body = text.split("auto score_mod(")[1].split("// }}")[0]
    assert body.index("array0[") < body.index("return [=]")


def test_a_long_mod_is_a_function_that_is_called() -> None:
    def series(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        for i in range(40):
            score = score + mx.sin(score * i)
        return score

    assert "CALLED float score_mod_of(" in text_of(formulas(series))
    assert "score_mod_of" not in text_of(formulas(softcap(30.0)))


def test_the_name_changes_with_the_text() -> None:
    plan = plan_for(64, 64, "float16", 90)
    names = {attention_text(formulas(softcap(30.0)), plan, blocks).name for blocks in (0, 1)}
    assert len(names) == 2
    assert attention_text(formulas(softcap(20.0)), plan, 0).name in names, "a changed number is the same kernel"
