"""Key -> the right to build it: the lock of a key, and the folders that are being built or deleted.

    <cache>/building/<key>.<random>/   an entry being built, or being deleted
    <cache>/locks/<key>.lock           held by the process that builds <key>, while it does

Who holds the lock of a key owns that key's folders in building/, so a folder whose lock is free was left
behind by a process that died: the system frees a lock with its process, SIGKILL included. Who lets a lock go
deletes its file, and who waited for it and now has it looks whether it has the file that others find.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .entry import CacheError
from .fallback import Unwritable, own_step
from .loading import is_left_behind
from .trust import check_trusted, check_way

KEY = re.compile(r"[0-9a-f]{64}")
POLL_SECONDS = 0.01


def make_folder(folder: Path) -> None:
    """Make a folder of mode 0700, or check the one there. Raises CacheError if others can write to it."""
    missing = [folder, *(parent for parent in folder.parents if not os.path.lexists(parent))]
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)
    check_trusted(folder)


def make_folders(cache: Path) -> None:
    """Make what a build needs. Raises as check_way and make_folder do."""
    check_way(cache)
    for folder in (cache, cache / "kernels", cache / "building", cache / "locks"):
        make_folder(folder)


@contextmanager
def locked(cache: Path, key: str, seconds: float) -> Iterator[None]:
    """Hold the lock of `key`. Raises CacheError if another process keeps it that long, Unwritable."""
    path = cache / "locks" / f"{key}.lock"
    give_up = time.monotonic() + seconds
    with own_step():
        while (handle := _acquire(path)) is None:
            if time.monotonic() >= give_up:
                raise CacheError(
                    f"waited {seconds:g} s for another process that builds the same kernel and holds {path}. "
                    f"Remedy: end that process (`lsof '{path}'` names it), or set FLEXTRACE_CACHE_DIR to another "
                    "folder."
                )
            time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        _release(handle)


def _acquire(path: Path) -> int | None:
    """The lock's open file, None if another has it. Raises OSError where it can be neither had nor waited for."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), os.lstat(path)):
            return handle
    except BlockingIOError:
        pass  # another has it
    except FileNotFoundError:
        pass  # who had it deleted this file
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None


def _release(handle: int) -> None:
    """A process forked meanwhile has the file open too, so closing it here is not enough."""
    try:
        fcntl.flock(handle, fcntl.LOCK_UN)
    finally:
        os.close(handle)


def scratch(cache: Path, key: str) -> Path:
    """A new name in building/ for a folder of `key`, in the same file system as the entries."""
    return cache / "building" / f"{key}.{os.urandom(8).hex()}"


def sweep(cache: Path, held: str = "") -> None:
    """Delete what dead processes left in building/ and locks/. `held` is the key whose lock the caller has."""
    locks, building = (
        list(folder.iterdir()) if folder.is_dir() else [] for folder in (cache / "locks", cache / "building")
    )
    left: dict[str, list[Path]] = {path.stem: [] for path in locks}
    for path in building:
        if is_left_behind(path, time.time()):
            delete(path)
        left.setdefault(path.name.partition(".")[0], []).append(path)
    for key, paths in left.items():
        if key == held:
            _delete_all(paths)
        elif KEY.fullmatch(key):
            try:
                with locked(cache, key, 0.0):
                    _delete_all(paths)
            except (CacheError, Unwritable):
                continue  # its builder is alive


def _delete_all(paths: list[Path]) -> None:
    for path in paths:
        delete(path)


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
