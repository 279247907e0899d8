"""The `flextrace` command."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

app = typer.Typer(
    help="FlexAttention for MLX: see it work, measure it.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


@app.command()
def demo(
    queries: Annotated[Optional[list[str]], typer.Argument(help="Questions; three examples without.")] = None,  # noqa: UP045
    documents: Annotated[Optional[int], typer.Option(min=1, help="How many docstrings to encode.")] = None,  # noqa: UP045
) -> None:
    """Semantic search over the docstrings of your own Python, every attention layer run by flextrace."""
    from flextrace.demo import DemoError, run

    try:
        run(list(queries or []), documents)
    except DemoError as error:
        typer.echo(f"flextrace demo: {error}", err=True)
        raise typer.Exit(1) from error


@app.command()
def bench(
    lengths: Annotated[str, typer.Option(help="Sequence lengths, comma separated.")] = "1024,2048,4096",
    dtypes: Annotated[str, typer.Option(help="Of float32, bfloat16, float16, comma separated.")] = "float32,bfloat16",
    heads: Annotated[int, typer.Option(min=1)] = 8,
    head_dim: Annotated[int, typer.Option(min=1)] = 64,
    mods: Annotated[str, typer.Option(help="Which mods, comma separated; all without.")] = "",
    sections: Annotated[str, typer.Option(help="Of attention, start, memory, comma separated.")] = (
        "attention,start,memory"
    ),
    peers: Annotated[bool, typer.Option(help="Also time MLX's own attention and, where installed, torch's.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Time flextrace beside MLX's own attention and torch's compiled flex_attention, in one process."""
    from flextrace.bench import BenchError, main

    try:
        main(
            lengths=[int(n) for n in lengths.split(",")],
            dtypes=dtypes.split(","),
            heads=heads,
            head_dim=head_dim,
            mods=[m for m in mods.split(",") if m],
            sections=sections.split(","),
            peers=peers,
            as_json=json,
        )
    except (BenchError, ValueError) as error:
        typer.echo(f"flextrace bench: {error}", err=True)
        raise typer.Exit(2) from error
