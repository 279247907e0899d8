"""What flextrace says once per process: a slower path was taken, and how to avoid it."""

from __future__ import annotations

import warnings

from flextrace.cache.fallback import level_of_user

_said: set[str] = set()


class FlextraceWarning(UserWarning):
    """flextrace works, but not as it could; the message names the remedy.

    Example:
        >>> import warnings, flextrace as flex
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error", flex.FlextraceWarning)  # rather stop than run slower
        ...     flex.noop_mask(0, 0, 0, 1)
        True
    """


def notice(topic: str, message: str) -> None:
    """Warn, the first time in this process."""
    if topic not in _said:
        _said.add(topic)
        warnings.warn(message, FlextraceWarning, stacklevel=level_of_user())
