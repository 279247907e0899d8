"""What two operands share, on every range between the edges, against plain Python at the numbers inside."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import plain_ops
import pytest
from plain_ops import INT_MAX, INT_MIN, over_runs, runs

from flextrace.tracer.bounds.extremes import Extremes
from flextrace.tracer.bounds.relations import relate
from flextrace.tracer.bounds.tiles import bounds_of, tile_bounds
from flextrace.tracer.expr.node import KV_IDX, Q_IDX, SCORE, Expr, apply, const, walk

EDGES = (INT_MIN, INT_MIN + 1, -(2**30), -7, -2, -1, 0, 1, 2, 3, 2**16, 2**30, INT_MAX - 1, INT_MAX)
PLACES = runs(len(EDGES))
FIRST, LAST = (np.array([EDGES[place[end]] for place in PLACES]) for end in (0, 1))


def times(x: Expr, factor: int) -> Expr:
    return apply("mul", x, const(factor))


SUM, GAP = apply("add", Q_IDX, KV_IDX), apply("sub", Q_IDX, KV_IDX)
FORMS = {
    "q": Q_IDX,
    "kv": KV_IDX,
    "q + kv": SUM,
    "q - kv": GAP,
    "kv - q": apply("sub", KV_IDX, Q_IDX),
    "-q": apply("neg", Q_IDX),
    "-(q + kv)": apply("neg", SUM),
    "3 q": times(Q_IDX, 3),
    "3 (q - 5)": times(apply("sub", Q_IDX, const(5)), 3),
    "-2 * q": apply("mul", const(-2), Q_IDX),
    "2 (q - kv) + 5": apply("add", times(GAP, 2), const(5)),
    "q - 3": apply("sub", Q_IDX, const(3)),
    "7 - q": apply("sub", const(7), Q_IDX),
    "q + 2**31 - 1": apply("add", Q_IDX, const(INT_MAX)),
    "q * 2**16": times(Q_IDX, 2**16),
    "q * 2**15 * 2**15": times(times(Q_IDX, 2**15), 2**15),
    "q * kv": apply("mul", Q_IDX, KV_IDX),
    "q * q": apply("mul", Q_IDX, Q_IDX),
    "q // 4 + q": apply("add", apply("floor_div", Q_IDX, const(4)), Q_IDX),
}


VALUES = {  # by plain Python, as int64
    name: np.array([[plain_ops.value(form, {"q_idx": q, "kv_idx": kv}) for kv in EDGES] for q in EDGES], np.int64)
    for name, form in FORMS.items()
}


@pytest.mark.parametrize("name", FORMS)
def test_what_operands_share_never_says_too_much(name: str) -> None:
    for (other, form), op in itertools.product(FORMS.items(), ("lt", "le", "eq", "ne", "add", "sub")):
        expr = apply(op, FORMS[name], form)
        found = plain_ops.wrapped(plain_ops.INTS[op](VALUES[name], VALUES[other]).astype(np.int64))
        least = over_runs(over_runs(found, 0, np.minimum), 1, np.minimum)
        most = over_runs(over_runs(found, 0, np.maximum), 1, np.maximum)
        lo, hi = tile_bounds(expr, {"q_idx": (FIRST[:, None], LAST[:, None]), "kv_idx": (FIRST, LAST)})
        lo, hi = (np.broadcast_to(bound, least.shape).astype(np.int64) for bound in (lo, hi))
        for i, j in np.argwhere((lo > least) | (hi < most))[:1]:
            pytest.fail(
                f"{expr} over q {FIRST[i]} to {LAST[i]}, kv {FIRST[j]} to {LAST[j]}: bounds [{lo[i, j]}, {hi[i, j]}], "
                f"values {least[i, j]} to {most[i, j]}"
            )


SMALL = {
    "q_idx": (np.arange(-20, 20)[:, None], np.arange(-20, 20)[:, None] + 3),
    "kv_idx": (np.arange(9), np.arange(9) + 5),
}


@pytest.mark.parametrize(
    ("expr", "same"),
    [
        (apply("sub", SUM, KV_IDX), Q_IDX),
        (apply("add", GAP, KV_IDX), Q_IDX),
        (apply("sub", SUM, Q_IDX), KV_IDX),
        (apply("sub", times(Q_IDX, 3), times(Q_IDX, 2)), Q_IDX),
        (apply("add", times(GAP, 2), times(KV_IDX, 2)), times(Q_IDX, 2)),
        (apply("sub", apply("neg", KV_IDX), GAP), apply("neg", Q_IDX)),
        (apply("lt", SUM, KV_IDX), apply("lt", Q_IDX, const(0))),
        (apply("le", KV_IDX, SUM), apply("le", const(0), Q_IDX)),
        (apply("eq", apply("add", Q_IDX, const(5)), Q_IDX), const(False)),
        (apply("ne", apply("mul", const(3), GAP), times(apply("sub", KV_IDX, Q_IDX), -3)), const(False)),
        (apply("lt", apply("sub", const(9), GAP), KV_IDX), apply("lt", const(9), Q_IDX)),
    ],
    ids=repr,
)
def test_shared_terms_cancel(expr: Expr, same: Expr) -> None:
    """Where nothing wraps, the bounds are those of what is left."""
    (lo, hi), (lo_left, hi_left) = tile_bounds(expr, SMALL), tile_bounds(same, SMALL)
    assert (lo == lo_left).all() and (hi == hi_left).all()


def test_what_shares_nothing_is_left_alone() -> None:
    for expr in (apply("lt", Q_IDX, KV_IDX), apply("add", Q_IDX, const(1)), GAP):
        assert relate(expr) is expr
    assert relate(apply("lt", apply("exp", SCORE), const(1.0))) is apply("lt", SCORE, const(1.0))


def test_affine_forms_hold_few_terms_and_small_factors() -> None:
    """16 terms with factors of 2**16: beyond, a partial sum might leave int64, and the operands are opaque."""
    terms = [apply("mod", Q_IDX, const(i + 2)) for i in range(20)]
    for count, held in ((13, 12), (14, 13), (15, 0)):  # q and kv are two terms more
        total = terms[0]
        for term in terms[1:count]:
            total = apply("add", total, times(term, 2**16))
        related = relate(apply("lt", apply("add", total, Q_IDX), apply("add", KV_IDX, Q_IDX)))
        factors = [node.args[1].value for node in walk(related) if node.op == "wide_mul"]
        assert factors == [2**16] * held
    for factor, cancels in ((2**16, True), (-(2**16), True), (2**16 + 1, False), (-(2**16) - 1, False)):
        related = relate(apply("lt", times(GAP, factor), times(Q_IDX, factor)))
        assert any("difference" in node.op for node in walk(related)) == cancels, factor


# ---- captured arrays -------------------------------------------------------------------------------------------


def test_a_gather_holds_every_element_that_an_index_may_reach() -> None:
    """One axis: a negative index counts from the end, once; beyond that it stops at the end."""
    indices = np.arange(-9, 10)
    first, last = (np.array(ends) for ends in zip(*((indices[i], indices[j]) for i, j in runs(19)), strict=True))
    load = apply("load", Q_IDX, value=(0, "int32"))
    for size in range(1, 7):
        array = [(7 * i) % 11 - 4 for i in range(size)]
        found = np.array([plain_ops.value(load, {"q_idx": int(i)}, (array,)) for i in indices])
        least, most = over_runs(found, 0, np.minimum), over_runs(found, 0, np.maximum)
        for chosen in (first <= last, first >= 0, (first >= 0) & (last < size), last < 0, first == last):
            lo, hi = tile_bounds(load, {"q_idx": (first[chosen], last[chosen])}, arrays=[np.array(array)])
            assert (lo <= least[chosen]).all() and (most[chosen] <= hi).all(), size
            exact = (first >= 0)[chosen] | (last < 0)[chosen]
            assert ((lo == least[chosen]) & (hi == most[chosen]) | ~exact).all(), size


def test_a_gather_of_two_axes_holds_every_element() -> None:
    array = (np.arange(20).reshape(4, 5) * 7) % 23
    q, kv = (np.arange(-6, 7), np.arange(-7, 8))
    load = apply("load", Q_IDX, KV_IDX, value=(0, "int32"))
    found = np.array(
        [[plain_ops.value(load, {"q_idx": int(i), "kv_idx": int(j)}, (array.tolist(),)) for j in kv] for i in q]
    )
    least = over_runs(over_runs(found, 0, np.minimum), 1, np.minimum)
    most = over_runs(over_runs(found, 0, np.maximum), 1, np.maximum)
    rows, columns = (np.array([(x[i], x[j]) for i, j in runs(len(x))]).T for x in (q, kv))
    lo, hi = tile_bounds(load, {"q_idx": tuple(rows[:, :, None]), "kv_idx": tuple(columns)}, arrays=[array])
    assert (lo <= least).all() and (most <= hi).all()
    inside = ((rows[0] >= 0) | (rows[1] < 0))[:, None] & ((columns[0] >= 0) | (columns[1] < 0))
    assert (((lo == least) & (hi == most)) | ~inside).all()


@pytest.mark.parametrize("size", [5, 8, 31, 32, 33, 95, 4096])
def test_extremes_of_every_run_are_exact_however_long_the_array(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one table of all elements; and in blocks, where a run takes in the blocks that it touches."""
    from flextrace.tracer.bounds import extremes

    array = np.random.default_rng(size).integers(-1000, 1000, size=size)
    step = 1 if size < 100 else 61
    places = [(i, j) for i in range(0, size, step) for j in range(i, size, step)]
    first, last = np.array(places).T
    for unblocked, block in ((2**18, 1), (0, extremes.BLOCK)):
        monkeypatch.setattr(extremes, "UNBLOCKED_ENTRIES", unblocked)
        least, most = Extremes(array).over([(first, last)])
        for k, (i, j) in enumerate(places):
            part = array[i // block * block : (j // block + 1) * block]
            assert (least[k], most[k]) == (part.min(), part.max()), (i, j, block)


def test_tables_of_extremes_stay_small() -> None:
    for shape in ((2**20,), (3000, 3000), (2, 1000, 1000), (40, 50, 60, 70)):
        made = Extremes(np.zeros(shape, np.int32))
        ends = [(np.array([0, 0]), np.array([n - 1, n - 1])) for n in shape]
        made.over(ends)
        assert all(table.least.size <= 2**22 for table in made._tables.values()), shape


def test_numbers_and_indices_are_as_they_are_given() -> None:
    """Captured numbers decide as kernels hold them: a float as float32, a bool as a bool."""
    for dtype, value, other in (("int", -7, -6), ("float", 0.1, 0.2), ("bool", True, False), ("float", -np.inf, 0.0)):
        param = Expr("param", dtype, value=1)  # type: ignore[arg-type]
        same: Any = param if dtype == "bool" else apply("eq", param, const(value))
        assert [bool(x) for x in tile_bounds(same, {}, (None, value))] == [True, True]
        assert [bool(x) for x in tile_bounds(same, {}, (None, other))] == [False, False]
    for given in ((3, 9), (np.array([3, 4]), np.array([9, 9])), (np.array(3), np.array(9))):
        lo, hi = bounds_of(apply("add", Q_IDX, const(0)))({"q_idx": given})
        assert (lo == given[0]).all() and (hi == given[1]).all()
