"""Formulas -> the texts of the two kernels for few query rows: what MLX's metal_kernel takes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ...spec import DECODE, Formulas
from ..generate import with_mods
from ..scoring import PLAIN, Scoring
from ..text import KernelText, texts_of

MERGE = "attention_merge"
INPUTS = ("q", "k", "v", "sizes", "params", "tile_lists")
OUTPUTS = ("partial", "statistics")


def decode_text(
    mods: Formulas, extremes: Collection[int] | None = None, scoring: Scoring = PLAIN, fast_math: bool = False
) -> KernelText:
    """The kernel that attends to a split of the keys; arguments as those of kernel_text. What values lack is not its
    own: merge.metal adds it.

    Raises:
        ValueError: the mods capture more arrays than a Metal kernel has buffers, be they packed.
    """
    text = KernelText(DECODE, "", "", INPUTS, OUTPUTS, scoring=replace(scoring, value_means=False), few_words=True)
    return with_mods(text, "decode/decode.metal", mods, extremes, fast_math=fast_math)


def merge_text() -> KernelText:
    """The kernel that makes one result of those of all splits."""
    inputs = ("partial", "statistics", "sizes", "value_means")
    return KernelText(MERGE, *texts_of("decode/merge.metal"), inputs, ("out", "lse", "max_scores"))
