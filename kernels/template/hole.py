"""Template, texts by name -> the hole of a kernel, filled; kernel text -> what stands in its hole.

A backend's `mod.h` is the template. What is written for a user's mods stands between marks, each on a line of its own:

    // {{ score_mod
    // One score, already scaled.
    float score_mod(float score) {
      return score;
    }
    // }}

Of a function between marks the body is replaced, and of anything else all of it. The value of a constant, and what a
function of one line returns, are replaced by its name. All else is as it lies in the file, which compiles as it lies.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from flextrace.tracer import Kind

FUNCTIONS: dict[Kind, tuple[str, ...]] = {
    "score_mod": ("score_mod", "sites", "score_gradient", "place", "element"),
    "mask_mod": ("mask_mod", "mask_row", "tile_state"),
}
_MARK, _END = re.compile(r"\s*// \{\{ (\w+)"), re.compile(r"\s*// \}\}")


class Excerpt(NamedTuple):
    """Some lines of a text; `first` is the number of the first, from 1."""

    first: int
    lines: list[str]


def fill(template: Path, texts: Mapping[str, str], values: Mapping[str, str]) -> str:
    """The template with the text of each mark, and the value of each constant or function of one line.

    Raises:
        KeyError: a name that is not in the template, or stands there twice.
    """
    text = template.read_text(encoding="ascii")
    for name, value in values.items():
        place = re.compile(rf"(\b{name} = |\b{name}\([^)]*\)[\w ]*\{{ return )[^;]+;")
        text, count = place.subn(rf"\g<1>{value};", text)
        if count != 1:
            raise KeyError(name)
    lines = text.splitlines()
    for name, new in texts.items():
        found = [excerpt for mark, excerpt in _marked(lines) if mark == name]
        if len(found) != 1:
            raise KeyError(name)
        ((first, old),) = found
        lines[first - 1 : first - 1 + len(old)] = _replaced(old, new.splitlines())
    return "\n".join(lines) + "\n"


def _replaced(lines: list[str], text: list[str]) -> list[str]:
    first = next((at for at, line in enumerate(lines) if line.endswith("{")), None)
    if first is None or lines[-1].strip() != "}":
        return text
    indent = lines[-1].removesuffix("}") + "  "
    return [*lines[: first + 1], *(indent + line if line else line for line in text), lines[-1]]


def written_by(kinds: Sequence[Kind], kernel: str) -> list[Excerpt]:
    """The functions of a complete kernel text that mods of these kinds became, with the comments above them.

    Example:
        >>> import flextrace as flex
        >>> (score, *_) = written_by(["score_mod"], flex.mods.softcap(30.0).source("metal"))
        >>> print(score.lines[1].strip())
        INLINE float score_mod(float score, int b, int h, int q_idx, int kv_idx) const thread {
    """
    names = [name for kind in kinds for name in FUNCTIONS[kind]]
    return [excerpt for name, excerpt in _marked(kernel.splitlines()) if name in names]


def _marked(lines: Sequence[str]) -> Iterator[tuple[str, Excerpt]]:
    """Each name, and what lies between its marks."""
    for at, line in enumerate(lines):
        if (mark := _MARK.fullmatch(line)) is not None:
            end = next(i for i in range(at, len(lines)) if _END.fullmatch(lines[i]) is not None)
            yield mark[1], Excerpt(at + 2, list(lines[at + 1 : end]))
