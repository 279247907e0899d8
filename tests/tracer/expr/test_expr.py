"""Expr: interned, frozen, typed; and every op is in every table."""

from __future__ import annotations

import copy
import math
import pickle
import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from flextrace import tracer
from flextrace.kernels.ops import table as mlx_table
from flextrace.tracer.expr.evaluate import NUMPY
from flextrace.tracer.expr.node import (
    AT_CALL,
    COMMUTATIVE,
    COMPARISONS,
    FALSE,
    IN_KERNEL,
    KV_IDX,
    NOW,
    OPS,
    Q_IDX,
    SCORE,
    TRUE,
    Expr,
    H,
    apply,
    const,
    leaves,
    rebuild,
    walk,
)

PARAM = Expr("param", "int", value=0)


def spelled(language: tracer.Language) -> set[str]:
    """The ops that a language spells; `load` is a function of its own."""
    return {name.split(".")[0] for name in language.ops} | {"load"}


TABLES: dict[str, Iterable[str]] = {
    "numpy": {*NUMPY, "load"},
    "mlx": {*mlx_table.MLX, "load"},
    "C++": spelled(tracer.CPP),
    "Metal": spelled(tracer.METAL),
    "Python": spelled(tracer.PYTHON),
}


@pytest.mark.parametrize("table", TABLES)
def test_every_op_is_in_every_table(table: str) -> None:
    holes, extra = set(OPS) - set(TABLES[table]), set(TABLES[table]) - set(OPS)
    assert not holes, f"the {table} table lacks {sorted(holes)}"
    assert not extra, f"the {table} table has {sorted(extra)}, which are no ops"


@pytest.mark.parametrize("language", [tracer.CPP, tracer.METAL, tracer.PYTHON], ids=["C++", "Metal", "Python"])
@pytest.mark.parametrize("op", [op for op in OPS if op != "load"])
def test_every_spelling_takes_its_arguments(op: str, language: tracer.Language) -> None:
    pattern = language.ops.get(f"{op}.int") or language.ops[op]
    names = [f"<{i}>" for i in range(OPS[op].arity)]
    text = pattern.format(*names)
    assert all(text.count(name) == 1 for name in names), text


def test_groups_name_ops() -> None:
    assert set(OPS) >= COMMUTATIVE | COMPARISONS


def test_equal_expressions_are_one_object() -> None:
    def build() -> Expr:
        return apply("add", apply("mul", Q_IDX, const(3)), KV_IDX)

    assert build() is build()
    assert apply("add", Q_IDX, KV_IDX) is not apply("add", KV_IDX, Q_IDX)
    assert {build(): 1}[build()] == 1


def test_constants_are_told_apart_by_type_sign_and_nan() -> None:
    assert len({const(x) for x in (1, 1.0, True, 0, 0.0, -0.0, False)}) == 7
    assert math.copysign(1, const(-0.0).value) == -1
    assert const(math.nan) is const(math.nan) and math.isnan(const(math.nan).value)
    assert const(True) is TRUE and const(False) is FALSE


def test_constants_are_rounded_to_what_kernels_hold() -> None:
    assert const(0.1).value == 0.10000000149011612
    assert const(0.1) is const(0.10000000149011612)
    assert const(1e39).value == math.inf and const(-1e39).value == -math.inf
    assert const(2**31 - 1).value == 2**31 - 1
    with pytest.raises(OverflowError, match="2147483648 does not fit int32"):
        const(2**31)


def test_frozen() -> None:
    with pytest.raises(AttributeError, match="frozen"):
        Q_IDX.value = "x"
    with pytest.raises(TypeError, match="no truth value"):
        bool(Q_IDX)


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_the_node_itself(clone: Callable[[Any], Any]) -> None:
    node = apply("load", Q_IDX, value=(2, "float16"))
    assert clone(node) is node


@pytest.mark.parametrize(
    ("op", "args", "dtype"),
    [
        ("add", (Q_IDX, KV_IDX), "int"),
        ("add", (SCORE, SCORE), "float"),
        ("div", (SCORE, SCORE), "float"),
        ("lt", (SCORE, SCORE), "bool"),
        ("where", (TRUE, Q_IDX, KV_IDX), "int"),
        ("to_float", (TRUE,), "float"),
        ("to_int", (SCORE,), "int"),
    ],
)
def test_dtypes_follow_from_the_table(op: str, args: tuple[Expr, ...], dtype: str) -> None:
    assert apply(op, *args).dtype == dtype


@pytest.mark.parametrize(
    ("element", "dtype"),
    [("bool", "bool"), ("uint8", "int"), ("int64", "int"), ("float16", "float"), ("bfloat16", "float")],
)
def test_dtypes_of_loads(element: str, dtype: str) -> None:
    assert apply("load", Q_IDX, value=(0, element)).dtype == dtype


@pytest.mark.parametrize(
    ("op", "args"),
    [
        ("add", (Q_IDX, SCORE)),
        ("add", (TRUE, TRUE)),
        ("div", (Q_IDX, Q_IDX)),
        ("exp", (Q_IDX,)),
        ("and", (Q_IDX, TRUE)),
        ("shl", (SCORE, SCORE)),
        ("where", (TRUE, Q_IDX, SCORE)),
        ("add", (Q_IDX,)),
        ("load", (SCORE,)),
    ],
)
def test_wrong_arguments_are_refused(op: str, args: tuple[Expr, ...]) -> None:
    with pytest.raises(TypeError):
        apply(op, *args, value=(0, "float32"))


def test_stages() -> None:
    load = apply("load", PARAM, value=(0, "int32"))
    stages = [const(1), PARAM, apply("add", PARAM, const(1)), load, apply("add", PARAM, H), SCORE]
    assert [node.stage for node in stages] == [NOW, AT_CALL, AT_CALL, IN_KERNEL, IN_KERNEL, IN_KERNEL]


def test_walk_gives_arguments_first_and_each_once() -> None:
    shared = apply("mul", Q_IDX, Q_IDX)
    root = apply("add", shared, apply("neg", shared))
    order = list(walk(root, shared))
    assert len(order) == len(set(order)) == 4 and order[-1] is root
    assert all(order.index(arg) < order.index(node) for node in order for arg in node.args)


def test_leaves_and_rebuild() -> None:
    root = apply("add", apply("mul", Q_IDX, PARAM), KV_IDX)
    assert leaves(root, ("index",)) == {Q_IDX, KV_IDX}

    def swapped(node: Expr, args: tuple[Expr, ...]) -> Expr:
        return H if node is Q_IDX else Expr(node.op, node.dtype, args, node.value)

    assert rebuild(root, swapped) is apply("add", apply("mul", H, PARAM), KV_IDX)


def test_threads_intern_to_one_node() -> None:
    rounds, threads = 200, 4
    made: list[list[Expr]] = [[] for _ in range(threads)]
    barrier = threading.Barrier(threads)

    def work(mine: list[Expr]) -> None:
        for i in range(rounds):
            barrier.wait()
            mine.append(apply("add", Q_IDX, const(100_000 + i)))

    workers = [threading.Thread(target=work, args=(mine,)) for mine in made]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(len({id(node) for node in same}) == 1 for same in zip(*made, strict=True))
