"""Key -> verified folder: the content-addressed disk store of kernels. Knows bytes, files, builders."""

from .entry import CacheError, Entry, key_of
from .fallback import CacheWarning
from .store import Store

__all__ = ["CacheError", "CacheWarning", "Entry", "Store", "key_of"]
