"""Kernel file + generated header -> one source text: includes inlined, the hole filled, lines kept.

Every `#include "file.h"` is replaced by that file's text once, between `#line` marks, so that a compiler's message
points into the real file. A file named in `replace` is the hole.

A Metal kernel's file ends with its body, below a line that says so: MLX writes the signature between the two. A kernel
that another one includes leaves its body behind.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

_INCLUDE = re.compile(r'^\s*#include\s+"([^"]+)"', re.MULTILINE)
BODY = "// -- body: what MLX puts between the braces --"
_MARK = re.compile(r'^#line \d+ "([^"]+)"$')


def parts(text: str) -> dict[str, str]:
    """Assembled text -> its own lines of each file, by the labels of its marks; the kernel comes first."""
    found: dict[str, list[str]] = {}
    label = ""
    for line in text.splitlines():
        mark = _MARK.match(line)
        if mark is None:
            found.setdefault(label, []).append(line)
        else:
            label = mark[1]
    return {label: "\n".join(lines) for label, lines in found.items()}


def assemble(folder: Path, kernel: str, replace: Mapping[str, str]) -> str:
    """The text of `kernel` with its includes inlined; `replace` gives the text of generated headers by name.

    Names are paths from `folder`: an include is looked up beside the file that has it.
    """
    done: set[str] = set()

    def inline(name: str) -> list[str]:
        done.add(name)
        text = replace[name] if name in replace else (folder / name).read_text(encoding="ascii")
        label = f"{name} (generated)" if name in replace else name
        lines = [f'#line 1 "{label}"']
        for number, line in enumerate(text.splitlines(), start=1):
            if line == BODY:
                if name != kernel:
                    break
                lines += [BODY, f'#line {number + 1} "{label}"']
                continue
            include = _INCLUDE.match(line)
            if include is None:
                lines.append("" if line.strip() == "#pragma once" else line)
                continue
            included = os.path.normpath(os.path.join(os.path.dirname(name), include[1])).replace(os.sep, "/")
            if included not in done:
                lines += [*inline(included), f'#line {number + 1} "{label}"']
            else:
                lines.append("")
        return lines

    return "\n".join(inline(kernel)) + "\n"


def header_and_body(text: str) -> tuple[str, str]:
    """An assembled Metal kernel as MLX takes it: what stands before its signature, and between its braces."""
    header, body = text.split(BODY + "\n")
    return header, body
