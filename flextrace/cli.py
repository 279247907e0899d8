"""The `flextrace` command."""

from __future__ import annotations

from typing import Annotated, Any, Optional

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
    counts: Annotated[bool, typer.Option("--counts", help="Simulate the Metal kernels and count, instead.")] = False,
    accuracy: Annotated[bool, typer.Option("--accuracy", help="Errors of int8 query and key, instead.")] = False,
    backend: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="With --accuracy: cpu, another that quantises, or reference, which is numpy."),
    ] = None,
    lengths: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Comma separated; 1024,2048,4096. With --counts: none 512, window 4096, others 2048. "
            "With --accuracy: 1024."
        ),
    ] = None,
    dtypes: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Of float32, bfloat16, float16; float32,bfloat16. With --counts: float32,float16. "
            "With --accuracy: float16."
        ),
    ] = None,
    heads: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="8. With --counts: 1. With --accuracy: 4."),
    ] = None,
    head_dim: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Comma separated; 64. With --counts: 64,128. With --accuracy: 128."),
    ] = None,
    mods: Annotated[str, typer.Option(help="Which mods, comma separated; all without.")] = "",
    sections: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Of attention, start, memory, masks, int8; all without. Only of times."),
    ] = None,
    peers: Annotated[bool, typer.Option(help="Also time MLX's own attention and, where installed, torch's.")] = True,
    jobs: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="With --counts: simulations at a time; one per core without."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Time flextrace beside MLX's own attention and torch's compiled flex_attention, in one process.

    With --counts: simulate the Metal kernels of flextrace and of MLX, and compare the bytes they move, their matrix
    multiplies and their barriers. Takes minutes at the default lengths.

    With --accuracy: compare attention with query and key in int8, key smoothed and not, with float64 attention, beside
    the figures of the papers.

    Exit code: 0; 1 where --counts or --accuracy misses a target; 2 where it cannot run as asked.
    """
    from flextrace.bench import BenchError, main

    try:
        asked: dict[str, Any] = {"lengths": _numbers("--lengths", lengths), "heads": heads}
        asked |= {"head_dims": _numbers("--head-dim", head_dim), "dtypes": dtypes.split(",") if dtypes else None}
        asked = {name: value for name, value in asked.items() if value is not None}
        names = [name for name in mods.split(",") if name]
        if (counts or accuracy) and (sections is not None or not peers):
            raise BenchError("--sections and --no-peers are about times; leave them out with --counts and --accuracy")
        if counts and accuracy:
            raise BenchError("--counts and --accuracy are two reports; ask for one of them")
        if backend is not None and not accuracy:
            raise BenchError("--backend chooses whose accuracy is measured; add --accuracy, or leave it out")
        if jobs is not None and not counts:
            raise BenchError("--jobs is about simulations; add --counts, or leave it out")
        if accuracy:
            from flextrace.bench.accuracy import main as compare

            asked |= {"backend": backend} if backend is not None else {}
            if not compare(**asked, mods=names, as_json=json):
                raise typer.Exit(1)
            return
        if counts:
            from flextrace.bench.counts_table import main as count
            from flextrace.kernels.cpu.launch import thread_count

            asked |= {"masks": names} if names else {}
            if not count(**asked, jobs=jobs or thread_count(), as_json=json):
                raise typer.Exit(1)
            return
        asked |= {"sections": sections.split(",")} if sections is not None else {}
        main(**asked, mods=names, peers=peers, as_json=json)
    except BenchError as error:
        typer.echo(f"flextrace bench: {error}", err=True)
        raise typer.Exit(2) from error


def _numbers(option: str, given: str | None) -> list[int] | None:
    """The numbers of a comma-separated option. Raises BenchError."""
    from flextrace.bench import BenchError

    if given is None:
        return None
    try:
        numbers = [int(part) for part in given.split(",")]
    except ValueError:
        raise BenchError(
            f"{option} takes whole numbers with commas between them, such as 64,128; got {given!r}"
        ) from None
    if min(numbers) < 1:
        raise BenchError(f"{option} takes positive numbers; got {given!r}")
    return numbers


@app.command()
def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Report on this machine, and compile and run the kernels of every backend that it has.

    Send its output with a report of a problem: it names versions, and the first line that a compiler refused.

    Exit code: 0 where all that can run here passed; 1 where something failed.
    """
    from flextrace.doctor import examine

    if not examine(as_json=json):
        raise typer.Exit(1)
