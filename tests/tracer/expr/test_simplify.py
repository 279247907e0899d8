"""simplify: fewer operations, the same value bit by bit; on floats nothing that nan, inf or -0.0 would notice."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import plain_ops
import pytest

from flextrace import tracer
from flextrace.tracer.expr.node import FALSE, KV_IDX, Q_IDX, SCORE, TRUE, Expr, H, apply, const, walk
from flextrace.tracer.expr.simplify import RULES, simplify

FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, -2.25, 3e38, -3e38, 1e-45, math.inf, -math.inf, math.nan)
INTS = (0, 1, -1, 2, -3, 7, 8, 31, 32, -8, 2**31 - 1, -(2**31))
P = apply("lt", Q_IDX, KV_IDX)
R = apply("lt", H, KV_IDX)
X = apply("sqrt", SCORE)
E = apply("eq", H, const(2))
L = apply("lt", SCORE, X)  # its opposite is no `le`: both are false of nan


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
    (binary("bit_xor", Q_IDX, 0), Q_IDX),
    (binary("shr", Q_IDX, 0), Q_IDX),
    (binary("sub", Q_IDX, 0), Q_IDX),
    (binary("mul", const(1.0), SCORE), SCORE),
    # ints only
    (binary("mul", Q_IDX, 0), const(0)),
    (binary("mod", Q_IDX, 1), const(0)),
    (binary("sub", Q_IDX, Q_IDX), const(0)),
    (binary("bit_and", Q_IDX, 0), const(0)),
    (binary("le", Q_IDX, Q_IDX), TRUE),
    (binary("eq", Q_IDX, Q_IDX), TRUE),
    (binary("lt", Q_IDX, Q_IDX), FALSE),
    (binary("max", Q_IDX, Q_IDX), Q_IDX),
    (binary("bit_and", Q_IDX, Q_IDX), Q_IDX),
    (binary("bit_or", Q_IDX, Q_IDX), Q_IDX),
    (binary("or", P, P), P),
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
    (binary("div", SCORE, -0.5), binary("mul", SCORE, -2.0)),
    (binary("floor_div", Q_IDX, 2**30), binary("shr", Q_IDX, 30)),
    (binary("mod", Q_IDX, 2), binary("bit_and", Q_IDX, 1)),
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
    (binary("and", P, apply("not", P)), FALSE),
    (binary("or", L, apply("not", L)), TRUE),
    (binary("and", L, apply("not", L)), FALSE),
    (binary("xor", L, TRUE), apply("not", L)),
    (binary("xor", P, FALSE), P),
    (binary("or", P, TRUE), TRUE),
    (apply("not", apply("le", Q_IDX, H)), apply("lt", H, Q_IDX)),
    (apply("not", apply("ne", SCORE, X)), apply("eq", SCORE, X)),
    (apply("not", apply("and", P, L)), apply("or", apply("le", KV_IDX, Q_IDX), apply("not", L))),
    (apply("not", apply("or", L, E)), apply("and", apply("not", L), apply("ne", H, const(2)))),
    # chains nest to the left, and say nothing twice
    (apply("and", P, apply("and", R, E)), apply("and", apply("and", P, R), E)),
    (apply("or", apply("or", P, R), apply("or", E, L)), apply("or", apply("or", apply("or", P, R), E), L)),
    (apply("and", apply("and", L, R), L), apply("and", L, R)),
    (apply("or", apply("or", P, R), apply("le", KV_IDX, Q_IDX)), TRUE),
    (apply("and", apply("and", P, R), apply("le", KV_IDX, H)), FALSE),
    # where
    (apply("where", P, apply("or", R, L), L), apply("or", apply("and", P, R), L)),
    (apply("where", P, apply("and", L, R), L), apply("and", apply("or", apply("le", KV_IDX, Q_IDX), R), L)),
    (apply("where", L, R, apply("or", R, E)), apply("or", apply("and", apply("not", L), E), R)),
    (apply("where", L, R, apply("and", E, R)), apply("and", apply("or", L, E), R)),
    (apply("where", TRUE, SCORE, X), SCORE),
    (apply("where", P, SCORE, SCORE), SCORE),
    (apply("where", apply("not", R), SCORE, X), apply("where", apply("le", KV_IDX, H), SCORE, X)),
    (apply("where", apply("not", apply("eq", SCORE, X)), H, Q_IDX), apply("where", apply("ne", SCORE, X), H, Q_IDX)),
    (apply("where", P, TRUE, FALSE), P),
    (apply("where", P, FALSE, TRUE), apply("le", KV_IDX, Q_IDX)),
    (apply("where", P, R, FALSE), apply("and", P, R)),
    (apply("where", P, TRUE, R), apply("or", P, R)),
    (apply("where", P, apply("where", P, SCORE, X), const(1.0)), apply("where", P, SCORE, const(1.0))),
    (apply("where", P, SCORE, apply("where", P, X, const(1.0))), apply("where", P, SCORE, const(1.0))),
    (apply("where", apply("not", L), SCORE, X), apply("where", L, X, SCORE)),
    (apply("where", L, FALSE, TRUE), apply("not", L)),
    (apply("where", L, FALSE, R), apply("and", apply("not", L), R)),
    (apply("where", L, R, TRUE), apply("or", apply("not", L), R)),
    (apply("where", apply("lt", const(2), const(1)), SCORE, X), X),
    # casts and signs
    (apply("to_int", apply("to_int", P)), apply("to_int", P)),
    (binary("ne", apply("to_int", P), 0), P),
    (binary("ne", apply("to_float", P), 0.0), P),
    (apply("to_float", SCORE), SCORE),
    (binary("sub", Q_IDX, apply("neg", KV_IDX)), binary("add", Q_IDX, KV_IDX)),
    (binary("add", Q_IDX, apply("neg", KV_IDX)), binary("sub", Q_IDX, KV_IDX)),
    (apply("neg", apply("neg", Q_IDX)), Q_IDX),
    (apply("abs", apply("abs", SCORE)), apply("abs", SCORE)),
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
    binary("sub", SCORE, -0.0),
    binary("add", apply("neg", Q_IDX), KV_IDX),
    binary("sub", const(0), Q_IDX),
    binary("sub", const(1.0), SCORE),
    binary("div", const(1.0), SCORE),
    binary("shl", const(0), Q_IDX),
    binary("floor_div", const(1), Q_IDX),
    binary("floor_div", SCORE, 1.0),
    binary("floor_div", SCORE, 8.0),
    binary("mod", SCORE, 8.0),
    binary("mod", Q_IDX, 7),
    binary("floor_div", Q_IDX, 6),
    binary("div", SCORE, math.inf),
    binary("div", SCORE, 2.0**-120),
    binary("div", SCORE, 2.0**120),
    binary("pow", SCORE, -1.0),
    binary("ne", apply("to_int", SCORE), 0),
    binary("ne", apply("to_float", Q_IDX), 0.0),
    binary("ne", apply("to_int", P), 1),
    binary("eq", apply("to_int", P), 0),
    apply("le", SCORE, SCORE),
    apply("ne", SCORE, SCORE),
    apply("lt", SCORE, SCORE),
    apply("xor", P, P),
    apply("xor", P, R),
    apply("or", L, apply("le", X, SCORE)),
    apply("and", P, apply("le", KV_IDX, H)),
    apply("where", P, apply("where", R, SCORE, X), const(1.0)),
    apply("where", P, SCORE, apply("where", R, X, const(1.0))),
    apply("abs", apply("sub", Q_IDX, KV_IDX)),
    apply("neg", apply("abs", SCORE)),
    apply("load", const(1), value=(0, "int32")),
    *(
        binary("sub", binary("bit_and", x, mask), binary("shl", binary("bit_and", binary("shr", y, n), 1), m))
        for x, y, mask, n, m in (
            (Q_IDX, KV_IDX, 2**31 - 1, 31, 31),
            (Q_IDX, Q_IDX, 2**30 - 1, 31, 31),
            (Q_IDX, Q_IDX, 2**31 - 1, 30, 31),
            (Q_IDX, Q_IDX, 2**31 - 1, 31, 30),
        )
    ),
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


NO_GATHERS = [node for node in (*(pair[0] for pair in SIMPLER), *KEPT) if node.op != "load"]


@pytest.mark.parametrize("node", NO_GATHERS, ids=lambda node: repr(node)[:60])
def test_the_value_stays(node: Expr) -> None:
    same_everywhere(node)


def in_plain_python(node: Expr) -> list[Any]:
    """Its values at pairs of special ints, with a special float at each."""
    pairs = itertools.product(INTS[::2], INTS[1::2])
    points = [
        {"q_idx": q, "kv_idx": kv, "h": kv, "score": np.float32(FLOATS[i % len(FLOATS)])}
        for i, (q, kv) in enumerate(pairs)
    ]
    values = [plain_ops.value(node, point) for point in points]
    return [x.tobytes() if isinstance(x, np.float32) and not math.isnan(x) else repr(x) for x in values]


@pytest.mark.parametrize("node", NO_GATHERS, ids=lambda node: repr(node)[:60])
def test_the_value_is_that_of_plain_python(node: Expr) -> None:
    assert in_plain_python(simplify(node)) == in_plain_python(node)


def test_combinations_of_what_rules_look_for_keep_their_value() -> None:
    """Three levels of small trees whose operands are equal, opposite or special more often than not."""
    rng = np.random.default_rng(0)

    def draw(dtype: str, depth: int) -> Expr:
        if depth == 0 or rng.random() < 0.15:
            symbols: dict[str, tuple[Any, ...]] = {"int": (Q_IDX, KV_IDX, 0, 1, -1, 2, 8, 31, 2**31 - 1)}
            symbols |= {"float": (SCORE, X, 0.0, -0.0, 1.0, 4.0, math.inf), "bool": (P, R, L, TRUE, FALSE)}
            leaf = symbols[dtype][int(rng.integers(len(symbols[dtype])))]
            return leaf if isinstance(leaf, Expr) else const(leaf)
        names = {
            "int": "add sub mul floor_div mod shl shr bit_and bit_or bit_xor min max neg abs where to_int",
            "float": "add sub mul div neg abs where to_float",  # which zero min and max give is open
            "bool": "and or xor not not where lt le eq ne",
        }[dtype].split()
        op = names[int(rng.integers(len(names)))]
        takes = dtype
        if op in ("lt", "le", "eq", "ne", "to_int", "to_float"):
            takes = ("int", "float", "bool")[int(rng.integers(3 if op[:3] == "to_" else 2))]
        first = draw(takes, depth - 1)
        if op == "where":
            return apply(op, draw("bool", depth - 1), first, first if rng.random() < 0.2 else draw(dtype, depth - 1))
        if tracer.OPS[op].arity == 1:
            return apply(op, first)
        kind = rng.random()
        opposite = {"int": "neg", "float": "neg", "bool": "not"}[takes]
        second = first if kind < 0.2 else apply(opposite, first) if kind < 0.4 else draw(takes, depth - 1)
        return apply(op, first, second)

    changed = 0
    for _ in range(1500):
        node = draw(("int", "float", "bool")[int(rng.integers(3))], int(rng.integers(1, 4)))
        after = simplify(node)
        changed += after is not node
        assert in_plain_python(after) == in_plain_python(node), f"{node!r}\nbecomes {after!r}"
    assert changed > 500


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
