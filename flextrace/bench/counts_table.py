"""Counts and registers -> tables or JSON: `flextrace bench --counts`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from flextrace.kernels.simulator.registers import Registers, why_not
from flextrace.show.terminal import output, print_table

from .counts import (
    DECODE,
    DTYPES,
    MASKS,
    SHOWN,
    Counts,
    Run,
    Target,
    measure,
    plan_runs,
    ratio,
    rows,
    targets,
)
from .registers import LARGE, LENGTH, TEXTS, large_run, lines

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
        beside = (run.once if run.mask == DECODE else run.dense for run in runs)
        task = progress.add_task("simulating", total=sum(run.work() for run in {*runs, *beside}))

        def done(run: Run) -> None:
            progress.update(task, advance=run.work(), description=f"{run.mask} {run.dtype} {run.length}")

        found = measure(runs, jobs, done)
    judged = targets(found, runs)
    texts = [] if lengths else [text for text in TEXTS if text in masks or masks is MASKS]  # they have no length
    if as_json:
        verdicts = [{**asdict(target), "met": target.met} for target in judged]
        made: dict[str, Any] = {"rows": rows(found, runs), "targets": verdicts}
        if texts and why_not() is None:
            made["registers"] = [asdict(line) for line in lines(texts, [(d, d) for d in head_dims], dtypes)]
        if texts:
            made["large"] = [asdict(large_run(*dims, dtypes[0])) for dims in LARGE]
        print(json.dumps(made, indent=1))
    else:
        show(found, runs, judged, console)
        if texts:
            show_registers(texts, head_dims, dtypes, console)
            show_large(dtypes, console)
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


def show_registers(texts: Sequence[str], head_dims: Sequence[int], dtypes: Sequence[str], console: Console) -> None:
    """What a thread of each kernel needs, by a stand-in for an Apple GPU; why not, where there is none."""
    reason = why_not()
    if reason is not None:
        console.print(f"registers: not counted. {reason}")
        return
    table = Table(box=box.SIMPLE_HEAD, padding=0, title_justify="left")
    table.title = "registers of a thread, by clang for another GPU with simdgroups of 32"
    for heading in ("", "rows x keys\nof a tile", "if free", "bytes spilled\nat 128", "code,\nKB", "model"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for head_dim, value_dim in [*((d, d) for d in head_dims), *LARGE]:
        for dtype in dtypes:
            table.add_section()
            table.add_row(f"D {head_dim}{'' if value_dim == head_dim else f'/{value_dim}'} {dtype}", style="bold")
            large = (head_dim, value_dim) in LARGE
            found = list(lines([texts[0]] if large else texts, [(head_dim, value_dim)], [dtype]))
            for line in found:
                plan = line.plan
                table.add_row(f" {line.text}", f"{plan.bq} x {plan.bk}", *_figures(line.ours), str(plan.registers))
            if found[0].steel is not None:
                table.add_row(" MLX", "", *_figures(found[0].steel), "", style="cyan")
    print_table(console, table)


def _figures(registers: Registers) -> tuple[str, ...]:
    return str(registers.free), str(registers.spilled), f"{registers.code / 1024:.1f}"


def show_large(dtypes: Sequence[str], console: Console) -> None:
    """Head dims that MLX runs unfused on M1 to M4."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, title_justify="left")
    table.title = f"large head dims, simulated: L {LENGTH}, 1 head; unfused: products in tiles of 64 x 64, and softmax"
    for heading in ("", "device\nbytes", "/ unfused", "group\nread", "matrix\nmult.", "bar-\nriers"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for dims in LARGE:
        for dtype in dtypes:
            run = large_run(*dims, dtype)
            counts = (run.threadgroup_read, run.matrix_multiplies, run.threadgroup_barriers)
            shown = (_short(run.device), f"{run.device / run.unfused:.2f}x", *map(_short, counts))
            table.add_row(f"D {run.head_dim}/{run.value_dim} {dtype}", *shown)
    print_table(console, table)


def _section(table: Table, found: Mapping[Run, Counts], runs: Sequence[Run], judged: Sequence[Target]) -> None:
    """The rows of one mask at one length; the first run is the user's own way."""
    first = runs[0]
    masked = first.mask != "none"
    others = [("steel", first.steel)] if first.steel in found else []
    table.add_section()
    table.add_row(f"{first.mask} {first.length}", style="bold")
    for run in runs:
        label = "MLX" if run.kernel == "steel" else run.kernel if masked else "flextrace"
        table.add_row(f" {label}", *(_short(found[run][count]) for count in SHOWN))
    beside = {"steel": " / MLX", "dense": " / our dense", "once": " / K, V once"}
    plain = ("once", first.once) if first.mask == DECODE else ("dense", first.dense)
    for whose, run in (*others, *((plain,) if masked else ())):
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
