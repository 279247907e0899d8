"""Formulas, plan -> the text of the Hopper kernel, and that of the kernel before it, which writes tensor maps."""

from __future__ import annotations

from collections.abc import Collection

from ...spec import Formulas
from ...template.assemble import assemble
from ...template.hole import fill
from ..generate import FOLDER, HOLE, CudaText, attention_entry, element_type, mod_header
from .plan import HopperPlan

PLAN = "hopper/plan.h"
TENSOR_MAPS = "tensor_maps"  # the kernel before those of Hopper


def hopper_text(mods: Formulas, plan: HopperPlan, blocks: int, extremes: Collection[int] = ()) -> CudaText:
    """The attention kernel. blocks: enum Blocks of walk.h. extremes: slots of arrays whose blocks tile_state reads."""
    element = {"element": f"typedef {element_type(plan.dtype)} T;"}
    headers = {
        HOLE: mod_header(mods, True, extremes),
        PLAN: fill(FOLDER / PLAN, element, {**plan.constants(), "BLOCKS": str(blocks)}),
    }
    text = assemble(FOLDER, "hopper/forward.cu", headers)
    tensors = "const uint8_t* maps, const T* q, const T* k, const T* v"
    return attention_entry(text, mods, extremes, "THREADS, 1", tensors, "maps, q, k, v")


def maps_text() -> CudaText:
    """The kernel that writes tensor maps: the same for every call."""
    return CudaText("flextrace_tensor_maps", assemble(FOLDER, "hopper/maps.cu", {}))
