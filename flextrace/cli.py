"""The `flextrace` command: its subcommands, one module each in commands/, and what all of them share."""

from __future__ import annotations

from typing import Annotated

import typer

from .commands import bench, cache, demo, doctor, show, simulate, vocabulary, warm
from .commands.exits import EPILOG

app: typer.Typer = typer.Typer(
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
    pass


app.command()(demo.demo)
app.command()(show.show)
app.command()(simulate.simulate)
app.command()(warm.warm)
app.command()(bench.bench)
app.command()(doctor.doctor)
app.add_typer(cache.app, name="cache")
app.command()(vocabulary.vocabulary)
