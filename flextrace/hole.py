"""Kernel text -> the functions in it that a mod wrote: what fills the hole of the kernel."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from flextrace.tracer import Kind

FUNCTIONS: dict[Kind, tuple[str, ...]] = {
    "score_mod": ("score_mod",),
    "mask_mod": ("mask_mod", "mask_row", "tile_state"),
}
_PLACE = re.compile(r'#line \d+ "(.*)"')
_INTRODUCES = ("//", "template <")


class Excerpt(NamedTuple):
    """Some lines of a text; `first` is the number of the first, from 1."""

    first: int
    lines: list[str]


def written_by(kinds: Sequence[Kind], kernel: str) -> list[Excerpt]:
    """The functions of a complete kernel text that mods of these kinds became, with the comments above them.

    Example:
        >>> import flextrace as flex
        >>> (score, *_) = written_by(["score_mod"], flex.mods.softcap(30.0).source("metal"))
        >>> print(score.lines[1].strip())
        float score_mod(float score, int b, int h, int q_idx, int kv_idx) const thread {
    """
    names = [name for kind in kinds for name in FUNCTIONS[kind]]
    definition = re.compile(rf"\s*(inline )?\w+ ({'|'.join(names)})\(.*\{{")
    lines = kernel.splitlines()
    generated = _generated(lines)
    found = []
    for at, line in enumerate(lines):
        if not generated[at] or definition.fullmatch(line) is None:
            continue
        closing = line[: len(line) - len(line.lstrip())] + "}"
        first, end = at, lines.index(closing, at)
        while lines[first - 1].lstrip().startswith(_INTRODUCES):
            first -= 1
        found.append(Excerpt(first + 1, lines[first : end + 1]))
    return found


def _generated(lines: Sequence[str]) -> list[bool]:
    """Of each line, whether it was written for these mods and does not stand in a kernel file."""

    def walk() -> Iterator[bool]:
        inside = False
        for line in lines:
            place = _PLACE.fullmatch(line)
            inside = place[1].endswith("(generated)") if place else inside
            yield inside and place is None

    return list(walk())
