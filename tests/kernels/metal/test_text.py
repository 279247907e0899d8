"""The Metal text: its files' habits, what a mod becomes, and clang's check of the address spaces."""

from __future__ import annotations

import hashlib
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import zoo
from apparatus import clang_check
from apparatus.mods import text_of, traces
from calls import formulas

from flextrace.kernels.gpu.tile_lists import CUT_TILES, NO_BLOCKS, WHOLE_TILES
from flextrace.kernels.metal import generate
from flextrace.kernels.metal.async_copy.probe import why_no_async_copy
from flextrace.kernels.metal.attention.plan import plan_for
from flextrace.kernels.metal.generate import INPUTS, KERNEL, OUTPUTS, complete, kernel_text, mod_header
from flextrace.kernels.metal.kernel import launchable
from flextrace.kernels.metal.text import KernelText
from flextrace.kernels.template.assemble import assemble, header_and_body

FOLDER = Path(generate.__file__).parent
FILES = [
    *(file for file in sorted(FOLDER.rglob("*")) if file.suffix in (".h", ".metal")),
    FOLDER.parent / "template" / "ranges.h",
]
RESERVED = r"\b(fragment|vertex|kernel|mesh|object|visible|sampler|texture\w*|ray_data|object_data|imageblock\w*)\b"
TRANSCENDENTAL = "exp|exp2|log|log2|log10|a?(?:sin|cos|tan)h?|atan2|r?sqrt|fmod"
LOOPS = ("UNROLL", "ROLLED", '_Pragma("clang loop unroll_count(2)")')


# ---- habits of safe MSL -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_a_file_keeps_the_habits(file: Path) -> None:
    text = file.read_text(encoding="ascii")
    code = "\n".join(line.split("//")[0] for line in text.splitlines())
    assert max(map(len, text.splitlines())) <= 120
    assert re.match(rf"// (?:{re.escape(file.name)}: \w|.+ -> .+: \w)", text), "the first line says what the file is"
    assert not re.search(r"\b(INFINITY|HUGE_VALF|isinf|isnan|double)\b", code), "infinities are told by their bits"
    assert not re.search(rf"metal::(pow|{TRANSCENDENTAL})\(", code), "precise:: or fast::"
    assert "using namespace" not in code and "metal::as_type" not in code
    assert not re.search(RESERVED, code), "a word that Metal reserves"


def test_every_loop_over_fragments_is_unrolled() -> None:
    for file in FILES:
        lines = file.read_text().splitlines()
        for before, line in itertools.pairwise(lines):
            bound = re.search(r"for \(int \w+ = 0; \w+(?: \+ 1)? < ([^;&]+);", line)
            if bound and re.fullmatch(r"P::\w+( \* P::\w+)?( / FRAGMENT)?|[A-Z_]+", bound[1]):
                assert before.strip() in LOOPS or "SIMDGROUPS" in bound[1], f"{file.name}: {line}"


def test_the_name_follows_the_text() -> None:
    first, second = text_of("alibi"), text_of("softcap")
    assert re.fullmatch(r"flextrace_attention_[0-9a-f]{16}", first.name)
    assert first.name != second.name
    assert first.name == text_of("alibi").name


def test_every_kernel_s_name_follows_its_text() -> None:
    """MLX up to 0.32.0 ran stale code under an equal name: fused, with the intrinsic, and the probe."""
    made: list[tuple[str, str]] = []

    def factory(**definition: str) -> Any:
        made.append((definition["name"], definition["header"] + definition["source"]))
        raise RuntimeError("not to be run")

    for text in (text_of("alibi"), kernel_text(async_copy=True)):
        with pytest.raises(RuntimeError):
            launchable(factory, text, "cd")
    assert why_no_async_copy(factory) == "not to be run"
    for name, text in made:
        assert hashlib.sha256(text.encode()).hexdigest()[:16] in name
    assert len({name for name, _ in made}) == 3


@pytest.mark.parametrize("entry", zoo.ZOO.values(), ids=str)
def test_generated_text_is_ascii_with_precise_functions(entry: zoo.Entry) -> None:
    text = text_of(entry.name)
    (text.header + text.body).encode("ascii")
    header = mod_header(formulas(*traces(entry.name)))
    assert not re.search(rf"(?<!precise::)\b({TRANSCENDENTAL})\(", header)
    assert not re.search(r"[\w)] [+*-] [(-]*INFINITY|INFINITY\)* [+*/-]", header), "arithmetic with an infinity"


# ---- what a mod becomes -------------------------------------------------------------------------------------------


def test_captures_become_fields_and_arguments() -> None:
    text = text_of("alibi", "sliding_window")
    assert text.inputs[-1] == "array0"
    assert "captured_by_mods(params, array0, array0_shape, array0_strides)" in text.body
    assert "const constant int64_t* array0_strides [[buffer(11)]]" in complete(text)
    header = mod_header(formulas(*traces("alibi", "sliding_window")))
    assert "template <typename Array0>\nstruct Mods {" in header
    assert "array0[fx::offset(array0_shape, array0_strides, h)]" in header


def test_the_mask_s_captures_come_after_the_score_s() -> None:
    header = mod_header(formulas(*traces("alibi", "padding_lengths")))
    score, mask = header.split("bool mask_mod(")
    assert "array0[" in score and "array1[" not in score
    assert "array1[" in mask and "array0[" not in mask.split("};")[0]


def test_the_text_is_complete() -> None:
    text = complete(kernel_text())
    assert '#include "' not in text and "[[kernel]] void flextrace_attention_" in text
    assert "CAPTURED_ARRAYS" not in text.split("[[kernel]]")[1]


def test_too_many_captured_arrays_name_the_remedy() -> None:
    import mlx.core as mx

    from flextrace.tracer import trace

    tables = [mx.ones(9) for _ in range(21)]

    def mod(score, b, h, q_idx, kv_idx):
        return score + sum(table[kv_idx] for table in tables)

    with pytest.raises(ValueError, match="capture 21 arrays .* has room for 20. Remedy: stack some"):
        kernel_text(formulas(trace(mod, "score_mod"), None))


# ---- address spaces -----------------------------------------------------------------------------------------------


@clang_check.needs_clang
def test_the_kernel_compiles_as_it_lies(tmp_path: Path) -> None:
    """With the checked-in mod.h, whose bodies leave the scores as they are."""
    text = kernel_text()
    plain = KernelText("attention", *header_and_body(assemble(FOLDER, KERNEL, {})), INPUTS, OUTPUTS)
    assert plain.header != text.header
    source = clang_check.instance(plain, plan_for(64, 64, "float32"), NO_BLOCKS)
    assert clang_check.complaints(source, tmp_path) == ""


@clang_check.needs_clang
@pytest.mark.parametrize("entry", zoo.ZOO.values(), ids=str)
def test_address_spaces_of_every_mod(entry: zoo.Entry, tmp_path: Path) -> None:
    source = clang_check.instance(text_of(entry.name), plan_for(64, 64, "float32"), NO_BLOCKS)
    assert clang_check.complaints(source, tmp_path) == ""


@clang_check.needs_clang
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("dims", [(8, 8), (17, 9), (64, 64), (80, 80), (128, 96), (192, 128), (256, 256), (512, 512)])
def test_address_spaces_of_every_plan(dims: tuple[int, int], dtype: str, tmp_path: Path) -> None:
    for blocks in (NO_BLOCKS, WHOLE_TILES, CUT_TILES):
        source = clang_check.instance(text_of("alibi", "causal"), plan_for(*dims, dtype), blocks)
        assert clang_check.complaints(source, tmp_path) == ""


MISTAKES = [
    ("threadgroup T* in_use;", "device T* in_use;"),
    ("const thread Matrix<T>& from, Range rows", "const device Matrix<T>& from, Range rows"),
    ("next.keys.store(tile_at<K>(halves.ahead()),", "next.keys.store(k.data,"),
    ("const device int* ends; ", "const constant int* ends; "),
    (
        "multiply_values<V, P>(sums, weights, values, d, rows.place)",
        "multiply_values<V, P>(sums, weights, v.data, d, rows.place)",
    ),
    ("float inverse =", "float inverted ="),
    ("tensor(q, q_strides)", "tensor(q, tile_lists)"),
    ("threadgroup uint* votes;  ", "thread uint* votes;  "),
]


@clang_check.needs_clang
@pytest.mark.parametrize(("right", "wrong"), MISTAKES, ids=lambda text: text[:20])
def test_clang_finds_planted_mistakes(right: str, wrong: str, tmp_path: Path) -> None:
    source = clang_check.instance(text_of("causal"), plan_for(64, 64, "float32"), NO_BLOCKS)
    assert right in source
    assert "error:" in clang_check.complaints(source.replace(right, wrong), tmp_path)


@clang_check.needs_clang
def test_no_pointer_is_without_an_address_space(tmp_path: Path) -> None:
    """clang lets an unqualified pointer through as __generic; Metal does not."""
    source = clang_check.instance(text_of("alibi", "document_ids"), plan_for(80, 80, "bfloat16"), CUT_TILES)
    assert clang_check.unqualified_pointers(source, tmp_path) == []
    planted = source.replace("const thread int* q_idx, int d,", "const int* q_idx, int d,")
    assert clang_check.unqualified_pointers(planted, tmp_path) == ["q_idx"]


WIDE = [
    ("int64_t at = head * out_rows + (row", "int at = int(head * out_rows) + (row", "write_rows"),
    ("row * row_stride", "row * int(row_stride)", "at"),
    ("int64_t(q_idx / p.q_block) * p.kv_blocks", "q_idx / p.q_block * p.kv_blocks", "kept_of_row"),
    ("b * strides[0] + h", "int64_t(b * int(strides[0])) + h", "head"),
]


@clang_check.needs_clang
def test_offsets_into_device_memory_have_64_bits(tmp_path: Path) -> None:
    """2**31 elements are 4 GB of float16: keys and values of a long context."""
    source = clang_check.instance(text_of("alibi", "document_ids"), plan_for(80, 80, "bfloat16"), CUT_TILES)
    assert clang_check.narrow_offsets(source, tmp_path) == []
    for right, wrong, function in WIDE:
        assert right in source
        assert clang_check.narrow_offsets(source.replace(right, wrong), tmp_path) == [function], wrong
