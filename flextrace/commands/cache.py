"""`flextrace cache`: the kernels on disk, listed, looked into, verified and removed."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from flextrace.show.terminal import INDENT, output, print_code, print_heading, print_json, print_table, working

from .exits import FOUND_WRONG, CommandError, cache_reachable, expected_errors

if TYPE_CHECKING:
    from flextrace.show.cache_table import CacheRow

app: typer.Typer = typer.Typer(help="The kernels on disk: list, show, verify and remove them.", no_args_is_help=True)

_SIZE = re.compile(r"(\d+\.?\d*|\.\d+)\s*([kmgt]?i?b?)", re.IGNORECASE)
PAGE = 30  # lines of ls
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def bytes_of(text: str) -> int:
    """A size as people write it, in bytes. kB, MB, GB and TB are powers of 1000; KiB, MiB, GiB and TiB of 1024.

    >>> bytes_of("500MB"), bytes_of("1.5 GiB"), bytes_of("0")
    (500000000, 1610612736, 0)

    Raises:
        CommandError: it is no size.
    """
    matched = _SIZE.fullmatch(text.strip())
    unit = "" if matched is None else matched[2].lower()
    if matched is None or unit == "i":
        raise CommandError(f"--max-size takes a size such as 500MB, 1.5GiB or 0; got {text!r}")
    base = 1024 if "i" in unit else 1000
    return int(Decimal(matched[1]) * base ** _POWERS[unit.removesuffix("b").removesuffix("i")])


def _rows() -> list[CacheRow]:
    from flextrace.show.cache_table import rows

    with working("reading the cache"):
        return rows()


Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
@expected_errors("cache ls")
@cache_reachable()
def ls(
    each: Annotated[bool, typer.Option("--each", help="A line for each kernel, also of the same mods.")] = False,
    page: Annotated[int, typer.Option(min=1, help=f"Which {PAGE} lines.")] = 1,
    json: Json = False,
) -> None:
    """List the kernels, those of the same mods together, the most recently used first, and whether each is whole."""
    from flextrace.cache import Store
    from flextrace.show.cache_table import REMEDY, cache_table, grouped, human_size

    found, store = _rows(), Store()
    if json:
        print_json({"folder": str(store.folder), "bytes": store.size(), "entries": [asdict(row) for row in found]})
        return
    console = output()
    groups = [[row] for row in found] if each else grouped(found)
    pages = max(1, -(-len(groups) // PAGE))
    if page > pages:
        raise CommandError(f"--page {page}: there are {pages}")
    if found:
        print_table(console, cache_table(groups[(page - 1) * PAGE : page * PAGE], console.width))
    if pages > 1:
        later = f"; --page {page + 1} has the next" if page < pages else ""
        console.print(f"page {page} of {pages}{later}", markup=False)
    count = "1 kernel" if len(found) == 1 else f"{len(found)} kernels"
    console.print(f"{store.folder}: {count}, {human_size(store.size())} of {human_size(store.limit)}", markup=False)
    if any(row.damage for row in found):
        console.print(REMEDY, markup=False)


@app.command()
@expected_errors("cache show")
@cache_reachable()
def show(
    key: Annotated[str, typer.Argument(metavar="KEY-PREFIX", help="The first digits of a key, as `ls` prints them.")],
    whole: Annotated[
        bool, typer.Option("--whole", help="Print the kernel's text, and with --json the rest too.")
    ] = False,
    json: Json = False,
) -> None:
    """Show one kernel: its mods, how it was compiled, and its files."""
    from flextrace.show.cache_table import human_size

    row = _row_of(key)
    manifest = _manifest(row)
    text = _text(row, manifest) if whole else None
    if json:
        print_json({**asdict(row), "manifest": manifest, **({} if text is None else {"text": text})})
        return
    if text is not None:
        print_code(output(), text, "cpp", indent="")
        return
    console = output()
    print_heading(console, row.key)
    console.print(f"{INDENT}{row.folder}", markup=False)
    console.print(f"{INDENT}{'damaged: ' + row.damage if row.damage else 'whole'}", markup=False)
    shown = ("backend", "kernel", "keys", "checks", "compiler", "mlx", "created")
    for name in (name for name in shown if name in manifest):
        console.print(f"{INDENT}{name}: {manifest[name]}", markup=False)
    if "flags" in manifest:
        console.print(f"{INDENT}flags: {' '.join(manifest['flags'])}", markup=False)
    for kind in ("score_mod", "mask_mod"):
        mod = manifest.get(kind)
        if isinstance(mod, dict):
            print_heading(console, f"{kind} {mod['name']}")
            print_code(console, "\n".join(mod["source"]), "python")
            print_code(console, "expression: " + "\n".join(mod["expression"]), "python")
            for capture in (*mod["arrays"], *mod["numbers"]):
                console.print(f"{INDENT}captures {capture}", markup=False)
    print_heading(console, "files")
    for name, file in manifest.get("files", {}).items():
        console.print(f"{INDENT}{name}  {human_size(file['bytes'])}", markup=False)


def _row_of(prefix: str) -> CacheRow:
    """The only entry whose key begins so. Raises CommandError."""
    found = [row for row in _rows() if row.key.startswith(prefix.lower())]
    if not found:
        raise CommandError(f"no key begins with {prefix!r}; `flextrace cache ls` lists them")
    if len(found) > 1:
        keys = ", ".join(row.key[: max(12, len(prefix) + 4)] for row in found[:5])
        raise CommandError(
            f"{len(found)} keys begin with {prefix!r}: {keys}{', ...' if len(found) > 5 else ''}; add digits"
        )
    return found[0]


def _manifest(row: CacheRow) -> dict[str, Any]:
    """Its manifest, or nothing where that is what is damaged."""
    from flextrace.cache import Store

    entry = Store().peek(row.key)
    return {} if entry is None else entry.manifest


def _text(row: CacheRow, manifest: dict[str, Any]) -> str:
    from flextrace.cache import Store

    names = [name for name in ("kernel.metal", "kernel.cu", "kernel.cpp") if name in manifest.get("files", {})]
    if not names or row.damage:
        raise CommandError(f"{row.key[:12]} has no kernel text to show{': ' + row.damage if row.damage else ''}")
    entry = Store().get(row.key)
    if entry is None:
        raise CommandError(f"{row.key[:12]} was removed meanwhile; `flextrace cache ls` lists what is there")
    return entry.contents[names[0]].decode()


@app.command()
@expected_errors("cache verify")
@cache_reachable()
def verify(json: Json = False) -> None:
    """Check every file of every kernel against its checksum.

    Exit code: 0 where all are whole; 1 where one is damaged.
    """
    from flextrace.show.cache_table import REMEDY

    found = _rows()
    damaged = [row for row in found if row.damage]
    if json:
        faults = {row.key: row.damage for row in damaged}
        print_json({"ok": not damaged, "entries": len(found), "damaged": faults})
    else:
        console = output()
        for row in damaged:
            console.print(f"damaged {row.key[:12]}: {row.damage}", markup=False)
        console.print(f"{len(found) - len(damaged)} of {len(found)} kernels are whole")
        if damaged:
            console.print(REMEDY, markup=False)
    if damaged:
        raise typer.Exit(FOUND_WRONG)


@app.command()
@expected_errors("cache prune")
@cache_reachable()
def prune(
    max_size: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="SIZE",
            help="Remove the least recently used until this is left: 500MB, 1.5GiB, 0; 1GB without.",
        ),
    ] = None,
    damaged: Annotated[bool, typer.Option("--damaged", help="Remove what is damaged.")] = False,
) -> None:
    """Remove kernels that are damaged or that were not used for longest.

    Every build does the same for a cache that has grown beyond 1 GB.
    """
    from flextrace.cache import Store

    store, removed = Store(), 0
    limit = bytes_of(max_size) if max_size is not None else None if damaged else store.limit
    before = store.size()
    if damaged:
        removed += sum(store.remove(row.key) for row in _rows() if row.damage)
    if limit is not None:
        removed += store.prune(limit)
    _say_removed(removed, before)


@app.command()
@expected_errors("cache clear")
@cache_reachable()
def clear(yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False) -> None:
    """Remove all kernels; the next use of each builds it again."""
    from flextrace.cache import Store
    from flextrace.show.cache_table import human_size

    store = Store()
    before, count = store.size(), len(store.entries())
    if not yes:
        question = f"Remove {count} kernels, {human_size(before)}, from {store.folder}?"
        try:
            if not typer.confirm(question):
                typer.echo("nothing was removed")
                return
        except typer.Abort as error:
            if sys.stdin.isatty():
                raise
            typer.echo()
            raise CommandError("there is nobody to ask; add --yes") from error
    _say_removed(store.clear(), before)


def _say_removed(count: int, before: int) -> None:
    from flextrace.cache import Store
    from flextrace.show.cache_table import human_size

    left = Store().size()
    kernels = "1 kernel" if count == 1 else f"{count} kernels"
    typer.echo(f"removed {kernels}, {human_size(before - left)}; {human_size(left)} left")


@app.command()
@expected_errors("cache path")
def path() -> None:
    """Print the folder of the cache."""
    from flextrace.cache import Store

    typer.echo(str(Store().folder))
