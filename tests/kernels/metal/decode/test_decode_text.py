"""The text of the Metal kernels for few query rows: plans that fit, address spaces by clang, registers by stand-in."""

from __future__ import annotations

from pathlib import Path

import pytest
from apparatus import clang_check
from apparatus.mods import traces
from calls import formulas

import flextrace as flex
from flextrace.kernels.gpu.tile_lists import CUT_TILES, NO_BLOCKS, WHOLE_TILES
from flextrace.kernels.metal.decode import plan as decode
from flextrace.kernels.metal.decode.plan import DecodePlan, decode_plan
from flextrace.kernels.metal.decode.text import decode_text, merge_text
from flextrace.kernels.metal.generate import NO_MODS
from flextrace.kernels.metal.scoring import PLAIN, Scoring
from flextrace.kernels.metal.text import FOLDER, KernelText
from flextrace.kernels.simulator import registers
from flextrace.kernels.template.assemble import assemble, header_and_body

DTYPES = ("float32", "float16", "bfloat16")
DIMS = [(8, 8), (17, 9), (64, 64), (80, 80), (128, 96), (192, 128), (256, 256), (512, 512), (576, 512)]
ALL = Scoring(True, True, True, True, True)


def plan_of(head_dim: int, value_dim: int, dtype: str, rows: int, scoring: Scoring = PLAIN) -> DecodePlan:
    plan = decode_plan(head_dim, value_dim, dtype, rows, scoring)
    assert plan is not None, (head_dim, value_dim, dtype, rows)
    return plan


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_head_dim_has_a_plan(dtype: str) -> None:
    for dims in [*((d, d) for d in range(1, 300, 47)), (40, 520), (512, 1), *DIMS]:
        for rows in (1, 8, 9, 64, 71):
            for scoring in (Scoring(), ALL, Scoring(int8_values=True)):
                plan = plan_of(*dims, dtype, rows, scoring)
                assert 4 * plan.shared <= 32 * 1024 and plan.threads <= 256


def test_rows_of_common_head_dims_are_read_16_bytes_at_once() -> None:
    for dim in (64, 128, 256):
        for dtype, elements in (("float32", 4), ("float16", 8), ("bfloat16", 8)):
            plan = plan_of(dim, dim, dtype, 4)
            # Of values, simdgroups that share 128 columns of two bytes have too few each.
            value_piece = elements // 2 if (dim, elements) == (128, 8) else elements
            assert (plan.key_piece, plan.value_piece) == (elements, value_piece)


def test_the_header_says_what_the_plan_says() -> None:
    text = (FOLDER / "decode" / "live.h").read_text()
    assert f"LEAST_KEYS = {decode.LEAST_KEYS};" in text


@clang_check.needs_clang
def test_the_kernel_compiles_as_it_lies(tmp_path: Path) -> None:
    made = decode_text(NO_MODS)
    lies = header_and_body(assemble(FOLDER, "decode/decode.metal", {}))
    plain = KernelText(made.kernel, *lies, made.inputs, made.outputs)
    source = clang_check.instance(plain, plan_of(64, 64, "float32", 1), NO_BLOCKS)
    assert clang_check.complaints(source, tmp_path) == ""


def test_a_mod_s_kernel_can_be_printed() -> None:
    text = flex.mods.softcap(30.0).source("metal", kernel="decode")
    assert "void flextrace_attention_decode" in text and "metal::precise::tanh(" in text


@clang_check.needs_clang
@pytest.mark.sampled(18)
@pytest.mark.parametrize("scoring", [Scoring(), ALL, Scoring(int8_values=True)], ids=["plain", "all", "values"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", [(17, 9), (64, 64), (128, 96), (576, 512)])
def test_address_spaces(dims: tuple[int, int], dtype: str, scoring: Scoring, tmp_path: Path) -> None:
    text = decode_text(formulas(*traces("alibi", "document_ids")), scoring=scoring)
    for blocks, rows in ((NO_BLOCKS, 3), (WHOLE_TILES, 16), (CUT_TILES, 40)):
        source = clang_check.instance(text, plan_of(*dims, dtype, rows, scoring), blocks)
        assert clang_check.complaints(source, tmp_path) == ""
    assert clang_check.unqualified_pointers(source, tmp_path) == []
    assert clang_check.narrow_offsets(source, tmp_path) == []


@clang_check.needs_clang
def test_address_spaces_of_the_merge(tmp_path: Path) -> None:
    source = clang_check.instance(merge_text(), plan_of(64, 64, "float16", 1), NO_BLOCKS)
    source = f"constexpr bool MEANS = true;\n{source}"
    assert clang_check.complaints(source, tmp_path) == ""
    assert clang_check.unqualified_pointers(source, tmp_path) == []
    assert clang_check.narrow_offsets(source, tmp_path) == []


PLANTED = [
    ("threadgroup float* here = shared", "device float* here = shared"),
    ("const device Piece<T, N>*>", "const threadgroup Piece<T, N>*>"),
    ("to.out[row * P::VALUE_DIM", "shared[row * P::VALUE_DIM"),
]


@clang_check.needs_clang
@pytest.mark.parametrize(("right", "wrong"), PLANTED, ids=["exchange", "pieces", "output"])
def test_a_wrong_address_space_is_seen(right: str, wrong: str, tmp_path: Path) -> None:
    source = clang_check.instance(decode_text(NO_MODS), plan_of(128, 128, "float32", 1), NO_BLOCKS)
    assert right in source
    assert "error:" in clang_check.complaints(source.replace(right, wrong), tmp_path)


@clang_check.needs_stand_in
@pytest.mark.sampled(18)
@pytest.mark.parametrize("names", [(), ("causal",), ("alibi", "causal")], ids=str)
@pytest.mark.parametrize("rows", [1, 16])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [64, 128])
def test_registers_suffice(dim: int, dtype: str, rows: int, names: tuple[str, ...]) -> None:
    """An Apple GPU has 128 for a thread before fewer are resident; a few bytes in memory cost little."""
    text = decode_text(formulas(*traces(*names)) if names else NO_MODS)
    assert registers.measured(text, plan_of(dim, dim, dtype, rows), NO_BLOCKS).spilled <= 64
