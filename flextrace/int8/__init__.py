"""Keys and values as int8 rows with scales."""

from .kv_cache import Int8KV

__all__ = ["Int8KV"]
