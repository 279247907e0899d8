"""The name that was probably meant: an edit of one letter before anything else."""

from __future__ import annotations

import random

import pytest

from flextrace.tracer.errors import with_article
from flextrace.tracer.expr import functions
from flextrace.tracer.nearest import nearest

KNOWN = sorted({**functions.ARRAY_FUNCTIONS, **functions.MLX_ONLY})
MEANT = [
    ("tahn", "tanh"),
    ("epx", "exp"),
    ("sin_", "sin"),
    ("maxmum", "maximum"),
    ("Exp", "exp"),
    ("sqrrt", "sqrt"),
    ("lgo", "log"),
    ("logicalnot", "logical_not"),
]


@pytest.mark.parametrize(("word", "meant"), MEANT)
def test_one_edit_wins(word: str, meant: str) -> None:
    assert nearest(word, KNOWN) == meant


def test_nothing_is_offered_for_what_is_like_nothing() -> None:
    assert nearest("zzzqqq", KNOWN) is None and nearest("exp", []) is None


def test_a_slip_of_the_fingers_is_always_undone() -> None:
    """Two neighbouring letters of a long name exchanged, one dropped or one doubled: no other name is as near."""
    drawn = random.Random(3)
    for name in (name for name in KNOWN if len(name) >= 7):
        at = drawn.randrange(len(name) - 1)
        exchanged = name[:at] + name[at + 1] + name[at] + name[at + 2 :]
        for slip in (exchanged, name[:at] + name[at + 1 :], name[:at] + name[at] + name[at:]):
            assert slip in KNOWN or nearest(slip, KNOWN) == name, (slip, name)


@pytest.mark.parametrize(
    "noun",
    "an array,an int,a list,a uint8,an ndarray,an mx.array,a MaskMod,an Expr,a union,an OrderedDict,a NoneType".split(
        ","
    ),
)
def test_articles_are_those_of_the_sound(noun: str) -> None:
    assert with_article(noun.split()[1]) == noun
