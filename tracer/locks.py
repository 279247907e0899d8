"""Owner of a lock -> the lock, free again in a forked child: a thread that the child lacks may have held it."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

_owners: weakref.WeakSet[Any] = weakref.WeakSet()


def renew_at_fork(owner: Any) -> None:
    """Give `owner` (an object or a module) a new `_lock` in every forked child.

    Example:
        >>> class Memory:
        ...     def __init__(self):
        ...         self._lock = threading.RLock()
        ...         renew_at_fork(self)
        >>> with Memory()._lock:
        ...     pass
    """
    _owners.add(owner)


def _renew() -> None:
    for owner in list(_owners):
        owner._lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
