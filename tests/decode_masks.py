"""Masks of 3 rows of 4 heads over 1,000 keys, of 2 batch entries: gaps, empty rows, heads that end apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

MASKED: dict[str, Callable[..., Any]] = {
    "window": lambda b, h, i, j: j > 800,
    "by_head": lambda b, h, i, j: (j > 200 * h) & (j < 200 * h + 500),
    "gaps": lambda b, h, i, j: j // 130 % 3 == i % 3,
    "interleaved": lambda b, h, i, j: (j + h) % 7 > i,
    "by_batch": lambda b, h, i, j: j < 100 + 700 * b,
    "empty_rows": lambda b, h, i, j: (j > 500) & (i > 0) & (h != 1),
    "nothing": lambda b, h, i, j: j < 0,
}
