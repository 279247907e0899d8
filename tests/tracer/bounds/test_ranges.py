"""Every rule of ranges by itself, on every range between the edges, against plain Python at the numbers inside.

A rule may say too much and is then slow; one that says too little calls a live tile empty. Where every number between
the ends of a range is reached the rule must be exact.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from plain_ops import BOOLS, FLOATS, INT_MAX, INT_MIN, INTS, over_runs, runs, wrapped

from flextrace.tracer.bounds.ints import Range, between, exactly
from flextrace.tracer.bounds.rules import RANGES
from flextrace.tracer.expr.node import OPS

EDGES = (INT_MIN, INT_MIN + 1, -(2**30) - 1, -65536, -33, -9, -8, -7, -4, -3, -2, -1)
EDGES += (0, 1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 46341, 65535, 2**30 - 1, 2**30, INT_MAX - 1, INT_MAX)
FEW = (INT_MIN, -9, -8, -2, -1, 0, 1, 2, 3, 8, 32, 65536, INT_MAX)


# ---- operands: all ranges between the edges, and the numbers in them -------------------------------------------


GROUPS: dict[str, Callable[[int, int], bool]] = {  # least and most over all tiles open the short cuts of the rules
    "all": lambda lo, hi: True,
    "known": lambda lo, hi: lo == hi,
    "not negative": lambda lo, hi: lo >= 0,
    "positive": lambda lo, hi: lo > 0,
    "negative": lambda lo, hi: hi < 0,
    "not positive": lambda lo, hi: hi <= 0,
    "small": lambda lo, hi: lo >= -9 and hi <= 9,
    "within 32": lambda lo, hi: lo >= 0 and hi < 32,
    "from 32": lambda lo, hi: lo >= 32,
}


def groups(edges: Sequence[int]) -> Iterator[tuple[np.ndarray, Range]]:
    """Which runs, and their ranges: those of each group at once, and every number by itself."""
    ends = [(edges[i], edges[j]) for i, j in runs(len(edges))]
    for belongs in GROUPS.values():
        chosen = np.flatnonzero([belongs(*end) for end in ends])
        if len(chosen):
            lo, hi = np.array([ends[i] for i in chosen], np.int64).T
            yield chosen, Range(lo, hi, int(lo.min()), int(hi.max()))
    for place, (lo, hi) in enumerate(ends):
        if lo == hi:
            yield np.array([place]), exactly(lo)


def check_range(what: str, got: Range, least: np.ndarray, most: np.ndarray, exact: np.ndarray) -> None:
    """least, most: of the values in each tile, as int32. exact: where the range has to be just that."""
    lo, hi = np.broadcast_to(got.lo, least.shape), np.broadcast_to(got.hi, least.shape)
    wrong = (lo > least) | (hi < most) | (exact & ((lo != least) | (hi != most)))
    for at in np.argwhere(wrong)[:1]:
        at = tuple(at)
        pytest.fail(f"{what}, tile {at}: [{lo[at]}, {hi[at]}], but the values are {least[at]} to {most[at]}")
    assert got.least <= lo.min() and hi.max() <= got.most, f"{what}: not all of it is in [{got.least}, {got.most}]"
    assert got.least >= INT_MIN and got.most <= INT_MAX, f"{what}: [{got.least}, {got.most}] is no int32"


def check_truth(what: str, got: Any, least: np.ndarray, most: np.ndarray, exact: bool = True) -> None:
    must, may = (np.broadcast_to(np.asarray(x, bool), least.shape) for x in got)
    wrong = (must & ~least) | (~may & most) | (exact & ((must != least) | (may != most)))
    for at in np.argwhere(wrong)[:1]:
        at = tuple(at)
        pytest.fail(f"{what}, tile {at}: must {must[at]}, may {may[at]}, but all are {least[at]} and any {most[at]}")


# ---- ints ------------------------------------------------------------------------------------------------------

UNARY = ("neg.int", "abs.int", "square", "bit_not", "to_int.int")
BINARY = ("add.int", "sub.int", "mul.int", "min.int", "max.int", "floor_div.int", "mod.int")
BINARY += ("shl", "shr", "bit_and", "bit_or", "bit_xor")
COMPARED = ("lt.int", "le.int", "eq.int", "ne.int")
MONOTONE = {"add.int", "sub.int", "mul.int", "min.int", "max.int", "shl", "shr"}


def plain(name: str) -> Callable[..., Any]:
    return (lambda a: a * a) if name == "square" else INTS[name.partition(".")[0]]


def is_exact(name: str, a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether the range of values that do not wrap has to be the least that holds them, `b` being a constant of all
    tiles unless the name is in MONOTONE."""
    if name == "mod.int":
        return b[0] > 0 and a[0] // b[0] == a[1] // b[0]
    if name == "bit_and":
        mask = b[0]
        period = mask.bit_length()
        if mask >= 0 and mask & (mask + 1) == 0:
            return a[0] >> period == a[1] >> period
        return mask < 0 and -mask & (-mask - 1) == 0
    return name == "floor_div.int" or (b[0] >= 0 if name == "shl" else name in MONOTONE or a[0] == a[1])


@pytest.mark.parametrize("name", UNARY)
def test_a_rule_of_one_int_holds_every_value(name: str) -> None:
    numbers = [plain(name)(a) for a in EDGES]
    found = np.array([wrapped(x) for x in numbers])
    least, most = over_runs(found, 0, np.minimum), over_runs(found, 0, np.maximum)
    whole = over_runs(np.array([x == wrapped(x) for x in numbers]), 0, np.logical_and)
    for chosen, a in groups(EDGES):
        check_range(name, RANGES[name](a), least[chosen], most[chosen], whole[chosen])


def pairs(edges: Sequence[int]) -> Iterator[tuple[Any, Range, Range]]:
    """Which tiles, and the ranges of both operands, for every two groups; and some tiles by themselves."""
    made = list(groups(edges))
    for (rows, a), (columns, b) in itertools.product(made, repeat=2):
        tall = a if a.constant() else Range(a.lo[:, None], a.hi[:, None], a.least, a.most)
        yield np.ix_(rows, columns), tall, b
    ends = [(edges[i], edges[j]) for i, j in runs(len(edges))]
    for i, j in itertools.product(range(0, len(ends), 17), range(0, len(ends), 13)):
        yield np.ix_([i], [j]), between(*ends[i]), between(*ends[j])


@pytest.mark.parametrize("name", BINARY)
def test_a_rule_of_two_ints_holds_every_value(name: str) -> None:
    op = plain(name)
    numbers = [[op(a, b) for b in EDGES] for a in EDGES]
    found = np.array([[wrapped(x) for x in row] for row in numbers])
    least = over_runs(over_runs(found, 0, np.minimum), 1, np.minimum)
    most = over_runs(over_runs(found, 0, np.maximum), 1, np.maximum)
    kept = np.array([[x == wrapped(x) for x in row] for row in numbers])
    ends = [(EDGES[i], EDGES[j]) for i, j in runs(len(EDGES))]
    exact = np.array([[is_exact(name, a, b) for b in ends] for a in ends])
    exact &= over_runs(over_runs(kept, 0, np.logical_and), 1, np.logical_and)
    with np.errstate(all="ignore"):
        for at, a, b in pairs(EDGES):
            what = f"{name} of {a.least} to {a.most} and {b.least} to {b.most}"
            decided = name in MONOTONE or (
                b.constant() and (a.constant() or name in ("floor_div.int", "mod.int", "bit_and"))
            )
            decided |= name == "floor_div.int" and b.least > 0
            check_range(what, RANGES[name](a, b), least[at], most[at], exact[at] & decided)


@pytest.mark.parametrize("name", COMPARED)
def test_a_comparison_of_ints_is_decided_where_all_agree(name: str) -> None:
    found = np.array([[plain(name)(a, b) for b in EDGES] for a in EDGES])
    every = over_runs(over_runs(found, 0, np.logical_and), 1, np.logical_and)
    some = over_runs(over_runs(found, 0, np.logical_or), 1, np.logical_or)
    for at, a, b in pairs(EDGES):
        check_truth(
            f"{name} of {a.least} to {a.most} and {b.least} to {b.most}", RANGES[name](a, b), every[at], some[at]
        )


@pytest.mark.parametrize("name", ["wide_add", "wide_sub", "wide_mul"])
def test_wide_sums_do_not_wrap(name: str) -> None:
    if name == "wide_mul":
        for _, a in groups(EDGES):
            for factor in (1, 2, 3, 2**16):
                got = RANGES[name](a, exactly(factor))
                assert (np.equal(got.lo, a.lo * factor) & np.equal(got.hi, a.hi * factor)).all()
                assert (got.least, got.most) == (a.least * factor, a.most * factor)
        return
    sign = 1 if name == "wide_add" else -1
    for _, a, b in pairs(FEW):
        got = RANGES[name](a, b)
        ends = [a.lo + sign * b.lo, a.lo + sign * b.hi, a.hi + sign * b.lo, a.hi + sign * b.hi]
        assert (np.minimum.reduce(ends) == got.lo).all() and (np.maximum.reduce(ends) == got.hi).all()
        outer = [x + sign * y for x in (a.least, a.most) for y in (b.least, b.most)]
        assert (got.least, got.most) == (min(outer), max(outer))


SPANS = [(lo, hi) for lo in range(-2, 3) for hi in range(lo, 3)] + [(INT_MIN, INT_MAX), (INT_MIN, 2), (-2, INT_MAX)]
POINTS = np.array([INT_MIN, *range(-2, 3), INT_MAX])


def many(spans: Sequence[tuple[int, int]]) -> Range:
    lo, hi = np.array(spans, np.int64).T
    return Range(lo, hi, int(lo.min()), int(hi.max()))


def test_a_meeting_holds_what_both_say_unless_the_first_has_wrapped() -> None:
    """What has wrapped has the range of all int32, and then the exact sum says nothing of it."""
    for some in (SPANS, SPANS[:-1], SPANS[:15], *([span] for span in SPANS)):
        for exact in (*SPANS, (-(2**33), -3), (3, 2**33), (-(2**33), 2**33)):
            got = RANGES["meet"](many(some) if len(some) > 1 else between(*some[0]), between(*exact))
            for i, span in enumerate(some):
                lo, hi = (int(np.broadcast_to(x, len(some))[i]) for x in (got.lo, got.hi))
                want = span if span == (INT_MIN, INT_MAX) else (max(span[0], exact[0]), min(span[1], exact[1]))
                if want[0] <= want[1]:  # else no value has come here
                    assert (lo, hi) == want and got.least <= lo and hi <= got.most, (span, exact, lo, hi)


@pytest.mark.parametrize("name", ["lt", "le", "eq", "ne"])
def test_a_difference_decides_unless_an_operand_has_wrapped(name: str) -> None:
    """Of all x and y in their ranges those are left whose difference lies in its range, if neither has wrapped."""
    x, y = POINTS[:, None], POINTS
    truth = np.array([[INTS[name](a, b) for b in POINTS.tolist()] for a in POINTS.tolist()])
    gaps = [(lo, hi) for lo in range(-4, 5) for hi in range(lo, 5)]
    for (a, b), together in itertools.product(itertools.product(SPANS, repeat=2), (True, False)):
        wraps = (INT_MIN, INT_MAX) in (a, b)
        within = (a[0] <= x) & (x <= a[1]) & (b[0] <= y) & (y <= b[1])
        left = [within & (wraps | ((g[0] <= x - y) & (x - y <= g[1]))) for g in gaps]
        some = [i for i, kept in enumerate(left) if kept.any()]
        if not some:
            continue
        all_true = np.array([truth[left[i]].all() for i in some])
        any_true = np.array([truth[left[i]].any() for i in some])
        spans = [gaps[i] for i in some]
        if together:  # beside a tile that has wrapped, so that the short cut over all tiles is not taken
            both = [many([span, (INT_MIN, INT_MAX)]) for span in (a, b)]
            operands = [Range(s.lo[:1], s.hi[:1], s.least, s.most) for s in both]
            got = RANGES[f"{name}_by_difference"](*operands, many(spans))
        else:
            got = RANGES[f"{name}_by_difference"](between(*a), between(*b), many(spans))
        check_truth(f"{name} of {a} and {b}, apart by {spans}", got, all_true, any_true, exact=False)


# ---- truth and choice ------------------------------------------------------------------------------------------

TRUTHS = ((False, False), (False, True), (True, True))


def members(truth: tuple[bool, bool]) -> list[bool]:
    """What a bool of which (must, may) is known can be."""
    return [x for x in (False, True) if (x or not truth[0]) and (not x or truth[1])]


def as_arrays(truth: tuple[bool, bool]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([truth[0]]), np.array([truth[1]])


@pytest.mark.parametrize("name", ["not", "and", "or", "xor"])
@pytest.mark.parametrize("made", [tuple, as_arrays], ids=["python", "numpy"])
def test_logic_is_decided_where_all_agree(name: str, made: Any) -> None:
    for operands in itertools.product(TRUTHS, repeat=OPS[name].arity):
        got = RANGES[name](*map(made, operands))
        found = [BOOLS[name](*values) for values in itertools.product(*map(members, operands))]
        assert (bool(got[0]), bool(got[1])) == (all(found), any(found)), (name, operands)


@pytest.mark.parametrize("made", [tuple, as_arrays], ids=["python", "numpy"])
def test_a_choice_holds_what_may_be_chosen(made: Any) -> None:
    for condition in TRUTHS:
        which = members(condition)
        for yes, no in itertools.product(TRUTHS, repeat=2):
            found = [x for c in which for x in members(yes if c else no)]
            got = RANGES["where.bool"](made(condition), made(yes), made(no))
            assert (bool(got[0]), bool(got[1])) == (all(found), any(found)), (condition, yes, no)
        for yes, no in itertools.product([(-3, 2), (5, 5), (INT_MIN, INT_MAX), (1, 9)], repeat=2):
            ends = [yes if c else no for c in which]
            range_ = RANGES["where.int"](made(condition), between(*yes), between(*no))
            assert (range_.lo, range_.hi) == (min(lo for lo, _ in ends), max(hi for _, hi in ends)), (
                condition,
                yes,
                no,
            )
            assert range_.least <= range_.lo and range_.hi <= range_.most
        for yes, no in itertools.product(
            [(F32(-1), F32(2)), (F32(-np.inf), F32(0)), (F32(3), F32(3)), UNKNOWN], repeat=2
        ):
            lo, hi = RANGES["where.float"](made(condition), yes, no)
            ends = [yes if c else no for c in which]
            if any(math.isnan(end[0]) for end in ends):
                assert np.isnan(lo) and np.isnan(hi), (condition, yes, no)
            else:
                assert (lo, hi) == (min(lo for lo, _ in ends), max(hi for _, hi in ends)), (condition, yes, no)


def test_choices_of_many_tiles_are_made_by_tile() -> None:
    condition = tuple(np.array(column) for column in zip(*TRUTHS, strict=True))
    got = RANGES["where.int"](condition, between(np.array([1, 2, 3]), np.array([4, 5, 6])), between(-7, 0))
    assert got.lo.tolist() == [-7, -7, 3] and got.hi.tolist() == [0, 5, 6]
    assert got.least <= -7 and got.most >= 6


# ---- conversions and floats ------------------------------------------------------------------------------------

F32 = np.float32
REALS = (-np.inf, -3e38, -(2.0**31), -(2.0**31) + 256, -7.5, -2.5, -1.5, -1.0, -0.5, -1e-45, -0.0)
REALS += (0.0, 1e-45, 0.5, 1.0, 1.5, 2.5, 7.5, 2.0**31 - 128, 2.0**31, 3e38, np.inf)
REALS = tuple(map(F32, REALS))
UNKNOWN = (F32(np.nan), F32(np.nan))


def intervals() -> list[tuple[tuple[Any, Any], list[Any]]]:
    """(lo, hi) and the numbers inside: every run of REALS, and the one of which nothing is known."""
    known = [((REALS[i], REALS[j]), list(REALS[i : j + 1])) for i, j in runs(len(REALS))]
    return [*known, (UNKNOWN, [*REALS, F32(np.nan)])]


def check_interval(what: str, got: tuple[Any, Any], found: list[Any]) -> None:
    lo, hi = got
    assert np.isnan(lo) == np.isnan(hi), f"{what}: [{lo}, {hi}] is half known"
    if any(map(math.isnan, found)):
        assert np.isnan(lo), f"{what}: [{lo}, {hi}], but it may be nan"
    else:
        assert (lo, hi) == (min(found), max(found)), f"{what}: [{lo}, {hi}], but it is {min(found)} to {max(found)}"


@pytest.mark.parametrize("name", ["neg.float", "abs.float", "floor", "ceil", "trunc", "round", "to_float.float"])
def test_a_rule_of_one_float_is_exact(name: str) -> None:
    for interval, numbers in intervals():
        found = [FLOATS[name.partition(".")[0]](x) for x in numbers]
        check_interval(f"{name} of {interval}", RANGES[name](interval), found)


@pytest.mark.parametrize("name", ["min.float", "max.float"])
def test_a_rule_of_two_floats_is_exact(name: str) -> None:
    op = FLOATS[name.partition(".")[0]]
    for (a, xs), (b, ys) in itertools.product(intervals()[::3] + intervals()[-1:], repeat=2):
        check_interval(f"{name} of {a} and {b}", RANGES[name](a, b), [op(x, y) for x in xs for y in ys])


@pytest.mark.parametrize("name", ["lt.float", "le.float", "eq.float", "ne.float"])
def test_a_comparison_of_floats_is_decided_where_all_agree(name: str) -> None:
    chosen = intervals()
    found = np.array([[FLOATS[name[:2]](x, y) for y in (*REALS, F32(np.nan))] for x in (*REALS, F32(np.nan))])
    places = [*runs(len(REALS)), (0, len(REALS))]
    for ((a, _), (i, j)), ((b, _), (k, m)) in itertools.product(
        [*list(zip(chosen, places, strict=True))[::2], (chosen[-1], places[-1])], repeat=2
    ):
        part = found[i : j + 1, k : m + 1]
        known = not (math.isnan(a[0]) or math.isnan(b[0]))
        check_truth(f"{name} of {a} and {b}", RANGES[name](a, b), part.all(), part.any(), known)


def test_floats_become_the_ints_that_python_gives() -> None:
    chosen = intervals()
    lo, hi = (np.array([interval[end] for interval, _ in chosen]) for end in (0, 1))
    got = RANGES["to_int.float"]((lo, hi))
    for i, (interval, numbers) in enumerate(chosen):
        found = [FLOATS["to_int"](x) for x in numbers]
        assert (got.lo[i], got.hi[i]) == (min(found), max(found)), interval
    assert (got.least, got.most) == (INT_MIN, INT_MAX)


def test_ints_and_bools_become_floats() -> None:
    for lo, hi in itertools.combinations_with_replacement(EDGES, 2):
        assert RANGES["to_float.int"](between(lo, hi)) == (F32(lo), F32(hi))
    for truth in TRUTHS:
        for made in (tuple, as_arrays):
            found = [int(x) for x in members(truth)]
            as_int, as_float = RANGES["to_int.bool"](made(truth)), RANGES["to_float.bool"](made(truth))
            assert (as_int.lo, as_int.hi) == tuple(as_float) == (min(found), max(found))
            assert as_int.least <= min(found) and max(found) <= as_int.most


# ---- all of them -----------------------------------------------------------------------------------------------

CHECKED = {*UNARY, *BINARY, *COMPARED, "wide_add", "wide_sub", "wide_mul", "meet"}
CHECKED |= {f"{op}_by_difference" for op in ("lt", "le", "eq", "ne")} | {"not", "and", "or", "xor"}
CHECKED |= {f"where.{dtype}" for dtype in ("int", "float", "bool")}
CHECKED |= {f"{op}.float" for op in ("neg", "abs", "min", "max", "lt", "le", "eq", "ne")}
CHECKED |= {"floor", "ceil", "trunc", "round"}
CHECKED |= {f"to_{to}.{dtype}" for to in ("int", "float") for dtype in ("bool", "int", "float")}


def test_every_rule_is_checked_here() -> None:
    assert set(RANGES) == CHECKED
