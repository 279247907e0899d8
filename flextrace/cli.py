"""The `flextrace` command: its subcommands, one module each in commands/, and what all of them share."""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .commands import bench, cache, demo, doctor, show, simulate, vocabulary, warm
from .commands.exits import CLOSED_PIPE, EPILOG


class Commands(TyperGroup):
    """All commands; one whose reader ended, as in `flextrace show ... | head -1`, ends without a word."""

    def main(self, *args: Any, **options: Any) -> Any:
        try:
            try:
                return super().main(*args, **options)
            finally:
                sys.stdout.flush()
        except (BrokenPipeError, SystemExit) as end:  # typer and rich make a SystemExit of it
            if BrokenPipeError not in (type(end), type(end.__context__)):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what is still to be written
            raise SystemExit(CLOSED_PIPE) from None


app: typer.Typer = typer.Typer(
    cls=Commands,
    help="FlexAttention for MLX: see it work, look inside it, measure it.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        import flextrace

        typer.echo(f"flextrace {flextrace.__version__}")
        raise typer.Exit


@app.callback()
def flextrace(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # names that the encoding of the output lacks


app.add_typer(demo.app, name="demo")
app.command()(show.show)
app.command()(simulate.simulate)
app.command()(warm.warm)
app.command()(bench.bench)
app.command()(doctor.doctor)
app.add_typer(cache.app, name="cache")
app.command()(vocabulary.vocabulary)
