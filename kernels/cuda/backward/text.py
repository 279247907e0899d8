"""Formulas, plan -> the text of a gradient kernel: the holes filled, and the entry with MLX's arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from flextrace.tracer import Expr, Pattern, Site
from flextrace.tracer.emit.c_family import is_uniform
from flextrace.tracer.emit.cuda import CUDA
from flextrace.tracer.emit.emit import emit_many
from flextrace.tracer.expr.derivative import derivative
from flextrace.tracer.expr.node import SCORE

from ...spec import Formulas, KernelSpec
from ...template.assemble import assemble
from ...template.hole import fill
from ..generate import (
    FOLDER,
    HOLE,
    CudaText,
    element_type,
    function_of_a_row,
    mod_header,
    named,
    reciprocals,
    with_entry,
)
from .hopper.plan import HopperGradientPlan
from .plan import WORDS_OF_PAIR, GradientPlan, gradient_plan

QUERY, KEY, TERMS, TIES, PAIRS, ELEMENTS, SEGMENTS = KERNELS = (
    *("backward_query", "backward_key", "backward_terms", "backward_ties"),
    *("backward_pairs", "backward_elements", "backward_segments"),
)
PATTERNS = (Pattern.DIAGONAL, Pattern.DENSE, Pattern.TABLE)  # enum Pattern of pair_sums.h
PLAN, GRADIENT_HOLE = "backward/plan.h", "mod/score_gradient.h"
HOPPER_PLAN = "backward/hopper/plan.h"
_TENSORS = tuple(f"const T* {name}" for name in ("q", "k", "v", "d_out"))
_INPUTS = (*_TENSORS, "const float* terms", "const float* factor", "const int* tile_lists")
_STATISTICS = tuple(f"const float* {name}" for name in ("lse", "d_lse", "largest", "ties", "d_max", "factor"))
# Kernel -> (inputs, outputs and numbers of its own, what its entry runs).
_ENTRIES: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    QUERY: (
        _INPUTS,
        ("T* d_q", "float* site_sums"),
        "backward_query({q, k, v, d_out, terms, factor, tile_lists, d_q, site_sums}, params, mods);",
    ),
    KEY: (
        _INPUTS,
        ("T* d_k", "T* d_v", "float* site_sums", "int sharing"),
        "backward_key({q, k, v, d_out, terms, factor, tile_lists, d_k, d_v, site_sums, sharing}, params, mods);",
    ),
    TIES: (
        ("const T* q", "const T* k", "const int* tile_lists"),
        ("float* largest", "float* ties"),
        "count_ties({q, k, tile_lists, largest, ties}, params, mods);",
    ),
    PAIRS: (
        _INPUTS,
        ("float* sums", "int batches"),
        "sum_pairs({q, k, v, d_out, terms, factor, tile_lists, sums, batches}, params, mods);",
    ),
    ELEMENTS: (
        (),
        ("int* elements", "int positions", "int count"),
        "find_elements(elements, positions, count, params.kv_len, mods);",
    ),
    TERMS: (
        ("const T* d_out", "const T* out", *_STATISTICS),
        ("float* terms", "int rows"),
        "row_terms({d_out, out, lse, d_lse, largest, ties, d_max, factor, terms, rows});",
    ),
    SEGMENTS: (
        ("const float* values", "const int* order", "const int* starts"),
        ("float* sums", "int count"),
        "sum_segments(values, order, starts, sums, count);",
    ),
}


class GradientVariant(NamedTuple):
    """What else, beside the mods, makes two gradient kernels differ.

    plan: None for ELEMENTS and SEGMENTS. blocks: enum Blocks of walk.h. extremes: slots of arrays whose blocks
    tile_state reads. sites: the numbers of the reads whose gradients it sums. pattern: of PATTERNS, for PAIRS.
    """

    plan: GradientPlan | HopperGradientPlan | None = None
    blocks: int = 0
    extremes: tuple[int, ...] = ()
    sites: tuple[int, ...] = ()
    pattern: int = 0


def gradient_specs(mods: Formulas, architecture: int) -> dict[str, KernelSpec]:
    """By name the kernels that give the gradients of q, k, v and of all that the score_mod captures, for the plainest
    call: "backward_query", "backward_key" and, with a number, one for each place whose pairs are summed."""
    places = list(enumerate(mods.sites))
    found = {}
    for kernel, pattern in ((QUERY, Pattern.ROW), (KEY, Pattern.COLUMN)):
        summed = tuple(number for number, site in places if site.pattern == pattern)
        plan = gradient_plan(kernel == KEY, 64, 64, "float16", architecture)
        found[kernel] = KernelSpec(kernel, mods, GradientVariant(plan, sites=summed))
    for number, site in places:
        if site.pattern in PATTERNS:
            plan = gradient_plan(False, 64, 64, "float16", architecture, words_of_pair=WORDS_OF_PAIR[site.pattern])
            variant = GradientVariant(plan, sites=(number,), pattern=PATTERNS.index(site.pattern))
            found[f"{PAIRS}_{number}"] = KernelSpec(PAIRS, mods, variant)
    return found


def gradient_text(kernel: str, mods: Formulas, variant: GradientVariant) -> CudaText:
    """The kernel of that name in KERNELS; TERMS and SEGMENTS have no mods."""
    plan, file = variant.plan, file_of(kernel, isinstance(variant.plan, HopperGradientPlan))
    inputs, outputs, run = _ENTRIES[kernel]
    headers = {} if plan is None else _plan(plan, variant)
    if kernel in (TERMS, SEGMENTS):
        text = assemble(FOLDER, file, headers)
        parameters, body = ", ".join((*inputs, *outputs)), f"  {run}"
        entry = f'extern "C" __global__ void __launch_bounds__(THREADS) NAME({parameters}) {{\n{body}\n}}\n'
        return named(kernel, text, entry)
    approximate = plan is not None and plan.dtype != "float32"
    headers |= {
        HOLE: mod_header(mods, approximate, variant.extremes),
        GRADIENT_HOLE: _score_gradient(mods, [mods.sites[number] for number in variant.sites], approximate),
    }
    launched = "THREADS"
    if isinstance(plan, HopperGradientPlan):
        inputs, run, launched = ("const uint8_t* maps", *inputs), run.replace("({q,", "({maps, q,"), "THREADS, 1"
    text = assemble(FOLDER, file, headers)
    return with_entry(kernel, text, mods, variant.extremes, inputs, outputs, run, "GradientMods", launched)


def file_of(kernel: str, hopper: bool = False) -> str:
    """Where a kernel lies."""
    room = "captured" if kernel in (PAIRS, ELEMENTS, SEGMENTS) else "backward"
    return f"{room}/{'hopper/' if hopper else ''}{kernel.removeprefix('backward_')}.cu"


def _plan(plan: GradientPlan | HopperGradientPlan, variant: GradientVariant) -> dict[str, str]:
    """The header of the plan, by its name."""
    name, values = HOPPER_PLAN, {**plan.constants(), "BLOCKS": str(variant.blocks)}
    if isinstance(plan, GradientPlan):
        name, values = PLAN, values | {"PATTERN": str(variant.pattern)}
    return {name: fill(FOLDER / name, {"element": f"typedef {element_type(plan.dtype)} T;"}, values)}


def _score_gradient(mods: Formulas, sites: Sequence[Site], approximate: bool) -> str:
    """The text that fills the hole: the score_mod and its derivatives, what several need computed once; and where the
    first site reads. The scores are those of the forward kernel, so functions are as exact as there."""

    def spelt(expr: Expr) -> Expr:
        return reciprocals(expr) if approximate else expr

    texts = {}
    if mods.score_expr is not None:
        slopes = (derivative(mods.score_expr, SCORE), *(site.slope for site in sites))
        made = emit_many([spelt(expr) for expr in (mods.score_expr, *slopes)], CUDA, is_uniform)
        names = ("score", "slope", *(f"sites[{i}]" for i in range(len(sites))))
        given = [f"made.{name} = {result};" for name, result in zip(names, made.results, strict=True)]
        texts["score_gradient"], texts["called"] = function_of_a_row(
            "score_gradient",
            ("float score", "int kv_idx"),
            "ScoreGradient",
            made.outer,
            [*made.statements, "ScoreGradient made;", *given, "return made;"],
        )
    if sites and sites[0].load.args:
        load, array = sites[0].load, f"array{sites[0].slot}"
        index = emit_many(load.args, CUDA)
        sizes = [f"{array}_shape[{axis}]" for axis in range(len(load.args))]
        steps = [f"at = at * {size} + fx::inside({i}, {size});" for i, size in zip(index.results, sizes, strict=True)]
        texts["element"] = "\n".join([*index.statements, "int64_t at = 0;", *steps, "return at;"])
        texts["element_count"] = f"return {' * '.join(f'int64_t({size})' for size in sizes)};"
    return fill(FOLDER / GRADIENT_HOLE, texts, {"SITES": str(len(sites))})
