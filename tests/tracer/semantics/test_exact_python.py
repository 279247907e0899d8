"""What Python means around the arithmetic: which object a name means, in what order, what a class says of itself."""

# ruff: noqa: B008, B033, E501, E731, SIM300, UP031
from __future__ import annotations

import builtins
import collections
import enum
import linecache
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest
from agreement import agrees, called, traced

from flextrace import tracer
from flextrace.tracer.expr.node import IN_KERNEL

# ---- one object by several names -------------------------------------------------------------------------------------


def aliases_in_a_branch(score, b, h, q_idx, kv_idx):
    total = 0
    if q_idx > kv_idx:
        xs = [1]
        ys = same(xs)
        ys.append(2)
        total = len(xs)
    return score + total


def same(x):
    return x


def lists_of_both_branches_may_change(score, b, h, q_idx, kv_idx):
    if h > 1:
        xs, d = [1, q_idx], {"a": 1}
    else:
        xs, d = [kv_idx, 4], {"a": h}
    ys = xs
    xs.append(5)
    d["a"] += 1
    return score + sum(ys) + d["a"]


def sets_change_in_place(score, b, h, q_idx, kv_idx):
    s, d = {1}, {1: 2}
    t, e = s, d
    s |= {2, 3}
    d |= {4: 5}
    return score + len(t) + len(e) + (s is t) + (d is e) + h


def a_copy_of_the_chosen_may_change(score, b, h, q_idx, kv_idx):
    xs, ys = [1, 2], [q_idx, 4]
    zs = list(xs if h else ys)
    zs.append(3)
    return score + sum(zs) + len(xs)


def a_named_tuple_keeps_its_class(score, b, h, q_idx, kv_idx):
    p = Pair(q_idx, 1) if h else Pair(kv_idx, 2)
    return score + p.x * 2 + p.y + p.total + isinstance(p, Pair)


class Pair(NamedTuple):
    x: Any
    y: Any

    @property
    def total(self) -> Any:
        return self.x + self.y


# ---- order -------------------------------------------------------------------------------------------------------


def keys_before_values(score, b, h, q_idx, kv_idx):
    order = []
    d = {log(order, 1): log(order, 2), log(order, 3): log(order, h)}
    e = {log(order, 5) + i: log(order, 6) for i in range(2)}
    return score + sum(i * x for i, x in enumerate(order)) + sum(d) + len(e)


def log(order, x):
    order.append(x)
    return x


def everything_else_in_order(score, b, h, q_idx, kv_idx):
    order = []

    @log(order, lambda f: f)
    def inner(x, y=log(order, 2)):
        return x + y

    xs = [5, 6, 7]
    xs[log(order, 0)] += log(order, q_idx)
    xs[log(order, 1)] = log(order, 9)
    i, *xs[i], j = [1, 2, 3]
    inner(*log(order, [1]), y=log(order, 3))
    keep = log(order, 1) < log(order, q_idx)
    numbers = [x for x in order if isinstance(x, (int, float))]
    return score + sum(k * x for k, x in enumerate(numbers[:7])) + keep + len(xs) + j


def the_first_iterable_is_taken_at_once(score, b, h, q_idx, kv_idx):
    xs = [1, q_idx]
    g = (x for x in xs)
    xs = [9]
    return score + sum(g) + xs[0]


def filter_is_an_iterator(score, b, h, q_idx, kv_idx):
    kept = filter(None, [0, 1, 2])
    return score + next(kept) + len(list(kept)) * 10 + len(list(kept)) + h


# ---- what a class says -------------------------------------------------------------------------------------------


class Evens:
    def __contains__(self, item: Any) -> Any:
        return item % 2 == 0

    def __iter__(self) -> Any:
        return iter([1, 3])


class Small:
    limit = 3

    def __eq__(self, other: object) -> Any:
        return other < self.limit

    __hash__ = None  # type: ignore[assignment]


class Loud(list):
    def __contains__(self, item: object) -> bool:
        return item == 1

    def __len__(self) -> int:
        return 7

    def __iter__(self) -> Any:
        return iter([5, 6])


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Record:
    """Not a record for the tracer: its methods are traced."""

    def __init__(self) -> None:
        self.seen = {1: 2}

    def __len__(self) -> int:
        return 3


EVENS, SMALL, LOUD, RECORD = Evens(), Small(), Loud([1, 2]), Record()


def membership_is_what_the_class_says(score, b, h, q_idx, kv_idx):
    return score + (q_idx in EVENS) + 2 * (3 in EVENS) + 4 * (q_idx in LOUD) + 8 * (kv_idx not in EVENS)


def equality_is_what_the_class_says(score, b, h, q_idx, kv_idx):
    return score + (q_idx == SMALL) + 2 * (SMALL == kv_idx) + 4 * (q_idx != SMALL) + 8 * (q_idx in [9, SMALL])


def sizes_are_what_the_class_says(score, b, h, q_idx, kv_idx):
    return score + len(LOUD) + sum(LOUD) + len(RECORD) + bool(LOUD) + h


def values_of_a_dict_are_numbers(score, b, h, q_idx, kv_idx):
    d = {1: q_idx, 2: 3}
    return score + (3 in d.values()) + 2 * (kv_idx in d.values()) + 4 * (5 in collections.deque([5]))


def sets_tell_what_they_hold(score, b, h, q_idx, kv_idx):
    return score + (kv_idx in {q_idx, 1, h}) + len({1, 1, 2}) + (q_idx not in {kv_idx})


def members_of_an_enum_are_numbers(score, b, h, q_idx, kv_idx):
    level = Level.HIGH if h > 1 else Level.LOW
    return score + level * q_idx + Level.HIGH + (q_idx > Level.LOW) + (level == Level.HIGH)


def texts_are_shown(score, b, h, q_idx, kv_idx):
    print(f"{h}", f"{q_idx:>3}" + "x", str([h]), "%s" % kv_idx, repr(score))
    assert score is not None, f"{h}"
    return score + len(f"{3:>4}") + len(type(h).__name__) + h


def a_sum_of_records(score, b, h, q_idx, kv_idx):
    v = Vector(q_idx, 1) + Vector(h, kv_idx)
    return score + v.x * 3 + v.y


class Vector(NamedTuple):
    x: Any
    y: Any

    def __add__(self, other: Any) -> Vector:  # type: ignore[override]
        return Vector(self.x + other.x, self.y + other.y)


FOLLOWED = [
    aliases_in_a_branch, lists_of_both_branches_may_change, sets_change_in_place, a_copy_of_the_chosen_may_change,
    a_named_tuple_keeps_its_class, keys_before_values, everything_else_in_order, the_first_iterable_is_taken_at_once,
    filter_is_an_iterator, membership_is_what_the_class_says, equality_is_what_the_class_says,
    sizes_are_what_the_class_says, values_of_a_dict_are_numbers, sets_tell_what_they_hold,
    members_of_an_enum_are_numbers, texts_are_shown, a_sum_of_records,
]  # fmt: skip


@pytest.mark.parametrize("function", FOLLOWED, ids=lambda function: function.__name__)
def test_is_what_python_means(function: Callable[..., Any]) -> None:
    agrees(function)


# ---- what cannot be followed ---------------------------------------------------------------------------------------

REFUSED = {
    "dicts merged in another order": "d = {'a': 1, 'b': 2} if h else {'b': 2, 'a': 1}\nreturn score + list(d.values())[0]",
    "a tuple that holds a returned list": "def f(c):\n xs = [1]\n if c: return xs, 1\n xs.append(2)\n return xs, 1\nreturn len(f(h)[0])",
    "a list method of the class": "xs = [1]\nif h: list.append(xs, 2)\nreturn score + len(xs)",
    "a list by its operator": "import operator\nxs = [1]\nif h: operator.iadd(xs, [2])\nreturn score + len(xs)",
    "a heap": "import heapq\nxs = [2]\nif h: heapq.heappush(xs, 1)\nreturn score + xs[0]",
    "a captured heap": "import heapq\nreturn score + heapq.heappop(ITEMS)",
    "an iterator": "it = iter([1, 2])\nif h: next(it)\nreturn score + next(it)",
    "an iterator in any()": "it = iter([1, 2, 3])\nany(x == h for x in it)\nreturn score + next(it, 0)",
    "an iterator in a zip": "it = iter([1, 2])\nif h: list(zip(it, [1]))\nreturn score + next(it)",
    "an iterator that a loop leaves": "it = iter([1, 2, 3])\nfor x in it:\n if x == h: break\nreturn score + next(it, 0)",
    "a counter": "return score + COUNTER.next() * h",
    "keys of a dict call": "return score + len(dict([(q_idx, 1), (kv_idx, 2)]))",
    "keys of an update": "d = {}\nd.update([(q_idx, 1), (kv_idx, 2)])\nreturn score + len(d)",
    "a range's count": "return score + range(5).count(q_idx)",
    "a key that compares": "import itertools\nreturn score + len(list(itertools.groupby([1, 2], key=lambda x: x == h)))",
    "the address of a list": "return score + id(ITEMS) % 7",
    "a text's beginning": "return score + f'{h}'.startswith('1')",
    "a list of one branch that is two of the other": "if h: xs = [1]; ys = xs\nelse: xs = [3]; ys = [5]\nxs[0] = 9\nreturn score + ys[0]",
    "a name that an inner branch gave two kinds": "if h:\n if b: x = 1\n else: x = [1]\nelse: x = 2\nreturn score + x",
    "a name that an outer branch gave two kinds": "if h: x = 2\nelse:\n if b: x = 1\n else: x = [1]\nreturn score + x",
    "a row of one array or of another": "row = A[0] if h else B[0]\nreturn score + row[q_idx]",
    "an attribute by text": "return score + getattr(COUNTER, f'n{h}', 1)",
}
ITEMS: list[int] = [3, 4]


class Counter:
    def __init__(self) -> None:
        self.n = 0

    def next(self) -> int:
        try:
            self.n += 1
        finally:
            pass
        return self.n


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused(name: str) -> None:
    text = "def mod(score, b, h, q_idx, kv_idx):\n" + "".join(f"    {line}\n" for line in REFUSED[name].splitlines())
    names: dict[str, Any] = {"ITEMS": [3, 4], "COUNTER": Counter(), "A": mx.ones((2, 3)), "B": mx.zeros((2, 3))}
    with pytest.raises(tracer.TraceError):
        tracer.trace(define(text, names)["mod"], "score_mod")


def define(text: str, names: dict[str, Any]) -> dict[str, Any]:
    filename = f"<exact {hash(text)}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    exec(compile(text, filename, "exec"), names)
    return names


# ---- what a later cell changes ---------------------------------------------------------------------------------------

MOD = "def mod(score, b, h, q_idx, kv_idx):\n    return score + {}\n"
CELLS = [  # what the mod adds, the first cell, a later one
    ("max(q_idx, 2)", "", "max = lambda a, b: a * 100 + b"),
    ("len(XS) + h", "XS = [1]", "len = lambda xs: 5"),
    ("helper(h)", "def helper(x): return abs(x)", "abs = lambda x: x + 50"),
    ("type(C).step + h", "class K: step = 2\nC = K()", "K.step = 7"),
    ("C.size + h", "class K:\n size = 2\nC = K()", "C.size = 5"),
    ("C.size + h", "class K:\n def __getattr__(self, name): return 3\nC = K()", "C.size = 5"),
    ("(5 if hasattr(C, 'size') else 6) + h", "class K: pass\nC = K()", "K.size = 1"),
    ("getattr(C, 'size', 6) + h", "class K: pass\nC = K()", "C.size = 1"),
    ("D.get('b', 4) + h", "D = {'a': 1}", "D['b'] = 9"),
    ("('b' in D) + h", "D = {'a': 1}", "D['b'] = 9"),
    ("(4 in XS) + h", "XS = [1, 2]", "XS[1] = 4"),
    ("sum(x.size for x in XS) + h", "class K: size = 1\nXS = {K()}", "K.size = 2"),
    ("isinstance(list(D)[0], bool) + h", "D = {1: 2}", "D = {True: 2}"),
    ("isinstance(N, bool) + h", "N = 2", "N = True"),
    ("isinstance(list(S)[0], bool) + h", "S = frozenset({1})", "S = frozenset({True})"),
    ("(1 if str(list(D)[0]) == '0.0' else 2) + h", "D = {0.0: 1}", "D = {-0.0: 1}"),
    (
        "(h == WILD)",
        "class W:\n def __eq__(self, other): return other < 1\nWILD = W()",
        "W.__eq__ = lambda self, other: other == 2",
    ),
]


@pytest.mark.parametrize(("added", "first", "later"), CELLS)
def test_a_later_cell_is_noticed(added: str, first: str, later: str) -> None:
    names = define(MOD.format(added), {})
    define(first, names)
    traces = tracer.Traces()
    for cell in ("", later):
        define(cell, names)
        bound = traces.bind(names["mod"], "score_mod")
        for h in (0, 1, 2):
            values = {"score": 0.0, "b": 0, "h": h, "q_idx": 5, "kv_idx": 2}
            got = tracer.evaluate(bound.trace.expr, values, numbers=bound.numbers)
            assert float(got) == float(names["mod"](*values.values())), cell


def test_a_rebound_builtin_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    mod = define(MOD.format("max(q_idx, 2)"), {})["mod"]
    trace = tracer.trace(mod, "score_mod")
    assert trace.reads.objects(mod) is not None
    monkeypatch.setattr(builtins, "max", lambda a, b: a)
    assert trace.reads.objects(mod) is None


def test_an_array_of_another_library_is_noticed() -> None:
    config = {"x": np.ones(3, np.float32)}

    def mod(score, b, h, q_idx, kv_idx):
        return score + isinstance(config["x"], np.ndarray)

    trace = tracer.trace(mod, "score_mod")
    config["x"] = mx.ones(3)
    assert trace.reads.objects(mod) is None


@pytest.mark.parametrize("make", [mx.array, np.array])
def test_an_array_that_has_become_empty_is_noticed(make: Callable[..., Any]) -> None:
    config = {"x": make([1.0, 2.0], dtype=mx.float32 if make is mx.array else np.float32)}
    mod = lambda score, b, h, q_idx, kv_idx: score + config["x"][h]
    traces = tracer.Traces()
    traces.bind(mod, "score_mod")
    config["x"] = config["x"][:0]
    with pytest.raises(tracer.TraceError, match="an empty array, of shape"):
        traces.bind(mod, "score_mod")


def test_a_number_that_decides_is_told_from_its_equal() -> None:
    """nan is no other number than itself, and -0.0 is one."""
    config = {"x": math.nan}

    def mod(score, b, h, q_idx, kv_idx):
        return score + len(str(config["x"])) + (config["x"] == config["x"])

    traces = tracer.Traces()
    first = traces.bind(mod, "score_mod").trace
    assert traces.bind(mod, "score_mod").trace is first
    for value in (0.0, -0.0, math.nan):
        config["x"] = value
        bound = traces.bind(mod, "score_mod")
        got = tracer.evaluate(bound.trace.expr, {"score": 0.0}, numbers=bound.numbers)
        assert float(got) == mod(0.0, 0, 0, 0, 0)


def test_a_member_of_an_enum_takes_no_search() -> None:
    """A range looks for what is no plain int by comparing all its numbers."""
    from flextrace.tracer.expr import build

    assert build.lift(Level.HIGH).value == 2 and type(build.lift(Level.HIGH).value) is int


# ---- types -----------------------------------------------------------------------------------------------------------


def test_the_type_of_a_chosen_number_is_told_where_it_is_one() -> None:
    def mod(score, b, h, q_idx, kv_idx):
        x = 1 if h else 0.5
        return score + isinstance(x, (int, float)) + isinstance(q_idx + 1, int)

    agrees(mod)
    assert traced(mod).shape == called(mod).shape and tracer.trace(mod, "score_mod").expr.stage == IN_KERNEL


def test_numpy_scalars_keep_their_type() -> None:
    config = {"x": np.int64(3)}

    def mod(score, b, h, q_idx, kv_idx):
        return score + isinstance(config["x"], int) + 2 * isinstance(config["x"], np.integer) + config["x"]

    agrees(mod)
    config["x"] = 3
    agrees(mod)
