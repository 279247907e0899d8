"""Key -> verified folder: the content-addressed disk store of kernels. Knows bytes, files, builders."""

from .entry import CacheError, Entry, key_of
from .fallback import CacheWarning
from .loading import LoadError
from .store import Store

__all__ = ["CacheError", "CacheWarning", "Entry", "LoadError", "Store", "key_of"]
