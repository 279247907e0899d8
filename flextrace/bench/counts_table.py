"""Counts -> tables or JSON: `flextrace bench --counts`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from flextrace.show.terminal import output, print_table

from .counts import BACKWARD, DTYPES, MASKS, SHOWN, Counts, Run, Target, measure, plan_runs, ratio, rows, targets

HEADS, HEAD_DIMS = 1, (64, 128)
HEADINGS = {
    "device_read": "device\nread",
    "kv_read": "of it\nK, V",
    "mask_read": "of it\nmask",
    "device_written": "device\nwrite",
    "threadgroup_read": "group\nread",
    "threadgroup_written": "group\nwrite",
    "threadgroup_allocated": "group\nsize",
    "matrix_multiplies": "matrix\nmult.",
    "threadgroup_barriers": "bar-\nriers",
}
LEGEND = """\
Bytes that lanes ask for, before any cache; group: threadgroup memory. Ratios are those of the first row.
K, V target of a mask: the share of tiles that it leaves. No target is stated for bytes that tell the mask."""


def main(
    *,
    masks: Sequence[str] = MASKS,
    lengths: Sequence[int] | None = None,
    heads: int = HEADS,
    head_dims: Sequence[int] = HEAD_DIMS,
    dtypes: Sequence[str] = DTYPES[:2],
    jobs: int = 1,
    as_json: bool = False,
) -> bool:
    """Measure and print; whether all targets that were measured are met.

    Raises:
        BenchError: an unknown mask, dtype or head dim, or a machine without the simulator.
    """
    runs = plan_runs(masks, lengths, heads, head_dims, dtypes)
    console, screen = output(stderr=as_json), output(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    quiet = not screen.is_terminal
    with Progress(*columns, TimeElapsedColumn(), console=screen, transient=True, disable=quiet) as progress:
        task = progress.add_task("simulating", total=sum(run.work() for run in {*runs, *(r.dense for r in runs)}))

        def done(run: Run) -> None:
            progress.update(task, advance=run.work(), description=f"{run.mask} {run.dtype} {run.length}")

        found = measure(runs, jobs, done)
    judged = targets(found, runs)
    if as_json:
        verdicts = [{**asdict(target), "met": target.met} for target in judged]
        print(json.dumps({"rows": rows(found, runs), "targets": verdicts}, indent=1))
    else:
        show(found, runs, judged, console)
    return all(target.met for target in judged)


def show(found: Mapping[Run, Counts], runs: Sequence[Run], judged: Sequence[Target], console: Console) -> None:
    """A table per head dim and dtype, and what was missed."""
    for head_dim, dtype in dict.fromkeys((run.head_dim, run.dtype) for run in runs):
        chosen = [run for run in runs if (run.head_dim, run.dtype) == (head_dim, dtype)]
        heads = f"{chosen[0].heads} head{'s' if chosen[0].heads > 1 else ''}"
        table = Table(box=box.SIMPLE_HEAD, padding=0, title_justify="left")
        table.title = f"counts, simulated: D {head_dim}, {dtype}, {heads}; masks given as mask_mod"
        table.add_column("", no_wrap=True)
        for heading in HEADINGS.values():
            table.add_column(heading, justify="right", no_wrap=True)
        for mask, length in dict.fromkeys((run.mask, run.length) for run in chosen):
            _section(table, found, [run for run in chosen if (run.mask, run.length) == (mask, length)], judged)
        print_table(console, table)
    missed = [target for target in judged if not target.met]
    console.print(LEGEND)
    console.print(f"targets: {len(judged) - len(missed)} of {len(judged)} met")
    for target in missed:
        console.print(Text(f"missed: {target}", style="red"))


def _section(table: Table, found: Mapping[Run, Counts], runs: Sequence[Run], judged: Sequence[Target]) -> None:
    """The rows of one mask at one length; the first run is the user's own way."""
    first = runs[0]
    masked = first.mask != "none"
    others = [("steel", first.steel)] if first.mask != BACKWARD else []
    table.add_section()
    table.add_row(f"{first.mask} {first.length}", style="bold")
    for run in runs:
        label = "MLX" if run.kernel == "steel" else run.kernel if masked else "flextrace"
        table.add_row(f" {label}", *(_short(found[run][count]) for count in SHOWN))
    beside = {"steel": " / MLX", "dense": " / our dense"}
    for whose, run in (*others, *((("dense", first.dense),) if masked else ())):
        ratios = [ratio(found, first, run, count) for count in SHOWN]
        table.add_row(beside[whose], *("-" if r is None else f"{r:.2f}x" for r in ratios), style="cyan")
    mine = {target.count: target for target in judged if target.run == first}
    if mine:
        table.add_row(" target", *(_verdict(mine.get(count)) for count in SHOWN))


def _verdict(target: Target | None) -> Text:
    if target is None:
        return Text("")
    sign = "=" if target.exact else "≤"
    return Text(f"{sign}{target.limit:.2f}x{'' if target.met else '!'}", style="green" if target.met else "bold red")


def _short(count: int) -> str:
    """Three digits and a unit of a thousand, a million or a milliard."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}" if count < 999.5 * size else f"{count / size:.0f}{unit}"
    return str(count)
