"""Formulas -> KernelSpec: what makes two kernels the same."""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from flextrace.tracer import ArrayCapture, Expr, Formula, NumberCapture, Site, sites
from flextrace.tracer.expr.node import rebuild

ATTENTION = "attention_forward"  # the fused kernel; stages go by their own names
DECODE = "attention_decode"  # the same for a few query rows
BACKWARD = "attention_backward"  # its gradients


@dataclass(frozen=True)
class Formulas:
    """A call's score_mod and mask_mod as a kernel knows them: without any captured value.

    Captures of both are numbered together, the mask's after the score's: these numbers are their slots.
    """

    score: Formula | None = None
    mask: Formula | None = None

    @functools.cached_property
    def present(self) -> tuple[Formula, ...]:
        """Those that there are, the score_mod first."""
        return tuple(formula for formula in (self.score, self.mask) if formula is not None)

    @functools.cached_property
    def arrays(self) -> tuple[ArrayCapture, ...]:
        """The captured arrays, by slot."""
        return tuple(array for formula in self.present for array in formula.arrays)

    @functools.cached_property
    def numbers(self) -> tuple[NumberCapture, ...]:
        """The captured numbers, by slot."""
        return tuple(number for formula in self.present for number in formula.numbers)

    @functools.cached_property
    def packed_numbers(self) -> struct.Struct:
        """What packs the captured numbers, by slot, as a kernel reads them: 4 bytes each."""
        return struct.Struct("=" + "".join("f" if number.dtype == "float" else "i" for number in self.numbers))

    @property
    def score_expr(self) -> Expr | None:
        """The score_mod's expression over the slots of both."""
        return None if self.score is None else self.score.expr

    @functools.cached_property
    def mask_expr(self) -> Expr | None:
        """The mask_mod's expression over the slots of both."""
        if self.mask is None or self.score is None:
            return None if self.mask is None else self.mask.expr
        return shift_slots(self.mask.expr, len(self.score.arrays), len(self.score.numbers))

    @functools.cached_property
    def sites(self) -> tuple[Site, ...]:
        """Where the score_mod reads captured floating arrays that move the score; those of a mask move nothing."""
        return () if self.score is None else sites(self.score.expr)

    @functools.cached_property
    def differentiable(self) -> tuple[int, ...]:
        """The slots of the arrays that have a gradient."""
        return tuple(sorted({site.slot for site in self.sites}))

    def described(self) -> dict[str, Any]:
        """What a manifest says about each: name, source, expression, captured inputs."""
        return {
            "score_mod": None if self.score is None else _described(self.score),
            "mask_mod": None if self.mask is None else _described(self.mask),
        }

    def halves(self) -> tuple[Formulas, ...]:
        """Where there are two, each by itself."""
        return (Formulas(self.score), Formulas(None, self.mask)) if len(self.present) == 2 else ()


class KernelSpec(NamedTuple):
    """A kernel as it is asked for: equal ones are one kernel, in memory and on disk.

    kernel: which one: "attention_forward", or a stage by its name.
    mods: what runs in it of the user.
    variant: the backend's own choice, as how keys are read; None is its plain kernel.
    """

    kernel: str = ATTENTION
    mods: Formulas = Formulas()
    variant: Hashable = None

    @property
    def title(self) -> str:
        """What people are told of it."""
        return {ATTENTION: "attention", DECODE: "attention, few rows", BACKWARD: "attention, gradients"}.get(
            self.kernel, self.kernel
        )


def short_name(kernel: str) -> str:
    """The name of a Metal kernel without the hash of its text.

    >>> short_name("flextrace_attention_76ec038052af9bbf_c_float32"), short_name("softmax")
    ('attention', 'softmax')
    """
    return re.sub(r"^flextrace_(.*?)(_[0-9a-f]{16}.*)?$", r"\1", kernel)


def shift_slots(expr: Expr, arrays: int, numbers: int) -> Expr:
    """The expression with its captures numbered from `arrays` and `numbers` on."""

    def shifted(node: Expr, args: Sequence[Expr]) -> Expr:
        value = node.value
        if node.op == "param":
            value = value + numbers
        elif node.op == "load":
            value = (value[0] + arrays, value[1])
        return Expr(node.op, node.dtype, tuple(args), value)

    return rebuild(expr, shifted)


def _described(formula: Formula) -> dict[str, Any]:
    return {
        "name": formula.name,
        "source": formula.source().split("\n"),
        "expression": repr(formula.expr).split("\n"),
        "arrays": [f"{a.name}: {a.element}, {a.ndim} dimensions" for a in formula.arrays],
        "numbers": [f"{n.name}: {n.dtype}" for n in formula.numbers],
    }
