"""Formulas, plan -> the texts of the two kernels for few query rows, with the entries that MLX calls."""

from __future__ import annotations

import hashlib
from collections.abc import Collection

from ...gpu.extremes import extremes_type
from ...gpu.tile_lists import PARAMS as MASK_PARAMS
from ...spec import Formulas
from ...template.assemble import assemble
from ...template.hole import fill
from ..generate import FOLDER, HOLE, CudaText, assignments, element_type, mod_header
from .plan import DecodePlan

PLAN, MERGE_PLAN = "decode/plan.h", "decode/merge_plan.h"
# DecodeParams and MergeParams, in order
PARAMS = ("kv_heads", "group", "kv_batches", "q_len", "kv_len", "scale", "splits", *MASK_PARAMS)
MERGE_PARAMS = ("kv_heads", "kv_batches", "rows", "splits", "columns")
NEIGHBOURS = ("", "_batch", "_head", "_row", "_column")  # the pointers of a Tensor, in order


def decode_text(mods: Formulas, plan: DecodePlan, blocks: int, extremes: Collection[int] = ()) -> CudaText:
    """The kernel that attends to a split of the keys. blocks: enum Blocks of walk.h. extremes: slots of arrays whose
    blocks tile_state reads."""
    types = {"T": plan.dtype, "K": plan.keys, "V": plan.values}
    elements = "\n".join(f"typedef {element_type(dtype)} {name};" for name, dtype in types.items())
    headers = {
        HOLE: mod_header(mods, plan.dtype != "float32", extremes),
        PLAN: fill(FOLDER / PLAN, {"elements": elements}, {**plan.constants(), "BLOCKS": str(blocks)}),
    }
    filled = assignments(mods, extremes)
    words = [f"word{i}" for i in range(len(filled.numbers) + len(filled.sizes))]
    read = [line.format(word) for line, word in zip([*filled.numbers, *filled.sizes], words, strict=True)]
    tensors = {"k": "K", "v": "V", "k_scales": "float", "v_scales": "float"}
    given = ["k", "v", *(["k_scales"] if plan.keys == "int8" else []), *(["v_scales"] if plan.values == "int8" else [])]
    parameters = [
        "const T* q",
        *(f"const {tensors[name]}* {name}{neighbour}" for name in given for neighbour in NEIGHBOURS),
        *(["const float* k_means"] if plan.means else []),
        "const int* tile_lists",
        *(f"const {element_type(array.element)}* array{slot}" for slot, array in enumerate(mods.arrays)),
        *(f"const {extremes_type(mods.arrays[slot].element)}* extremes{slot}" for slot in extremes),
        *("float* partial", "float4* statistics"),
        *(f"int {name}" for name in (*PARAMS, *words)),
    ]
    values = ", ".join("__int_as_float(scale)" if name == "scale" else name for name in PARAMS)
    views = ["{" + ", ".join(name + at for at in NEIGHBOURS if name in given) + "}" for name in tensors]
    read_from = ", ".join(["q", *views, "k_means" if plan.means else "nullptr", "tile_lists", "{partial, statistics}"])
    body = [
        "Mods mods;",
        *(line for _, line in filled.arrays),
        *filled.extremes,
        *read,
        f"attention_decode({{{read_from}}}, {{{values}}}, mods);",
    ]
    return _named("decode", assemble(FOLDER, "decode/decode.cu", headers), "THREADS, RESIDENT", parameters, body)


def merge_text(dtype: str, value_means: bool) -> CudaText:
    """The kernel that makes one result of those of all splits."""
    element = f"typedef {element_type(dtype)} T;"
    plan = fill(FOLDER / MERGE_PLAN, {"element": element}, {"VALUE_MEANS": str(value_means).lower()})
    parameters = [
        *("const float* partial", "const float4* statistics"),
        *(["const float* v_means"] if value_means else []),
        *("T* out", "float* lse", "float* max_scores"),
        *(f"int {name}" for name in MERGE_PARAMS),
    ]
    means = "v_means" if value_means else "nullptr"
    body = [f"merge_splits({{partial, statistics, {means}, out, lse, max_scores}}, {{{', '.join(MERGE_PARAMS)}}});"]
    return _named("merge", assemble(FOLDER, "decode/merge.cu", {MERGE_PLAN: plan}), "THREADS", parameters, body)


def _named(kernel: str, text: str, bounds: str, parameters: Collection[str], body: Collection[str]) -> CudaText:
    head = f'extern "C" __global__ void __launch_bounds__({bounds}) NAME(\n    '
    entry = head + ",\n    ".join(parameters) + ") {\n" + "".join(f"  {line}\n" for line in body) + "}\n"
    name = f"flextrace_{kernel}_{hashlib.sha256((text + entry).encode()).hexdigest()[:16]}"
    return CudaText(name, text + entry.replace("NAME", name))
