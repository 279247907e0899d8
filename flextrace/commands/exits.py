"""Outcome of a command -> exit code and message: one table for all commands, which `flextrace --help` shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from flextrace.mlx_build import CANNOT  # a command ends with it where MLX does not load

FOUND_WRONG, CLOSED_PIPE = 1, 141
TABLE = {
    0: "all is well",
    FOUND_WRONG: "found something wrong or missed a target",
    CANNOT: "cannot run as asked (stderr names the remedy)",
    130: "interrupted",
    CLOSED_PIPE: "whatever read the output has ended",
}
EPILOG = "Exit codes of all commands: " + "; ".join(f"{code} {meaning}" for code, meaning in TABLE.items()) + "."


class CommandError(RuntimeError):
    """A command cannot run as asked; the message names the remedy."""


@contextmanager
def expected_errors(command: str) -> Iterator[None]:
    """Say what stops the command on stderr, without a traceback, and exit as the table has it."""
    from flextrace import BackendUnavailable, CacheError, GradientError, TraceError
    from flextrace.kernels.toolchain import CompileError

    from .resolve import ResolveError

    try:
        _check_environment()
        yield
    except TraceError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(CANNOT) from error
    except (CommandError, ResolveError, BackendUnavailable, CacheError, CompileError, GradientError) as error:
        typer.echo(f"flextrace {command}: {error}", err=True)
        raise typer.Exit(CANNOT) from error


def _check_environment() -> None:
    from flextrace.kernels.cpu.launch import thread_count
    from flextrace.kernels.registry import chosen_name

    try:
        chosen_name(None)
        thread_count()
    except ValueError as error:
        raise CommandError(str(error)) from error


@contextmanager
def cache_reachable() -> Iterator[None]:
    """Say what keeps the cache's folder from being read or written to."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CommandError(f"{error}; set FLEXTRACE_CACHE_DIR to a folder of your own") from error
