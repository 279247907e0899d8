"""The text of the CUDA kernels for few query rows: plans that fit, and what NVRTC says of their registers."""

from __future__ import annotations

from pathlib import Path

import pytest
from apparatus.cuda_compiler import compile_cuda
from apparatus.mods import traces
from calls import formulas

import flextrace as flex
from flextrace.kernels.cuda.attention.plan import Scoring, plan_for
from flextrace.kernels.cuda.decode import plan as decode
from flextrace.kernels.cuda.decode.plan import DecodePlan, decode_plan
from flextrace.kernels.cuda.decode.text import decode_text, merge_text
from flextrace.kernels.cuda.generate import FOLDER, attention_text

DTYPES = ("float32", "float16", "bfloat16")
DIMS = [(8, 8), (17, 9), (64, 64), (80, 80), (128, 96), (192, 128), (256, 256), (512, 512), (576, 512), (40, 1040)]
KINDS = [(), ("int8",), ("int8", "int8")]
SPILLED = 128  # bytes of a thread, at most


def plan_of(head_dim: int, value_dim: int, dtype: str, rows: int, kinds: tuple[str, ...] = ()) -> DecodePlan:
    plan = decode_plan(head_dim, value_dim, dtype, rows, *kinds)
    assert plan is not None, (head_dim, value_dim, dtype, rows)
    return plan


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_head_dim_has_a_plan(dtype: str) -> None:
    for dims in [*((d, d) for d in range(1, 300, 47)), (512, 1), *DIMS]:
        for rows in (1, 8, 9, 64, 71):
            for kinds in KINDS:
                plan = plan_of(*dims, dtype, rows, kinds)
                assert plan.shared_bytes <= 48 << 10 and plan.slices * plan.slice >= dims[1]


def test_the_headers_say_what_the_plan_says() -> None:
    live, plan = ((FOLDER / "decode" / name).read_text() for name in ("live.h", "plan.h"))
    assert f"LEAST_KEYS = {decode.LEAST_KEYS};" in live
    assert f"WARPS = {decode.WARPS};" in plan and f"BK = {decode.BK};" in plan


def test_a_mod_s_kernel_can_be_printed() -> None:
    text = flex.mods.softcap(30.0).source("cuda", kernel="decode")
    assert "void __launch_bounds__(THREADS, RESIDENT) flextrace_decode" in text and "special::tanh(" in text


def test_another_length_is_the_same_kernel_and_another_format_is_not() -> None:
    mods = formulas(*traces("alibi", "causal"))
    names = [decode_text(mods, plan_of(64, 64, "float16", rows, kinds), 0).name for rows in (1, 8) for kinds in KINDS]
    assert names[:3] == names[3:] and len(set(names)) == 3


@pytest.mark.sampled(40)
@pytest.mark.parametrize("names", [(), ("alibi",), ("alibi", "causal")], ids="+".join)
@pytest.mark.parametrize("kinds", KINDS, ids="+".join)
@pytest.mark.parametrize("rows", [4, 16])
@pytest.mark.parametrize("dim", [64, 96, 128])
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
def test_registers_suffice(
    architecture: str, dim: int, rows: int, kinds: tuple[str, ...], names: tuple[str, ...], tmp_path: Path
) -> None:
    mods = formulas(*traces(*names)) if names else formulas()
    report = compile_cuda(decode_text(mods, plan_of(dim, dim, "bfloat16", rows, kinds), 0).text, architecture, tmp_path)
    assert report.spilled <= SPILLED and report.cubin < 90 << 10, report.said


@pytest.mark.long
@pytest.mark.parametrize("kinds", KINDS, ids="+".join)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", DIMS)
def test_every_head_dim_compiles(dims: tuple[int, int], dtype: str, kinds: tuple[str, ...], tmp_path: Path) -> None:
    for rows, blocks in ((3, 0), (40, 2)):
        text = decode_text(formulas(*traces("alibi", "causal")), plan_of(*dims, dtype, rows, kinds), blocks).text
        report = compile_cuda(text, "sm_80", tmp_path)
        assert report.spilled <= 2 * SPILLED, report.said


def test_the_merge_compiles(tmp_path: Path) -> None:
    for dtype in DTYPES:
        assert compile_cuda(merge_text(dtype, True).text, "sm_90a", tmp_path).spilled == 0


@pytest.mark.long
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [64, 80, 128, 256])
def test_the_kernel_of_int8_compiles(dim: int, dtype: str, tmp_path: Path) -> None:
    plan = plan_for(dim, dim, dtype, 90, Scoring(True, True))
    text = attention_text(formulas(*traces("alibi", "causal")), plan, 2).text
    assert compile_cuda(text, "sm_90a", tmp_path).spilled <= 5 * SPILLED
