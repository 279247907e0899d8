"""A word, the known ones -> the one that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that two letters exchanged make of it, else one letter changed, dropped or added, else the most
    similar one; None where nothing is similar.

    Example:
        >>> nearest("tahn", ["tan", "tanh"]), nearest("maxmum", ["max", "maximum"]), nearest("softmax", ["exp"])
        ('tanh', 'maximum', None)
    """
    words = sorted(set(known))
    edits = [(rank, -_likeness(word, other), other) for other in words if (rank := _edit(word, other)) is not None]
    if edits:
        return min(edits)[2]
    close = difflib.get_close_matches(word, words, n=1)
    return close[0] if close else None


def _edit(a: str, b: str) -> int | None:
    """0: two neighbouring letters exchanged, or only upper and lower case; 1: another edit of one letter; else None."""
    a, b = a.lower(), b.lower()
    shorter = min(len(a), len(b))
    start = next((i for i in range(shorter) if a[i] != b[i]), shorter)
    end = next((i for i in range(shorter - start) if a[-1 - i] != b[-1 - i]), shorter - start)
    a, b = a[start : len(a) - end], b[start : len(b) - end]
    if a == b or (len(a) == 2 and a == b[::-1]):
        return 0
    return 1 if max(len(a), len(b)) == 1 else None


def _likeness(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()
