"""Key -> the right to build it: the lock of a key, and the folders that are being built or deleted.

    <cache>/building/<key>.<random>/   an entry being built, or being deleted
    <cache>/locks/<key>.lock           held by the process that builds <key>, while it does

Who holds the lock of a key owns that key's folders in building/, so a folder whose lock is free was left
behind by a process that died: the system frees a lock with its process, SIGKILL included. Lock files stay.
Deleting one that somebody waits for would let two processes build.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .entry import CacheError, check_trusted
from .fallback import Unwritable, own_step

KEY = re.compile(r"[0-9a-f]{64}")


def make_folder(folder: Path) -> None:
    """Make a folder of mode 0700, or check the one there. Raises CacheError if others can write to it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_trusted(folder)


def make_folders(cache: Path) -> None:
    """Make what a build needs. Raises as make_folder does."""
    for folder in (cache, cache / "kernels", cache / "building", cache / "locks"):
        make_folder(folder)


@contextmanager
def locked(cache: Path, key: str, seconds: float) -> Iterator[None]:
    """Hold the lock of `key`. Raises CacheError if another process keeps it that long, Unwritable."""
    from filelock import FileLock, Timeout  # costs 30 ms, and a hit does without

    path = cache / "locks" / f"{key}.lock"
    lock = FileLock(path, mode=0o600)
    with own_step():
        try:
            lock.acquire(timeout=seconds, poll_interval=0.01)
        except Timeout:
            raise CacheError(
                f"waited {seconds:g} s for another process that builds the same kernel and holds {path}. "
                f"Remedy: end that process (`lsof '{path}'` names it), or set FLEXTRACE_CACHE_DIR to another "
                "folder."
            ) from None
    try:
        yield
    finally:
        lock.release()


def scratch(cache: Path, key: str) -> Path:
    """A new name in building/ for a folder of `key`, in the same file system as the entries."""
    return cache / "building" / f"{key}.{os.urandom(8).hex()}"


def sweep(cache: Path, held: str = "") -> None:
    """Delete what dead processes left in building/. `held` is the key whose lock the caller has."""
    for path in (cache / "building").iterdir():
        key = path.name.partition(".")[0]
        if key == held:
            delete(path)
        elif KEY.fullmatch(key):
            try:
                with locked(cache, key, 0.0):
                    delete(path)
            except (CacheError, Unwritable):
                continue  # its builder is alive


def discard(cache: Path, folder: Path) -> bool:
    """Take an entry away in one step, then delete it; whether it was there. Files in use stay valid."""
    moved = scratch(cache, folder.name)
    try:
        os.rename(folder, moved)
    except FileNotFoundError:
        return False
    delete(moved)
    return True


def delete(path: Path) -> None:
    """Delete a file or a folder, as far as possible: what cannot be deleted now is swept later."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
