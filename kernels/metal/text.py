"""Kernel file, what fills its hole -> KernelText: what MLX's metal_kernel takes, for every kernel of this folder."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flextrace.tracer import ArrayCapture

from ..template.assemble import assemble, header_and_body
from .scoring import PLAIN, Scoring

FOLDER = Path(__file__).parent
HOLE = "mod/mod.h"
NOTHING_ELSE: Mapping[str, str] = {}


@dataclass(frozen=True)
class KernelText:
    """One kernel, for one pair of mods if it has any.

    kernel: what its name begins with; inputs, outputs: as the body names them, captured arrays behind the others.
    packed: the arrays are, as captures.py has it. extremes: the slots of arrays whose blocks tile_state reads, which
    are inputs behind the arrays. scoring: its inputs come last. few_words: `params` has so few words that MLX passes it
    in the constant address space, where no thread reads them of device memory.
    """

    kernel: str
    header: str
    body: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    arrays: tuple[ArrayCapture, ...] = ()
    packed: bool = False
    extremes: tuple[int, ...] = ()
    scoring: Scoring = PLAIN
    few_words: bool = False

    @functools.cached_property
    def name(self) -> str:
        """With a hash of the text: MLX up to 0.32.0 ran stale code under an equal name."""
        return f"flextrace_{self.kernel}_{hashlib.sha256((self.header + self.body).encode()).hexdigest()[:16]}"


def texts_of(
    file: str, hole: str | None = None, passed: Sequence[str] = (), others: Mapping[str, str] = NOTHING_ELSE
) -> tuple[str, str]:
    """Header and body of the kernel in that file, the hole as it lies without one; `passed` goes to captured_by_mods,
    which needs it where there is a hole. `others`: the texts of other headers that are generated."""
    header, body = header_and_body(assemble(FOLDER, file, {**others, **({} if hole is None else {HOLE: hole})}))
    if hole is not None:
        body = body.replace(" CAPTURED_ARRAYS", "".join(f", {name}" for name in passed))
    return header, body
