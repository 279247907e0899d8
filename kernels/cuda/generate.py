"""Formulas, plan -> the text of a CUDA kernel: the hole filled, and the entry with the arguments that MLX passes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from flextrace.tracer import ArrayCapture, Expr, NumberCapture, emit
from flextrace.tracer.emit.c_family import is_uniform
from flextrace.tracer.emit.cuda import CUDA
from flextrace.tracer.expr.node import apply, const, rebuild, walk

from ..gpu.extremes import extremes_type, tile_body
from ..gpu.tile_lists import PARAMS as MASK_PARAMS
from ..spec import Formulas
from ..template.assemble import assemble
from ..template.hole import fill
from .attention.plan import Plan

FOLDER = Path(__file__).parent
HOLE, PLAN = "mod/mod.h", "attention/plan.h"
ELEMENTS = {"float16": "float16_t", "bfloat16": "bfloat16_t", "float32": "float", "bool": "bool"}
ELEMENTS["float64"] = "float"  # arrives so, as on Metal
# Characters of a mod's text for one element, some functions counted for what they become; a longer one is called, as
# each lane has tens of elements.
LONG, OF_A_FUNCTION = 1000, 400
LARGE = re.compile(r"\b(sin|cos|tan|pow|log1p|asin|acos|atan|atan2|sinh|cosh|asinh|acosh|atanh|floor_div|mod)f?\(")
MOST_OPERATIONS = 12  # of a short mask, that differ by key
SLOW = ("floor_div", "mod", "div", "pow")
_READ = {"float": "__int_as_float({})", "int": "{}", "bool": "{} != 0"}
# q, k and v: heads, rows and columns of each; the pointers of lying_view, in order.
SHAPES = {
    "q": "query_heads, q_len, HEAD_DIM",
    "k": "kv_heads, kv_len, HEAD_DIM",
    "v": "kv_heads, kv_len, VALUE_DIM",
}
NEIGHBOURS = ("", "_batch", "_head", "_row")
PARAMS = (
    "query_heads",
    "kv_heads",
    "kv_batches",
    "q_len",
    "kv_len",
    "scale",
    *MASK_PARAMS,
)  # AttentionParams, in order


@dataclass(frozen=True)
class CudaText:
    """A kernel, for one pair of mods: its text, and the name that MLX calls."""

    name: str
    text: str


def element_type(dtype: str) -> str:
    """How CUDA writes an element type."""
    return ELEMENTS.get(dtype, f"{dtype}_t")


def attention_text(mods: Formulas, plan: Plan, blocks: int, extremes: Collection[int] = ()) -> CudaText:
    """The attention kernel. blocks: enum Blocks of walk.h. extremes: slots of arrays whose blocks tile_state reads."""
    approximate = plan.dtype != "float32"
    keys = element_type(plan.dtype if plan.scoring is None else "int8")
    headers = {
        HOLE: mod_header(mods, approximate, extremes),
        PLAN: fill(
            FOLDER / PLAN,
            {"elements": f"typedef {element_type(plan.dtype)} T;\ntypedef {keys} K;"},
            {**plan.constants(), "BLOCKS": str(blocks)},
        ),
    }
    text = assemble(FOLDER, "attention/forward.cu", headers)
    outputs = ("T* out", "float* lse", "float* max_scores")
    if plan.scoring is None:
        views = ", ".join(_view(name, place) for place, name in enumerate(SHAPES))
        run = f"attention_forward({{{views}, tile_lists, {{out, lse, max_scores}}}}, params, mods);"
        pointers = [f"const T* {name}{at}" for name in SHAPES for at in NEIGHBOURS]
        inputs = (*pointers, "const int* tile_lists")
        return with_entry("attention", text, mods, extremes, inputs, outputs, run, scalars=("in_place",))
    given = {"row_scales": "float", "key_scales": "float"}
    given |= {"row_terms": "float"} if plan.scoring.add_back else {}
    given |= {"mean_rows": "int", "mean_scores": "float"} if plan.scoring.smoothed_q else {}
    names = ("row_scales", "key_scales", "row_terms", "mean_rows", "mean_scores")
    rounded = ", ".join(name if name in given else "nullptr" for name in names)
    tensors = ", ".join(["const K* q, const K* k, const T* v", *(f"const {kind}* {x}" for x, kind in given.items())])
    views = ", ".join(f"packed_view({name}, {shape})" for name, shape in SHAPES.items())
    run = f"attention_forward({{{views}, tile_lists, {{out, lse, max_scores}}, {{{rounded}}}}}, params, mods);"
    inputs = (tensors, "const int* tile_lists")
    return with_entry("attention_int8", text, mods, extremes, inputs, outputs, run)


def _view(name: str, place: int) -> str:
    """Where a tensor lies: as its neighbours say, or, where bit `place` of in_place is not set, row after row."""
    pointers = ", ".join(f"{name}{at}" for at in NEIGHBOURS)
    return f"in_place >> {place} & 1 ? lying_view({pointers}) : packed_view({name}, {SHAPES[name]})"


class Assignments(NamedTuple):
    """What fills the members of Mods, a statement each. arrays: by slot; in numbers and sizes {} is for the word."""

    arrays: list[tuple[int, str]]
    extremes: list[str]
    numbers: list[str]
    sizes: list[str]


def assignments(mods: Formulas, extremes: Collection[int]) -> Assignments:
    """In the order of a kernel's arguments, which are of the members' names."""
    arrays = [(slot, f"mods.array{slot} = array{slot};") for slot in range(len(mods.arrays))]
    numbers = [f"mods.number{slot} = {_READ[number.dtype]};" for slot, number in enumerate(mods.numbers)]
    sizes = [
        f"mods.array{slot}_shape.sizes[{axis}] = mods.array{slot}_strides.shape.sizes[{axis}] = {{}};"
        for slot, array in enumerate(mods.arrays)
        for axis in range(array.ndim)
    ]
    return Assignments(arrays, [f"mods.extremes{slot} = extremes{slot};" for slot in extremes], numbers, sizes)


def attention_entry(
    text: str, mods: Formulas, extremes: Collection[int], launched: str, tensors: str, given: str
) -> CudaText:
    """The text of an attention kernel, and behind it the function that MLX calls.

    Args:
        launched: the bounds of a launch. tensors: how the function takes q, k and v. given: how it hands them on.
    """
    run = "attention_forward({" + given + ", tile_lists, {out, lse, max_scores}}, params, mods);"
    inputs, outputs = (tensors, "const int* tile_lists"), ("T* out", "float* lse", "float* max_scores")
    return with_entry("attention", text, mods, extremes, inputs, outputs, run, launched=launched)


def with_entry(
    kernel: str,
    text: str,
    mods: Formulas,
    extremes: Collection[int],
    inputs: Sequence[str],
    outputs: Sequence[str],
    run: str,
    struct: str = "Mods",
    launched: str = "THREADS",
    scalars: Sequence[str] = (),
) -> CudaText:
    """The text, and behind it what MLX launches: a function of `inputs`, captured arrays and extremes, `outputs`,
    scalars, PARAMS, and words of captures. It executes `run`, in which there are params and mods, of that struct."""
    filled = assignments(mods, extremes)
    words = [f"word{i}" for i in range(len(filled.numbers) + len(filled.sizes))]
    parameters = [
        *inputs,
        *(f"const {element_type(array.element)}* array{slot}" for slot, array in enumerate(mods.arrays)),
        *(f"const {extremes_type(mods.arrays[slot].element)}* extremes{slot}" for slot in extremes),
        *outputs,
        *(f"int {name}" for name in (*scalars, *PARAMS, *words)),
    ]
    read = [line.format(word) for line, word in zip([*filled.numbers, *filled.sizes], words, strict=True)]
    values = ", ".join("__int_as_float(scale)" if name == "scale" else name for name in PARAMS)
    lines = [
        f'extern "C" __global__ void __launch_bounds__({launched}) NAME(',
        "    " + ",\n    ".join(parameters) + ") {",
        f"  {struct} mods;",
        *(f"  {line}" for line in (*(line for _, line in filled.arrays), *filled.extremes, *read)),
        "  const AttentionParams params = {" + values + "};",
        f"  {run}",
        "}",
    ]
    return named(kernel, text, "\n".join(lines) + "\n")


def named(kernel: str, text: str, entry: str) -> CudaText:
    """A kernel's text, whose entry says NAME where its name is to be."""
    name = f"flextrace_{kernel}_{hashlib.sha256((text + entry).encode()).hexdigest()[:16]}"
    return CudaText(name, text + entry.replace("NAME", name))


def mod_header(mods: Formulas, approximate: bool, extremes: Collection[int] = ()) -> str:
    """The text that fills the hole."""
    values, texts = (
        {"APPROXIMATE": str(approximate).lower()},
        {"captures": _captures(mods.arrays, mods.numbers, extremes)},
    )
    score, mask = mods.score_expr, mods.mask_expr
    if score is not None:
        values["HAS_SCORE_MOD"] = "true"
        formula = reciprocals(score) if approximate else score
        texts["score_mod"], called = _body(formula, "score_mod", ("float score", "int kv_idx"), "float")
        texts["captures"] += "\n" + called
    if mask is not None:
        values |= {"HAS_MASK_MOD": "true", "MASK_IS_SHORT": str(_is_short(mask)).lower()}
        texts["library"] = f'#include "{"extremes.h" if extremes else "bounds.h"}"'
        texts["mask_mod"], called = _body(mask, "mask_mod", ("int kv_idx",), "bool")
        texts["captures"] += "\n" + called
        texts["tile_state"] = tile_body(mask, extremes)
    return fill(FOLDER / HOLE, texts, values)


def _captures(arrays: Sequence[ArrayCapture], numbers: Sequence[NumberCapture], extremes: Collection[int]) -> str:
    lines = []
    for slot, array in enumerate(arrays):
        lines.append(f"const {element_type(array.element)}* __restrict__ array{slot};")
        lines.append(f"Shape<{array.ndim}> array{slot}_shape;")
        lines.append(f"RowMajor<{array.ndim}> array{slot}_strides;")
    lines += [f"const {extremes_type(arrays[slot].element)}* __restrict__ extremes{slot};" for slot in extremes]
    lines += [f"{number.dtype} number{slot};" for slot, number in enumerate(numbers)]
    return "\n".join(f"  {line}" for line in lines)


def _is_short(mask: Expr) -> bool:
    """Whether a lane may have it once for each of its elements: a few operations, and nothing is looked up by key."""
    varying = [node for node in walk(mask) if "kv_idx" in node.varies]
    return len(varying) <= MOST_OPERATIONS and all(node.op not in ("load", *SLOW) for node in varying)


def reciprocals(expr: Expr) -> Expr:
    """Quotients by a constant as products: approximate, as other quotients then are."""

    def changed(node: Expr, args: Sequence[Expr]) -> Expr:
        if node.op == "div" and args[1].op == "const" and args[1].value:
            return apply("mul", args[0], const(1.0 / args[1].value))
        return Expr(node.op, node.dtype, tuple(args), node.value)

    return rebuild(expr, changed)


def _body(expr: Expr, kind: str, varying: Sequence[str], result: str) -> tuple[str, str]:
    """The body of a mod, and a member that it calls where it is long."""
    emitted = emit(expr, CUDA, is_uniform)
    return function_of_a_row(kind, varying, result, emitted.outer, [*emitted.statements, f"return {emitted.result};"])


def function_of_a_row(
    kind: str, varying: Sequence[str], result: str, outer: Sequence[str], inner: Sequence[str]
) -> tuple[str, str]:
    """The body of a function of a row: what is the same for all of its scores, then a function of the rest; and a
    member that it calls, where the text is so long that a lane is not to have it once for each of its elements."""
    head, given = f"return [=]({', '.join(varying)}) {{", ", ".join(name.split()[1] for name in varying)
    if sum(len(line) + OF_A_FUNCTION * len(LARGE.findall(line)) for line in inner) <= LONG:
        return "\n".join([*outer, head, *(f"  {line}" for line in inner), "};"]), ""
    parameters = ", ".join(["int b", "int h", "int q_idx", *varying])
    lines = [f"CALLED {result} {kind}_of({parameters}) const {{", *(f"  {x}" for x in (*outer, *inner)), "}"]
    return "\n".join([head, f"  return {kind}_of(b, h, q_idx, {given});", "};"]), "\n".join(f"  {x}" for x in lines)
