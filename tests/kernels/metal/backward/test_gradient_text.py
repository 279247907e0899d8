"""The text of the Metal gradient kernels: plans that fit, address spaces by clang, registers by a stand-in."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
import zoo
from apparatus import clang_check
from apparatus.mods import traces
from calls import formulas

from flextrace.kernels.gpu.tile_lists import CUT_TILES, NO_BLOCKS, WHOLE_TILES
from flextrace.kernels.metal.backward.launch import PATTERNS, WORDS_OF_PAIR
from flextrace.kernels.metal.backward.plan import gradient_plan
from flextrace.kernels.metal.backward.text import ELEMENTS, KEY, PAIRS, QUERY, SEGMENTS, TIES, file_of, gradient_text
from flextrace.kernels.metal.generate import NO_MODS
from flextrace.kernels.metal.kernel import Variant
from flextrace.kernels.metal.text import FOLDER, KernelText
from flextrace.kernels.simulator import registers
from flextrace.kernels.template.assemble import assemble, header_and_body
from flextrace.tracer import Pattern, trace

DIMS = [(8, 8), (17, 9), (64, 64), (80, 80), (128, 96), (192, 128), (256, 256), (512, 512)]


ROWS = (QUERY, KEY, TIES)


def text_of(kernel: str, *names: str) -> KernelText:
    """With all the sites that a kernel may have."""
    mods = formulas(*traces(*names))
    own = {QUERY: Pattern.ROW, KEY: Pattern.COLUMN}
    sites = tuple(number for number, site in enumerate(mods.sites) if site.pattern == own.get(kernel))
    return gradient_text(kernel, mods, Variant(sites=sites))


def pairs_of(pattern: Pattern, dims: tuple[int, int], dtype: str) -> str:
    """The kernel that sums pairs, with its template arguments written in."""
    bias = mx.ones((4, 64, 64))
    mods = formulas(trace(lambda s, b, h, q, k: s * bias[h, q, k], "score_mod"))
    text = gradient_text(PAIRS, mods, Variant(sites=(0,)))
    plan = gradient_plan(False, *dims, dtype, WORDS_OF_PAIR[pattern])
    source = clang_check.instance(text, plan, CUT_TILES)
    return f"constexpr int PATTERN = {PATTERNS.index(pattern)};\n{source}"


@pytest.mark.sampled(3)
@pytest.mark.parametrize("of_keys", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_head_dim_has_a_plan(dtype: str, of_keys: bool) -> None:
    for dims in [*((d, d) for d in range(1, 300, 47)), (40, 520), (512, 1), (576, 512), *DIMS]:
        plan = gradient_plan(of_keys, *dims, dtype)
        assert plan.threadgroup_bytes <= 32 * 1024
        assert plan.threads <= 384 and 4 * plan.bk <= plan.threads, "each thread reads a term of a column"


@clang_check.needs_clang
@pytest.mark.parametrize("kernel", ROWS)
def test_gradient_kernels_compile_as_they_lie(kernel: str, tmp_path: Path) -> None:
    made = gradient_text(kernel, NO_MODS, Variant())
    plain = KernelText(kernel, *header_and_body(assemble(FOLDER, file_of(kernel), {})), made.inputs, made.outputs)
    source = clang_check.instance(plain, gradient_plan(kernel == KEY, 64, 64, "float32"), NO_BLOCKS)
    assert clang_check.complaints(source, tmp_path) == ""


@clang_check.needs_clang
@pytest.mark.sampled(50)
@pytest.mark.parametrize("kernel", ROWS)
@pytest.mark.parametrize("entry", zoo.ZOO.values(), ids=str)
def test_address_spaces_of_every_mod_in_gradient_kernels(entry: zoo.Entry, kernel: str, tmp_path: Path) -> None:
    source = clang_check.instance(
        text_of(kernel, entry.name), gradient_plan(kernel == KEY, 64, 64, "float16"), NO_BLOCKS
    )
    assert clang_check.complaints(source, tmp_path) == ""


@clang_check.needs_clang
@pytest.mark.sampled(36)
@pytest.mark.parametrize("kernel", ROWS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("dims", DIMS)
def test_address_spaces_of_every_gradient_plan(dims: tuple[int, int], dtype: str, kernel: str, tmp_path: Path) -> None:
    text = text_of(kernel, "alibi", "causal")
    for blocks in (NO_BLOCKS, WHOLE_TILES, CUT_TILES):
        source = clang_check.instance(text, gradient_plan(kernel == KEY, *dims, dtype), blocks)
        assert clang_check.complaints(source, tmp_path) == ""


@clang_check.needs_clang
@pytest.mark.sampled(3)
@pytest.mark.parametrize("kernel", ROWS)
def test_pointers_of_gradient_kernels_name_their_space_and_offsets_have_64_bits(kernel: str, tmp_path: Path) -> None:
    plan = gradient_plan(kernel == KEY, 80, 80, "bfloat16")
    source = clang_check.instance(text_of(kernel, "alibi", "document_ids"), plan, CUT_TILES)
    assert clang_check.unqualified_pointers(source, tmp_path) == []
    assert clang_check.narrow_offsets(source, tmp_path) == []


@clang_check.needs_clang
@pytest.mark.sampled(18)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("dims", [(17, 9), (64, 64), (128, 96), (256, 256)])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_address_spaces_of_sums_of_pairs(pattern: Pattern, dims: tuple[int, int], dtype: str, tmp_path: Path) -> None:
    source = pairs_of(pattern, dims, dtype)
    assert clang_check.complaints(source, tmp_path) == ""
    assert clang_check.unqualified_pointers(source, tmp_path) == []
    assert clang_check.narrow_offsets(source, tmp_path) == []


@clang_check.needs_clang
def test_address_spaces_of_elements_and_segments(tmp_path: Path) -> None:
    plan = gradient_plan(False, 64, 64, "float32")
    for kernel, constants in ((ELEMENTS, "POSITIONS = 2, THREADS = 128"), (SEGMENTS, "MEANT = 0")):
        source = clang_check.instance(text_of(kernel, "relative_bias"), plan, NO_BLOCKS)
        source = f"constexpr int {constants};\n{source}"
        assert clang_check.complaints(source, tmp_path) == ""
        assert clang_check.unqualified_pointers(source, tmp_path) == []
        assert clang_check.narrow_offsets(source, tmp_path) == []


@clang_check.needs_stand_in
@pytest.mark.sampled(18)
@pytest.mark.parametrize("names", [(), ("causal",), ("alibi", "causal")], ids=str)
@pytest.mark.parametrize("kernel", [QUERY, KEY])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("dim", [64, 128])
def test_registers_suffice(dim: int, dtype: str, kernel: str, names: tuple[str, ...]) -> None:
    """An Apple GPU has 128 for a thread before fewer are resident; a few bytes in memory cost little."""
    plan = gradient_plan(kernel == KEY, dim, dim, dtype)
    assert registers.measured(text_of(kernel, *names), plan, NO_BLOCKS).spilled <= 64
