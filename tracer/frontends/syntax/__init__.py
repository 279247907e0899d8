"""Functions that have source, read from their `ast`."""

from .statements import follow

__all__ = ["follow"]
