"""Report -> picture: bars of the times of one run, ours beside the peers'.

Attention has a panel for each dtype, length and head_dim; what else was measured follows below. Times are on
logarithmic axes, because a peer may take a hundred times as long.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .measure import BenchError
from .results import Report, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

OURS, MLX, TORCH, PAPER, INK = "#1b6ca8", "#e8a33d", "#b5443a", "white", "#222222"
PEERS = (("flextrace", OURS), ("mlx", MLX), ("torch", TORCH))
NAMES = {"flextrace": "flextrace", "mlx": "MLX's attention", "torch": "torch, compiled flex_attention"}
PANEL = (4.2, 2.6)  # inches, width and height


def check_plot(path: Path) -> None:
    """Raises BenchError where nothing can be drawn to `path`, before anything is measured."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise BenchError(
            "--plot draws with matplotlib, which is not installed: pip install 'flextrace[plot]'"
        ) from None
    known = sorted(Figure().canvas.get_supported_filetypes())
    if path.suffix.lower().removeprefix(".") not in known:
        raise BenchError(f"--plot {path}: name a file that ends in one of .{', .'.join(known)}")
    if not path.absolute().parent.is_dir():
        raise BenchError(f"--plot {path}: there is no folder {path.parent}; make it, or name another")


def draw(report: Report, path: Path) -> None:
    """Draw what was measured and save it.

    Raises:
        BenchError: the file cannot be written, or no section with times was measured.
    """
    figure = figure_of(report)
    try:
        figure.savefig(path)
    except OSError as error:
        raise BenchError(f"--plot {path}: {error.strerror}; name a file that can be written") from error


def figure_of(report: Report) -> Figure:
    """The picture, its panels in the order of the tables."""
    from matplotlib.figure import Figure

    grid = _attention_grid(report.rows)
    others = list(_others(report))
    across = max([2, *(len(row) for row in grid)])
    per_row = math.ceil(len(others) / max(1, math.ceil(len(others) / across)))  # as even as can be
    below = [others[at : at + per_row] for at in range(0, len(others), max(1, per_row))]
    rows: list[list[Callable[[Axes], None]]] = [*grid, *below]
    if not rows:
        raise BenchError("--plot has nothing to draw; measure a section")
    size = (PANEL[0] * across, PANEL[1] * len(rows) + 0.7)
    figure = Figure(figsize=size, dpi=110, facecolor=PAPER, layout="constrained")
    about = ", ".join(f"{name} {value}" for name, value in report.machine.items())
    title = "flextrace bench, milliseconds" + ("; above a peer, how many times ours" if grid else "")
    figure.suptitle(f"{title}\n{about}", fontsize=10, color=INK)
    for panels, part in zip(rows, _parts(figure, len(rows)), strict=True):
        for panel, axes in zip(panels, part.subplots(1, len(panels), squeeze=False)[0], strict=True):
            panel(axes)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=8)
    if grid:
        handles, labels = _legend(report.rows)
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8, frameon=False)
    return figure


def _parts(figure: Figure, count: int) -> Sequence[SubFigure]:
    return list(figure.subfigures(count, 1, squeeze=False)[:, 0])


def _legend(rows: Sequence[Row]) -> tuple[list[Any], list[str]]:
    from matplotlib.patches import Patch

    measured = [(name, colour) for name, colour in PEERS if any(getattr(row, name) is not None for row in rows)]
    return [Patch(color=colour) for _, colour in measured], [NAMES[name] for name, _ in measured]


# ---- attention ------------------------------------------------------------------------------------------------------


def _attention_grid(rows: Sequence[Row]) -> list[list[Callable[[Axes], None]]]:
    """A row of panels for each dtype, a panel for each length and head_dim."""
    dtypes = dict.fromkeys(row.dtype for row in rows)
    return [
        [
            _attention_panel([row for row in rows if (row.dtype, row.shape) == (dtype, shape)])
            for shape in dict.fromkeys(row.shape for row in rows if row.dtype == dtype)
        ]
        for dtype in dtypes
    ]


def _attention_panel(rows: Sequence[Row]) -> Callable[[Axes], None]:
    def panel(axes: Axes) -> None:
        present = [(name, colour) for name, colour in PEERS if any(getattr(row, name) is not None for row in rows)]
        width = 0.8 / len(present)
        for place, (name, colour) in enumerate(present):
            for at, row in enumerate(rows):
                milliseconds = getattr(row, name)
                if milliseconds is None:
                    continue
                x = at + (place - (len(present) - 1) / 2) * width
                axes.bar(x, milliseconds, width, color=colour)
                ratio = milliseconds / row.flextrace
                text = _ms(milliseconds) if name == "flextrace" else f"{ratio:.1f}x" if ratio < 10 else f"{ratio:.0f}x"
                axes.annotate(text, (x, milliseconds), (0, 1), textcoords="offset points", ha="center", fontsize=6)
        axes.set_yscale("log")
        axes.margins(y=0.12)
        axes.set_xticks(range(len(rows)), [row.mod for row in rows])
        shape = "x".join(map(str, rows[0].shape))
        axes.set_title(f"{rows[0].dtype}, B x H x L x D {shape}", fontsize=8, color=INK)

    return panel


# ---- the other sections ---------------------------------------------------------------------------------------------


def _others(report: Report) -> Iterator[Callable[[Axes], None]]:
    if report.start:
        start = report.start
        yield _bars(
            "start and overhead",
            [
                ("first call, nothing on disk", start["cold_ms"], ""),
                ("first call, kernel on disk", start["warm_ms"], ""),
                ("overhead of a warm call", max(1e-3, (start["call_us"] - start["kernel_us"]) / 1e3), ""),
            ],
        )
    if report.masks:
        bars = []
        for row in report.masks:
            peer = "" if row.peer_ms is None else f", {row.peer} {_ms(row.peer_ms)}"
            bars.append((f"{row.mask} {row.tokens:,}", row.milliseconds, peer))
        yield _bars("create_block_mask, by mask and tokens", bars)
    if report.int8:
        bars = [
            (f"{row.what.split()[0]}, {row.contender}", row.milliseconds, f", {row.ratio:.2f}x") for row in report.int8
        ]
        yield _bars("int8 on the cpu backend", bars)
    if report.steps:
        bars = []
        for step in report.steps:
            peers = (("MLX", step.mlx), ("torch", step.torch))
            beside = [f", {name} {ms / step.step:.0f}x" for name, ms in peers if ms is not None]
            bars.append((f"{step.mod} {step.shape[2]:,}", step.step, "".join(beside)))
        yield _bars("forward and gradients, float32, by mod and tokens", bars)
    if report.memory:
        dense = report.memory["none"]["seconds"]
        bars = [
            (mask, figures["seconds"] * 1e3, f", {figures['bytes'] / 1e6:.0f} MB, {dense / figures['seconds']:.1f}x")
            for mask, figures in report.memory.items()
        ]
        yield _bars("1x1x131072x64 float32, by mask; MB above inputs", bars)


def _bars(title: str, bars: Sequence[tuple[str, float, str]]) -> Callable[[Axes], None]:
    """Horizontal bars: (name, milliseconds, what else to say)."""

    def panel(axes: Axes) -> None:
        values = [value for _, value, _ in bars]
        axes.barh(range(len(bars)), values, 0.7, color=OURS)
        axes.set_xscale("log")
        axes.set_xlim(min(values) / 3, max(values) * 30)  # room for the texts beside the bars
        for at, (_, value, more) in enumerate(bars):
            axes.annotate(
                f"{_ms(value)}{more}", (value, at), (3, 0), textcoords="offset points", va="center", fontsize=7
            )
        axes.set_yticks(range(len(bars)), [name for name, _, _ in bars])
        axes.invert_yaxis()
        axes.set_title(title, fontsize=8, color=INK)

    return panel


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
