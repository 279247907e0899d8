"""The text of the Metal gradient kernels: plans that fit, address spaces by clang, registers by a stand-in."""

from __future__ import annotations

from pathlib import Path

import pytest
import zoo
from apparatus import clang_check, registers
from apparatus.mods import traces
from calls import formulas

from flextrace.kernels.metal.attention.tile_lists import CUT_TILES, NO_BLOCKS, WHOLE_TILES
from flextrace.kernels.metal.backward.plan import gradient_plan
from flextrace.kernels.metal.backward.text import KERNELS, KEY, QUERY, gradient_text
from flextrace.kernels.metal.generate import NO_MODS
from flextrace.kernels.metal.kernel import Variant
from flextrace.kernels.metal.text import FOLDER, KernelText
from flextrace.kernels.template.assemble import assemble, header_and_body

DIMS = [(8, 8), (17, 9), (64, 64), (80, 80), (128, 96), (192, 128), (256, 256), (512, 512)]


def text_of(kernel: str, *names: str) -> KernelText:
    return gradient_text(kernel, formulas(*traces(*names)), Variant())


@pytest.mark.parametrize("of_keys", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_head_dim_has_a_plan(dtype: str, of_keys: bool) -> None:
    for dims in [*((d, d) for d in range(1, 300, 23)), (40, 520), (512, 1), (576, 512), *DIMS]:
        plan = gradient_plan(of_keys, *dims, dtype)
        assert plan.threadgroup_bytes <= 32 * 1024
        assert plan.threads <= 256 and 4 * plan.bk <= plan.threads, "each thread reads a term of a column"


@clang_check.needs_clang
@pytest.mark.parametrize("kernel", KERNELS)
def test_gradient_kernels_compile_as_they_lie(kernel: str, tmp_path: Path) -> None:
    made = gradient_text(kernel, NO_MODS, Variant())
    file = f"backward/{kernel.removeprefix('backward_')}.metal"
    plain = KernelText(kernel, *header_and_body(assemble(FOLDER, file, {})), made.inputs, made.outputs)
    source = clang_check.instance(plain, gradient_plan(kernel == KEY, 64, 64, "float32"), NO_BLOCKS)
    assert clang_check.complaints(source, tmp_path) == ""


@clang_check.needs_clang
@pytest.mark.sampled(25)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("entry", zoo.ZOO.values(), ids=str)
def test_address_spaces_of_every_mod_in_gradient_kernels(entry: zoo.Entry, kernel: str, tmp_path: Path) -> None:
    source = clang_check.instance(
        text_of(kernel, entry.name), gradient_plan(kernel == KEY, 64, 64, "float16"), NO_BLOCKS
    )
    assert clang_check.complaints(source, tmp_path) == ""


@clang_check.needs_clang
@pytest.mark.sampled(12)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("dims", DIMS)
def test_address_spaces_of_every_gradient_plan(dims: tuple[int, int], dtype: str, kernel: str, tmp_path: Path) -> None:
    text = text_of(kernel, "alibi", "causal")
    for blocks in (NO_BLOCKS, WHOLE_TILES, CUT_TILES):
        source = clang_check.instance(text, gradient_plan(kernel == KEY, *dims, dtype), blocks)
        assert clang_check.complaints(source, tmp_path) == ""


@clang_check.needs_clang
@pytest.mark.parametrize("kernel", KERNELS)
def test_pointers_of_gradient_kernels_name_their_space_and_offsets_have_64_bits(kernel: str, tmp_path: Path) -> None:
    plan = gradient_plan(kernel == KEY, 80, 80, "bfloat16")
    source = clang_check.instance(text_of(kernel, "alibi", "document_ids"), plan, CUT_TILES)
    assert clang_check.unqualified_pointers(source, tmp_path) == []
    assert clang_check.narrow_offsets(source, tmp_path) == []


@registers.needs_target
@pytest.mark.sampled(6)
@pytest.mark.parametrize("kernel", [QUERY, KEY])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("dim", [64, 128])
def test_registers_suffice(dim: int, dtype: str, kernel: str, tmp_path: Path) -> None:
    """An Apple GPU has 128 for a thread before fewer are resident; a few bytes in memory cost little."""
    plan = gradient_plan(kernel == KEY, dim, dim, dtype)
    assert registers.spilled(gradient_text(kernel, NO_MODS, Variant()), plan, NO_BLOCKS, tmp_path) <= 64
