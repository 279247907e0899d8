"""The numpy table, the executable definition of every op: Python's semantics on float32 and wrapping int32."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import expressions
import numpy as np
import pytest
import random_masks
from plain_ops import INTS, wrapped

from flextrace import tracer
from flextrace.tracer.expr.evaluate import fold, run
from flextrace.tracer.expr.node import KV_IDX, OPS, Q_IDX, SCORE, Expr, apply, const

INT_MIN, INT_MAX = -(2**31), 2**31 - 1


def value(op: str, *args: bool | int | float) -> bool | int | float:
    result: bool | int | float = fold(apply(op, *map(const, args))).value
    return result


@pytest.mark.parametrize(
    ("op", "args", "want"),
    [
        ("add", (INT_MAX, 1), INT_MIN),
        ("mul", (65536, 65536), 0),
        ("neg", (INT_MIN,), INT_MIN),
        ("abs", (INT_MIN,), INT_MIN),
        ("floor_div", (7, -2), -4),
        ("floor_div", (-7, 2), -4),
        ("floor_div", (5, 0), 0),
        ("floor_div", (INT_MIN, -1), INT_MIN),
        ("mod", (7, -3), -2),
        ("mod", (-7, 3), 2),
        ("mod", (5, 0), 0),
        ("mod", (INT_MIN, -1), 0),
        ("floor_div", (7.5, -2.0), -4.0),
        ("mod", (-7.5, 2.0), 0.5),
        ("mod", (7.5, -2.0), -0.5),
        ("shl", (1, 31), INT_MIN),
        ("shl", (1, 32), 0),
        ("shl", (3, 31), INT_MIN),
        ("shr", (-8, 1), -4),
        ("shr", (5, 32), 0),
        ("shr", (-5, 33), -1),
        ("shl", (8, -31), 0),
        ("shr", (-8, -1), -1),
        ("bit_not", (5,), -6),
        ("to_int", (2.9,), 2),
        ("to_int", (-2.9,), -2),
        ("to_int", (math.nan,), 0),
        ("to_int", (3e9,), INT_MAX),
        ("to_int", (-math.inf,), INT_MIN),
        ("to_int", (True,), 1),
        ("to_float", (True,), 1.0),
        ("round", (2.5,), 2.0),
        ("round", (-3.5,), -4.0),
        ("div", (1.0, 0.0), math.inf),
        ("min", (math.nan, 1.0), math.nan),
        ("max", (1.0, math.nan), math.nan),
        ("lt", (math.nan, 1.0), False),
        ("ne", (math.nan, math.nan), True),
        ("rsqrt", (0.25,), 2.0),
        ("sigmoid", (0.0,), 0.5),
        ("sigmoid", (-200.0,), 0.0),
        ("erf", (math.inf,), 1.0),
        ("pow", (2.0, -1.0), 0.5),
        ("exp2", (3.0,), 8.0),
        ("atan2", (0.0, -1.0), 3.1415927410125732),
    ],
)
def test_single_values(op: str, args: tuple[bool | int | float, ...], want: bool | int | float) -> None:
    got = value(op, *args)
    assert type(got) is type(want)
    assert got == want or (math.isnan(want) and math.isnan(got))


EDGES = sorted({*expressions.INT_CONSTANTS, *range(-9, 10), 30, 63, 64, 2**31 - 2, -31, -33, -64, 65537, -46341})


def test_every_op_on_ints_has_a_reference() -> None:
    taken = {op for op, row in OPS.items() if row.takes in ("int", "number")} - {"load"}
    assert taken | {"to_int", "to_float"} == set(INTS)


@pytest.mark.parametrize("op", [op for op in INTS if op != "to_float"])
def test_ints_are_pythons_at_32_bits(op: str) -> None:
    values = np.array(EDGES, np.int32)
    node = apply(op, *(Q_IDX, KV_IDX)[: OPS[op].arity])
    got = np.broadcast_to(tracer.evaluate(node, {"q_idx": values[:, None], "kv_idx": values}), 2 * values.shape)
    python = INTS[op] if OPS[op].arity == 2 else lambda a, b: INTS[op](a)
    assert got.tolist() == [[wrapped(python(a, b)) for b in EDGES] for a in EDGES]


TREE_OPS: dict[str, Callable[..., Any]] = {
    **{
        name: lambda a, b, s=s: expressions.operate(s, a, b)
        for name, s in zip(
            "add sub mul div floor_div mod bit_and bit_or bit_xor shl shr and or xor".split(),
            "+ - * / // % & | ^ << >> & | ^".split(),
            strict=True,
        )
    },
    **{
        name: lambda a, b, s=s: expressions.compare(s, a, b)
        for name, s in zip("lt le eq ne".split(), "< <= == !=".split(), strict=True)
    },
    "min": expressions.MLX.minimum,
    "max": expressions.MLX.maximum,
    "neg": lambda a: -a,
    "abs": abs,
    "bit_not": lambda a: ~a,
    "not": expressions.MLX.logical_not,
    "to_int": expressions.to_int,
    "to_float": expressions.to_float,
    "where": expressions.MLX.where,
    "floor": expressions.MLX.floor,
    "ceil": expressions.MLX.ceil,
    "trunc": lambda a: expressions.F32(np.trunc(a.exact())),
    "round": lambda a: expressions.F32(np.rint(a.exact())),
    "sqrt": expressions.MATH.sqrt,
    "exp": expressions.MATH.exp,
    "log": expressions.MATH.log,
}


def python_value(case: random_masks.Case, indices: dict[str, int]) -> Any:
    """A tree at one position, on the numbers of tests/expressions.py."""

    def leaf(node: Expr) -> Any:
        if node.op == "index":
            return expressions.lift(indices[node.value])
        return expressions.lift(node.value if node.op == "const" else case.numbers[node.value])

    def load(node: Expr, places: Sequence[Any]) -> Any:
        return expressions.Table(case.arrays[node.value[0]])[tuple(places)]

    with np.errstate(all="ignore"):
        return run(case.expr, leaf, load, TREE_OPS)


def test_random_trees_mean_what_pythons_numbers_give() -> None:
    """The trees that bounds are proven on, against plain Python on I32, Bool and F32."""
    compared = 0
    for seed in range(250):
        rng = np.random.default_rng(seed)
        case = random_masks.random_case(rng, "bool" if seed % 3 else "int")
        at = {name: rng.integers(0, rng.choice([3, 100, 2**31 - 1]), size=4) for name in ("b", "h", "q_idx", "kv_idx")}
        got = np.broadcast_to(tracer.evaluate(case.expr, at, numbers=case.numbers, arrays=case.arrays), 4)

        for i in range(4):
            try:
                want = python_value(case, {name: int(values[i]) for name, values in at.items()})
            except expressions.Undecided:
                continue
            compared += 1
            assert got[i] == want.value, f"{case.expr}\nat {[(k, v[i]) for k, v in at.items()]}"
    assert compared > 700


def test_arguments_broadcast() -> None:
    causal = apply("le", KV_IDX, Q_IDX)
    got = tracer.evaluate(causal, {"q_idx": np.arange(3)[:, None], "kv_idx": np.arange(4)})
    assert got.dtype == bool and got.tolist() == [[j <= i for j in range(4)] for i in range(3)]


@pytest.mark.parametrize("index", range(-9, 9))
def test_loads_wrap_once_and_are_clamped(index: int) -> None:
    table = np.arange(4) * 10
    got = tracer.evaluate(apply("load", Q_IDX, value=(0, "int64")), {"q_idx": index}, arrays=[table])
    wrapped = index + 4 if index < 0 else index
    assert got == table[min(max(wrapped, 0), 3)] and got.dtype == np.int32


def test_loads_of_every_rank() -> None:
    table = np.arange(6, dtype=np.float16).reshape(2, 3)
    node = apply("load", Q_IDX, KV_IDX, value=(1, "float16"))
    got = tracer.evaluate(node, {"q_idx": 1, "kv_idx": np.arange(3)}, arrays=[None, table])
    assert got.dtype == np.float32 and got.tolist() == [3, 4, 5]
    scalar = tracer.evaluate(apply("load", value=(0, "bool")), arrays=[np.array(True)])
    assert scalar.dtype == bool and bool(scalar)


def test_numbers_by_slot() -> None:
    node = apply("mul", SCORE, Expr("param", "float", value=1))
    assert tracer.evaluate(node, {"score": 2.0}, numbers=[0, 0.1]).item() == np.float32(0.2)


def test_a_shared_part_is_computed_once() -> None:
    node: Expr = SCORE
    for _ in range(100):
        node = apply("add", node, node)
    assert tracer.evaluate(node, {"score": 2.0**-100}).item() == 1.0


def test_no_warnings() -> None:
    with np.errstate(all="raise"):
        tracer.evaluate(apply("log", SCORE), {"score": np.array([0.0, -1.0, 1e38])})


def test_fold_needs_constants() -> None:
    node = apply("add", Q_IDX, const(1))
    assert fold(node) is node and fold(const(3)) is const(3)
