"""`flextrace demo`: semantic search with flextrace in every attention layer."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from .exits import CommandError, expected_errors


@expected_errors("demo")
def demo(
    queries: Annotated[Optional[list[str]], typer.Argument(help="Questions; three examples without.")] = None,  # noqa: UP045
    documents: Annotated[Optional[int], typer.Option(min=1, help="How many docstrings to encode.")] = None,  # noqa: UP045
) -> None:
    """Semantic search over the docstrings of your own Python, every attention layer run by flextrace."""
    from flextrace.demo import DemoError, run

    try:
        run(list(queries or []), documents)
    except DemoError as error:
        raise CommandError(str(error)) from error
