"""Masks of 3 rows of 4 heads over 1,000 keys, of 2 batch entries: gaps, empty rows, heads that end apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import reference
import zoo

MASKED: dict[str, Callable[..., Any]] = {
    "window": lambda b, h, i, j: j > 800,
    "by_head": lambda b, h, i, j: (j > 200 * h) & (j < 200 * h + 500),
    "gaps": lambda b, h, i, j: j // 130 % 3 == i % 3,
    "interleaved": lambda b, h, i, j: (j + h) % 7 > i,
    "by_batch": lambda b, h, i, j: j < 100 + 700 * b,
    "empty_rows": lambda b, h, i, j: (j > 500) & (i > 0) & (h != 1),
    "nothing": lambda b, h, i, j: j < 0,
}


class ZooCase(NamedTuple):
    """q, k and v that its dtype holds; score_mod and mask_mod for a kernel; what plain attention gives."""

    exact: list[reference.Array]
    mods: tuple[Any, Any]
    want: Any


def zoo_case(entry: zoo.Entry, dtype: str, normal: Callable[..., reference.Array]) -> ZooCase:
    """3 rows of 4 heads over 160 keys of 2, of 2 batch entries. normal: normal numbers of a shape."""
    batch, heads, q_len, kv_len = 2, 4, 3, 160
    sizes = (batch, heads, q_len, 16), (batch, 2, kv_len, 16), (batch, 2, kv_len, 16)
    exact = [reference.array(normal(*size), dtype) for size in sizes]

    def made(array: Callable[..., Any]) -> tuple[Any, Any]:
        mod = entry.make(batch, heads, q_len, kv_len, np.random.default_rng(1), array)
        return (mod, None) if entry.kind == "score" else (None, mod)

    return ZooCase(exact, made(zoo.mx_array), reference.attention(*exact, *made(reference.array)))
