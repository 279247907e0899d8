"""`flextrace simulate`: a mod's Metal kernel, run lane by lane on this machine."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from flextrace.show.terminal import output, print_json, prints_to_stderr, working

from .exits import FOUND_WRONG, CommandError, expected_errors
from .problem import DType, problem_of
from .show import TARGET

if TYPE_CHECKING:
    from flextrace.doctor.simulate import Error, Simulation


@expected_errors("simulate")
def simulate(
    target: Annotated[str, typer.Argument(metavar="MODULE:NAME", help=TARGET)],
    shape: Annotated[str, typer.Option(metavar="B,H,L,D", help="batch,heads,length,head_dim of query.")] = "1,2,128,64",
    kv_heads: Annotated[Optional[int], typer.Option(min=1, help="Heads of key and value.")] = None,  # noqa: UP045
    kv_len: Annotated[Optional[int], typer.Option(min=1, help="Length of key and value.")] = None,  # noqa: UP045
    head_dim: Annotated[Optional[int], typer.Option(min=1, help="Instead of the D of --shape.")] = None,  # noqa: UP045
    dtype: Annotated[DType, typer.Option(help="Of query, key and value.")] = DType.float32,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run a mod's Metal kernel in the simulator on random tensors; needs no Mac.

    Prints what it moved, multiplied and waited for, what the checks found (races, wrong addresses, uninitialised reads,
    divergence), and how far the result is from float64 attention. Long shapes take long: a million scores take seconds.

    Exit code: 0; 1 where there are findings or the error is beyond tolerance; 2 where it cannot run as asked.
    """
    from flextrace.decorators import title_of
    from flextrace.doctor.simulate import simulate as run

    from .resolve import find_mods

    problem = problem_of(shape, dtype, kv_heads, kv_len, head_dim)
    with prints_to_stderr():
        mods = find_mods(target)
    title = f"{title_of(*mods)}, {problem}"
    try:
        with working(f"simulating {title}"), prints_to_stderr():
            result = run(*mods, problem.shapes, problem.dtype)
    except MemoryError as no_room:
        raise CommandError(f"{problem} does not fit in memory; choose a smaller --shape") from no_room
    except (ValueError, OverflowError, ZeroDivisionError) as refusal:
        raise CommandError(str(refusal)) from refusal
    if json:
        print_json({"target": target, "problem": asdict(problem), **_facts(result)})
    else:
        console = output()
        console.print(title, markup=False)
        for report in result.reports:
            console.print(str(report), markup=False)
        for error in result.errors:
            console.print(_line(error), markup=False)
        if result.findings:
            console.print("The findings stopped the run: its numbers were not compared.")
    if not result.ok:
        raise typer.Exit(FOUND_WRONG)


def _line(error: Error) -> str:
    verdict = f"{'within' if error.within else 'BEYOND'} the tolerance {error.tolerance:g} * (1 + |exact|)"
    return f"{error.result}: largest error {error.largest:.2e}, {verdict}"


def _facts(result: Simulation) -> dict[str, Any]:
    kernels = [
        {
            "kernel": report.kernel,
            "counts": report.as_dict(),
            "buffers": [asdict(buffer) for buffer in report.buffers.values()],
            "findings": [asdict(finding) for finding in report.findings],
        }
        for report in result.reports
    ]
    errors = {
        error.result: {
            "largest": error.largest if math.isfinite(error.largest) else None,
            "tolerance": error.tolerance,
            "within": error.within,
        }
        for error in result.errors
    }
    return {"ok": result.ok, "errors": errors, "kernels": kernels}
