"""Token lists -> packs: whole documents one after the other in long sequences, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx


@dataclass(frozen=True)
class Pack:
    """Several documents in one sequence.

    tokens, positions, document: [length] int32. positions restart at 0 with every document, document counts
    0, 1, 2, ... through the pack.
    """

    tokens: mx.array
    positions: mx.array
    document: mx.array
    documents: int

    @property
    def length(self) -> int:
        return self.tokens.size


def pack(token_lists: Sequence[Sequence[int]], length: int) -> list[Pack]:
    """Packs of at most `length` tokens, documents whole and in order; a longer document is a pack of its own."""
    packs: list[list[Sequence[int]]] = []
    room = 0
    for tokens in token_lists:
        if not tokens:
            raise ValueError("a document without tokens cannot be embedded; leave it out")
        if not packs or len(tokens) > room:
            packs.append([])
            room = length
        packs[-1].append(tokens)
        room -= len(tokens)
    return [join(members) for members in packs]


def join(members: Sequence[Sequence[int]]) -> Pack:
    return Pack(
        tokens=mx.array([token for tokens in members for token in tokens], mx.int32),
        positions=mx.array([position for tokens in members for position in range(len(tokens))], mx.int32),
        document=mx.array([number for number, tokens in enumerate(members) for _ in tokens], mx.int32),
        documents=len(members),
    )
