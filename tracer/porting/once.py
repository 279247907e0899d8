"""Callable -> error, where it gives another value at every call: a mod is called once for the whole matrix.

A random number drawn in a mod, or a clock read there, would be one number for all positions.
"""

from __future__ import annotations

import datetime
import random
from typing import Any

import numpy as np

from ..errors import Untraceable
from ..expr import functions
from ..source.signature import name_of

GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, np.random.BitGenerator)
RANDOM_MODULES = ("mlx.core.random", "numpy.random", "random", "secrets", "jax.random", "jax._src.random")
RANDOM_NAMES: dict[str, frozenset[str]] = {  # their modules have functions that are not random too
    "posix": frozenset({"urandom", "getrandom"}),
    "nt": frozenset({"urandom"}),
    "uuid": frozenset({"uuid1", "uuid4", "uuid6", "uuid7", "uuid8"}),
    "torch": frozenset("rand randn randint randperm normal bernoulli multinomial poisson rand_like randn_like".split()),
}
CLOCKS = frozenset(
    f"{clock}{unit}"
    for clock in ("time", "monotonic", "perf_counter", "process_time", "thread_time")
    for unit in ("", "_ns")
) | {"localtime", "gmtime", "ctime", "asctime", "strftime", "clock_gettime", "clock_gettime_ns", "get_clock_info"}
MODULE_NAMES = {"mlx.core": "mx", "numpy": "np", "posix": "os", "nt": "os"}


class Once(Untraceable):
    """Refused in any function that a mod calls, also where plain Python could run that function."""


def check(function: Any) -> None:
    """Raises Once for a random draw or a clock."""
    owner, module, name = getattr(function, "__self__", None), functions.module_of(function), name_of(function)
    is_random = isinstance(owner, GENERATORS) or _is_within(module)
    if is_random or name in RANDOM_NAMES.get(module.partition("._")[0], ()):
        raise Once(
            f"{_shown(module, name)} would be drawn once, and be the same number for the whole matrix",
            "draw by position, flex.mods.uniform(seed, b, h, q_idx, kv_idx) in [0, 1), or draw an array outside the "
            "mod, and index it",
        )
    is_date = isinstance(owner, type) and issubclass(owner, datetime.date) and name in ("now", "utcnow", "today")
    if is_date or (module == "time" and name in CLOCKS):
        raise Once(
            f"{_shown(module, name)} would be read once, and be the same for the whole matrix",
            "read the clock outside the mod, and capture the number",
        )


def _is_within(module: str) -> bool:
    """Whether a module is one of RANDOM_MODULES or inside one."""
    return any(module == known or module.startswith(f"{known}.") for known in RANDOM_MODULES)


def _shown(module: str, name: str) -> str:
    for full, short in MODULE_NAMES.items():
        if module == full or module.startswith(f"{full}."):
            module = short + module[len(full) :]
    return f"{module.partition('._')[0]}.{name}()"
