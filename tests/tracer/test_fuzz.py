"""Random Python mods -> traced, simplified, evaluated in numpy and compiled: always what Python gives.

tests/expressions.py writes the programs and runs them in plain Python on float32 and wrapping int32 numbers.
Equality is bit for bit, except after functions such as exp, whose error is bounded. The numpy runs shrink; a run
of a kernel combines several programs in one mod, by head, and so costs one compile; its captured tables hold what
each program must give, and the mod itself answers 1 where it differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from expressions import (
    APPROXIMATED,
    F32,
    FLOAT_CONSTANTS,
    I32,
    INT_CONSTANTS,
    INT_MAX,
    INT_MIN,
    MATH,
    TABLES,
    Bool,
    Expected,
    Program,
    Table,
    Undecided,
    combine,
    define,
    programs,
    rejecting_known_errors,
)
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

BACKEND = "cpu"
PROGRAMS_PER_KERNEL = 10


# --- the adaptor: all that these tests know of the library's inside ---------------------------------------------


def run_numpy(fn: Callable[..., Any], kind: str, score: Any, b: Any, h: Any, q: Any, kv: Any) -> np.ndarray:
    """Trace `fn` (kind "score" or "mask"), simplify, evaluate in numpy; arguments are arrays that broadcast."""
    from flextrace import tracer

    trace = tracer.trace(fn, "score_mod" if kind == "score" else "mask_mod")
    objects = trace.reads.objects(fn)
    assert objects is not None
    values = tracer.evaluate(
        trace.expr,
        {"score": score, "b": b, "h": h, "q_idx": q, "kv_idx": kv},
        numbers=trace.reads.numbers(objects, trace.name),
        arrays=[np.array(array) for array in trace.reads.arrays(objects)],
    )
    return np.broadcast_to(values, np.broadcast(score, b, h, q, kv).shape)


def run_kernel(
    score_mod: Callable[..., Any] | None,
    mask_mod: Callable[..., Any] | None,
    scores: np.ndarray,
    shape: tuple[int, int, int, int],
    backend: str,
) -> tuple[np.ndarray, np.ndarray]:
    """One call on shape (B, H, q_len, kv_len), where row q_idx has the score scores[q_idx] at every key.

    Returns max_scores [B, H, q_len] and the attention weights [B, H, q_len, kv_len].
    """
    import flextrace as flex

    B, H, Lq, Lkv = shape
    q = mx.broadcast_to(mx.array(scores.reshape(1, 1, Lq, 1)), (B, H, Lq, 1))
    out, aux = flex.flex_attention(
        q,
        mx.ones((B, H, Lkv, 1)),
        mx.broadcast_to(mx.eye(Lkv), (B, H, Lkv, Lkv)),
        score_mod=None if score_mod is None else flex.score_mod(score_mod),
        block_mask=None if mask_mod is None else flex.mask_mod(mask_mod),
        scale=1.0,
        return_aux=flex.AuxRequest(lse=True, max_scores=True),
        kernel_options={"BACKEND": backend},
    )
    return np.array(aux.max_scores), np.array(out)


# --- points ---------------------------------------------------------------------------------------------------

SCORES = TABLES["reals"]


def grid(B: int, H: int, Lq: int, Lkv: int) -> tuple[np.ndarray, ...]:
    """(score, b, h, q_idx, kv_idx) of every element; the score belongs to the row."""
    b, h, q_idx, kv_idx = np.ogrid[:B, :H, :Lq, :Lkv]
    return np.resize(SCORES, Lq)[q_idx], b, h, q_idx, kv_idx


def scattered(count: int) -> tuple[np.ndarray, ...]:
    """Points with long sequences, many heads and random scores; every edge score is among them."""
    rng = np.random.default_rng(count)
    score = np.concatenate([SCORES, rng.normal(size=count - len(SCORES)) * 3]).astype(np.float32)
    lengths = rng.choice([4, 40, 5000, 2**20], size=count)
    return (
        score,
        *(rng.integers(0, n, size=count) for n in (3, 40)),
        rng.integers(lengths),
        rng.integers(lengths),
    )


POINTS = scattered(60)


def differs(got: np.ndarray, expected: Expected) -> np.ndarray:
    """bool by point. float32: bit for bit up to the payload of nan where the margin is 0."""
    want, margin = expected
    if want.dtype.kind != "f":
        return (got != want) & (margin >= 0)
    assert got.dtype == np.float32, f"a score is {got.dtype}"
    same_bits = (np.ascontiguousarray(got).view(np.int32) == want.view(np.int32)) | (np.isnan(got) & np.isnan(want))
    with np.errstate(all="ignore"):
        near = np.abs(got.astype(np.float64) - want) <= margin
    return ~np.where(margin == 0, same_bits, near) & (margin >= 0)


def assert_same(program: Program, got: np.ndarray, expected: Expected, points: Sequence[np.ndarray]) -> None:
    wrong = differs(got, expected)
    if wrong.any():
        at = tuple(np.argwhere(wrong)[0])
        values = [p[at].item() for p in np.broadcast_arrays(*points)]
        pytest.fail(
            f"{program}\nat (score, b, h, q_idx, kv_idx) = {tuple(values)}: got {got[at]!r}, Python gives "
            f"{expected.values[at]!r}, allowed {expected.margin[at]}; {wrong.sum()} of {wrong.size} points differ"
        )


# --- numpy --------------------------------------------------------------------------------------------

ARGUMENTS = ("score", "b", "h", "q_idx", "kv_idx")


def check_numpy(program: Program, points: tuple[np.ndarray, ...] = POINTS) -> None:
    """A score is float32, so the value of an int program is taken in two exact halves."""
    values, margin = program.expected(*points)
    if program.result == "int":
        arguments = ", ".join(ARGUMENTS)
        for half, want in ((">> 16", values >> 16), ("& 65535", values & 65535)):
            source = f"{program.source}\ndef half({arguments}):\n    return {program.name}({arguments}) {half}\n"
            with rejecting_known_errors():
                got = run_numpy(define(source, "half", program.captures(mx.array)), "score", *points)
            assert_same(program, got, Expected(want.astype(np.float32), margin), points)
        return
    if program.kind == "score":
        values = values.astype(np.float32)
    with rejecting_known_errors():
        got = run_numpy(program.function(mx.array), program.kind, *points)
    assert_same(program, got, Expected(values, margin), points)


QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
NUMPY_RUN = settings(max_examples=50, deadline=None, suppress_health_check=QUIET)
LONG_NUMPY_RUN = settings(NUMPY_RUN, max_examples=6000)


@NUMPY_RUN
@given(programs())
def test_score_mods_in_numpy(program: Program) -> None:
    check_numpy(program)


@NUMPY_RUN
@given(programs(kind="mask"))
def test_mask_mods_in_numpy(program: Program) -> None:
    check_numpy(program)


@pytest.mark.long
@LONG_NUMPY_RUN
@given(programs())
def test_score_mods_in_numpy_long(program: Program) -> None:
    check_numpy(program)


@pytest.mark.long
@LONG_NUMPY_RUN
@given(programs(kind="mask"))
def test_mask_mods_in_numpy_long(program: Program) -> None:
    check_numpy(program)


# --- kernels ----------------------------------------------------------------------------------------------------

DIFFERENCE = """
def float_differs(got, want, margin):
    got = float(got)
    if margin < 0:
        return False
    if want != want:
        return got == got
    if margin == 0:
        return got != want or (got == 0 and 1.0 / got != 1.0 / want)
    return not abs(got - want) <= margin


def int_differs(got, want, margin):
    return got != want and margin >= 0


def bool_differs(got, want, margin):
    return bool(got) != bool(want) and margin >= 0

"""


def several(kind: str) -> st.SearchStrategy[list[Program]]:
    names = [f"f{i}" for i in range(PROGRAMS_PER_KERNEL)]
    return st.tuples(*(programs(name, kind) for name in names)).map(list)


def head(points: Sequence[np.ndarray], h: int) -> tuple[np.ndarray, ...]:
    """The points of one head."""
    score, b, _, q_idx, kv_idx = points
    return score, b, np.full((1, 1, 1, 1), h), q_idx, kv_idx


def judged(group: Sequence[Program], expected: Sequence[Expected]) -> Callable[..., Any]:
    """A score_mod that is 1 where group[h] does not give what Python gives, else 0."""
    tables = {"margin": np.concatenate([e.margin for e in expected], axis=1)}
    branches = []
    for i, program in enumerate(group):
        arguments = ", ".join(ARGUMENTS[program.kind == "mask" :])
        tables[f"want{i}"] = expected[i].values[:, 0]
        call = f"{program.name}({arguments}), want{i}[b, q_idx, kv_idx], margin[b, h, q_idx, kv_idx]"
        branches.append(f"    if h == {i}:\n        return {program.result}_differs({call})\n")
    names = {k: v for p in group for k, v in p.captures(mx.array).items()}
    names |= {name: mx.array(table) for name, table in tables.items()}
    source = "\n".join([*(p.source for p in group), DIFFERENCE, f"def judged({', '.join(ARGUMENTS)}):\n"])
    return define(source + "".join(branches) + "    return False\n", "judged", names)


def check_score_kernel(group: Sequence[Program], backend: str, kv_len: int = 7) -> None:
    shape = (2, len(group), len(SCORES), kv_len)
    scores = SCORES + np.float32(0)  # a dot product gives no -0.0
    _, *indices = grid(*shape)
    points = (scores[indices[2]], *indices)
    expected = [program.expected(*head(points, h)) for h, program in enumerate(group)]
    with rejecting_known_errors():
        highest, weights = run_kernel(judged(group, expected), None, scores, shape, backend)
    assert np.isin(np.round(highest, 3), (0.0, 1.0)).all(), f"not a verdict, but {np.unique(highest)}, on {backend}"
    # Within a row the answers 1 weigh e times the answers 0.
    wrong = (highest[..., None] > 0.5) & (weights > 0.7 * weights.max(axis=-1, keepdims=True))
    for h, program in enumerate(group):
        if wrong[:, h].any():
            at = tuple(np.argwhere(wrong[:, h : h + 1])[0])
            values = [p[at].item() for p in np.broadcast_arrays(*head(points, h))]
            pytest.fail(
                f"{program}\non {backend} at (score, b, h, q_idx, kv_idx) = {tuple(values)} the kernel differs from "
                f"Python's {expected[h].values[at]!r}, allowed {expected[h].margin[at]}; {wrong[:, h].sum()} do"
            )


def check_mask_kernel(group: Sequence[Program], backend: str) -> None:
    """Longer than a tile in both directions, at some points: what a kernel skips or takes as full is judged too."""
    shape = (1, len(group), 70, 150)
    names = {k: v for program in group for k, v in program.captures(mx.array).items()}
    mod = define(combine(group, "combined"), "combined", names)
    with rejecting_known_errors():
        _, weights = run_kernel(None, mod, np.zeros(shape[2], np.float32), shape, backend)
    rng = np.random.default_rng(0)
    q_idx, kv_idx = rng.integers(shape[2], size=500), rng.integers(shape[3], size=500)
    for h, program in enumerate(group):
        points = (np.float32(0), np.array(0), np.array(h), q_idx, kv_idx)
        assert_same(program, weights[0, h, q_idx, kv_idx] > 0, program.expected(*points), points)


# A kernel costs a compile: no shrinking, the failing program is in the message.
KERNEL_RUN = settings(
    max_examples=3,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[*QUIET, HealthCheck.large_base_example],
)
LONG_KERNEL_RUN = settings(KERNEL_RUN, max_examples=100)


@KERNEL_RUN
@given(several("score"))
def test_score_mods_in_a_kernel(group: list[Program]) -> None:
    check_score_kernel(group, BACKEND)


@KERNEL_RUN
@given(several("mask"))
def test_mask_mods_in_a_kernel(group: list[Program]) -> None:
    check_mask_kernel(group, BACKEND)


@pytest.mark.long
@pytest.mark.parametrize("backend", ["cpu", "ops"])
@LONG_KERNEL_RUN
@given(several("score"))
def test_score_mods_in_a_kernel_long(backend: str, group: list[Program]) -> None:
    check_score_kernel(group, backend)


@pytest.mark.long
@pytest.mark.parametrize("backend", ["cpu", "ops"])
@LONG_KERNEL_RUN
@given(several("mask"))
def test_mask_mods_in_a_kernel_long(backend: str, group: list[Program]) -> None:
    check_mask_kernel(group, backend)


# --- every operator on every pair of edges ---------------------------------------------------------------

# Operands that are the same for all keys of a row, or one per key: kernels have code for each pair of these.
PAIRS = {
    "row_key": "{t}[q_idx] {op} {t}[kv_idx]",
    "key_row": "{t}[kv_idx] {op} {t}[q_idx]",
    "key_key": "{t}[kv_idx] {op} {t}[(kv_idx + q_idx) % {n}]",
    "row_row": "{t}[q_idx] {op} {t}[(q_idx * 5 + b) % {n}]",
}
INT_OPERATORS = ("+", "-", "*", "//", "%", "&", "|", "^", "<<", ">>", "/")
FLOAT_OPERATORS = ("+", "-", "*", "/", "//", "%")
ORDER = ("<", "<=", ">", ">=", "==", "!=")


def one_line(expressions: Sequence[tuple[str, str]]) -> list[Program]:
    """(result, expression) -> programs f0, f1, ..."""
    source = "def f{}({}):\n    return {}\n"
    return [
        Program(f"f{i}", "score", result, source.format(i, ", ".join(ARGUMENTS), text))
        for i, (result, text) in enumerate(expressions)
    ]


def operators() -> dict[str, list[Program]]:
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, form in PAIRS.items():
        for table, ops, result in (("edges", INT_OPERATORS, "int"), ("reals", FLOAT_OPERATORS, "float")):
            n = len(TABLES[table])
            groups.setdefault(f"{table}-{name}", []).extend(
                [("float" if op == "/" else result, form.format(t=table, op=op, n=n)) for op in ops]
                + [("bool", form.format(t=table, op=op, n=n)) for op in ORDER]
                + [(result, f"{f}({form.format(t=table, op=',', n=n)})") for f in ("min", "max")]
            )
    for index in ("q_idx", "kv_idx"):
        number, whole = f"reals[{index}]", f"edges[{index}]"
        rounding = ("int", "round", "math.floor", "math.ceil", "math.trunc")
        groups[f"functions-{index}"] = [
            *(("float", f"math.{name}({number})") for name in APPROXIMATED),
            *(("float", f"{number} ** {power}") for power in (0, 1, 2, 3, 5, -1, -2, 0.5, -0.5, 1.5)),
            *(("float", f"{form}({number})") for form in ("-", "abs", "math.sqrt", "mx.floor", "mx.ceil")),
            *(("int", f"{name}({number})") for name in rounding),
            *(("bool", f"{name}({number})") for name in ("not ", "bool", "math.isnan", "math.isinf")),
            *(("int", f"{form}({whole})") for form in ("-", "~", "abs")),
            *(("int", f"{whole} ** {power}") for power in range(6)),
            *(("float", f"float({whole})"), ("bool", f"not {whole}")),
        ]
        groups[f"constants-{index}"] = [
            ("int", f"{whole} {op} ({c})") for c in INT_CONSTANTS if c for op in ("//", "%")
        ] + [("bool", f"{whole} {op} ({c})") for c in ("0.5", "-7.0", "1e10", "math.inf") for op in ORDER]
    return {name: one_line(group) for name, group in groups.items()}


OPERATORS = operators()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("group", OPERATORS)
def test_operators_in_numpy(group: str) -> None:
    points = grid(1, 1, len(SCORES), len(SCORES))
    for program in OPERATORS[group]:
        check_numpy(program, points)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("group", OPERATORS)
@pytest.mark.parametrize("backend", ["cpu", "ops"])
def test_operators_in_a_kernel(backend: str, group: str) -> None:
    check_score_kernel(OPERATORS[group], backend, len(SCORES))


# --- the fuzzer itself --------------------------------------------------------------------------------------------

EDGES = sorted({*INT_CONSTANTS, *range(-9, 10)})


def wrapped(value: int) -> int:
    return int(np.array(value & 0xFFFFFFFF, np.uint32).view(np.int32))


@pytest.mark.parametrize("op", ["+", "-", "*", "//", "%", "&", "|", "^", "<<", ">>", "<", "<=", "==", "!="])
def test_i32_is_pythons_int_that_wraps(op: str) -> None:
    for a in EDGES:
        for b in EDGES:
            got = eval(f"a {op} b", {"a": I32(a), "b": I32(b)})
            if b == 0 and op in ("//", "%"):
                want = 0
            elif op in ("<<", ">>"):
                want = eval(f"a {op} min(b, 100)") if b >= 0 else eval(f"a {op} 100")
            else:
                want = eval(f"a {op} b")
            assert got.value == wrapped(want), (a, op, b)
            assert isinstance(got, Bool) == isinstance(want, bool)
            mixed = eval(f"a {op} b", {"a": a, "b": I32(b)}), eval(f"a {op} b", {"a": I32(a), "b": b})
            assert [m.value for m in mixed] == [got.value] * 2


def test_division_of_ints_is_float32s() -> None:
    assert (I32(7) / 2).value == np.float32(3.5)
    assert (I32(2**24 + 1) / 1).value == np.float32(2**24)
    with np.errstate(all="ignore"):
        assert (I32(1) / I32(0)).value == np.inf and np.isnan((I32(0) / 0).value)
    assert isinstance(Bool(1) / 2, F32) and isinstance(Bool(1) + Bool(1), I32)
    assert isinstance(Bool(1) & Bool(1), Bool) and not isinstance(Bool(1) & 1, Bool)


@pytest.mark.parametrize("op", ["+", "-", "*", "//", "%", "/"])
def test_f32_is_pythons_float_rounded(op: str) -> None:
    """On numbers whose exact result float64 holds, Python's own result rounded once must come out."""
    values = [
        0.5,
        -0.5,
        1.0,
        3.0,
        -3.0,
        7.25,
        -7.25,
        0.1,
        100.0,
        -1e-3,
        math.inf,
        -math.inf,
        math.nan,
        0.0,
        -0.0,
    ]
    for a in values:
        for b in values:
            if b == 0 and op in ("/", "//", "%"):
                continue
            x, y = float(np.float32(a)), float(np.float32(b))
            want = np.float32(eval(f"x {op} y", {"x": x, "y": y}))
            with np.errstate(all="ignore"):
                got = eval(f"x {op} y", {"x": F32(a), "y": F32(b)})
            assert got.value.dtype == np.float32 and got.err == 0
            same = np.isnan(want) and np.isnan(got.value)
            assert same or want.tobytes() == got.value.tobytes(), (a, op, b, got.value, want)


@pytest.mark.parametrize("value", [0.5, 1.5, 2.5, -0.5, -1.5, -2.7, 2.7, 0.0, 1e9])
def test_f32_to_int_is_pythons(value: float) -> None:
    assert round(F32(value)).value == round(value) and math.floor(F32(value)).value == math.floor(value)
    assert MATH.trunc(F32(value)).value == int(value) and math.ceil(F32(value)).value == math.ceil(value)


def test_f32_to_int_is_total() -> None:
    for value, want in (
        (math.nan, 0),
        (math.inf, INT_MAX),
        (-math.inf, INT_MIN),
        (3e9, INT_MAX),
        (-(2.0**31), INT_MIN),
    ):
        assert MATH.trunc(F32(value)).value == want


def test_an_open_decision_is_undecided() -> None:
    one = MATH.exp(F32(0.0))
    assert one.value == 1 and one.err > 0
    assert (one > 0.5).value == 1 and (one + 1.0).err > one.err
    for use in (lambda: one == 1.0, lambda: math.floor(one), lambda: bool(one - 1.0), lambda: one // 1.0):
        with pytest.raises(Undecided):
            use()
    with np.errstate(all="ignore"):
        assert MATH.exp(F32(math.inf)).value == math.inf and MATH.log(F32(0.0)).value == -math.inf
        assert np.isnan(MATH.sqrt(F32(-1.0)).value)


def test_tables_wrap_once_and_clamp() -> None:
    ints, grid_table = Table(TABLES["ints"]), Table(TABLES["grid"])
    assert [ints[i].value for i in (0, -1, -7, -8, 7, INT_MIN)] == [3, 2, 3, 3, 2, 3]
    assert grid_table[1][-1].value == grid_table[I32(1), 2].value == np.float32(1e-40)


@settings(max_examples=100, deadline=None, suppress_health_check=QUIET)
@given(programs())
def test_programs_are_functions_whose_source_is_found(program: Program) -> None:
    import inspect

    assert inspect.getsource(program.function(np.array)) == program.source


STATEMENTS = """
def f(score, b, h, q_idx, kv_idx):
    total, near = 0, not q_idx - kv_idx
    for i in range(4):
        if i == 3:
            break
        total += (q_idx - 2 * kv_idx) // 3 * i
    if -2 < q_idx - kv_idx <= 1 or (half := kv_idx % -4) == -3:
        total -= near + (5 if b else h)
    elif half and not near:
        return sum((total, near, half)) + any(q_idx == j for j in range(3))
    total <<= (w := h & 3) + w
    return (lambda x: max(x, -x, 7) ^ int(score * 4))(total) - round(score / 2) + (score < q_idx)
"""


def test_a_program_means_what_python_means() -> None:
    """While nothing leaves int32 and float32's exact numbers, plain Python gives the same."""
    program = Program("f", "score", "int", STATEMENTS)
    fn = program.function(np.array)
    points = (np.float32(-2.75), *np.ogrid[:2, :4, :9, :9])
    expected = program.expected(*points)
    for at in np.ndindex(expected.values.shape):
        assert expected.values[at] == fn(-2.75, *at) and expected.margin[at] == 0


def test_most_points_are_compared() -> None:
    """The share of points that Undecided leaves out stays small."""
    seen: list[np.ndarray] = []

    @settings(max_examples=200, deadline=None, database=None, suppress_health_check=QUIET)
    @given(programs(results=("float",)))
    def collect(program: Program) -> None:
        seen.append(program.expected(*POINTS).margin)

    collect()
    margins = np.array(seen)
    assert (margins >= 0).mean() > 0.8 and (margins > 0).any()


def test_the_constants_are_what_they_say() -> None:
    assert all(INT_MIN <= value <= INT_MAX for value in INT_CONSTANTS)
    assert all(isinstance(eval(text, {"math": math}), float) for text in FLOAT_CONSTANTS)
