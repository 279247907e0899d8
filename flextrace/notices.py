"""What flextrace says once per process: a slower path was taken, and how to avoid it."""

from __future__ import annotations

import warnings

_said: set[str] = set()


class FlextraceWarning(UserWarning):
    """flextrace works, but not as it could; the message names the remedy."""


def notice(topic: str, message: str) -> None:
    """Warn, the first time in this process."""
    if topic not in _said:
        _said.add(topic)
        warnings.warn(message, FlextraceWarning, stacklevel=5)
