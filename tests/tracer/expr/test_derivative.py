"""Derivatives: against differences in float64, over every op and over random expressions; at kinks by the policy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import flextrace as flex
from flextrace.tracer.expr import build
from flextrace.tracer.expr.derivative import TANGENTS, ZERO, derivative, gradient_sites
from flextrace.tracer.expr.evaluate import NUMPY, run
from flextrace.tracer.expr.node import FALSE, KV_IDX, OPS, Q_IDX, SCORE, TRUE, B, Expr, H, apply, const, walk
from flextrace.tracer.expr.simplify import simplify

A = apply("load", H, value=(0, "float32"))
C = apply("load", value=(1, "bfloat16"))
NUMBER = Expr("param", "float", value=0)
WIDE = {  # the numpy table in float64
    **NUMPY,
    "to_float": lambda a: a.astype(np.float64),
    "erf": np.vectorize(math.erf, otypes=[np.float64]),
    "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
}
Values = dict[Expr, Any]


def value(expr: Expr, at: Values) -> Any:
    """An expression in float64. at: numbers of the score, of loads, of params, of indices."""

    def found(node: Expr, indices: Any = None) -> Any:
        if node.op == "const":
            return np.asarray(node.value, {"float": np.float64, "int": np.int32, "bool": np.bool_}[node.dtype])
        return np.asarray(
            at[node] if node.dtype == "float" else at.get(node, 0), np.float64 if node.dtype == "float" else np.int32
        )

    with np.errstate(all="ignore"):
        return run(expr, found, found, WIDE)


def differences(expr: Expr, wrt: Expr, at: Values, step: float) -> tuple[Any, Any]:
    """To the right and to the left, each of three points, without the errors of the first two orders."""

    def moved(steps: int) -> Any:
        return value(expr, {**at, wrt: at[wrt] + steps * step}).astype(np.float64)

    here = moved(0)
    one, two, four, *others = ((moved(n) - here) / (n * step) for n in (1, 2, 4, -1, -2, -4))
    return (8 * one - 6 * two + four) / 3, (8 * others[0] - 6 * others[1] + others[2]) / 3


def difference(expr: Expr, wrt: Expr, at: Values) -> Any:
    """The derivative that the function's values show; nan where both sides, or wide and small steps, do not agree."""
    with np.errstate(all="ignore"):
        sides = [*differences(expr, wrt, at, 1e-3), *differences(expr, wrt, at, 2.5e-4)]
        middle = (sides[2] + sides[3]) / 2
        return np.where(np.ptp(sides, axis=0) < 1e-5 * (1 + abs(middle)), middle, np.nan)


def assert_derivative(expr: Expr, wrt: Expr, at: Values, least: float = 0.7) -> None:
    want = difference(expr, wrt, at)
    got = np.broadcast_to(value(derivative(expr, wrt), at), want.shape)
    compared = np.isfinite(want)
    assert compared.mean() >= least, f"{expr}: {compared.mean()}"
    np.testing.assert_allclose(got[compared], want[compared], rtol=1e-5, atol=1e-5, err_msg=f"d {expr} / d {wrt}")


# ---- every op ----------------------------------------------------------------------------------------------------

EVERYWHERE, POSITIVE, INSIDE_ONE = (-2.7, -1.3, -0.4, 0.3, 0.8, 1.6, 3.2), (0.2, 0.3, 0.9, 1.7, 4.2), (-0.8, 0.1, 0.6)
POINTS = {
    **dict.fromkeys("log log2 log10 sqrt rsqrt pow".split(), POSITIVE),
    **dict.fromkeys("asin acos atanh".split(), INSIDE_ONE),
    "log1p": (-0.8, -0.3, 0.4, 2.5),
    "acosh": (1.2, 1.9, 5.0),
    "tan": (-1.2, -0.4, 0.3, 1.3, 1.9, 4.2),
}
STILL = {"stop_gradient"}  # its values are no guide to its derivative
OF_FLOATS = [
    op
    for op, row in OPS.items()
    if row.takes in ("float", "number") and row.gives in ("float", "same") and op not in STILL
]


def points(op: str, seed: int = 0) -> np.ndarray:
    """Chosen and random points of an op's domain."""
    chosen = POINTS.get(op, EVERYWHERE)
    return np.array([*chosen, *np.random.default_rng(seed).uniform(min(chosen), max(chosen), 30)])


def test_every_op_has_a_row() -> None:
    assert TANGENTS.keys() == OPS.keys()


@pytest.mark.parametrize("op", [op for op in OF_FLOATS if OPS[op].arity == 1])
def test_functions_of_one_number(op: str) -> None:
    x = points(op)
    assert_derivative(apply(op, SCORE), SCORE, {SCORE: x})
    assert_derivative(apply(op, apply("mul", A, SCORE)), A, {SCORE: x / 1.5, A: 1.5})
    assert_derivative(apply("mul", apply(op, SCORE), C), C, {SCORE: x, C: 0.75})


@pytest.mark.parametrize("op", [op for op in OF_FLOATS if OPS[op].arity == 2])
def test_functions_of_two_numbers(op: str) -> None:
    x, y = points(op)[:, None], points(op, 1)
    if op in ("div", "mod", "floor_div"):
        y = np.where(abs(y) < 0.5, 1.1, y)
    x, y = (z + 0.0137 for z in (x, y))  # away from where both are equal
    for wrt in (SCORE, A, NUMBER):
        node = apply(op, SCORE, apply("mul", A, NUMBER))
        assert_derivative(node, wrt, {SCORE: x, A: y / 1.3, NUMBER: 1.3})
    assert_derivative(apply(op, SCORE, const(1.5)), SCORE, {SCORE: x})
    assert_derivative(apply(op, const(1.5), SCORE), SCORE, {SCORE: y})
    assert_derivative(apply(op, apply("mul", SCORE, C), SCORE), SCORE, {SCORE: abs(y), C: 1.25}, least=0.5)
    assert_derivative(apply(op, SCORE, SCORE), SCORE, {SCORE: abs(y)}, least=0.5 if op != "atan2" else 0)


@pytest.mark.parametrize("op", sorted({*OPS} - {*OF_FLOATS, "where", "to_float"}))
def test_what_counts_or_compares_adds_nothing(op: str) -> None:
    """A step is the constant 0, not a product with it: the float beside it keeps its derivative."""
    takes, arity = OPS[op].takes, OPS[op].arity
    arg = {"int": apply("to_int", SCORE), "bool": apply("lt", SCORE, A)}.get(takes, SCORE)
    node = apply(op, arg, value=(2, "float16")) if op == "load" else apply(op, *[arg] * arity)
    node = build.cast(node, "float")
    assert derivative(node, SCORE) is ZERO
    assert derivative(apply("mul", node, A), A) is simplify(node)


def test_ints_and_bools_have_the_derivative_zero() -> None:
    assert derivative(apply("sub", Q_IDX, KV_IDX), SCORE) is ZERO
    assert derivative(apply("lt", SCORE, A), SCORE) is ZERO
    with pytest.raises(TypeError, match="with respect to q_idx, which is of type int"):
        derivative(SCORE, Q_IDX)


def test_conversions_of_a_float_let_it_pass() -> None:
    assert derivative(apply("to_float", SCORE), SCORE).value == 1


def test_a_stopped_gradient_is_zero_and_the_value_stays() -> None:
    bias = mx.array([0.5, 0.25])
    expr = of_mod(lambda score, b, h, q_idx, kv_idx: score * mx.stop_gradient(score + bias[h]))
    assert str(derivative(expr, SCORE)) == "stop_gradient((score + array0[h]))" and gradient_sites(expr) == ()
    assert flex.tracer.evaluate(expr, {"score": 3.0, "h": 1}, arrays=[np.array(bias)]) == 9.75
    whole = of_mod(lambda score, b, h, q_idx, kv_idx: score + bias[mx.stop_gradient(kv_idx % 2)])
    assert len(gradient_sites(whole)) == 1


def test_where_chooses_between_derivatives() -> None:
    node = apply("where", apply("lt", KV_IDX, Q_IDX), apply("mul", SCORE, A), apply("sin", A))
    at = {SCORE: 0.7, A: points("sin"), Q_IDX: 3, KV_IDX: np.arange(6)[:, None]}
    assert_derivative(node, A, at)
    assert_derivative(node, SCORE, at)
    assert derivative(node, SCORE) is apply("where", apply("lt", KV_IDX, Q_IDX), A, ZERO)


# ---- kinks ---------------------------------------------------------------------------------------------------------


def of_mod(mod: Callable[..., Any]) -> Expr:
    return flex.score_mod(mod).bind().trace.expr


def slope(function: Callable[[Any], Any], x: float) -> float:
    """What we give for a function of MLX, at one score."""
    expr = of_mod(lambda score, b, h, q_idx, kv_idx: function(score))
    return float(value(derivative(expr, SCORE), {SCORE: x, Q_IDX: 0, KV_IDX: 0}))


LIKE_MLX: dict[str, tuple[Callable[[Any], Any], tuple[float, ...]]] = {
    "abs": (mx.abs, (-1.0, 0.0, 2.0)),
    "relu": (lambda x: mx.maximum(x, 0.0), (-1.0, 0.0, -0.0, 1.0)),
    "relu the other way": (lambda x: mx.maximum(0.0, x), (-1.0, 0.0, 1.0)),
    "minimum": (lambda x: mx.minimum(x, 2.0), (1.0, 2.0, 3.0)),
    "minimum the other way": (lambda x: mx.minimum(2.0, x), (1.0, 2.0, 3.0)),
    "of itself": (lambda x: mx.maximum(x, x * x), (0.0, 0.5, 1.0, 2.0)),
    "clip": (lambda x: mx.clip(x, -1.0, 1.0), (-2.0, -1.0, 0.0, 1.0, 2.0)),
    "sign": (mx.sign, (-2.0, 0.0, 2.0)),
    "floor": (mx.floor, (0.0, 0.5, 1.0)),
    "ceil": (mx.ceil, (0.0, 0.5, 1.0)),
    "round": (mx.round, (0.0, 0.5, 1.0)),
    "remainder": (lambda x: mx.remainder(x, 2.0), (-4.0, -1.5, 0.0, 4.0)),
    "remainder by": (lambda x: mx.remainder(7.5, x), (-2.0, 1.5, 2.0, 2.5)),
    "floor_divide": (lambda x: mx.floor_divide(x, 2.0), (0.0, 1.0, 4.0)),
    "comparison": (lambda x: mx.where(x < 1.0, x * x, 3.0 * x), (0.5, 1.0, 2.0)),
    "equality": (lambda x: mx.where(x == 1.0, 5.0 * x, x), (0.5, 1.0)),
    "square": (mx.square, (0.0, -3.0)),
    "power": (lambda x: mx.power(x, 2.0), (0.0, 2.0)),
    "power of one": (lambda x: mx.power(x, 1.0), (0.0, -2.0)),
    "power of three": (lambda x: mx.power(x, 3.0), (0.0, -2.0)),
    "root": (lambda x: mx.power(x, 0.5), (0.25, 0.0)),
    "exponent": (lambda x: mx.power(0.0, x), (1.0, 2.5)),
    "exponent of three": (lambda x: mx.power(3.0, x), (0.0, -1.5)),
    "sqrt": (mx.sqrt, (0.0, 4.0)),
    "log": (mx.log, (0.0, 4.0)),
    "logaddexp": (lambda x: mx.logaddexp(x, 0.0), (-2.0, 0.0, 3.0, 90.0, -200.0)),
    "logaddexp of both": (lambda x: mx.logaddexp(x, x * x), (0.0, 0.5, 1.0)),
    "stop_gradient": (lambda x: x * mx.stop_gradient(x * x), (-3.0, 0.5)),
    "tanh": (mx.tanh, (0.0, 60.0, -60.0)),
    "sigmoid": (mx.sigmoid, (0.0, 100.0, -100.0)),
}


@pytest.mark.parametrize("name", LIKE_MLX)
def test_kinks_are_mlx_own(name: str) -> None:
    function, at = LIKE_MLX[name]
    want = [mx.grad(lambda x: function(x).astype(mx.float32))(mx.array(x)).item() for x in at]
    assert [slope(function, x) for x in at] == pytest.approx(want, rel=1e-5, abs=1e-7, nan_ok=False)


@pytest.mark.parametrize(
    ("function", "at", "want"),
    [
        (lambda x: x ** (x * 0.0), 0.0, 0.0),
        (lambda x: mx.power(x, 0.0), 0.0, 0.0),
        (lambda x: mx.power(x, 0.0), -3.0, 0.0),
        (lambda x: mx.power(x, -1.0), -2.0, -0.25),
        (lambda x: math.pow(x, 4.0), -2.0, -32.0),
        (lambda x: mx.arctan2(x, 0.0 * x), 0.0, 0.0),
        (lambda x: min(x, 0.0), 0.0, 1.0),  # the builtin keeps the first of two that are equal
        (lambda x: max(x, 0.0), 0.0, 1.0),
        (lambda x: math.hypot(x, 2.0 * x), 0.0, 0.0),
        (lambda x: math.hypot(3.0 * x, 4.0), 1.0, 1.8),
        (lambda x: math.copysign(3.0, x), -0.0, 0.0),
        (lambda x: math.fmod(x, 2.0), -3.0, 1.0),
        (lambda x: int(x) * x, 2.5, 2.0),
        (lambda x: (x > 2.0) * x, 2.5, 1.0),
    ],
)
def test_kinks_of_our_own(function: Callable[[Any], Any], at: float, want: float) -> None:
    assert slope(function, at) == pytest.approx(want, rel=1e-6)


# ---- what is not taken adds nothing --------------------------------------------------------------------------------

HOSTILE: dict[str, Callable[[Expr], Expr]] = {
    "root of a negative": lambda x: apply("sqrt", apply("sub", const(-1.0), apply("abs", x))),
    "log of zero": lambda x: apply("log", apply("mul", x, const(0.0))),
    "one over zero": lambda x: apply("div", x, apply("mul", x, const(0.0))),
    "overflow": lambda x: apply("exp", apply("add", apply("abs", x), const(1e4))),
    "minus infinity": lambda x: const(-math.inf),
    "nan": lambda x: apply("mul", x, const(math.nan)),
}
OUTER = [op for op in OF_FLOATS if op not in ("acosh", "log1p")]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_branch_that_is_not_taken_adds_nothing(name: str) -> None:
    """Bit for bit what the other branch alone gives, through sums, products, functions and further branches."""
    taken, other = apply("mul", apply("sin", SCORE), A), HOSTILE[name](SCORE)
    yes = apply("le", KV_IDX, Q_IDX)  # at equal positions
    at = {SCORE: np.array([0.3, 0.9, 1.4]), A: 0.5, C: 0.8, Q_IDX: 3, KV_IDX: 3}
    around: list[Callable[[Expr], Expr]] = [lambda x: x]
    for op in OUTER:
        around.append(lambda x, op=op: apply(op, *[x, C][: OPS[op].arity]))  # type: ignore[misc]
        if OPS[op].arity == 2:
            around.append(lambda x, op=op: apply(op, C, x))  # type: ignore[misc]
    for wrap in around:
        for chosen in (apply("where", yes, taken, other), apply("where", apply("not", yes), other, taken)):
            for wrt in (SCORE, A):
                want = value(derivative(wrap(taken), wrt), at)
                np.testing.assert_array_equal(value(derivative(wrap(chosen), wrt), at), want, err_msg=str(chosen))


def test_a_chosen_zero_stays_zero_beside_infinity() -> None:
    """The constant branch of a condition: 0, also where what is behind it has an infinite slope or value."""
    yes = apply("lt", KV_IDX, Q_IDX)
    inner = apply("where", yes, SCORE, const(0.0))
    at = {SCORE: 0.0, A: math.inf, Q_IDX: 3, KV_IDX: 3}
    for node in (
        apply("sqrt", inner),
        apply("log", inner),
        apply("mul", inner, A),
        apply("div", inner, const(0.0)),
        apply("exp", apply("add", inner, const(1e5))),
        apply("mul", apply("sqrt", apply("where", apply("lt", H, B), inner, const(0.0))), A),
    ):
        assert value(derivative(node, SCORE), {**at, H: 0, B: 1}) == 0
        assert value(derivative(node, SCORE), {**at, H: 1, B: 0}) == 0


def test_softmax_of_nothing_has_no_nan() -> None:
    masked = of_mod(lambda score, b, h, q_idx, kv_idx: mx.where(q_idx >= kv_idx, score, -math.inf))
    assert derivative(masked, SCORE) is apply("where", apply("le", KV_IDX, Q_IDX), const(1.0), ZERO)
    added = of_mod(lambda score, b, h, q_idx, kv_idx: score + (0.0 if q_idx >= kv_idx else -math.inf))
    assert derivative(added, SCORE) is const(1.0)


# ---- small and accurate ----------------------------------------------------------------------------------------------

SLOPES = mx.array([0.5, 0.25])
TEXTS: list[tuple[Callable[..., Any], str]] = [
    (lambda score, b, h, q_idx, kv_idx: score + SLOPES[h] * (kv_idx - q_idx), "1.0"),
    (lambda score, b, h, q_idx, kv_idx: SLOPES[h] * (kv_idx - q_idx), "0.0"),
    (lambda score, b, h, q_idx, kv_idx: q_idx - kv_idx, "0.0"),
    (lambda score, b, h, q_idx, kv_idx: score * 0.5 * 4.0, "2.0"),
    (lambda score, b, h, q_idx, kv_idx: 50 * mx.tanh(score / 50), "e0 = tanh((score / 50.0))\n1.0 - (e0 * e0)"),
    (
        lambda score, b, h, q_idx, kv_idx: SLOPES[h] * mx.tanh(score / SLOPES[h]),
        "e0 = tanh((score / array0[h]))\n1.0 - (e0 * e0)",
    ),
    (lambda score, b, h, q_idx, kv_idx: mx.sigmoid(score), "e0 = sigmoid(score)\ne0 * (1.0 - e0)"),
    (lambda score, b, h, q_idx, kv_idx: mx.exp(score), "exp(score)"),
    (lambda score, b, h, q_idx, kv_idx: score * score, "score + score"),
    (lambda score, b, h, q_idx, kv_idx: score**2.0, "score * 2.0"),
    (lambda score, b, h, q_idx, kv_idx: score / SLOPES[h], "1.0 / array0[h]"),
    (lambda score, b, h, q_idx, kv_idx: mx.maximum(score, 0), "1.0 if (0.0 < score) else 0.0"),
    (
        lambda score, b, h, q_idx, kv_idx: mx.maximum(score, 0) ** 2,
        "e0 = max(score, 0.0)\n(e0 + e0) if (0.0 < score) else 0.0",
    ),
    (lambda score, b, h, q_idx, kv_idx: 2.0 * score if score < 0 else 3.0 * score, "2.0 if (score < 0.0) else 3.0"),
]


@pytest.mark.parametrize(("mod", "text"), TEXTS)
def test_texts(mod: Callable[..., Any], text: str) -> None:
    assert str(derivative(of_mod(mod), SCORE)) == text


def test_large_expressions_stay_linear() -> None:
    node: Expr = SCORE
    for i in range(400):
        even = apply("eq", apply("bit_and", KV_IDX, const(1 << i % 30)), const(0))
        node = apply("where", even, apply("mul", apply("sin", node), A), const(0.0) if i % 3 else node)
    for wrt in (SCORE, A):
        assert len(list(walk(derivative(node, wrt)))) < 5 * len(list(walk(node)))


@pytest.mark.parametrize(
    ("op", "x", "want"),
    [
        ("exp", -80.0, math.exp(-80)),
        ("expm1", -30.0, math.exp(-30)),
        ("tanh", 200.0, 0.0),
        ("sigmoid", -80.0, math.exp(-80)),
        ("atan", 1e30, 0.0),
        ("asinh", 1e30, 0.0),
        ("erf", 1e30, 0.0),
        ("asin", 1 - 1.5 * 2**-13, 1 / math.sqrt(1 - (1 - 1.5 * 2**-13) ** 2)),
        ("acosh", 1 + 2**-20, 1 / math.sqrt((1 + 2**-20) ** 2 - 1)),
        ("rsqrt", 1e-10, -0.5e15),
    ],
)
def test_float32_keeps_the_digits(op: str, x: float, want: float) -> None:
    got = flex.tracer.evaluate(derivative(apply(op, SCORE), SCORE), {"score": x})
    assert got == pytest.approx(want, rel=1e-6, abs=1e-15 if want == 0 else 0)


# ---- sites -----------------------------------------------------------------------------------------------------------


def test_sites_are_reads_of_floats_that_matter() -> None:
    table, ids = mx.zeros((8,)), mx.zeros((8,), mx.int32)
    half, step, zero_d = mx.zeros((4, 4), mx.float16), mx.zeros((4,)), mx.array(2.0)

    def mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        chosen = half[h, ids[kv_idx]] if step[h] > 0 else table[q_idx]
        return score * zero_d + chosen + table[kv_idx] + mx.floor(step[b])

    expr = of_mod(mod)
    assert sorted(map(str, gradient_sites(expr))) == sorted(
        str(node)
        for node in walk(expr)
        if node.op == "load"
        and node.dtype == "float"
        and "step" not in str(node)
        and node.value[0] != next(n.value[0] for n in walk(expr) if n.op == "load" and n.args == (B,))
    )
    assert len(gradient_sites(expr)) == 4


def test_the_same_element_read_twice_is_one_site() -> None:
    expr = of_mod(lambda score, b, h, q_idx, kv_idx: score * SLOPES[h] + SLOPES[h] * SLOPES[0])
    first, second = gradient_sites(expr)
    at = {SCORE: 3.0, first: 0.5, second: 0.25}
    if first.args != (H,):
        first, second = second, first
        at = {SCORE: 3.0, first: 0.5, second: 0.25}
    assert value(derivative(expr, first), at) == 3.25 and value(derivative(expr, second), at) == 0.5


@pytest.mark.parametrize("element", ["float16", "bfloat16", "float32", "float64"])
def test_sites_of_every_floating_element(element: str) -> None:
    read = apply("load", H, value=(0, element))
    assert gradient_sites(apply("add", SCORE, read)) == (read,)
    for other in ("int32", "uint8", "bool"):
        whole = build.cast(apply("load", H, value=(0, other)), "float")
        assert gradient_sites(apply("add", SCORE, whole)) == ()


def test_sites_that_cancel_or_count_only_are_none() -> None:
    assert gradient_sites(apply("sub", apply("add", SCORE, A), A)) == ()
    assert gradient_sites(apply("mul", apply("floor", A), SCORE)) == ()
    assert gradient_sites(apply("le", A, C)) == ()


# ---- random expressions ----------------------------------------------------------------------------------------------

LEAVES = (SCORE, SCORE, A, C, NUMBER, apply("to_float", KV_IDX))
CALM = "add sub mul min max neg abs sigmoid tanh sin cos erf atan asinh where where sub mul add".split()
WILD = "div pow mod atan2 exp expm1 log log2 log10 log1p sqrt rsqrt exp2 tan asin acos sinh cosh acosh atanh".split()
STEPS = "floor ceil trunc round floor_div".split()


def inside(op: str, x: Expr) -> Expr:
    """A number of the op's domain, made of any."""
    if POINTS.get(op) is INSIDE_ONE:
        return apply("mul", apply("tanh", x), const(0.875))
    above = {"acosh": 1.25, "exp": -1.0, "exp2": 0.0, "expm1": 0.0, "sinh": 0.0, "cosh": 0.0}.get(op, 0.5)
    return apply("add", apply("abs", apply("sin", x)), const(above))


@st.composite
def expressions(draw: Callable[..., Any], depth: int = 4) -> Expr:
    """Float expressions over the score, loads, a number and constants."""

    def condition(depth: int) -> Expr:
        if draw(st.booleans()):
            return apply(draw(st.sampled_from(("lt", "le"))), Q_IDX, KV_IDX)
        node = apply(draw(st.sampled_from(("lt", "le", "ne"))), tree(depth - 1), tree(depth - 1))
        return apply("not", node) if draw(st.booleans()) else node

    def tree(depth: int) -> Expr:
        if depth <= 0 or draw(st.integers(0, 7)) == 0:
            number = st.sampled_from((0.5, -1.0, 2.0, 0.75, -1.25, 3.0, 0.0, 1.0))
            return draw(st.sampled_from(LEAVES)) if draw(st.integers(0, 3)) else const(draw(number))
        op = draw(st.sampled_from((*CALM, *CALM, *WILD, *STEPS)))
        if op == "where":
            return apply(op, condition(depth), tree(depth - 1), tree(depth - 1))
        first = tree(depth - 1)
        if op in WILD and draw(st.integers(0, 3)):
            first = inside(op, first)
        if OPS[op].arity == 1:
            return apply(op, first)
        return apply(op, first, first if draw(st.integers(0, 9)) == 0 else tree(depth - 1))

    return tree(depth)


def check(expr: Expr) -> tuple[int, int]:
    """How many points were compared, of how many."""
    rng = np.random.default_rng(7)
    at = {SCORE: rng.uniform(-2, 2, 12), A: rng.uniform(-2, 2, 12), C: rng.uniform(0.2, 2, 12), NUMBER: 0.6}
    at |= {Q_IDX: 2, KV_IDX: np.arange(12) % 5}
    compared = 0
    for wrt in (SCORE, A, C, NUMBER):
        slope = derivative(expr, wrt)
        want = difference(expr, wrt, at)
        got = np.broadcast_to(value(slope, at), np.shape(want))
        scale = np.max([np.broadcast_to(abs(value(node, at)), np.shape(want)) for node in _floats(slope, expr)], axis=0)
        usual = np.isfinite(want) & (scale < 1e4)  # what is larger costs the differences their digits
        compared += int(usual.sum())
        wrong = usual & ~(abs(got - want) <= 1e-4 * (1 + abs(want)) + 1e-6 * scale)
        assert not wrong.any(), f"d {expr}\n/ d {wrt}\n= {slope}\nis {got[wrong]}, not {want[wrong]}"
    return compared, 4 * 12


def _floats(*roots: Expr) -> list[Expr]:
    return [node for node in walk(*roots) if node.dtype == "float"]


QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much]


@settings(max_examples=120, deadline=None, suppress_health_check=QUIET)
@given(expressions())
def test_random_expressions(expr: Expr) -> None:
    check(expr)


@pytest.mark.long
@settings(max_examples=5000, deadline=None, suppress_health_check=QUIET)
@given(expressions(7))
def test_many_random_expressions(expr: Expr) -> None:
    check(expr)


def test_most_points_of_random_expressions_are_compared() -> None:
    seen: list[tuple[int, int]] = []

    @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=QUIET)
    @given(expressions())
    def collect(expr: Expr) -> None:
        seen.append(check(expr))

    collect()
    compared, all_of_them = np.sum(seen, axis=0)
    assert compared > 0.4 * all_of_them


def test_a_known_condition_is_decided() -> None:
    assert derivative(apply("where", TRUE, SCORE, A), SCORE).value == 1
    assert derivative(apply("where", FALSE, SCORE, A), SCORE) is ZERO
