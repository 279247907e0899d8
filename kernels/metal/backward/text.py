"""Formulas -> the text of a gradient kernel for them: what MLX's metal_kernel takes."""

from __future__ import annotations

from flextrace.tracer import Expr
from flextrace.tracer.emit.emit import emit_many
from flextrace.tracer.emit.metal import metal_of
from flextrace.tracer.expr.derivative import derivative
from flextrace.tracer.expr.node import SCORE

from ...spec import Formulas
from ...template.hole import fill
from ..generate import with_mods
from ..kernel import Variant
from ..text import FOLDER, KernelText

QUERY, KEY, TIES = KERNELS = ("backward_query", "backward_key", "backward_ties")
HOLE = "backward/score_gradient.h"
_SIZES = ("sizes", "mask_sizes", "params", "tile_lists")
_TENSORS = ("q", "k", "v", "d_out", *_SIZES, "statistics")
# Kernel -> (inputs, outputs), as its body names them.
_NAMES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    QUERY: (_TENSORS, ("d_q",)),
    KEY: (_TENSORS, ("d_k", "d_v")),
    TIES: (("q", "k", *_SIZES), ("largest", "ties")),
}


def gradient_text(kernel: str, mods: Formulas, variant: Variant) -> KernelText:
    """The kernel of that name in KERNELS.

    Raises:
        ValueError: the mods capture more arrays than a Metal kernel has buffers, be they packed.
    """
    inputs, outputs = _NAMES[kernel]
    text = KernelText(kernel, "", "", inputs, outputs)
    hole = {} if mods.score_expr is None else {HOLE: _score_gradient(mods.score_expr)}
    return with_mods(text, f"backward/{kernel.removeprefix('backward_')}.metal", mods, variant.by_blocks, hole)


_BODY = """\
{statements}
ScoreGradient made;
made.score = {score};
made.slope = {slope};
return made;"""


def _score_gradient(score: Expr) -> str:
    """The text that fills the hole: the score_mod and its derivative, what both need computed once."""
    made = emit_many((score, derivative(score, SCORE)), metal_of("mods"))
    body = _BODY.format(statements="\n".join(made.statements), score=made.results[0], slope=made.results[1])
    return fill(FOLDER / HOLE, {"score_gradient": body.lstrip("\n")}, {})
