"""A disk that cannot be written to -> a temporary folder of this process, and one warning.

Only what the store does itself, and a builder that ran out of disk, counts as such; any other failure of a
builder is the builder's own and passes through unchanged.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .entry import CacheError
from .trust import check_way

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
PROBE_BYTES = 4 << 20  # a builder that failed where there is less room than this failed for want of room

_first_warning = threading.Lock()  # who takes it warns; it is never released, so nobody warns a second time


class CacheWarning(UserWarning):
    """The cache folder cannot be written to: kernels are built into a temporary folder, removed at exit.

    Example:
        >>> import warnings, flextrace as flex
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error", flex.CacheWarning)  # stop where every process would compile anew
        ...     flex.mods.causal.expr
        kv_idx <= q_idx
    """


class Unwritable(Exception):
    """Internal: the disk failed; its cause is the OSError."""


@contextmanager
def own_step() -> Iterator[None]:
    """What the store itself does to the disk: an OSError in here means that the folder cannot be used."""
    try:
        yield
    except OSError as error:
        raise Unwritable from error


def run_builder(build: Callable[[Path], dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Run a builder. Raises Unwritable if it failed because the disk is full, else whatever it raised."""
    try:
        return build(folder)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            raise Unwritable from error
        if (full := probe(folder)) is not None:  # a compiler on a full disk raises no OSError: it just fails
            raise Unwritable from full
        raise


def warn_once(folder: Path, reason: BaseException | None) -> None:
    """Warn at the first call in this process, and in no process forked from it afterwards."""
    if _first_warning.acquire(blocking=False):
        warnings.warn(
            f"the kernel cache {folder} cannot be written to ({_said(reason)}): kernels are kept in a "
            "temporary folder and built again by every process. Remedy: free some space there, make it "
            "writable, or set FLEXTRACE_CACHE_DIR to a folder that is.",
            CacheWarning,
            stacklevel=level_of_user(),
        )


def level_of_user() -> int:
    """The stacklevel, for a warning of the caller, of the innermost line that is no part of flextrace."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == "flextrace":
        frame, level = frame.f_back, level + 1
    return level


def private_folder() -> Path:
    """A new folder of mode 0700, removed when this process exits. Raises CacheError if there is none."""
    import tempfile  # these two cost milliseconds and are rarely needed
    from multiprocessing.util import Finalize  # atexit alone does not run in the workers of multiprocessing

    for parent in (None, "/dev/shm"):  # None: TMPDIR, or the system's choice
        try:
            folder = Path(tempfile.mkdtemp(prefix="flextrace-", dir=parent))
        except OSError:
            continue
        if _is_safe(folder) and probe(folder) is None:
            Finalize(None, shutil.rmtree, args=(folder, True), exitpriority=0)
            return folder
        shutil.rmtree(folder, ignore_errors=True)
    raise nowhere(None)


def _is_safe(folder: Path) -> bool:
    """Whether nobody else can exchange it."""
    try:
        check_way(folder)
    except (OSError, CacheError):
        return False
    return True


def nowhere(reason: BaseException | None) -> CacheError:
    """The error for when the temporary folder fails too."""
    return CacheError(
        f"neither the kernel cache nor a temporary folder can be written to ({_said(reason)}). Remedy: free "
        "some space, or set FLEXTRACE_CACHE_DIR or TMPDIR to a writable folder that is not mounted noexec."
    )


def probe(folder: Path) -> OSError | None:
    """Why the folder cannot take a file of PROBE_BYTES; None if it can."""
    path = folder / f"probe.{os.urandom(8).hex()}"
    try:
        with open(path, "wb") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())  # a quota or a network disk may say no only now
    except OSError as error:
        return error
    finally:
        with suppress(OSError):
            path.unlink()
    return None


def _said(reason: BaseException | None) -> str:
    return getattr(reason, "strerror", None) or str(reason or "no room")
