"""KernelSpec -> kernel: from memory, from disk, or built, each once in a process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from flextrace.cache import Store

from .spec import Formulas, KernelSpec

if TYPE_CHECKING:
    from .backend import Backend

Kernel = TypeVar("Kernel")
_lock = threading.Lock()  # one kernel is made at a time


def _new_lock() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # a thread that the child lacks may hold the lock
    os.register_at_fork(after_in_child=_new_lock)


class Kernels(dict[KernelSpec, Kernel]):
    """The kernels of a backend in memory: `kernels[spec]` is one of them, made where it is missing.

    make: takes it from disk, or builds it; of several threads that ask at once one does.
    """

    def __init__(self, make: Callable[[KernelSpec], Kernel]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, spec: KernelSpec) -> Kernel:
        with _lock:
            if spec not in self:  # no other thread made it meanwhile
                self[spec] = self._make(spec)
            return self[spec]


def text_of(backend: Backend, mods: Formulas, name: str) -> str:
    """The complete text of the kernel of that name (Backend.named) for these mods.

    Raises:
        ValueError: the backend has no such kernel, or none for them.
    """
    named = backend.named(mods)
    if name not in named:
        raise ValueError(f"the {backend.name} backend has no kernel {name!r} for this; it has {', '.join(named)}")
    return backend.text(named[name])


def state(backend: Backend, mods: Formulas) -> str:
    """Where an attention kernel for just these mods is: "memory", "paired" (in memory, but only with another mod
    too), "disk" or "nowhere". Makes nothing, loads nothing, and the cache does not count it as a use.

    Raises:
        ValueError: the backend has no kernel for them.
        CacheError, OSError: the cache cannot be read.
    """
    if backend.kernels is None:
        return "memory"
    loaded = {spec.mods for spec in tuple(backend.kernels) if spec.kernel in backend.forward}
    if mods in loaded:
        return "memory"
    if len(mods.present) == 1 and any(mods in pair.halves() for pair in loaded):
        return "paired"
    keys = [backend.key(KernelSpec(kernel, mods)) for kernel in backend.forward]
    return "disk" if any(key is not None and Store().peek(key) is not None for key in keys) else "nowhere"
