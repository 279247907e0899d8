"""Documents -> one long row of character numbers, and the windows of it that a model learns from."""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from .corpus import Document

ALPHABET = "".join(sorted(string.printable[:95])) + "\n"  # the rest is left out
NUMBER = {character: number for number, character in enumerate(ALPHABET)}
END = "\n\n\n"  # between documents


class Batch(NamedTuple):
    """inputs, targets: int32 [batch, length]; targets is the text one character on."""

    inputs: mx.array
    targets: mx.array


def encoded(text: str) -> mx.array:
    """int32 [characters of ALPHABET].

    Example:
        >>> decoded(encoded("sorted (ascending)")), len(encoded("na\u00efve"))
        ('sorted (ascending)', 4)
    """
    return mx.array([NUMBER[character] for character in text if character in NUMBER], mx.int32)


def decoded(numbers: mx.array) -> str:
    return "".join(ALPHABET[int(number)] for number in np.array(numbers))


def text_of(documents: Iterable[Document]) -> str:
    """Names and docstrings, one after the other, as `help` shows them."""
    return END.join(f"{document.name}\n\n{document.docstring.strip()}" for document in documents)


def batches(numbers: mx.array, batch: int, length: int, seed: int) -> Iterator[Batch]:
    """Windows that begin anywhere, without end; the same ones for the same seed.

    Raises:
        ValueError: the text is no longer than a window.
    """
    last = len(numbers) - length
    if last < 1:
        raise ValueError(f"the text has {len(numbers)} characters; expected more than the {length} of a window")
    draw = np.random.default_rng(seed)
    within = mx.arange(length)
    while True:
        rows = mx.array(draw.integers(0, last, (batch, 1)).astype(np.int32)) + within
        yield Batch(numbers[rows], numbers[rows + 1])
