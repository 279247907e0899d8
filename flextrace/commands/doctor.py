"""`flextrace doctor`: what is right and wrong with this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from .exits import FOUND_WRONG


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Report on this machine, and compile and run the kernels of every backend that it has.

    Send its output with a report of a problem: it names versions, and the first line that a compiler refused.

    Exit code: 0 where all that can run here passed; 1 where something failed, or plain calls run on slow operations.
    """
    from flextrace.doctor.report import examine

    if not examine(as_json=json):
        raise typer.Exit(FOUND_WRONG)
