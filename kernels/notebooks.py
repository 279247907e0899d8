"""A thing -> HTML for notebooks: who paints is said here from above, so that what is painted imports no painter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

painter: Callable[[Any], str] = repr  # flextrace/__init__.py names a better one


def html_of(thing: Any) -> str:
    """What a notebook shows of it; as a method it is `_repr_html_`."""
    return painter(thing)
