"""Verified bytes -> a library in this process, by way of a file that nobody else can reach.

The system loads libraries by name, and what a name stands for can change between a look and the next: another
process clears the cache, or rebuilds an entry. So the bytes that were verified are written to a new file of mode
0600, in a folder where nobody else can exchange it, loaded from there and removed; what is mapped stays.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from .entry import CacheError
from .fallback import nowhere
from .trust import check_way

Loaded = TypeVar("Loaded")
PREFIX = "flextrace-"
LONGEST_LOAD = 3600.0  # seconds


class LoadError(RuntimeError):
    """A file is no library that can be loaded here; the message says why and names the remedy."""


def load_copy(content: bytes, name: str, load: Callable[[Path], Loaded], beside: Path) -> Loaded:
    """What `load` makes of a file with these bytes. `beside`: a folder for it where no temporary one serves.

    A temporary folder that is full, or mounted noexec, or that others can exchange, serves for nothing.
    Raises LoadError if `load` raises it in every folder, CacheError if no folder takes the file.
    """
    refusals: list[LoadError] = []
    reason: Exception | None = None
    for parent in (None, "/dev/shm", beside):
        try:
            handle, path = tempfile.mkstemp(prefix=PREFIX, suffix=name, dir=parent)
        except OSError as error:
            reason = error
            continue
        try:
            with open(handle, "wb") as file:
                file.write(content)
            check_way(Path(path))
            return load(Path(path))
        except LoadError as error:
            refusals.append(error)
        except (OSError, CacheError) as error:
            reason = error
        finally:
            with suppress(OSError):  # who cleans that folder was faster
                os.unlink(path)
    raise refusals[0] if refusals else nowhere(reason)


def is_left_behind(path: Path, now: float) -> bool:
    """Whether a process that died while it loaded left this file."""
    try:
        return path.name.startswith(PREFIX) and now - os.lstat(path).st_mtime > LONGEST_LOAD
    except FileNotFoundError:
        return False
