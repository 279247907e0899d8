"""What flextrace says once per process: a slower path was taken, and how to avoid it."""

from __future__ import annotations

import warnings

from flextrace.cache.fallback import level_of_user

said: set[str] = set()  # topics
TOP_LEFT = "top left"


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
    if topic not in said:
        said.add(topic)
        warnings.warn(message, FlextraceWarning, stacklevel=level_of_user())


def say_top_left(mask: str, q_len: int, kv_len: int, remedy: str) -> None:
    """That a causal mask of flex.mods sees the first keys, where MLX's sees the last ones.

    mask: how to write it with an offset. remedy: what to write.
    """
    sees, name = "query sees" if q_len == 1 else "queries see", mask.partition("(")[0]
    notice(
        TOP_LEFT,
        f"flex.mods.{name} is aligned top left, as in torch: of {kv_len} keys, {q_len} {sees} no more than the first "
        f'{q_len}. MLX\'s mask="causal" is aligned lower right; for queries that are the last of the keys, as with a '
        f"cache, write {remedy}. offset=0 says that the first keys are meant.",
    )
