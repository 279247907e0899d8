"""Formulas -> the text of the attention kernel for them: its hole filled, its inputs, and what MLX makes of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Protocol

from flextrace.tracer import METAL, METAL_FAST, Expr, emit
from flextrace.tracer.emit.c_family import is_uniform

from ..gpu.arguments import SMALLEST, words_for
from ..gpu.extremes import extremes_type, looked_up, tile_body
from ..spec import Formulas
from ..template.hole import fill
from .attention.plan import plan_for
from .device import MAX_BUFFERS
from .mod.captures import are_packed, ascii_text, declared, msl_type, passed_on
from .scoring import PLAIN, Scoring
from .text import FOLDER, HOLE, NOTHING_ELSE, KernelText, texts_of

NO_MODS = Formulas()
KERNEL, ASYNC_KERNEL = WITHOUT_SIZES = "attention/forward.metal", "async_copy/forward.metal"
# WITHOUT_SIZES: of which `sizes` is no buffer where arrays are packed; what it has lies in front of `params`.
INPUTS = ("q", "k", "v", "sizes", "params", "tile_lists")
OUTPUTS = ("out", "lse", "max_scores")
TYPED_OUTPUTS = ("out", "d_q", "d_k", "d_v")  # others are float32
IN_CONSTANT = ("sizes", "extent", "lengths")  # fewer than 8 elements each
STRIDED = ("q", "k", "v", "d_out")
ATTRIBUTES = {
    "threadgroup_position_in_grid": "uint3",
    "threadgroups_per_grid": "uint3",
    "simdgroup_index_in_threadgroup": "uint",
    "thread_index_in_simdgroup": "uint",
}

NO_TEXT = KernelText("attention", "", "", INPUTS, OUTPUTS)


class Templated(Protocol):
    """A plan: template arguments by name."""

    def template(self) -> list[tuple[str, int | bool]]: ...


def complete(text: KernelText, plan: Templated | None = None) -> str:
    """The text of an attention kernel as MLX would compile it: the header, the signature that MLX writes, the body."""
    plan = plan or plan_for(64, 64, "float32")
    arguments = ", ".join(f"{'bool' if isinstance(v, bool) else 'int'} {name}" for name, v in plan.template())
    lines = [f"template <typename T, {arguments}, int BLOCKS>", f"[[kernel]] void {text.name}("]
    lines += [f"    {parameter}," for parameter in buffers(text)]
    attributes = [f"    {kind} {name} [[{name}]]" for name, kind in ATTRIBUTES.items()]
    return text.header + "\n".join([*lines, ",\n".join(attributes) + ") {", text.body + "}\n"])


def buffers(text: KernelText) -> list[str]:
    """The buffers of an attention kernel, as MLX declares them."""
    dims = {f"array{slot}": array.ndim for slot, array in enumerate(text.arrays)}
    types = {name: "T" for name in STRIDED} | {
        name: "int" for name in ("params", "tile_lists", "order", "starts", *IN_CONSTANT)
    }
    types |= (
        {"sizes": "int64_t"}
        | dict.fromkeys(("statistics", "values", "partial", "value_means"), "float")
        | text.scoring.inputs
        | ({"k": "int8_t"} if text.scoring.quantised else {})
    )
    types |= {"v": "int8_t"} if text.scoring.int8_values else {}
    types |= {f"array{slot}": msl_type(array.element) for slot, array in enumerate(text.arrays)}
    types |= {f"extremes{slot}": extremes_type(text.arrays[slot].element) for slot in text.extremes}
    found, strided = [], (*STRIDED, *text.scoring.strided)
    for name in text.inputs:
        in_constant = name in IN_CONSTANT or (name == "params" and text.few_words)
        space = "constant" if dims.get(name) == 0 or in_constant else "device"
        found.append(f"const {space} {types[name]}{'&' if dims.get(name) == 0 else '*'} {name}")
        with_axes = bool(dims.get(name)) and not text.packed
        found += [f"const constant int* {name}_shape"] if with_axes else []
        found += [f"const constant int64_t* {name}_strides"] if with_axes or name in strided else []
    kinds = {name: "T" for name in TYPED_OUTPUTS} | {"elements": "int"}
    found += [f"device {kinds.get(name, 'float')}* {name}" for name in text.outputs]
    return [f"{parameter} [[buffer({i})]]" for i, parameter in enumerate(found)]


def kernel_text(
    mods: Formulas = NO_MODS,
    async_copy: bool = False,
    extremes: Collection[int] | None = None,
    scoring: Scoring = PLAIN,
    fast_math: bool = False,
) -> KernelText:
    """The kernel for these mods; with `async_copy` the one that has the intrinsic in its text, with `fast_math` the one
    whose score_mod takes Metal's fast functions. (A mask keeps to the bounds that decide its tiles.)

    Raises ValueError where the mods capture more arrays than a Metal kernel has buffers, be they packed.
    """
    file = ASYNC_KERNEL if async_copy else KERNEL
    return with_mods(replace(NO_TEXT, scoring=scoring), file, mods, extremes, fast_math=fast_math)


def with_mods(
    text: KernelText,
    file: str,
    mods: Formulas,
    extremes: Collection[int] | None = None,
    others: Mapping[str, str] = NOTHING_ELSE,
    fast_math: bool = False,
) -> KernelText:
    """The kernel in `file`, of which `text` has all but what the mods add; `others`: headers that are generated too.

    `extremes` are the slots of captured arrays whose blocks tile_state may read, all without it; arrays that it does
    not look up by row or key are left out, and those for which there is no buffer.

    `text.few_words`: whether the kernel would have few words of captures in the constant address space.

    Raises ValueError where the mods capture more arrays than a Metal kernel has buffers, be they packed.
    """
    arrays, scoring = mods.arrays, text.scoring
    packed = are_packed(arrays, len(buffers(text)) + len(scoring.parameters), int(file in WITHOUT_SIZES))
    names = [f"array{slot}" for slot in range(len(arrays))]
    own = [name for name in text.inputs if not (packed and file in WITHOUT_SIZES and name == "sizes")]
    few_words = text.few_words and not packed and words_for(mods) < SMALLEST
    text = replace(text, inputs=(*own, *names), arrays=arrays, packed=packed, few_words=few_words)
    taken = len(buffers(text)) + len(scoring.parameters)
    slots = [slot for slot in looked_up(mods) if extremes is None or slot in extremes]
    slots = slots[: MAX_BUFFERS - taken]
    of_blocks = [f"extremes{slot}" for slot in slots]
    passed = [*passed_on(arrays, packed), *of_blocks, *(name.rsplit(" ", 1)[1] for name in scoring.parameters)]
    header, body = texts_of(file, mod_header(mods, slots, scoring, packed, fast_math, few_words), passed, others)
    if packed and file in WITHOUT_SIZES:
        body = body.replace("(sizes)", "(params)").replace("mods(params", "mods(params + PARAM_WORDS")
    return replace(
        text,
        header=header,
        body=body,
        inputs=(*text.inputs, *of_blocks, *scoring.inputs),
        extremes=tuple(slots),
    )


def mod_header(
    mods: Formulas,
    extremes: Collection[int] = (),
    scoring: Scoring = PLAIN,
    packed: bool = False,
    fast_math: bool = False,
    few_words: bool = False,
) -> str:
    """The text that fills the hole; `extremes` are the slots of arrays whose blocks tile_state reads."""
    mask = mods.mask_expr
    made = declared(mods.arrays, mods.numbers, extremes, packed)
    for parameter in scoring.parameters:
        made.passed(*parameter.rsplit(" ", 1))
    values = dict(scoring.values)
    texts = {"captures": made.struct(), "captured_by_mods": made.function("constant" if few_words else "device")}
    if mods.score is not None and mods.score_expr is not None:
        values["HAS_SCORE_MOD"] = "true"
        texts["score_mod"] = f"// score_mod {ascii_text(mods.score.name)}\n{_body(mods.score_expr, fast_math)}"
    if mods.mask is not None and mask is not None:
        values["HAS_MASK_MOD"] = "true"
        texts["library"] = f'#include "{"extremes.h" if extremes else "bounds.h"}"'
        texts["mask_mod"] = f"// mask_mod {ascii_text(mods.mask.name)}\n{_body(mask)}"
        texts |= {"mask_row": _row_body(mask), "tile_state": tile_body(mask, extremes)}
    return fill(FOLDER / HOLE, texts, values)


_ROW = """\
{outer}
uint bits = 0;
UNROLL
for (int i = 0; i < 2 * FRAGMENTS; i++) {{
  const int kv_idx = kv_first + i / 2 * FRAGMENT + i % 2;
  if (kv_idx < kv_len) {{
{inner}
  }}
}}
return bits;"""


def _row_body(mask: Expr) -> str:
    """What does not depend on the key stands before the loop."""
    emitted = emit(mask, METAL, is_uniform)
    inner = [*emitted.statements, f"bits |= uint({emitted.result}) << i;"]
    return _ROW.format(outer="\n".join(emitted.outer), inner="\n".join(f"    {x}" for x in inner)).lstrip("\n")


def _body(expr: Expr, fast_math: bool = False) -> str:
    emitted = emit(expr, METAL_FAST if fast_math else METAL)
    return "\n".join([*emitted.statements, f"return {emitted.result};"])
