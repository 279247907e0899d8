"""Formulas -> the generated `mod.h`: the user's mods as C++ functions with the fixed signatures of the hole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from flextrace.tracer import (
    CPP,
    Emitted,
    EmittedMany,
    Expr,
    Formula,
    Site,
    derivative,
    emit,
    emit_many,
    leaves,
)
from flextrace.tracer.bounds.tiles import bounds_of
from flextrace.tracer.emit.c_family import is_uniform
from flextrace.tracer.emit.cpp import CPP_ELEMENTS
from flextrace.tracer.emit.tile_state import CPP_RANGES, tile_state_parts
from flextrace.tracer.expr.node import SCORE, B, H, walk

from ..spec import ATTENTION, BACKWARD, DECODE, Formulas, KernelSpec
from ..template.assemble import assemble
from ..template.hole import fill

HOLE = "mod/mod.h"
FOLDER = Path(__file__).parent
PLAIN = "PLAIN"  # Keys of params.h
GRADIENT = "mod/gradient.h"
FILES = {
    ATTENTION: "attention/forward.cpp",
    DECODE: "attention/decode.cpp",
    BACKWARD: "attention/backward.cpp",
}  # a stage lies in a file of its name


def kernel_text(spec: KernelSpec) -> str:
    """The complete C++ text of a kernel; its variant is how it reads keys, plainly without one."""
    file = FILES.get(spec.kernel, f"stages/{spec.kernel}.cpp")
    if spec.kernel == BACKWARD:
        headers = {
            HOLE: mod_header(spec.mods),
            GRADIENT: gradient_header(spec.mods, cast("tuple[int, ...]", spec.variant)),
        }
        return assemble(FOLDER, file, headers)
    header = mod_header(spec.mods, PLAIN if spec.variant is None else str(spec.variant))
    return assemble(FOLDER, file, {HOLE: header})


def mod_header(mods: Formulas, keys: str = PLAIN) -> str:
    """The text that fills the hole."""
    score, mask = mods.score_expr, mods.mask_expr
    values, texts = {"KEYS": keys, "ARRAYS": str(len(mods.arrays))}, {}
    if mods.score is not None and score is not None:
        values["HAS_SCORE_MOD"] = "true"
        texts["score_mod"] = _body(score, "vfloat score, vint kv_idx", _comment(mods.score))
    if mods.mask is not None and mask is not None:
        used = leaves(mask, ("index",))
        values["HAS_MASK_MOD"] = "true"
        values |= {name: "true" for name, index in (("MASK_USES_BATCH", B), ("MASK_USES_HEAD", H)) if index in used}
        texts["mask_mod"] = _body(mask, "vint kv_idx", _comment(mods.mask))
        texts |= {"tile_state": tile_state_text(mask), "ranged_arrays": _ranged_arrays(mask)}
    return fill(FOLDER / HOLE, texts, values)


def gradient_header(mods: Formulas, wanted: Sequence[int]) -> str:
    """The text that fills the hole of the backward kernel; wanted: slots of the arrays whose gradients it gives."""
    score = mods.score_expr
    if mods.score is None or score is None:
        return fill(FOLDER / GRADIENT, {}, {})
    sites = [site for site in mods.sites if site.slot in wanted]
    texts = {"score_gradient": _gradient_body(score, [site.slope for site in sites], _comment(mods.score))}
    if sites:
        rows = [f"{{{site.pattern.name}, {site.slot}, {wanted.index(site.slot)}}}" for site in sites]
        table = f"constexpr Site SITE[] = {{{', '.join(rows)}}};"
        texts["sites"] = f"constexpr int SITES = {len(sites)};\n{table}"
        texts["place"] = _places(sites)
    return fill(FOLDER / GRADIENT, texts, {})


def _gradient_body(score: Expr, slopes: Sequence[Expr], comment: str) -> str:
    emitted = emit_many([score, derivative(score, SCORE), *slopes], CPP, is_uniform)
    value, by_score, *by_site = (f"splat({result})" for result in emitted.results)
    result = f"ScoreGradient{{{value}, {by_score}, {{{', '.join(by_site)}}}}}"
    return _lanes(emitted, "vfloat score, vint kv_idx", comment, [f"return {result};"])


def _places(sites: Sequence[Site]) -> str:
    emitted = emit_many([index for site in sites for index in site.load.args], CPP, is_uniform)
    indices = iter(emitted.results)
    lines = ["switch (site) {"]
    for number, site in enumerate(sites):
        arguments = ["in", str(site.slot), *(next(indices) for _ in site.load.args)]
        label = "default" if number == len(sites) - 1 else f"case {number}"
        lines.append(f"  {label}: return fx::place({', '.join(arguments)});")
    return _lanes(emitted, "int site, vfloat score, vint kv_idx", "by the numbers of SITE", [*lines, "}"])


def tile_state_text(mask: Expr) -> str:
    """The body of tile_state: the bounds that are the same for all keys, then a function of a range of keys."""
    row, keys = tile_state_parts(mask, CPP_RANGES)
    head = "(void)batch, (void)head, (void)q_first, (void)q_last, (void)in;"
    lines = [head, row, "return [=](int kv_first, int kv_last) {", "  (void)kv_first, (void)kv_last;", _indented(keys)]
    return "\n".join([*lines, "};"])


def tile_lines(mask: Expr) -> list[str]:
    """How tiles are decided where a mask_mod itself is the block_mask, for a reader."""
    row, keys = tile_state_parts(mask, CPP_RANGES)
    lines = [
        "tiles (a bare mask_mod decides them by bounds, here those of the cpu kernel: 0 empty, 1 evaluated, 2 full):"
    ]
    lines += [f"  {line}" for line in (*row.splitlines(), *keys.splitlines())]
    extremes = (f"array{slot} along axis {axis}" for slot, (_, axis) in ranged_axes(mask).items())
    return lines + [f"  ranges of {array}: from the least and largest elements of its blocks" for array in extremes]


def ranged_axes(mask: Expr) -> dict[int, tuple[str, int]]:
    """By slot, for each captured array that a mask reads ranges of: the type of its elements, and the axis of them.

    Along that axis the cpu kernel keeps the extremes of blocks of neighbours.
    """
    axes: dict[int, tuple[str, int]] = {}
    for node in walk(bounds_of(mask).related):
        along = [axis for axis, index in enumerate(node.args) if not index.varies.isdisjoint(("q_idx", "kv_idx"))]
        if node.op == "load" and along:
            slot, element = node.value
            axes.setdefault(slot, (element, along[-1]))
    return axes


def _ranged_arrays(mask: Expr) -> str:
    uses = [f"use(Type<{CPP_ELEMENTS[kind]}>(), {slot}, {axis});" for slot, (kind, axis) in ranged_axes(mask).items()]
    return "\n".join(uses or ["(void)use;"])


def _comment(mod: Formula) -> str:
    return f"{mod.kind} with {len(mod.arrays)} captured arrays and {len(mod.numbers)} captured numbers"


def _body(expr: Expr, varying: str, comment: str) -> str:
    """What is the same for a whole row of scores, then a function of the rest."""
    emitted = emit(expr, CPP, is_uniform)
    return _lanes(emitted, varying, comment, [f"return splat({emitted.result});"])


def _lanes(emitted: Emitted | EmittedMany, varying: str, comment: str, result: Sequence[str]) -> str:
    lines = [
        "(void)b, (void)h, (void)q_idx, (void)in;",
        f"// {comment}",
        *emitted.outer,
        f"return [=]({varying}) {{",
        *(f"  {line}" for line in (*emitted.statements, *result)),
        "};",
    ]
    return "\n".join(lines)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
