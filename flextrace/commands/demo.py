"""`flextrace demo`: semantic search, every attention layer by flextrace; `flextrace demo train`: a language model."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer
from typer.core import TyperGroup

from .exits import CommandError, expected_errors


class SearchFirst(TyperGroup):
    """Commands of which `search` need not be named: `flextrace demo "how do I sort a list"`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args[:1] != ["--help"] and args[:1] not in [[name] for name in self.commands]:
            args = ["search", *args]
        return super().parse_args(ctx, args)


app: typer.Typer = typer.Typer(
    cls=SearchFirst, help="See it work on real text: a search, which needs no name, or a training."
)


@app.command()
@expected_errors("demo")
def search(
    queries: Annotated[Optional[list[str]], typer.Argument(help="Questions; three examples without.")] = None,  # noqa: UP045
    documents: Annotated[Optional[int], typer.Option(min=1, help="How many docstrings to encode.")] = None,  # noqa: UP045
) -> None:
    """Semantic search over the docstrings of your own Python, every attention layer run by flextrace."""
    from flextrace.demo import DemoError, run

    try:
        run(list(queries or []), documents)
    except DemoError as error:
        raise CommandError(str(error)) from error


@app.command()
@expected_errors("demo train")
def train(
    steps: Annotated[Optional[int], typer.Option(min=1, help="Steps of training; about a minute without.")] = None,  # noqa: UP045
) -> None:
    """A small language model, trained on the docstrings of your own Python, beside the same on MLX's own attention."""
    from flextrace.demo import DemoError
    from flextrace.demo.training import train as run

    try:
        run(steps)
    except DemoError as error:
        raise CommandError(str(error)) from error
