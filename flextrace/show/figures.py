"""Masks, BlockMasks, score_mods -> pictures: matplotlib figures, and text for terminals.

    flex.visualize.mask(mods.sliding_window(64), 512)                 which pairs a mask keeps
    flex.visualize.block_mask(block_mask, path="blocks.png")          which blocks are empty, partial or full
    flex.visualize.score_mod(mods.alibi(8), 512, mask=mods.causal)    what a score_mod makes of the scores
    print(flex.visualize.text(mods.sliding_window(64), 512))          any of them without matplotlib

Figures need matplotlib (`pip install 'flextrace[plot]'`). Nothing larger than 512 x 512 cells is ever evaluated: longer
sequences are drawn coarser, masks by the blocks that hold them (exact), scores by every n-th row and column.
"""

from __future__ import annotations

import functools
import io
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from flextrace.block_mask.block_mask import DEFAULT_BLOCK, BlockMask
from flextrace.block_mask.lists import block_size as checked_block
from flextrace.kernels.blocks import EMPTY, FULL, PARTIAL
from flextrace.tracer.source.signature import ScoreFunction

from .cells import MaskCells, MaskLike, block_cells, mask_cells, score_cells
from .svg import COLOURS
from .text import block_counts, block_grid, mask_counts, score_counts, text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LIMIT = (512, 512)  # cells of a figure
PAPER, INK, NOTHING = "#ffffff", "#1f2328", "#eef0f3"  # background and text are set, whatever the notebook's theme
STATES = {EMPTY: ("empty", NOTHING), PARTIAL: ("partial", COLOURS[PARTIAL]), FULL: ("full", COLOURS[FULL])}
MOST_LINES = 64


def mask(
    mask_mod: MaskLike,
    q_len: int | None = None,
    kv_len: int | None = None,
    *,
    b: int = 0,
    h: int = 0,
    block_size: int | tuple[int, int] | None = DEFAULT_BLOCK,
    title: str | None = None,
    path: str | os.PathLike[str] | None = None,
    show: bool = False,
) -> Figure:
    """Which pairs a mask keeps, for one batch entry and head.

    Args:
        mask_mod: a mask_mod or plain function, or a bool array [q_len, kv_len] with heads and batch before it or not.
        q_len, kv_len: lengths, for a function; kv_len None is q_len.
        b, h: batch entry and query head.
        block_size: that of the block grid drawn over the mask; None for no grid.
        title: instead of the mask's name.
        path: also save the figure there, in the format of its suffix.
        show: also open it in matplotlib's window.

    Returns:
        The matplotlib Figure. More than 512 positions a side are drawn as cells: empty, partial or full.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: lengths are missing, or there is no such batch entry or head.

    Example:
        >>> import flextrace as flex
        >>> figure = flex.visualize.mask(flex.mods.causal, 64)
        >>> print(figure.axes[0].get_title())
        causal
        2,080 of 4,096 pairs kept (50.8 %), b 0, h 0
    """
    figure = _new_figure(show)
    cells = mask_cells(mask_mod, q_len, kv_len, b, h, LIMIT)
    axes = _axes(figure, cells.lengths, f"{title or cells.name}\n{mask_counts(cells)}, b {b}, h {h}")
    used = (EMPTY, FULL) if cells.cell == (1, 1) else (EMPTY, PARTIAL, FULL)
    names = {EMPTY: "hidden", FULL: "kept"} if cells.cell == (1, 1) else {s: STATES[s][0] for s in used}
    _paint_states(figure, axes, cells, {state: names[state] for state in used})
    if block_size is not None:
        _grid(axes, cells.lengths, checked_block(block_size))
    return _finish(figure, path, show)


def block_mask(
    blocks: BlockMask,
    *,
    b: int = 0,
    h: int = 0,
    title: str | None = None,
    path: str | os.PathLike[str] | None = None,
    show: bool = False,
) -> Figure:
    """Which blocks of a BlockMask are empty (skipped), partial (masked) and full (without mask code), with counts.

    Args:
        blocks: the BlockMask. b, h, title, path, show: as for `mask`.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there is no such batch entry or head.

    Example:
        >>> import flextrace as flex
        >>> made = flex.create_block_mask(flex.mods.causal, None, None, 512, 512)
        >>> print(flex.visualize.block_mask(made).axes[0].get_title())
        causal: 4 x 4 blocks of 128 x 128
        6 full, 4 partial, 6 empty, sparsity 37.5 %, b 0, h 0
    """
    figure = _new_figure(show)
    cells, counts = block_cells(blocks, b, h, LIMIT)
    head = f"{title or cells.name}: {block_grid(blocks)}"
    axes = _axes(figure, cells.lengths, f"{head}\n{block_counts(counts)}, b {b}, h {h}")
    names = {EMPTY: f"empty ({counts.empty:,})", PARTIAL: f"partial ({counts.partial:,})"}
    _paint_states(figure, axes, cells, {**names, FULL: f"full ({counts.full:,})"})
    _grid(axes, cells.lengths, blocks.BLOCK_SIZE)
    return _finish(figure, path, show)


def score_mod(
    mod: ScoreFunction,
    q_len: int | None = None,
    kv_len: int | None = None,
    *,
    scores: Any = None,
    query: Any = None,
    key: Any = None,
    scale: float | None = None,
    mask: MaskLike | None = None,
    b: int = 0,
    h: int = 0,
    block_size: int | tuple[int, int] | None = DEFAULT_BLOCK,
    title: str | None = None,
    path: str | os.PathLike[str] | None = None,
    show: bool = False,
) -> Figure:
    """A heat map of what a score_mod makes of the scores of one batch entry and head.

    Args:
        mod: a score_mod or plain function.
        q_len, kv_len: lengths, where no tensors are given; the scores are then 0. kv_len None is q_len.
        scores: scores to start from, [q_len, kv_len] with heads and batch before or not (already scaled).
        query, key: or the tensors of `flex_attention`, whose scaled products they are (grouped heads allowed).
        scale: factor of those products; None is 1 / sqrt(head_dim).
        mask: a mask_mod, plain function or bool array; what it hides is grey, and so is -inf.
        b, h, block_size, title, path, show: as for `mask`.

    Returns:
        The matplotlib Figure. More than 512 positions a side: every n-th row and column, and the title says so.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: lengths are missing, or tensors do not fit.

    Example:
        >>> import flextrace as flex
        >>> figure = flex.visualize.score_mod(flex.mods.alibi(8), 64, mask=flex.mods.causal)
        >>> print(figure.axes[0].get_title())
        alibi
        -31.5 to 0, 2,016 of 4,096 hidden or -inf, b 0, h 0
    """
    figure = _new_figure(show)
    given = {"scores": scores, "query": query, "key": key, "scale": scale, "mask": mask}
    cells = score_cells(mod, q_len, kv_len, b, h, LIMIT, **given)
    axes = _axes(figure, cells.lengths, f"{title or cells.name}\n{score_counts(cells)}, b {b}, h {h}")
    painted = np.ma.array(cells.values, mask=cells.hidden | ~np.isfinite(cells.values))
    image = axes.imshow(
        painted, cmap="viridis", interpolation="nearest", extent=_extent(cells.values.shape, cells.step)
    )
    axes.set_facecolor("#d4d7dc")
    axes.set_xlim(-0.5, cells.lengths[1] - 0.5)
    axes.set_ylim(cells.lengths[0] - 0.5, -0.5)
    bar = figure.colorbar(image, ax=axes, shrink=0.85, label="score")
    bar.ax.tick_params(colors=INK)
    bar.ax.yaxis.label.set_color(INK)
    if block_size is not None:
        _grid(axes, cells.lengths, checked_block(block_size))
    return _finish(figure, path, show)


# ---- matplotlib ------------------------------------------------------------------------------------------------------


@functools.cache
def _picture() -> type[Figure]:
    """matplotlib's Figure, which notebooks show as the result of a cell, with or without their inline backend."""
    from matplotlib.figure import Figure

    class Picture(Figure):
        def _repr_png_(self) -> bytes:
            data = io.BytesIO()
            self.savefig(data, format="png", facecolor=PAPER)
            return data.getvalue()

    return Picture


def _new_figure(show: bool) -> Figure:
    try:
        figure_class = _picture()
    except ImportError:
        raise ImportError(
            "flex.visualize draws with matplotlib, which is not installed: pip install 'flextrace[plot]'; "
            "flex.visualize.text needs nothing"
        ) from None
    settings: dict[str, Any] = {"figsize": (6.4, 6.0), "dpi": 120, "facecolor": PAPER, "layout": "constrained"}
    if show:
        from matplotlib import pyplot

        return pyplot.figure(FigureClass=figure_class, **settings)
    return figure_class(**settings)


def _axes(figure: Figure, lengths: tuple[int, int], title: str) -> Axes:
    from matplotlib.ticker import MaxNLocator

    axes = figure.add_subplot()
    axes.set_title(title, fontsize=9, color=INK)
    axes.set_xlabel("kv_idx", color=INK)
    axes.set_ylabel("q_idx", color=INK)
    axes.tick_params(colors=INK)
    axes.set_facecolor(NOTHING)
    for spine in axes.spines.values():
        spine.set_color(INK)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    tall = lengths[0] / max(1, lengths[1])
    axes.set_aspect("equal" if 0.25 <= tall <= 4 else "auto")
    figure.set_size_inches(6.4 if tall < 1.3 else 5.2, 1.2 + 4.8 * min(max(tall, 0.25), 1.4))
    return axes


def _extent(shape: tuple[int, ...], cell: tuple[int, int]) -> tuple[float, float, float, float]:
    return -0.5, shape[1] * cell[1] - 0.5, shape[0] * cell[0] - 0.5, -0.5


def _paint_states(figure: Figure, axes: Axes, cells: MaskCells, names: dict[int, str]) -> None:
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch

    colours = np.zeros((3, 3))
    for state, (_, colour) in STATES.items():
        colours[state] = to_rgb(colour)
    aspect: Any = axes.get_aspect()
    axes.imshow(
        colours[cells.states], interpolation="nearest", aspect=aspect, extent=_extent(cells.states.shape, cells.cell)
    )
    axes.set_xlim(-0.5, cells.lengths[1] - 0.5)
    axes.set_ylim(cells.lengths[0] - 0.5, -0.5)
    patches = [Patch(facecolor=STATES[state][1], edgecolor=INK, label=name) for state, name in names.items()]
    legend = figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False)
    for label in legend.get_texts():
        label.set_color(INK)


def _grid(axes: Axes, lengths: tuple[int, int], block: tuple[int, int]) -> None:
    """Lines between blocks, where they are few enough to see through."""
    for length, size, line in ((lengths[0], block[0], axes.axhline), (lengths[1], block[1], axes.axvline)):
        if -(-length // size) <= MOST_LINES:
            for at in range(size, length, size):
                line(at - 0.5, color=INK, linewidth=0.6, alpha=0.35)


def _finish(figure: Figure, path: str | os.PathLike[str] | None, show: bool) -> Figure:
    if path is not None:
        figure.savefig(path, facecolor=PAPER)
    if show:
        from matplotlib import pyplot

        pyplot.show()
    return figure


__all__ = ["block_mask", "mask", "score_mod", "text"]
