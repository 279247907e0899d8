"""Bounds against every position of every tile: never a live tile called empty, never a mixed one full."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import zoo
from expressions import Program, programs, rejecting_known_errors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_masks import Case, Tiles, random_case, random_tiles

import flextrace as flex
from flextrace import tracer
from flextrace.tracer.bounds import tiles as bounds
from flextrace.tracer.bounds.extremes import Extremes
from flextrace.tracer.bounds.ints import INT_MAX, INT_MIN, Range
from flextrace.tracer.bounds.rules import rule
from flextrace.tracer.bounds.tiles import Bounds, bounds_of, tile_bounds
from flextrace.tracer.expr.node import KV_IDX, OPS, Q_IDX, SCORE, Expr, H, apply, const, walk

# --- soundness ------------------------------------------------------------------------------------------------


def assert_sound(expr: Expr, tiles: Tiles, numbers: Any, arrays: Any) -> tuple[np.ndarray, np.ndarray]:
    """The bounds of each tile hold every value in it."""
    values = tracer.evaluate(expr, tiles.positions, numbers=numbers, arrays=arrays)
    values = np.broadcast_to(values, np.broadcast_shapes(values.shape, (*tiles.shape, 1, 1, 1)))
    least, most = values.min(axis=(-3, -2, -1)), values.max(axis=(-3, -2, -1))
    lo, hi = (np.broadcast_to(bound, tiles.shape) for bound in tile_bounds(expr, tiles.ranges, numbers, arrays))
    wrong = (lo > least) | (hi < most)
    if wrong.any():
        at = tuple(np.argwhere(wrong)[0])
        where = {k: tuple(int(np.broadcast_to(x, tiles.shape)[at]) for x in r) for k, r in tiles.ranges.items()}
        pytest.fail(
            f"{expr}\nnumbers {numbers}\narrays {arrays}\nin the tile {where} the values are {least[at]} to "
            f"{most[at]}, the bounds [{lo[at]}, {hi[at]}]; {wrong.sum()} of {wrong.size} tiles are wrong"
        )
    return lo, hi


def check_random(seed: int) -> int:
    """One random expression, and a part of it, over random tiles; how many tiles the bounds decided."""
    rng = np.random.default_rng(seed)
    case: Case = random_case(rng, "bool" if seed % 3 else "int")
    tiles = random_tiles(rng)
    lo, hi = assert_sound(case.expr, tiles, case.numbers, case.arrays)
    parts = [node for node in walk(case.expr) if node.args and node.dtype != "float"]
    if parts:
        assert_sound(parts[int(rng.integers(len(parts)))], tiles, case.numbers, case.arrays)
    return int((lo == hi).sum())


def test_random_masks_are_bounded() -> None:
    decided = sum(check_random(seed) for seed in range(1500))
    assert decided > 2000, "bounds that decide nothing would pass"


@pytest.mark.long
@pytest.mark.parametrize("part", range(20))
def test_random_masks_are_bounded_long(part: int) -> None:
    for seed in range(10_000 + part * 5000, 10_000 + (part + 1) * 5000):
        check_random(seed)


RUN = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))


def check_program(program: Program, seed: int) -> None:
    import mlx.core as mx

    function = program.function(mx.array)
    with rejecting_known_errors():
        bound = flex.mask_mod(function).bind()
    arrays = [np.array(array) for array in bound.arrays]
    assert_sound(bound.trace.expr, random_tiles(np.random.default_rng(seed)), bound.numbers, arrays)


@RUN
@given(programs(kind="mask"), st.integers(0, 10**6))
def test_generated_mask_mods_are_bounded(program: Program, seed: int) -> None:
    check_program(program, seed)


@pytest.mark.long
@settings(RUN, max_examples=5000)
@given(programs(kind="mask"), st.integers(0, 10**6))
def test_generated_mask_mods_are_bounded_long(program: Program, seed: int) -> None:
    check_program(program, seed)


# --- every op at the edges ------------------------------------------------------------------------------------

INTS = sorted({*range(-9, 10), 31, 32, 33, 63, 64, 65535, 65536, 2**24 + 1, 2**30, 2**31 - 2, 2**31 - 1})
INTS = sorted({*INTS, -31, -32, -33, -64, -65537, -(2**30), -(2**31) + 1, -(2**31)})
REALS = [-np.inf, -3e38, -(2.0**31), -1e10, -7.5, -2.5, -1.5, -1.0, -0.5, -1e-40, -0.0, 0.0, 1e-40, 0.5, 1.0, 1.5, 2.5]
REALS += [7.0, 2.0**24 + 2, 2.0**31, 1e10, 3e38, np.inf]
TABLES = (np.array(INTS, np.int64), np.array(REALS, np.float32), np.array([False, False, True, True]))


def windows(table: np.ndarray) -> np.ndarray:
    """[runs, 4]: places of all runs of 1, 2 and 4 neighbours in a sorted table; short ones repeat their last place."""
    first = np.arange(len(table))[:, None, None]
    places = np.minimum(first + np.minimum(np.arange(4), np.array([0, 1, 3])[:, None]), len(table) - 1)
    return places.reshape(-1, 4)


def operand(slot: int, index: Expr) -> Expr:
    return apply("load", index, value=(slot, ("int64", "float32", "bool")[slot]))


DTYPES = {"number": ("int", "float"), "any": ("int", "float", "bool"), "int": ("int",), "bool": ("bool",)}
EDGE_CASES = [
    (op, dtype)
    for op, row in OPS.items()
    if row.arity in (1, 2)
    for dtype in DTYPES.get(row.takes, ("float",))
    if op != "to_float" and not (row.gives in ("float", "same") and dtype == "float")
]


def check_windows(expr: Expr, rows: np.ndarray, columns: np.ndarray) -> None:
    """The bounds over every pair of runs, against the values there."""
    q, kv = windows(rows)[:, None], windows(columns)
    lo, hi = tile_bounds(expr, {"q_idx": (q[..., 0], q[..., -1]), "kv_idx": (kv[:, 0], kv[:, -1])}, arrays=TABLES)
    values = tracer.evaluate(expr, {"q_idx": q[..., None], "kv_idx": kv[:, None, :]}, arrays=TABLES)
    least, most = values.min(axis=(-2, -1)), values.max(axis=(-2, -1))
    wrong = np.argwhere((lo > least) | (most > hi))
    if len(wrong):
        i, j = wrong[0]
        lo, hi, least, most = (np.broadcast_to(x, (len(q), len(kv)))[i, j] for x in (lo, hi, least, most))
        pytest.fail(f"{expr} over {rows[q[i, 0]]} and {columns[kv[j]]}: {least} to {most}, bounds [{lo}, {hi}]")


@pytest.mark.parametrize(("op", "dtype"), EDGE_CASES)
def test_every_op_at_the_edges(op: str, dtype: str) -> None:
    slot = ("int", "float", "bool").index(dtype)
    operands = [operand(slot, Q_IDX), operand(slot, KV_IDX)][: OPS[op].arity]
    check_windows(apply(op, *operands), TABLES[slot], TABLES[slot])
    if dtype == "int" and OPS[op].arity == 2:  # a constant or a number on one side has its own rules
        for value in INTS:
            check_windows(apply(op, operands[0], const(value)), TABLES[0], TABLES[0][:1])
            check_windows(apply(op, const(value), operands[0]), TABLES[0], TABLES[0][:1])


@pytest.mark.parametrize("op", "neg abs floor ceil trunc round min max mul exp to_float".split())
def test_floats_at_the_edges(op: str) -> None:
    """A float's bounds, as a comparison and a cast see them."""
    slot = 0 if op == "to_float" else 1
    operands = [operand(slot, Q_IDX), operand(slot, KV_IDX)][: OPS[op].arity]
    result = apply(op, *operands)
    for mask in (apply("to_int", result), *(apply("le", result, const(x)) for x in (-1.0, -0.0, 2.0, 1e10))):
        check_windows(mask, TABLES[slot], TABLES[slot])


def test_shared_terms_at_the_edges() -> None:
    """What cancels in numbers does not where int32 has wrapped."""
    x, y = operand(0, Q_IDX), operand(0, KV_IDX)
    difference, total = apply("sub", x, y), apply("add", x, y)
    tripled = apply("mul", apply("add", x, const(5)), const(3))
    check_windows(apply("add", difference, y), TABLES[0], TABLES[0])
    check_windows(apply("add", difference, x), TABLES[0], TABLES[0])
    check_windows(apply("sub", total, x), TABLES[0], TABLES[0])
    for op in ("lt", "le", "eq", "ne"):
        for a, b in ((difference, apply("neg", y)), (total, y), (tripled, apply("mul", x, const(3))), (tripled, total)):
            check_windows(apply(op, a, b), TABLES[0], TABLES[0])
            check_windows(apply(op, b, a), TABLES[0], TABLES[0])


def with_extremes(expr: Expr, tiles: Tiles | None, ranges: Any, numbers: Any, arrays: Any) -> None:
    """Runs the bounds step by step: `least` and `most` hold over all tiles, and say so to every later step."""
    values: dict[Expr, Any] = {}
    made = Bounds(expr)
    with np.errstate(all="ignore"):
        for node in walk(made.related):
            if node.op == "load":
                value = bounds._load(node, arrays, [values[arg] for arg in node.args])
            elif node.args:
                value = rule(node)(*(values[arg] for arg in node.args))
            else:
                value = bounds._leaf(node, ranges, numbers)
            values[node] = value
            if isinstance(value, Range):
                least, most = int(np.min(value.lo)), int(np.max(value.hi))
                assert value.least <= least and most <= value.most, f"{node} of {expr}: {value.least} to {value.most}"
                assert value.least == value.most or (value.least, value.most) != (least, least)
                is_wide = node.op.startswith("wide_")
                assert is_wide or (value.least >= INT_MIN and value.most <= INT_MAX), f"{node} of {expr}"


def test_what_holds_over_all_tiles_is_known() -> None:
    """The short cuts of rules ask `least` and `most`: too wide they are slow, too narrow they are wrong."""
    for seed in range(400):
        rng = np.random.default_rng(seed)
        case = random_case(rng, "bool" if seed % 3 else "int")
        tiles = random_tiles(rng)
        with_extremes(case.expr, tiles, tiles.ranges, case.numbers, [Extremes(array) for array in case.arrays])


@pytest.mark.parametrize(("op", "dtype"), [case for case in EDGE_CASES if case[1] == "int"])
def test_what_holds_over_all_tiles_is_known_at_the_edges(op: str, dtype: str) -> None:
    operands = [operand(0, Q_IDX), operand(0, KV_IDX)][: OPS[op].arity]
    q, kv = windows(TABLES[0])[:, None], windows(TABLES[0])
    arrays = [Extremes(table) for table in TABLES]
    for rows, columns in ((q, kv), (q[:3], kv), (q, kv[-3:]), (q[30:], kv[30:]), (q[:20], kv[:20])):
        ranges = {"q_idx": (rows[..., 0], rows[..., -1]), "kv_idx": (columns[:, 0], columns[:, -1])}
        with_extremes(apply(op, *operands), None, ranges, (), arrays)


@pytest.mark.parametrize(("op", "dtype"), EDGE_CASES)
def test_numbers_that_are_known_give_one_that_is(op: str, dtype: str) -> None:
    """A tile of one position is decided, except where an int has wrapped or a float is nan."""
    slot = ("int", "float", "bool").index(dtype)
    operands = [operand(slot, Q_IDX), operand(slot, KV_IDX)][: OPS[op].arity]
    expr = apply(op, *operands)
    if expr.dtype not in ("int", "bool"):
        return
    arrays, count = [Extremes(table) for table in TABLES], 0
    places = range(0, len(TABLES[slot]), 3 if len(TABLES[slot]) > 9 else 1)
    for q, kv in itertools.product(places, places):
        lo, hi = tile_bounds(expr, {"q_idx": (q, q), "kv_idx": (kv, kv)}, arrays=arrays)
        value = tracer.evaluate(expr, {"q_idx": q, "kv_idx": kv}, arrays=TABLES)
        if op == "mod" and dtype == "int" and TABLES[0][kv] < 0:  # known to lie between the divisor and 0
            continue
        wrapped = expr.dtype == "int" and (lo, hi) == (INT_MIN, INT_MAX)
        assert (lo == hi == value) or wrapped or np.isnan(TABLES[slot][[q, kv]]).any(), (expr, q, kv, lo, hi, value)
        count += bool(lo == hi)
    assert count > len(places) ** 2 / 3


def test_every_op_has_a_rule() -> None:
    """All that gives a bool or an int; a float without one is unknown."""
    for op, row in ((op, row) for op, row in OPS.items() if row.arity > 0):
        for dtype in DTYPES.get(row.takes, ("int", "float", "bool") if row.takes == "where" else ()):
            gives = dtype if row.gives == "same" else "int"
            if gives != "float":
                assert callable(rule(Expr(op, gives, (Expr("const", dtype, value=0),) * row.arity)))  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match=r"frob on int has no bounds; give it a row in RANGES"):
        rule(Expr("frob", "int", (Q_IDX,)))


def test_floats_have_no_bounds() -> None:
    with pytest.raises(TypeError, match="bounds are of bool and int expressions; this one is a float: score"):
        tile_bounds(SCORE, {})


def test_a_score_is_unknown() -> None:
    lo, hi = tile_bounds(apply("lt", SCORE, const(0.0)), {})
    assert (lo, hi) == (False, True)


# --- precision: what must be decided -------------------------------------------------------------------------------


def decided(mod: Callable[..., Any], length: int = 512, block: int = 32, heads: int = 2) -> tuple[float, float]:
    """The parts of tiles that the bounds leave open and that are mixed in truth; asserts soundness."""
    bound = flex.mask_mod(mod).bind()
    arrays = [np.array(array) for array in bound.arrays]
    first = np.arange(0, length, block)
    h = np.arange(heads)[:, None, None]
    b = np.arange(2)[:, None, None, None]
    tile = np.minimum(first + block, length) - 1
    ranges = {"b": (b, b), "h": (h, h), "q_idx": (first[:, None], tile[:, None]), "kv_idx": (first, tile)}
    lo, hi = tile_bounds(bound.trace.expr, ranges, bound.numbers, [Extremes(array) for array in arrays])
    positions = {"b": b, "h": h, "q_idx": np.arange(length)[:, None], "kv_idx": np.arange(length)}
    dense = tracer.evaluate(bound.trace.expr, positions, numbers=bound.numbers, arrays=arrays)
    dense = np.broadcast_to(dense, (2, heads, length, length))
    kept = np.add.reduceat(np.add.reduceat(dense, first, 2, dtype=np.int64), first, 3)
    sizes = (tile - first + 1)[:, None] * (tile - first + 1)
    full, live = kept == sizes, kept > 0
    assert not (lo & ~full).any() and not (~hi & live).any()
    return float(np.broadcast_to(hi & ~lo, full.shape).mean()), float((live & ~full).mean())


EXACT = sorted({e.name for e in zoo.MASK_MODS} - {"natten_2d", "tiled_natten"})


@pytest.mark.parametrize("name", EXACT)
def test_masks_of_the_zoo_are_decided(name: str) -> None:
    """Open are the tiles that are mixed, and no others."""
    open_tiles, mixed = decided(zoo.ZOO[name].make(2, 2, 512, 512, np.random.default_rng(0)))
    assert open_tiles == mixed, f"{name}: {open_tiles:.3f} of the tiles are open, {mixed:.3f} are mixed"


@pytest.mark.parametrize("name", ["natten_2d", "tiled_natten"])
def test_masks_over_a_canvas_are_mostly_decided(name: str) -> None:
    """A tile that runs over the end of a row of pixels joins columns that no pixel of it has."""
    open_tiles, mixed = decided(zoo.ZOO[name].make(2, 2, 512, 512, np.random.default_rng(0)))
    assert open_tiles <= mixed + 0.06


OFFSETS = np.array([0, 100, 101, 230, 512], np.int32)
DOCUMENTS = np.repeat(np.arange(4, dtype=np.int32), np.diff(OFFSETS))


def packed_causal(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return DOCUMENTS[q_idx] == DOCUMENTS[kv_idx] and q_idx - OFFSETS[DOCUMENTS[q_idx]] >= (
        kv_idx - OFFSETS[DOCUMENTS[kv_idx]]
    )


def same_block(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx // 48 == kv_idx // 48


def clean_block(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return kv_idx // 64 <= q_idx // 64


def shifted(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx * 3 + h * 1000 - kv_idx < 2 * q_idx + h * 1000 + 40  # q - kv < 40


def both_sides(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    distance = (q_idx - kv_idx) + (q_idx + kv_idx) - 2 * q_idx
    return distance == 0 and q_idx - kv_idx >= 0


SIZES = [(512, 32), (512, 128), (509, 48)]  # length, block


@pytest.mark.parametrize("mod", [same_block, clean_block, shifted, both_sides])
@pytest.mark.parametrize(("length", "block"), SIZES)
def test_more_masks_are_decided(mod: Any, length: int, block: int) -> None:
    open_tiles, mixed = decided(mod, length, block)
    assert open_tiles == mixed


@pytest.mark.parametrize(("length", "block"), SIZES)
def test_positions_in_packed_documents_are_mostly_decided(length: int, block: int) -> None:
    """A tile on the border of two documents joins the position of one with the number of the other."""
    open_tiles, mixed = decided(packed_causal, length, block)
    assert open_tiles <= mixed + 0.5 * block / length * len(OFFSETS)


def test_wrapped_sums_do_not_cancel() -> None:
    """q + 2**30 < q + 2**31 - 1 - ... holds for numbers, not for int32 that wrap."""
    large = const(2**31 - 1)
    mask = apply("lt", Q_IDX, apply("add", Q_IDX, large))  # true for q == 0 alone: from q == 1 on the sum wraps
    lo, hi = tile_bounds(mask, {"q_idx": (np.array([0, 0, 1]), np.array([0, 5, 5]))})
    assert lo.tolist() == [True, False, False] and hi.tolist() == [True, True, True]


def test_large_factors_of_shared_terms_are_left_alone() -> None:
    """q * 2**20 * 2**20 is 0 at 32 bits, and no factor of an affine form that int64 can hold in range."""
    large = apply("mul", apply("mul", Q_IDX, const(2**20)), const(2**20))
    for mask in (apply("le", large, Q_IDX), apply("lt", apply("add", large, Q_IDX), Q_IDX)):
        for first in (0, 1, 2**22, 2**30):
            lo, hi = tile_bounds(mask, {"q_idx": (np.array([first]), np.array([first + 3]))})
            values = tracer.evaluate(mask, {"q_idx": np.arange(first, first + 4)})
            assert lo.all() <= values.min() and values.max() <= hi.all()


# --- gathers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1,), (33,), (1000,), (40_000,), (7, 300), (40, 90), (5, 6, 7), (3, 2000, 40)])
@pytest.mark.parametrize("dtype", ["int32", "bool", "float32", "uint8"])
def test_extremes_of_boxes(shape: tuple[int, ...], dtype: str) -> None:
    rng = np.random.default_rng(len(shape))
    array = (rng.normal(size=shape) * 50).astype(dtype) if dtype != "bool" else rng.random(shape) < 0.1
    extremes, count = Extremes(array), 60
    for kind in range(6):
        box = []
        for axis, size in enumerate(shape):
            first, last = np.sort(rng.integers(0, size, size=(2, count)), axis=0)
            if (kind >> axis) & 1:
                last = first
            box.append((first, last))
        least, most = extremes.over(box)
        whole = max(array.shape) <= 300 and (array.ndim < 3 or kind)
        for i in range(count):
            part = array[tuple(slice(first[i], last[i] + 1) for first, last in box)]
            assert least[i] <= part.min() and part.max() <= most[i]
            if whole:  # no blocks, at most two extended axes: exact
                assert (least[i], most[i]) == (part.min(), part.max())


def test_aligned_boxes_of_long_arrays_are_exact() -> None:
    array = np.random.default_rng(0).integers(0, 10**6, size=100_000)
    first = np.arange(0, 100_000, 128)
    last = np.minimum(first + 127, 99_999)
    least, most = Extremes(array).over([(first, last)])
    assert (least == np.minimum.reduceat(array, first)).all() and (most == np.maximum.reduceat(array, first)).all()


def test_nan_makes_a_gather_unknown() -> None:
    table = np.array([1.0, 2.0, np.nan, 3.0], np.float32)
    mask = apply("lt", apply("load", Q_IDX, value=(0, "float32")), const(10.0))
    lo, hi = tile_bounds(mask, {"q_idx": (np.array([0, 1, 3]), np.array([1, 2, 3]))}, arrays=[table])
    assert lo.tolist() == [True, False, True] and hi.tolist() == [True, True, True]


# --- cost ---------------------------------------------------------------------------------------------------------


def test_what_does_not_vary_is_not_computed() -> None:
    """[rows, 1] and [columns] stay apart until an op joins them; a constant stays one number."""
    rows, columns = np.arange(0, 64, 8)[:, None], np.arange(0, 40, 8)
    ranges = {"q_idx": (rows, rows + 7), "kv_idx": (columns, columns + 7), "h": (np.array(1), np.array(1))}
    for expr, shape in (
        (apply("lt", Q_IDX, const(9)), (8, 1)),
        (apply("lt", KV_IDX, const(9)), (5,)),
        (apply("lt", KV_IDX, Q_IDX), (8, 5)),
        (apply("lt", H, const(9)), ()),
        (apply("lt", KV_IDX, const(900)), ()),
    ):
        assert tile_bounds(expr, ranges)[0].shape == shape


def test_bounds_are_made_once() -> None:
    expr = apply("lt", KV_IDX, Q_IDX)
    assert bounds_of(expr) is bounds_of(expr) and isinstance(bounds_of(expr), Bounds)
    assert repr(bounds_of(expr)) == "bounds of kv_idx < q_idx"
