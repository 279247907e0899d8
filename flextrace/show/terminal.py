"""Text, tables -> terminal: with highlighting there, plain where the output goes to a file or a program."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

INDENT = "    "
WIDE = 160  # columns of tables in files


def output(stderr: bool = False) -> Console:
    """The console of results: nothing is wrapped, cut or coloured by guess."""
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = WIDE
    return console


def print_table(console: Console, table: Table) -> None:
    """A table of which nothing is cut: a terminal that is too narrow for it wraps its lines."""
    _, right, _, left = table.padding
    needed = len(table.columns) * (left + 1 + right) + (1 if table.show_edge else -1)
    for column in table.columns:
        sizes = [console.measure(cell) for cell in (column.header, *column.cells)]
        needed += max(size.maximum if column.no_wrap else size.minimum for size in sizes)
    if needed > console.width:
        table.width = needed
    console.print(table, soft_wrap=False, crop=False)


def print_heading(console: Console, text: str) -> None:
    from rich.text import Text

    console.print(Text(text, style="bold"))


def print_code(console: Console, text: str, language: str, indent: str = INDENT) -> None:
    """Source text as it is, highlighted on a terminal."""
    shown = text.rstrip("\n")
    if indent:
        shown = "\n".join(indent + line if line.strip() else "" for line in shown.splitlines())
    if not console.is_terminal:
        print(shown, file=console.file)
        return
    from rich.syntax import Syntax

    highlighted = Syntax("", language, theme="ansi_dark", background_color="default").highlight(shown)
    highlighted.rstrip()
    console.print(highlighted)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, allow_nan=False))


def prints_to_stderr() -> AbstractContextManager[Any]:
    """While a user's module and mods run: what they print is no result of the command."""
    return redirect_stdout(sys.stderr)


@contextmanager
def working(what: str, steps: int | None = None) -> Iterator[Callable[..., None]]:
    """A spinner with the time, and a bar where the number of steps is known; on stderr, while the work lasts, and only
    on a terminal. Gives `say(what, done=0)`, which says what is next and counts what is done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    bar = () if steps is None else (BarColumn(), MofNCompleteColumn())
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), *bar, TimeElapsedColumn())
    quiet = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet, redirect_stdout=False) as progress:
        task = progress.add_task(what, total=steps)

        def say(next_one: str, done: int = 0) -> None:
            progress.update(task, description=next_one, advance=done)

        yield say
