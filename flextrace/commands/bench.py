"""`flextrace bench`: times, counts or accuracy, as tables, JSON or a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from .exits import FOUND_WRONG, CommandError, expected_errors

READERS: dict[str, tuple[str, ...]] = {  # option -> the sections that read it
    **dict.fromkeys(("--lengths", "--dtypes", "--heads", "--head-dim", "--mods"), ("attention",)),
    "--no-peers": ("attention", "masks", "decode", "backward", "cuda"),
}


@expected_errors("bench")
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
    batch: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="With --accuracy: 1."),
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
        typer.Option(
            help="Of attention, start, memory, masks, int8, decode, backward, cuda. Without: attention where its "
            "shapes or mods are given, else all but cuda. Only of times."
        ),
    ] = None,
    peers: Annotated[bool, typer.Option(help="Also time MLX's own attention and, where installed, torch's.")] = True,
    jobs: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="With --counts: simulations at a time; one per core without."),
    ] = None,
    plot: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Also draw the times to this file: .png, .svg or .pdf. Needs flextrace[plot]."),
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
    from flextrace.bench.report import SECTIONS
    from flextrace.kernels.cpu.launch import thread_count

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
        if batch is not None and not accuracy:
            raise BenchError("--batch is of --accuracy, times and counts are of one; add --accuracy, or leave it out")
        if jobs is not None and not counts:
            raise BenchError("--jobs is about simulations; add --counts, or leave it out")
        if plot is not None and (counts or accuracy):
            raise BenchError("--plot draws times; leave it out with --counts and --accuracy")
        if accuracy:
            from flextrace.bench.accuracy import main as compare

            asked |= {"backend": backend} if backend is not None else {}
            asked |= {"batch": batch} if batch is not None else {}
            if not compare(**asked, mods=names, as_json=json):
                raise typer.Exit(FOUND_WRONG)
            return
        if counts:
            from flextrace.bench.counts_table import main as count

            asked |= {"masks": names} if names else {}
            if not count(**asked, jobs=jobs or thread_count(), as_json=json):
                raise typer.Exit(FOUND_WRONG)
            return
        shaping = {"--lengths": lengths, "--dtypes": dtypes, "--heads": heads, "--head-dim": head_dim, "--mods": mods}
        given = [option for option, value in shaping.items() if value]
        if sections is not None:
            asked["sections"] = sections.split(",")
            _refuse_unread([*given, *([] if peers else ["--no-peers"])], asked["sections"])
        elif given:  # what these options shape was asked for, and nothing else
            asked["sections"] = [name for name in SECTIONS if all(name in READERS[option] for option in given)]
        main(**asked, mods=names, peers=peers, as_json=json, plot=plot)
    except BenchError as error:
        raise CommandError(str(error)) from error


def _refuse_unread(options: list[str], sections: list[str]) -> None:
    """Raises BenchError for an option that none of these sections reads."""
    from flextrace.bench import BenchError
    from flextrace.bench.report import ON_A_GPU, SECTIONS

    if {*sections} - {*SECTIONS, ON_A_GPU}:
        return  # that is said instead
    for option in options:
        if not {*READERS[option]} & {*sections}:
            places = " or ".join(READERS[option])
            raise BenchError(f"{option} is about {places}; add that to --sections, or leave {option} out")


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
