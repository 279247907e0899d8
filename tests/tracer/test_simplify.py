"""simplify: fewer operations, the same value bit by bit; on floats nothing that nan, inf or -0.0 would notice."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from flextrace import tracer
from flextrace.tracer.expr import FALSE, KV_IDX, Q_IDX, SCORE, TRUE, Expr, H, apply, const, walk
from flextrace.tracer.simplify import RULES, simplify

FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, -2.25, 3e38, -3e38, 1e-45, math.inf, -math.inf, math.nan)
INTS = (0, 1, -1, 2, -3, 7, 8, 31, 32, -8, 2**31 - 1, -(2**31))
P = apply("lt", Q_IDX, KV_IDX)
R = apply("lt", H, KV_IDX)
X = apply("sqrt", SCORE)


def binary(op: str, x: Expr, y: Any) -> Expr:
    return apply(op, x, y if isinstance(y, Expr) else const(y))


SIMPLER: list[tuple[Expr, Expr]] = [
    # neutral elements
    (binary("add", Q_IDX, 0), Q_IDX),
    (binary("add", const(0), Q_IDX), Q_IDX),
    (binary("add", SCORE, -0.0), SCORE),
    (binary("sub", SCORE, 0.0), SCORE),
    (binary("mul", SCORE, 1.0), SCORE),
    (binary("mul", const(1), Q_IDX), Q_IDX),
    (binary("div", SCORE, 1.0), SCORE),
    (binary("floor_div", Q_IDX, 1), Q_IDX),
    (binary("pow", SCORE, 1.0), SCORE),
    (binary("shl", Q_IDX, 0), Q_IDX),
    (binary("bit_and", Q_IDX, -1), Q_IDX),
    (binary("bit_or", Q_IDX, 0), Q_IDX),
    # ints only
    (binary("mul", Q_IDX, 0), const(0)),
    (binary("mod", Q_IDX, 1), const(0)),
    (binary("sub", Q_IDX, Q_IDX), const(0)),
    (binary("bit_and", Q_IDX, 0), const(0)),
    (binary("le", Q_IDX, Q_IDX), TRUE),
    (binary("ne", Q_IDX, Q_IDX), FALSE),
    (binary("min", SCORE, SCORE), SCORE),
    (
        binary(
            "sub",
            binary("bit_and", Q_IDX, 2**31 - 1),
            binary("shl", binary("bit_and", binary("shr", Q_IDX, 31), 1), 31),
        ),
        Q_IDX,
    ),
    # powers of two
    (binary("floor_div", Q_IDX, 8), binary("shr", Q_IDX, 3)),
    (binary("mod", Q_IDX, 8), binary("bit_and", Q_IDX, 7)),
    (binary("div", SCORE, 4.0), binary("mul", SCORE, 0.25)),
    # logic
    (apply("not", apply("not", P)), P),
    (apply("not", P), apply("le", KV_IDX, Q_IDX)),
    (apply("not", apply("eq", SCORE, X)), apply("ne", SCORE, X)),
    (binary("and", P, TRUE), P),
    (binary("and", FALSE, P), FALSE),
    (binary("or", P, FALSE), P),
    (binary("xor", P, TRUE), apply("le", KV_IDX, Q_IDX)),
    (binary("and", P, P), P),
    (binary("or", P, apply("not", P)), TRUE),
    # where
    (apply("where", TRUE, SCORE, X), SCORE),
    (apply("where", P, SCORE, SCORE), SCORE),
    (apply("where", apply("not", R), SCORE, X), apply("where", apply("le", KV_IDX, H), SCORE, X)),
    (apply("where", apply("not", apply("eq", SCORE, X)), H, Q_IDX), apply("where", apply("ne", SCORE, X), H, Q_IDX)),
    (apply("where", P, TRUE, FALSE), P),
    (apply("where", P, FALSE, TRUE), apply("le", KV_IDX, Q_IDX)),
    (apply("where", P, R, FALSE), apply("and", P, R)),
    (apply("where", P, TRUE, R), apply("or", P, R)),
    (apply("where", P, apply("where", P, SCORE, X), const(1.0)), apply("where", P, SCORE, const(1.0))),
    # casts and signs
    (apply("to_int", apply("to_int", P)), apply("to_int", P)),
    (binary("ne", apply("to_int", P), 0), P),
    (apply("neg", apply("neg", SCORE)), SCORE),
    (binary("add", SCORE, apply("neg", X)), binary("sub", SCORE, X)),
    (binary("sub", SCORE, apply("neg", X)), binary("add", SCORE, X)),
    (apply("abs", apply("neg", SCORE)), apply("abs", SCORE)),
    # constants
    (apply("add", const(2), const(3)), const(5)),
    (apply("where", apply("lt", const(1), const(2)), SCORE, X), SCORE),
    (apply("exp", const(0.0)), const(1.0)),
    (apply("floor_div", const(-7), const(2)), const(-4)),
    (apply("floor_div", const(7), const(0)), const(0)),
    (apply("mul", const(2**30), const(4)), const(0)),
]


@pytest.mark.parametrize(("before", "after"), SIMPLER, ids=lambda node: repr(node).replace("\n", "; "))
def test_rules(before: Expr, after: Expr) -> None:
    assert simplify(before) is after


KEPT = [
    binary("mul", SCORE, 0.0),
    binary("sub", SCORE, SCORE),
    binary("add", SCORE, 0.0),
    binary("div", SCORE, SCORE),
    binary("eq", SCORE, SCORE),
    apply("not", apply("lt", SCORE, X)),
    binary("div", SCORE, 3.0),
    binary("div", SCORE, 0.0),
    binary("div", SCORE, 1e-45),
    binary("mod", SCORE, 1.0),
    binary("mod", Q_IDX, -8),
    binary("floor_div", Q_IDX, -8),
    apply("to_int", apply("to_float", Q_IDX)),
]


@pytest.mark.parametrize("node", KEPT, ids=repr)
def test_kept(node: Expr) -> None:
    assert simplify(node) is node


def bits(value: Any) -> Any:
    value = np.asarray(value)
    if value.dtype == np.float32:
        value = np.where(np.isnan(value), np.float32(np.nan), value)
        return np.ascontiguousarray(value).view(np.int32)
    return value


def same_everywhere(before: Expr) -> None:
    points = np.array(list(itertools.product(INTS, INTS)), np.int64)
    values = {"q_idx": points[:, 0, None], "kv_idx": points[:, 1, None], "h": points[:, 0, None], "b": 0}
    values["score"] = np.array(FLOATS, np.float32)
    before_value, after_value = (
        np.broadcast_to(tracer.evaluate(node, values), (len(points), len(FLOATS)))
        for node in (before, simplify(before))
    )
    np.testing.assert_array_equal(bits(before_value), bits(after_value), err_msg=repr(before))


@pytest.mark.parametrize("node", [*(pair[0] for pair in SIMPLER), *KEPT], ids=lambda node: repr(node)[:60])
def test_the_value_stays(node: Expr) -> None:
    same_everywhere(node)


CONSTANTS: dict[str, tuple[Any, ...]] = {"int": INTS, "float": (*FLOATS, 2.0, -4.0, 0.125), "bool": (True, False)}
BINARY = [op for op, row in tracer.OPS.items() if row.arity == 2]


@pytest.mark.parametrize("op", BINARY)
def test_every_op_with_every_special_constant(op: str) -> None:
    takes = tracer.OPS[op].takes
    symbols = {"int": (Q_IDX, KV_IDX), "float": (SCORE, SCORE), "bool": (P, R)}
    for dtype in ("int", "float") if takes == "number" else (takes,):
        x, y = symbols[dtype]
        for value in CONSTANTS[dtype]:
            same_everywhere(apply(op, x, const(value)))
            same_everywhere(apply(op, const(value), x))
        same_everywhere(apply(op, x, x))
        same_everywhere(apply(op, x, y))


@pytest.mark.parametrize("op", [op for op, row in tracer.OPS.items() if row.arity == 1 and row.takes != "float"])
def test_unary_ops_on_each_other(op: str) -> None:
    takes = tracer.OPS[op].takes
    candidates = {"bool": (P, apply("not", R), apply("le", SCORE, const(0.5))), "int": (Q_IDX, apply("neg", Q_IDX))}
    candidates |= {"float": (SCORE, apply("neg", SCORE), apply("abs", SCORE))}
    for dtype, nodes in candidates.items():
        if takes in (dtype, "any") or (takes == "number" and dtype != "bool"):
            for node in nodes:
                same_everywhere(apply(op, node))
                same_everywhere(apply(op, apply(op, node)) if tracer.OPS[op].gives == "same" else apply(op, node))


def test_a_simplified_tree_is_simple() -> None:
    for before, _ in SIMPLER:
        after = simplify(before)
        assert simplify(after) is after


def test_simplify_does_not_grow() -> None:
    for before, _ in SIMPLER:
        assert sum(1 for _ in walk(simplify(before))) <= sum(1 for _ in walk(before)) + 1


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_rule_is_used(rule: Callable[[Expr], Expr | None]) -> None:
    assert any(rule(node) not in (None, node) for before, _ in SIMPLER for node in walk(before)), rule.__name__
