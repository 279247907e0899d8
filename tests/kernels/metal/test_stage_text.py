"""The text of the stage kernels: their files' habits, their names, and clang's check of the address spaces."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import mlx.core as mx
import pytest
import zoo
from apparatus import clang_check
from apparatus.mods import traces
from apparatus.stage_launches import Launched, Recorder, every_launch
from calls import formulas

from flextrace.kernels.metal import MetalBackend, generate
from flextrace.kernels.metal.stages.text import STAGES, WITH_MODS, stage_text
from flextrace.kernels.simulator.translate.signature import ATTRIBUTES
from flextrace.kernels.template.assemble import assemble, header_and_body
from flextrace.tracer import Bound, trace

METAL = Path(generate.__file__).parent
FOLDER = METAL / "stages"
FILES = sorted([*FOLDER.glob("*.h"), *FOLDER.glob("*.metal")])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_loops_of_a_stage_are_unrolled(file: Path) -> None:
    for before, line in itertools.pairwise(file.read_text().splitlines()):
        if re.search(r"for \(int \w+ = 0; \w+ < (P::\w+_FRAGMENTS|COUNT|ITEMS|ROW_GROUPS|2);", line):
            assert before.strip() in ("UNROLL", '_Pragma("clang loop unroll_count(8)")'), line


def test_every_stage_is_one_file() -> None:
    assert {file.stem for file in FOLDER.glob("*.metal")} == {*STAGES}


@pytest.mark.parametrize("stage", STAGES)
def test_a_body_names_what_the_table_says(stage: str) -> None:
    strided, plain, outputs = STAGES[stage]
    text = stage_text(stage)
    for name in (*strided, *plain, *outputs):
        assert re.search(rf"\b{name}\b", text.body), name
    assert all(f"{name}_strides" in text.body for name in strided)
    used = set(re.findall(r"\w*(?:thread|simd)group\w*_(?:in|per)_\w+|thread_\w+_in_\w+", text.body))
    assert used <= set(ATTRIBUTES), "attributes that MLX declares"


@pytest.mark.parametrize("stage", STAGES)
def test_the_text_of_a_stage_is_complete(stage: str) -> None:
    text = stage_text(stage)
    assert '#include "' not in text.header and "CAPTURED_ARRAYS" not in text.body
    assert text.header.startswith(f'#line 1 "stages/{stage}.metal"\n') and '#line 1 "tile/simdgroup.h"\n' in text.header
    assert re.fullmatch(rf"flextrace_{stage}_[0-9a-f]{{16}}", text.name)
    changed = stage_text(stage, formulas(*traces("alibi", "causal"))) if stage in WITH_MODS else text
    assert (changed.name != text.name) == (stage in WITH_MODS)


def test_captured_arrays_reach_the_mods() -> None:
    text = stage_text("score_mod", formulas(*traces("alibi", "padding_lengths")))
    assert (
        "captured_by_mods(params + SHAPE_WORDS + LIST_WORDS, array0, array0_shape, array0_strides, array1" in text.body
    )
    assert text.inputs[-2:] == ("array0", "array1")
    assert stage_text("block_mask", formulas(None, traces("padding_lengths")[1])).inputs == ("params", "array0")


def test_too_many_captured_arrays_of_a_stage_name_the_remedy() -> None:
    tables = [mx.ones(9) for _ in range(24)]

    def mod(score, b, h, q_idx, kv_idx):
        return score + sum(table[kv_idx] for table in tables)

    with pytest.raises(ValueError, match="capture 24 arrays .* has room for 23. Remedy: stack some into one"):
        stage_text("score_mod", formulas(trace(mod, "score_mod"), None))


def test_kernels_stand_apart_by_what_MLX_puts_into_their_signatures() -> None:
    """A name stands for one text: the address space and the type of a captured array are not in the template."""
    _, mask = traces("padding_lengths")
    assert mask is not None
    recorder = Recorder()
    stages = MetalBackend(recorder).stages()
    for lengths in (mx.zeros(2, mx.int32), mx.zeros(9, mx.int32), mx.zeros(9, mx.int8), mx.zeros(10, mx.int32)):
        stages.block_mask(Bound(mask, [lengths], []), 1, 1, 4, 4, (2, 2))
    names = [launched.definition["name"] for launched in recorder.launches]
    assert len(set(names)) == 3 and names[1] == names[3]
    assert [name.split("_", 4)[-1] for name in names[:3]] == ["c_int32", "d_int32", "d_int8"]


# ---- address spaces -----------------------------------------------------------------------------------------------


def ids(launched: Launched) -> str:
    return "-".join(
        [launched.definition["name"].split("_")[1], *(str(value) for _, value in launched.call["template"])]
    )


@clang_check.needs_clang
@pytest.mark.parametrize("launched", list(every_launch(*traces("alibi", "causal"))), ids=ids)
def test_address_spaces_of_every_stage(launched: Launched, tmp_path: Path) -> None:
    assert clang_check.complaints(launched.instance(), tmp_path) == ""


@clang_check.needs_clang
@pytest.mark.parametrize("entry", [e for i, e in enumerate(zoo.ZOO.values()) if i % 8 == 0], ids=str)
def test_address_spaces_of_stages_with_mods(entry: zoo.Entry, tmp_path: Path) -> None:
    for launched in every_launch(*traces(entry.name)):
        if any(stage in launched.definition["name"] for stage in WITH_MODS):
            assert clang_check.complaints(launched.instance(), tmp_path) == ""


@clang_check.needs_clang
@pytest.mark.parametrize("stage", WITH_MODS)
def test_a_stage_compiles_as_it_lies(stage: str, tmp_path: Path) -> None:
    """With the checked-in mod.h."""
    for launched in every_launch(*traces("identity", "causal")):
        if stage in launched.definition["name"]:
            header, source = header_and_body(assemble(METAL, f"stages/{stage}.metal", {}))
            plain = launched.definition | {"header": header, "source": source}
            assert clang_check.complaints(Launched(plain, launched.call).instance(), tmp_path) == ""


MISTAKES = [
    ("matmul", "threadgroup A* a_staged", "device A* a_staged"),
    ("matmul", "threadgroup T* in_use;", "device T* in_use;"),
    ("matmul", "out + int64_t(at.group.z) * p.m * p.n", "a_staged + int64_t(at.group.z) * p.m * p.n"),
    ("softmax", "threadgroup float* shared", "thread float* shared"),
    ("score", "const device int* indices;", "const constant int* indices;"),
    ("block_mask", "threadgroup uint* words", "device uint* words"),
    ("block_sparse", "Range next() thread", "Range next() device"),
]


@clang_check.needs_clang
@pytest.mark.parametrize(("stage", "right", "wrong"), MISTAKES, ids=lambda text: text[:20])
def test_clang_finds_mistakes_planted_in_a_stage(stage: str, right: str, wrong: str, tmp_path: Path) -> None:
    found = next(e for e in every_launch(*traces("identity", "causal")) if f"flextrace_{stage}" in e.definition["name"])
    source = found.instance()
    assert right in source
    assert "error:" in clang_check.complaints(source.replace(right, wrong), tmp_path)


@clang_check.needs_clang
def test_no_pointer_of_a_stage_is_without_an_address_space(tmp_path: Path) -> None:
    seen = set()
    for launched in every_launch(*traces("alibi", "causal")):
        if launched.definition["name"] not in seen:
            seen.add(launched.definition["name"])
            assert clang_check.unqualified_pointers(launched.instance(), tmp_path) == []
    assert len(seen) == len(STAGES)
