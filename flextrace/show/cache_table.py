"""Store -> rows: what lies in the cache, for `flextrace cache` and for notebooks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from flextrace.cache import Entry, Store
from flextrace.kernels.spec import short_name

if TYPE_CHECKING:
    from rich.console import JustifyMethod
    from rich.table import Table

REMEDY = "`flextrace cache prune --damaged` removes what is damaged; the next use builds it again"
_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
_AGES = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


_COLUMNS = (  # the columns of a table, by the characters of a line that there are
    (100, ("key", "backend", "kernel", "mods", "size", "used", "state")),
    (60, ("key", "kernel", "mods", "size", "used", "state")),
    (0, ("key", "mods", "state")),
)


@dataclass(frozen=True)
class CacheRow:
    """One entry. A damaged one whose manifest cannot be read has its key, size and damage only.

    kernel: what was compiled ("attention", "matmul", ...); mods: the names of its mods; size: bytes of its files;
    created: ISO 8601; used: seconds since the epoch; damage: what is wrong with it, "" if it is whole.
    """

    key: str
    folder: str
    backend: str = ""
    kernel: str = ""
    mods: tuple[str, ...] = field(default=())
    expressions: tuple[str, ...] = field(default=())
    size: int = 0
    created: str = ""
    used: float = 0.0
    damage: str = ""


def rows(store: Store | None = None) -> list[CacheRow]:
    """Every entry, the most recently used first, each of its files checked; what cannot be read at all comes last.

    Raises:
        CacheError: others can write to the cache folder.
        OSError: it cannot be read.
    """
    store = store or Store()
    damaged = store.verify()
    readable = [_row(entry, damaged.pop(entry.key, "")) for entry in store.entries()]
    lost = [
        CacheRow(key, str(store.folder / "kernels" / key[:2] / key), size=store.size(key), damage=why)
        for key, why in damaged.items()
    ]
    return [*readable, *lost]


def _row(entry: Entry, damage: str) -> CacheRow:
    manifest = entry.manifest
    mods = [manifest[kind] for kind in ("score_mod", "mask_mod") if isinstance(manifest.get(kind), dict)]
    return CacheRow(
        entry.key,
        str(entry.folder),
        str(manifest.get("backend", "")),
        _kernel(manifest),
        tuple(str(mod["name"]) for mod in mods),
        tuple("\n".join(mod["expression"]) for mod in mods),
        entry.size,
        str(manifest["created"]),
        entry.used,
        damage,
    )


def _kernel(manifest: dict[str, Any]) -> str:
    kernel, keys = short_name(str(manifest.get("kernel", ""))), str(manifest.get("keys", "PLAIN"))
    return kernel if keys == "PLAIN" else f"{kernel}, keys {keys.lower()}"


def grouped(found: Sequence[CacheRow]) -> list[list[CacheRow]]:
    """Kernels of the same mods together, as for other dtypes and sizes, in the order of the first of each.

    One that is damaged stands by itself.
    """
    groups: dict[tuple[object, ...], list[CacheRow]] = {}
    for row in found:
        same = (row.key,) if row.damage else (row.backend, row.kernel, row.mods, row.expressions)
        groups.setdefault(same, []).append(row)
    return list(groups.values())


def cache_table(groups: Sequence[Sequence[CacheRow]], width: int) -> Table:
    """A line for each group, for so many columns of text; only kernel and mods may take several lines.

    key: how many they are, where a group has several; size: that of all; used: the last use of any.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    names = next(names for least, names in _COLUMNS if width >= least)
    for name in names:
        justify: JustifyMethod = "right" if name in ("size", "used") else "left"
        table.add_column(name, justify=justify, no_wrap=name not in ("kernel", "mods"))
    for group in groups:
        row = max(group, key=lambda row: row.used)
        key = row.key[:12] if len(group) == 1 else f"{len(group)} kernels"
        cells = {"key": key, "backend": row.backend, "kernel": row.kernel, "mods": " + ".join(row.mods)}
        cells |= {
            "size": human_size(sum(row.size for row in group)),
            "used": _age(row.used),
            "state": "damaged" if row.damage else "whole",
        }
        table.add_row(*(Text(cells[name]) for name in names), style="bold red" if row.damage else "")
    return table


def human_size(size: float) -> str:
    """
    >>> human_size(1_234_567), human_size(999)
    ('1.2 MB', '999 B')
    """
    for unit, factor in _UNITS:
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size:.0f} B"


def _age(used: float) -> str:
    if not used:
        return ""
    seconds = max(0.0, time.time() - used)
    if seconds > 30 * 86400:
        return datetime.fromtimestamp(used).strftime("%Y-%m-%d")
    return next((f"{seconds / length:.0f} {unit} ago" for length, unit in _AGES if seconds >= length), "now")
