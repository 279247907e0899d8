"""Formulas -> the text of a gradient kernel for them: what MLX's metal_kernel takes."""

from __future__ import annotations

from collections.abc import Sequence

from flextrace.tracer import Pattern, Site
from flextrace.tracer.emit.emit import emit_many
from flextrace.tracer.emit.metal import metal_of
from flextrace.tracer.expr.derivative import derivative
from flextrace.tracer.expr.node import SCORE

from ...spec import Formulas, KernelSpec
from ...template.hole import fill
from ..generate import with_mods
from ..kernel import Variant
from ..text import FOLDER, KernelText, texts_of

QUERY, KEY, TIES, PAIRS, ELEMENTS, SEGMENTS = KERNELS = (
    *("backward_query", "backward_key", "backward_ties"),
    *("backward_pairs", "backward_elements", "backward_segments"),
)
HOLE = "mod/score_gradient.h"
_SIZES = ("sizes", "params", "tile_lists")
_TENSORS = ("q", "k", "v", "d_out", *_SIZES, "statistics")
# Kernel -> (inputs, outputs), as its body names them.
_NAMES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    QUERY: (_TENSORS, ("d_q", "site_sums")),
    KEY: (_TENSORS, ("d_k", "d_v", "site_sums")),
    TIES: (("q", "k", *_SIZES), ("largest", "ties")),
    PAIRS: ((*_TENSORS, "extent"), ("sums",)),
    ELEMENTS: (("lengths", "params"), ("elements",)),
    SEGMENTS: (("values", "order", "starts", "lengths"), ("sums",)),
}


def gradient_specs(mods: Formulas) -> dict[str, KernelSpec]:
    """By name the kernels that give the gradients of q, k, v and of all that the score_mod captures: "backward_query",
    "backward_key" and, with a number, one for each place whose pairs are summed."""
    places = list(enumerate(mods.sites))
    found = {}
    for kernel, pattern in ((QUERY, Pattern.ROW), (KEY, Pattern.COLUMN)):
        summed = tuple(number for number, site in places if site.pattern == pattern)
        found[kernel] = KernelSpec(kernel, mods, Variant(sites=summed))
    for number, site in places:
        if site.pattern not in (Pattern.ROW, Pattern.COLUMN):
            found[f"{PAIRS}_{number}"] = KernelSpec(PAIRS, mods, Variant(sites=(number,)))
    return found


def gradient_text(kernel: str, mods: Formulas, variant: Variant) -> KernelText:
    """The kernel of that name in KERNELS; SEGMENTS has no mods.

    Raises:
        ValueError: the mods capture more arrays than a Metal kernel has buffers, be they packed.
    """
    inputs, outputs = _NAMES[kernel]
    file = file_of(kernel)
    if kernel == SEGMENTS:
        return KernelText(kernel, *texts_of(file), inputs, outputs)
    text = KernelText(kernel, "", "", inputs, outputs)
    hole = {HOLE: _score_gradient(mods, [mods.sites[number] for number in variant.sites], variant.fast_math)}
    return with_mods(text, file, mods, variant.by_blocks, hole, variant.fast_math)


def file_of(kernel: str) -> str:
    """Where a kernel lies."""
    return f"{'backward' if kernel in (QUERY, KEY, TIES) else 'captured'}/{kernel.removeprefix('backward_')}.metal"


def _score_gradient(mods: Formulas, sites: Sequence[Site], fast_math: bool) -> str:
    """The text that fills the hole: the score_mod and its derivatives, what several need computed once; and where the
    first site reads. The scores are those of the forward kernel to the bit, so functions are as fast as there."""
    texts, language = {}, metal_of("mods", fast_math)
    if mods.score_expr is not None:
        slopes = (derivative(mods.score_expr, SCORE), *(site.slope for site in sites))
        made = emit_many((mods.score_expr, *slopes), language)
        names = ("score", "slope", *(f"sites[{i}]" for i in range(len(sites))))
        given = [f"made.{name} = {result};" for name, result in zip(names, made.results, strict=True)]
        texts["score_gradient"] = "\n".join([*made.statements, "ScoreGradient made;", *given, "return made;"])
    if sites and sites[0].load.args:
        load, array = sites[0].load, f"mods.array{sites[0].slot}"
        index = emit_many(load.args, language)
        sizes = [f"{array}_shape[{axis}]" for axis in range(len(load.args))]
        steps = [f"at = at * {size} + fx::inside({i}, {size});" for i, size in zip(index.results, sizes, strict=True)]
        texts["element"] = "\n".join([*index.statements, "int64_t at = 0;", *steps, "return at;"])
        texts["element_count"] = f"return {' * '.join(f'int64_t({size})' for size in sizes)};"
    return fill(FOLDER / HOLE, texts, {"SITES": str(len(sites))})
