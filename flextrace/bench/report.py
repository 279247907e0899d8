"""What is asked for -> figures, as tables or JSON."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from flextrace.kernels.cpu.launch import thread_count
from flextrace.show.terminal import output, print_table, working

from .backward import CASES as STEPS
from .backward import backward_table, beside_peak
from .backward import measure as measure_step
from .cases import NAMES, flextrace_run, mlx_run, problem, torch_run
from .cuda import cuda_table, power_and_clock
from .cuda import measure as measure_cuda
from .decode import decode_table, said_of, targets
from .decode import measure as measure_decode
from .int8 import int8_table
from .int8 import measure as measure_int8
from .masks import CASES, mask_calls, mask_table
from .masks import measure as measure_mask
from .measure import BenchError, long_call, long_step, medians_ms, overhead_us, peak_gflops, start_ms
from .plot import check_plot, draw
from .results import Report, Row

SECTIONS = ("attention", "start", "memory", "masks", "int8", "decode", "backward")
ON_A_GPU = "cuda"  # a section that is measured where it is asked for


def main(
    *,
    lengths: Sequence[int] = (1024, 2048, 4096),
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    heads: int = 8,
    head_dims: Sequence[int] = (64,),
    mods: Sequence[str] = (),
    sections: Sequence[str] = SECTIONS,
    peers: bool = True,
    as_json: bool = False,
    plot: Path | None = None,
) -> Report:
    """Measure, and print tables (or JSON); `plot` names a file for a picture of the times.

    Raises:
        BenchError: an unknown mod, dtype or section, or a picture that cannot be drawn.
    """
    for given, known, what in (
        (mods, NAMES, "mod"),
        (sections, (*SECTIONS, ON_A_GPU), "section"),
        (dtypes, DTYPES, "dtype"),
    ):
        for name in given:
            if name not in known:
                raise BenchError(f"unknown {what} {name!r}; known: {', '.join(known)}")
    if plot is not None:
        check_plot(plot)
    torch = peers and importlib.util.find_spec("torch") is not None
    console = output(stderr=as_json)
    report = Report(machine(torch))
    if {"attention", "backward"} & set(sections):
        try:
            report.peak_gflops = peak_gflops(thread_count())
        except RuntimeError as error:  # no compiler, or one that fails
            raise BenchError(str(error)) from error
    if "attention" in sections:
        cases = [(d, w, n, m) for d in dtypes for w in head_dims for n in lengths for m in (mods or NAMES)]
        with working("attention", steps=len(cases)) as say:
            for dtype, head_dim, length, mod in cases:
                say(f"{mod} {dtype} {length}")
                report.rows.append(measure(mod, dtype, (1, heads, length, head_dim), peers, torch))
                say(f"{mod} {dtype} {length}", done=1)
    if "start" in sections:
        with working("cold and warm starts, in new processes"):
            cold, warm = start_ms()
            call, kernel = overhead_us()
        report.start = {"cold_ms": cold, "warm_ms": warm, "call_us": call, "kernel_us": kernel}
    if "memory" in sections:
        with working("1x1x131072x64, in new processes"):
            report.memory = {mask: long_call(mask) for mask in ("none", "causal", "window")}
    if "masks" in sections:
        with working("create_block_mask, each in a new process"):
            report.masks = [measure_mask(mask, tokens, torch) for mask, tokens in CASES]
            report.mask_calls = medians_ms(mask_calls())
    if "int8" in sections:
        with working("int8 beside bfloat16 and float16"):
            report.int8 = measure_int8()
    if "decode" in sections:
        with working("decode beside MLX's attention and plain reads"):
            try:
                report.decode = measure_decode(peers)
            except RuntimeError as error:  # no compiler, or one that fails
                raise BenchError(str(error)) from error
    if "backward" in sections:
        with working("gradients", steps=len(STEPS)) as say:
            for mod, shape, beside_mlx in STEPS:
                say(f"{mod} {shape[2]}")
                report.steps.append(measure_step(mod, shape, peers and beside_mlx, torch))
                say(f"{mod} {shape[2]}", done=1)
        with working("gradients of 1x1x32768x64, in a new process"):
            report.long_step = long_step()
    if ON_A_GPU in sections:
        with working("on the GPU, in turns") as say:
            for row in measure_cuda(peers, say):
                report.cuda.append(row)
        report.machine["gpu"] = power_and_clock()
    if as_json:
        print(json.dumps(asdict(report), indent=1))
    else:
        show(report, console)
    if plot is not None:
        draw(report, plot)
        console.print(f"drawn: {plot}")
    return report


DTYPES = ("float32", "float16", "bfloat16")


def machine(torch: bool) -> dict[str, Any]:
    """What the figures were taken on."""
    versions: dict[str, Any] = {"mlx": importlib.metadata.version("mlx")}
    if torch:
        versions["torch"] = importlib.metadata.version("torch")
    return {"machine": platform.machine(), "system": platform.system(), "threads": thread_count(), **versions}


def measure(mod: str, dtype: str, shape: tuple[int, int, int, int], peers: bool, torch: bool) -> Row:
    """One row: flextrace and its peers in turns, on the same inputs."""
    p = problem(*shape, dtype)
    ours = flextrace_run(p, mod)
    mlx = mlx_run(p, mod) if peers else None
    found = medians_ms({"flextrace": ours, "mlx": mlx, "torch": torch_run(p, mod) if torch else None})
    milliseconds = found["flextrace"]
    assert milliseconds is not None
    return Row(mod, dtype, shape, milliseconds, found["mlx"], found["torch"], p.dense_flops / milliseconds / 1e6)


def show(report: Report, console: Console) -> None:
    """The tables."""
    about = ", ".join(f"{name} {value}" for name, value in report.machine.items())
    if report.rows:
        table = Table(title=f"attention forward ({about})", box=box.SIMPLE_HEAD, padding=0, title_justify="left")
        for name in ("mod", "dtype", "B x H x\nL x D", "flextrace\nms", "MLX\nms", "\nratio", "torch\nms", "\nratio"):
            table.add_column(name, justify="left" if name in ("mod", "dtype") else "right", no_wrap=True)
        table.add_column("GFLOP\n/s", justify="right", no_wrap=True)
        for row in report.rows:
            shape = "x".join(map(str, row.shape))
            speed = f"{row.dense_gflops:.0f}" if row.mod in ("none", "alibi", "softcap") else "-"
            cells = (row.mlx, row.ratio(row.mlx), row.torch, row.ratio(row.torch))
            texts = [_ms(cells[0]), _ratio(cells[1]), _ms(cells[2]), _ratio(cells[3])]
            table.add_row(row.mod, row.dtype, shape, f"{row.flextrace:.2f}", *texts, speed)
        print_table(console, table)
        plain = [r for r in report.rows if r.mod == "none" and r.dtype == "float32"]
        shares = ", ".join(f"{100 * r.dense_gflops / report.peak_gflops:.0f} % at L {r.shape[2]}" for r in plain)
        share = f"; no mod, float32: {shares}" if plain else ""
        console.print(f"multiply-add peak of this machine: {report.peak_gflops:.0f} GFLOP/s{share}")
    if report.start:
        s = report.start
        table = Table(title="start and overhead")
        table.add_column("what")
        table.add_column("time", justify="right", no_wrap=True)
        table.add_row("first call in a new process, nothing on disk", f"{s['cold_ms']:.0f} ms")
        table.add_row("first call in a new process, kernel on disk", f"{s['warm_ms']:.1f} ms")
        table.add_row("warm call: 1 row over 32 keys, score_mod and mask", f"{s['call_us']:.1f} us")
        table.add_row("  of it inside the kernel", f"{s['kernel_us']:.1f} us")
        table.add_row("  overhead (target: 30 us at most)", f"{s['call_us'] - s['kernel_us']:.1f} us")
        print_table(console, table)
    if report.masks:
        print_table(console, mask_table(report.masks))
        calls = ", ".join(f"{name} {_ms(milliseconds)} ms" for name, milliseconds in report.mask_calls.items())
        console.print(f"causal 1x8x4096x64 float32: {calls}")
    if report.int8:
        print_table(console, int8_table(report.int8))
    if report.decode:
        print_table(console, decode_table(report.decode))
        for target in targets(report.decode):
            console.print(said_of(target))
    if report.cuda:
        print_table(console, cuda_table(report.cuda))
        console.print(report.machine["gpu"])
    if report.steps:
        print_table(console, backward_table(report.steps))
        for step in report.steps:
            if step.mod == "none":
                console.print(beside_peak(step, report.peak_gflops))
    if report.long_step:
        long = report.long_step
        console.print(
            f"1x1x32768x64 float32 causal, a step: {long['seconds']:.2f} s, {long['bytes'] / 1e6:.0f} MB above inputs"
        )
    if report.memory:
        dense = report.memory["none"]["seconds"]
        table = Table(title="1x1x131072x64 float32, masks as mask_mods")
        for name in ("mask", "seconds", "MB above inputs and output", "dense / this"):
            table.add_column(name, justify="left" if name == "mask" else "right", no_wrap=True)
        for mask, m in report.memory.items():
            figures = (f"{m['seconds']:.2f}", f"{m['bytes'] / 1e6:.0f}", f"{dense / m['seconds']:.1f}x")
            table.add_row(mask, *figures)
        print_table(console, table)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}x"
