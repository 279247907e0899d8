"""Code of a function -> its value on symbols: decode (steps), flow (blocks and loops), run (blocks to verbs)."""

from .run import follow

__all__ = ["follow"]
