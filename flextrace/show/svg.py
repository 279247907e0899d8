"""Blocks, grids of cells -> an SVG for notebooks; large masks are drawn coarser."""

from __future__ import annotations

import numpy as np

from flextrace.block_mask.text import coarse_states
from flextrace.kernels import Blocks
from flextrace.kernels.blocks import EMPTY, FULL, PARTIAL, Array

COLOURS = {PARTIAL: "#7fb2d9", FULL: "#2b6ca3"}  # readable on white and on black
CLASSES = {PARTIAL: "partial", FULL: "full"}


def block_svg(blocks: Blocks, b: int = 0, h: int = 0, size: int = 240) -> str:
    """The grid of blocks as an SVG of at most size x size pixels."""
    return states_svg(coarse_states(blocks, b, h, 80, 80)[0], size, "blocks of the mask")


def states_svg(states: Array, size: int, label: str) -> str:
    """Cells of EMPTY, PARTIAL, FULL as an SVG of at most size x size pixels; the classes let a page choose colours."""
    rows, columns = states.shape
    cell = max(1, size // max(1, rows, columns))  # whole pixels: fractions leave seams between the boxes
    boxes = []
    for i, row in enumerate(states):
        ends = np.flatnonzero(np.diff(row)) + 1
        for first, end in zip([0, *ends], [*ends, columns], strict=True):  # neighbours of one state in one box
            if columns and row[first] != EMPTY:
                state = int(row[first])
                place = f'x="{first * cell}" y="{i * cell}" width="{(end - first) * cell}" height="{cell}"'
                boxes.append(f'<rect {place} class="{CLASSES[state]}" fill="{COLOURS[state]}"/>')
    width, height = columns * cell, rows * cell
    if rows and columns:
        boxes.append(
            f'<rect x="-0.5" y="-0.5" width="{width + 1}" height="{height + 1}" fill="none" stroke="currentColor" '
            'stroke-opacity="0.4"/>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width + 2}" height="{height + 2}" role="img" '
        f'viewBox="-1 -1 {width + 2} {height + 2}" shape-rendering="crispEdges" aria-label="{label}">'
        f"{''.join(boxes)}</svg>"
    )
