"""Captured arrays that are too short for a call, against Python's own IndexError on lists at every position."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from expressions import define
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import flextrace as flex

Sizes = tuple[int, int, int, int]


def mask(source: str, **captured: Any) -> Callable[..., Any]:
    """A mask_mod whose body is these lines."""
    body = "".join(f"    {line}\n" for line in source.splitlines())
    return define(f"def mod(b, h, q_idx, kv_idx):\n{body}", "mod", {"mx": mx, **captured})


def positions(sizes: Sizes) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(range(size) for size in sizes))


class Elements:
    """A list by another name: what is outside raises, as numpy does and an mx.array does not."""

    def __init__(self, values: list[int]) -> None:
        self.values = values

    def __getitem__(self, index: int) -> int:
        return self.values[index]


def reads_outside(source: str, captured: dict[str, Any], arrays: dict[str, list[int]], sizes: Sizes) -> bool:
    """Whether the mod, run by Python itself, reads outside at any position."""
    plain = mask(source, **captured, **{name: Elements(values) for name, values in arrays.items()})
    for at in positions(sizes):
        try:
            plain(*at)
        except IndexError:
            return True
    return False


def is_refused(source: str, captured: dict[str, Any], arrays: dict[str, list[int]], sizes: Sizes) -> bool:
    traced = flex.mask_mod(mask(source, **captured, **{name: mx.array(values) for name, values in arrays.items()}))
    try:
        traced.bind().check_sizes(sizes)
    except ValueError:
        return True
    return False


SIZES = (2, 3, 6, 9)
TABLE = [0, 1, 2, 3]  # long enough for b and h, not for q_idx and kv_idx
EVERYWHERE = ["b", "h", "q_idx", "kv_idx"]
AGREED = {
    **{f"exactly {name}": f"return t[{name}] == 1" for name in EVERYWHERE},
    "guarded by and": "return q_idx < 4 and t[q_idx] == 1",
    "guarded by and, too late": "return q_idx < 5 and t[q_idx] == 1",
    "guarded by or": "return kv_idx >= n or t[kv_idx] == 1",
    "guarded by a number": "return kv_idx < n and t[kv_idx] == 1",
    "guarded by a choice": "return (t[kv_idx] if kv_idx < n else 0) == 1",
    "guarded by the else of a choice": "return (0 if kv_idx >= n else t[kv_idx]) == 1",
    "guarded by not": "return not kv_idx >= n and t[kv_idx] == 1",
    "guarded by an early return": "if q_idx >= n:\n    return False\nif kv_idx >= n:\n    return True\n"
    "return t[q_idx] == t[kv_idx]",
    "guarded by the other index": "return q_idx < n and kv_idx <= q_idx and t[kv_idx] == 1",
    "guarded by a sum": "return q_idx + kv_idx < n and t[kv_idx] == t[q_idx]",
    "under a causal condition": "return kv_idx <= q_idx and t[kv_idx] == 1",
    "under a condition on the head": "return h == 1 and t[kv_idx] == 1",
    "under a condition that never holds": "return h == 7 and t[kv_idx] == 1",
    "guarded in one use of two": "return (q_idx < n and t[q_idx] == 1) or t[q_idx] == 2",
    "read and dropped": "x = t[kv_idx] if kv_idx < n else 5\nreturn x == 1",
    "wholly outside": "return t[kv_idx + 4] == 1",
    "wholly outside below": "return t[-5 - kv_idx] == 1",
    "wholly outside by a number": "return t[n] == 1",
    "wholly outside under a guard": "return q_idx > 99 and t[kv_idx + 4] == 1",
    "negative": "return t[-1 - h] == 1",
    "negative number": "return t[-n] == 1",
}


@pytest.mark.parametrize("source", AGREED.values(), ids=AGREED)
def test_it_is_refused_where_python_reads_outside(source: str) -> None:
    outside = reads_outside(source, {"n": 4}, {"t": TABLE}, SIZES)
    assert is_refused(source, {"n": 4}, {"t": TABLE}, SIZES) == outside
    assert not is_refused(source, {"n": 2}, {"t": list(range(20))}, SIZES)


def test_both_answers_are_in_the_table() -> None:
    outside = [reads_outside(source, {"n": 4}, {"t": TABLE}, SIZES) for source in AGREED.values()]
    assert 8 < sum(outside) < len(outside) - 8


LENIENT = {
    "a computed index": "return t[q_idx + kv_idx] == 1",
    "a neighbour": "return t[kv_idx - 1] == t[kv_idx + 1]",
    "the other side of &": "return (t[kv_idx] == 1) & (kv_idx < n)",
    "both sides of mx.where": "return mx.where(kv_idx < n, t[kv_idx], 0) == 1",
    "under an element": "return t[h] == 1 and t[kv_idx] == 1",
    "a clamped index": "return t[min(kv_idx, 3)] == 1",
}


@pytest.mark.parametrize("source", LENIENT.values(), ids=LENIENT)
def test_what_is_discarded_or_computed_stays_legal(source: str) -> None:
    assert not is_refused(source, {"n": 4}, {"t": TABLE}, SIZES)


ATOMS = ("q_idx < {c}", "kv_idx < {c}", "kv_idx <= q_idx", "q_idx - kv_idx < {c}", "q_idx + kv_idx >= {c}", "h == 1")
ATOMS += ("q_idx == kv_idx", "kv_idx % 3 == 1", "b < 1", "n < {c}", "kv_idx >= q_idx // 2", "q_idx > {c}")


@st.composite
def guarded(draw: Any) -> str:
    def condition(depth: int) -> str:
        if depth == 0 or draw(st.booleans()):
            return f"({draw(st.sampled_from(ATOMS)).format(c=draw(st.integers(0, 9)))})"
        if draw(st.integers(0, 3)) == 0:
            return f"(not {condition(depth - 1)})"
        return f"({condition(depth - 1)} {draw(st.sampled_from(('and', 'or')))} {condition(depth - 1)})"

    read = f"t[{draw(st.sampled_from(('q_idx', 'kv_idx', 'h', 'kv_idx + 3', '-2 - q_idx')))}] == 1"
    form = draw(
        st.sampled_from(("return {c} and {r}", "return {c} or {r}", "return {r} if {c} else {o}", "if", "mixed"))
    )
    c, other = condition(2), condition(1)
    if form == "if":
        return f"if {c}:\n    return {other}\nreturn {read} and {other}"
    if form == "mixed":
        return f"x = {read} if {c} else False\nif {other}:\n    x = not x\nreturn x or {condition(1)}"
    return form.format(c=c, r=read, o=other)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(guarded(), st.integers(1, 8), st.tuples(*(st.integers(1, n) for n in (2, 3, 7, 9))))
def test_nothing_is_refused_that_python_reads_inside(source: str, length: int, sizes: Sizes) -> None:
    captured, arrays = {"n": 3}, {"t": list(range(length))}
    if is_refused(source, captured, arrays, sizes):
        assert reads_outside(source, captured, arrays, sizes), f"{source}\n{length} elements, sizes {sizes}"


def test_a_change_of_numbers_and_arrays_is_seen() -> None:
    """What was found legal is remembered for the numbers and sizes that it was found for."""
    names: dict[str, Any] = {"n": 4, "t": mx.array(TABLE)}
    mod = flex.mask_mod(define("def mod(b, h, q_idx, kv_idx):\n    return kv_idx < c['n'] and c['t'][kv_idx] == 1\n",
                               "mod", {"c": names}))  # fmt: skip
    mod.bind().check_sizes(SIZES)
    names["n"] = 5
    with pytest.raises(ValueError, match="has 4 entries along axis 0; kv_idx indexes it, for 9 keys"):
        mod.bind().check_sizes(SIZES)
    names["t"] = mx.arange(5)
    mod.bind().check_sizes(SIZES)
    names["t"] = np.arange(3)
    mod.bind().check_sizes((2, 3, 6, 3))
    with pytest.raises(ValueError, match="has 3 entries along axis 0"):
        mod.bind().check_sizes(SIZES)


@pytest.mark.parametrize("empty", [(0, 3, 6, 9), (2, 3, 0, 9), (2, 3, 6, 0)])
def test_a_call_without_positions_reads_nothing(empty: Sizes) -> None:
    for source in ("return t[kv_idx] == 1", "return t[kv_idx + 50] == 1"):
        assert not is_refused(source, {}, {"t": TABLE}, empty)


def test_axes_are_named() -> None:
    table = mx.zeros((2, 3, 5))
    mod = flex.mask_mod(lambda b, h, q_idx, kv_idx: table[b][h, q_idx] == table[b, 0, kv_idx])
    mod.bind().check_sizes((2, 3, 5, 5))
    for sizes, words in (
        ((3, 3, 5, 5), "table has 2 entries along axis 0; b indexes it, for 3 batches, so it needs 3:"),
        ((1, 4, 5, 5), "table has 3 entries along axis 1; h indexes it, for 4 query heads, so it needs 4:"),
        ((2, 3, 6, 5), "table has 5 entries along axis 2; q_idx indexes it, for 6 queries, so it needs 6:"),
        ((2, 3, 5, 7), "table has 5 entries along axis 2; kv_idx indexes it, for 7 keys, so it needs 7:"),
    ):
        with pytest.raises(ValueError, match=words):
            mod.bind().check_sizes(sizes)
