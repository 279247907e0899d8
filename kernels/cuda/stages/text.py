"""Stage, formulas, types -> CUDA text: a stage kernel with the entry that MLX calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ...spec import Formulas
from ...template.assemble import assemble
from ...template.hole import fill
from ..generate import FOLDER, HOLE, CudaText, assignments, element_type, mod_header, named

PLAN = "stages/plan.h"
BLOCK_SIZES = ("batches", "heads_listed", "q_blocks", "kv_blocks", "q_block", "kv_block")  # BlockSizes, in order
PRODUCT = ("heads", "b_batches", "b_heads", "m", "n", "k")
LISTS = ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices")


class StageVariant(NamedTuple):
    """read, written: dtypes. constants: other values of plan.h by name."""

    read: str = "float32"
    written: str = "float32"
    constants: tuple[tuple[str, str], ...] = ()


class Stage(NamedTuple):
    """How run_stage of a stage's file takes its arguments: pointers by name to their types, structs of ints."""

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    structs: tuple[tuple[str, ...], ...]
    mods: bool = False


STAGES: dict[str, Stage] = {
    "matmul": Stage({"a": "T", "b": "T"}, {"out": "O"}, (PRODUCT,)),
    "scale": Stage({"x": "T"}, {"out": "O"}, (("rows", "columns", "factor"),)),
    "score_mod": Stage(
        {"scores": "float", "states": "uint8_t"},
        {"out": "float"},
        (("batch", "heads", "q_len", "kv_len"), BLOCK_SIZES),
        mods=True,
    ),
    "softmax": Stage(
        {"x": "T"}, {"weights": "O", "max_scores": "float", "sums": "float"}, (("rows", "columns", "normalise"),)
    ),
    "block_mask": Stage(
        {}, dict.fromkeys(LISTS, "int"), (("batch", "heads", "q_len", "kv_len", "q_block", "kv_block"),), mods=True
    ),
    "block_sparse_matmul": Stage({"a": "T", "b": "T", "states": "uint8_t"}, {"out": "O"}, (PRODUCT, BLOCK_SIZES)),
    "attention_output": Stage(
        {"product": "T", "max_scores": "float", "sums": "float"}, {"out": "O", "lse": "float"}, (("rows", "columns"),)
    ),
}


def stage_text(stage: str, mods: Formulas, variant: StageVariant) -> CudaText:
    """The kernel of that name in STAGES; only score_mod and block_mask have mods. Scores are float32: the functions of
    mods are precise."""
    takes = STAGES[stage]
    types = {"T": variant.read, "O": variant.written}
    elements = "\n".join(f"typedef {element_type(dtype)} {name};" for name, dtype in types.items())
    headers = {PLAN: fill(FOLDER / PLAN, {"elements": elements}, dict(variant.constants))}
    if takes.mods:
        headers[HOLE] = mod_header(mods, approximate=False)
    filled = assignments(mods, ())
    words = [f"word{i}" for i in range(len(filled.numbers) + len(filled.sizes))]
    read = [line.format(word) for line, word in zip([*filled.numbers, *filled.sizes], words, strict=True)]
    parameters = [
        *(f"const {kind}* {name}" for name, kind in takes.inputs.items()),
        *(f"const {element_type(array.element)}* array{slot}" for slot, array in enumerate(mods.arrays)),
        *(f"{kind}* {name}" for name, kind in takes.outputs.items()),
        *(f"int {name}" for struct in takes.structs for name in struct),
        *(f"int {word}" for word in words),
    ]
    structs = ["{" + ", ".join(struct) + "}" for struct in takes.structs]
    given = [*takes.inputs, *takes.outputs, *structs, *(["mods"] if takes.mods else [])]
    body = ["Mods mods;", *(line for _, line in filled.arrays), *read] if takes.mods else []
    lines = [*body, f"run_stage({', '.join(given)});"]
    entry = 'extern "C" __global__ void __launch_bounds__(THREADS) NAME(\n    ' + ",\n    ".join(parameters) + ") {\n"
    entry += "".join(f"  {line}\n" for line in lines) + "}\n"
    return named(stage, assemble(FOLDER, f"stages/{stage}.cu", headers), entry)
