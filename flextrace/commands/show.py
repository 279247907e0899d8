"""`flextrace show`: a mod's source, its expression, what it captures, and what it became in a kernel."""

from __future__ import annotations

import math
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from flextrace.show.terminal import INDENT, output, print_code, print_heading, print_json, prints_to_stderr

from .exits import CommandError, expected_errors

if TYPE_CHECKING:
    from flextrace import MaskMod, ScoreMod
    from flextrace.kernels.call import Mods
    from flextrace.tracer import Bound

TARGET = "MODULE:NAME or FILE.py:NAME of a mod, or of two for one call as MODULE:SCORE+MASK."


class KernelBackend(str, Enum):
    """The backends that have kernels."""

    metal = "metal"
    cuda = "cuda"
    simulator = "simulator"
    cpu = "cpu"


def default_backend() -> str:
    """The backend that a call would take here, if it has kernels."""
    from flextrace.kernels.registry import chosen_name, default_name

    name = chosen_name(None) or default_name()
    if name not in KernelBackend.__members__:
        known = " or ".join(KernelBackend.__members__)
        raise CommandError(f"FLEXTRACE_BACKEND is {name!r}, which has no kernels; add --backend {known}")
    return name


@expected_errors("show")
def show(
    target: Annotated[str, typer.Argument(metavar="MODULE:NAME", help=TARGET)],
    backend: Annotated[
        Optional[KernelBackend],  # noqa: UP045
        typer.Option(help="Whose kernel; without, the one that runs here. Its device is not needed."),
    ] = None,
    name: Annotated[
        str,
        typer.Option("--kernel", metavar="NAME", help="Which kernel: attention, decode, backward; others are named."),
    ] = "attention",
    whole: Annotated[
        bool, typer.Option("--whole", help="Print the complete kernel text, as it is compiled, and nothing else.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False,
) -> None:
    """Show a mod: your source, its expression, its captures, and its lines in the kernel.

    With two mods, SCORE+MASK, the kernel is the one of a call with both.
    """
    from flextrace.kernels import backend_for
    from flextrace.kernels.loading import text_of
    from flextrace.kernels.template.hole import written_by

    from .resolve import find_mods

    where = backend.value if backend is not None else default_backend()
    with prints_to_stderr():
        mods = bind(*find_mods(target))
        bounds = mods.present
        try:
            kernel = text_of(backend_for(where, to_run=False), mods.formulas, name)
        except ValueError as error:  # no such kernel, or more captures than one has room for
            raise CommandError(str(error)) from error
    excerpts = written_by([mod.trace.kind for mod in bounds], kernel)
    if json:
        found = [{"first_line": excerpt.first, "lines": excerpt.lines} for excerpt in excerpts]
        print_json(
            {
                "mods": [_facts(b) for b in bounds],
                "backend": where,
                "kernel_name": name,
                "lines": found,
                "kernel": kernel,
            }
        )
        return
    console = output()
    if whole:
        print_code(console, kernel, "cpp", indent="")
        return
    for bound in bounds:
        _print_mod(console, bound)
    total = kernel.count("\n")
    print_heading(console, f"{name} kernel on {where}, what it became: --whole prints all {total:,} lines")
    if len(bounds) > 1 and (bounds[0].arrays or bounds[0].numbers):
        console.print(f"{INDENT}// captures of the mask_mod are numbered on from those of the score_mod", style="dim")
    for excerpt in excerpts:
        console.print(f"{INDENT}// line {excerpt.first:,}", style="dim")
        print_code(console, "\n".join(excerpt.lines), "cpp")
        console.print()


def bind(score_mod: ScoreMod | None, mask_mod: MaskMod | None) -> Mods:
    """Both with what they capture now. Raises CommandError, TraceError."""
    from flextrace.decorators import bound

    try:
        return bound(score_mod, mask_mod)
    except (OverflowError, ZeroDivisionError) as error:
        raise CommandError(str(error)) from error


def _facts(bound: Bound) -> dict[str, Any]:
    from flextrace.tracer import gradient_lines

    trace, arrays, numbers = bound
    return {
        "name": trace.name,
        "kind": trace.kind,
        "file": None if trace.code is None else trace.code.co_filename,
        "line": None if trace.code is None else trace.code.co_firstlineno,
        "source": trace.source(),
        "expression": repr(trace.expr),
        "arrays": [
            {"slot": f"array{slot}", "name": capture.name, "dtype": capture.element, "shape": list(array.shape)}
            for slot, (capture, array) in enumerate(zip(trace.arrays, arrays, strict=True))
        ],
        "numbers": [
            {"slot": f"number{slot}", "name": capture.name, "dtype": capture.dtype, "value": _finite(number)}
            for slot, (capture, number) in enumerate(zip(trace.numbers, numbers, strict=True))
        ],
        "gradient": gradient_lines(trace.expr) if trace.kind == "score_mod" else [],
        "traced_at_every_call": trace.volatile,
    }


def _finite(number: float) -> float | str:
    return number if math.isfinite(number) else str(number)  # JSON has no inf and no nan


def _print_mod(console: Any, bound: Bound) -> None:
    facts = _facts(bound)
    place = "" if facts["file"] is None else f", {facts['file']}:{facts['line']}"
    print_heading(console, f"{facts['kind']} {facts['name']}{place}")
    print_code(console, facts["source"], "python")
    console.print()
    print_heading(console, "expression")
    print_code(console, facts["expression"], "python")
    console.print()
    rows = [(a["slot"], a["name"], f"{a['dtype']} {a['shape']}") for a in facts["arrays"]]
    rows += [(n["slot"], n["name"], f"{n['dtype']} {n['value']}, read at every call") for n in facts["numbers"]]
    if rows:
        print_heading(console, "captures")
        for slot, name, what in rows:
            console.print(f"{INDENT}{slot} = {name}: {what}", markup=False)
        console.print()
    if facts["gradient"]:
        print_heading(console, "gradient")
        print_code(console, "\n".join(facts["gradient"]), "python")
        console.print()
    if facts["traced_at_every_call"]:
        console.print("Traced anew at every call: it runs Python whose result may change.\n")
