"""Captured objects: found through any path, read afresh at every call, traced anew only where they decide something."""

# ruff: noqa: B008, E731, SIM401
from __future__ import annotations

import collections
import enum
import functools
import gc
import math
import sys
import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from agreement import agrees, traced
from steps import steps

from flextrace import tracer

SLOPE = 0.5
TABLE = mx.array([1.0, 2.0, 3.0, 4.0])
settings = types.ModuleType("settings_of_the_user")
settings.window = 3
settings.helper = lambda x: x * settings.window
sys.modules["settings_of_the_user"] = settings


class Mode(enum.Enum):
    CAUSAL = 1
    FULL = 2


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 7


class Calls:
    """A mod's traces, and how many of them were made."""

    def __init__(self, function: Callable[..., Any], kind: tracer.Kind = "score_mod") -> None:
        self.function, self.kind, self.traces, self.seen = function, kind, tracer.Traces(), []

    def __call__(self, score: float = 1.0, b: int = 0, h: int = 1, q_idx: int = 5, kv_idx: int = 2) -> Any:
        bound = self.traces.bind(self.function, self.kind)
        if not any(bound.trace is trace for trace in self.seen):
            self.seen.append(bound.trace)
        values = {"score": score, "b": b, "h": h, "q_idx": q_idx, "kv_idx": kv_idx}
        arrays = [np.array(array) for array in bound.arrays]
        got = tracer.evaluate(bound.trace.expr, values, numbers=bound.numbers, arrays=arrays).item()
        arguments = list(values.values())[self.kind == "mask_mod" :]
        want = self.function(*arguments)
        assert got == pytest.approx(float(want), rel=1e-5), self.function
        return got

    @property
    def made(self) -> int:
        return len(self.seen)


# ---- every path, changed without a new trace -------------------------------------------------------------------


def by_closure() -> tuple[Any, list[Callable[[], None]]]:
    slope, table = 0.5, mx.array([1.0, 2.0])

    def mod(score, b, h, q_idx, kv_idx):
        return score * slope + table[h]

    def change():
        nonlocal slope, table
        slope, table = 0.25, mx.array([5.0, 6.0, 7.0])

    return mod, [change]


def by_global() -> tuple[Any, list[Callable[[], None]]]:
    def mod(score, b, h, q_idx, kv_idx):
        return score * SLOPE + TABLE[h]

    def change():
        global SLOPE, TABLE
        SLOPE, TABLE = SLOPE + 1, TABLE * 2

    return mod, [change]


def by_attribute() -> tuple[Any, list[Callable[[], None]]]:
    config = types.SimpleNamespace(slope=2, inner=types.SimpleNamespace(bias=mx.array([0.5, 0.75]), flag=True))

    def mod(score, b, h, q_idx, kv_idx):
        return score * config.slope + config.inner.bias[h] + config.inner.flag * 10

    def change():
        config.slope = -7

    def replace():
        config.inner = types.SimpleNamespace(bias=np.array([1.5, 2.5], np.float32), flag=False)

    return mod, [change, replace]


def by_item() -> tuple[Any, list[Callable[[], None]]]:
    config = {"slope": 0.5, "nested": {"list": [1, (2.0, mx.array([3, 4]))]}, 3: 9}

    def mod(score, b, h, q_idx, kv_idx):
        number, (weight, table) = config["nested"]["list"]
        return score * config["slope"] + number * config[3] + weight * table[h] + config.get("slope") + len(config)

    def change():
        config["slope"] = 3.0
        config["nested"]["list"][0] = 8

    def replace():
        config["nested"] = {"list": [5, (4.0, mx.array([7, 8]))]}

    return mod, [change, replace]


def by_default() -> tuple[Any, list[Callable[[], None]]]:
    def mod(score, b, h, q_idx, kv_idx, slope=0.5, table=mx.array([1, 2])):
        return score * slope + table[h]

    def change():
        mod.__defaults__ = (0.75, mx.array([8, 9]))

    return mod, [change]


def by_keyword_default() -> tuple[Any, list[Callable[[], None]]]:
    def helper(x, *, factor=2):
        return x * factor

    def mod(score, b, h, q_idx, kv_idx):
        return helper(score)

    def change():
        helper.__kwdefaults__["factor"] = 5

    return mod, [change]


def by_partial() -> tuple[Any, list[Callable[[], None]]]:
    config = {"slope": 2.0}

    def biased(config, bias, score, b, h, q_idx, kv_idx, *, offset):
        return score * config["slope"] + bias[h] + offset

    mod = functools.partial(biased, config, mx.array([1, 2]), offset=0.5)

    def change():
        config["slope"] = 4.0
        mod.keywords["offset"] = 1.5

    return mod, [change]


def by_object() -> tuple[Any, list[Callable[[], None]]]:
    class Model:
        scale = 2.0

        def __init__(self):
            self.slope = 0.5

        @property
        def doubled(self):
            return self.slope * 2

        def helper(self, x):
            return x * self.slope + self.scale

        def __call__(self, score, b, h, q_idx, kv_idx):
            return self.helper(score) + self.doubled * h

    mod = Model()

    def change():
        mod.slope = 0.125

    def change_class():
        Model.scale = 3.0

    return mod, [change, change_class]


def by_module() -> tuple[Any, list[Callable[[], None]]]:
    def mod(score, b, h, q_idx, kv_idx):
        import settings_of_the_user as imported
        from settings_of_the_user import window

        return score + settings.window + settings.helper(h) * 10 + imported.window * window

    def change():
        settings.window += 2

    return mod, [change]


def by_helper() -> tuple[Any, list[Callable[[], None]]]:
    config = {"alpha": 0.5}

    def factor():
        return config["alpha"] * 2

    def mod(score, b, h, q_idx, kv_idx):
        return score * factor() + math.exp(config["alpha"])

    def change():
        config["alpha"] = 0.25

    return mod, [change]


def by_list_and_symbol() -> tuple[Any, list[Callable[[], None]]]:
    weights, flags = [0.5, 1.5, 2.5], (True, False)

    def mod(score, b, h, q_idx, kv_idx):
        return score * weights[h] + flags[h] + weights[-1] + weights[h - 1]

    def change():
        weights[1], weights[2] = 9.0, 8.0

    def grow():
        weights.append(1.0)

    return mod, [change, grow]


def by_numpy_scalar() -> tuple[Any, list[Callable[[], None]]]:
    config = {"gain": np.float32(0.5), "count": np.int64(3), "on": np.bool_(True)}

    def mod(score, b, h, q_idx, kv_idx):
        return score * config["gain"] + config["count"] + config["on"] * 4

    def change():
        config.update(gain=np.float64(4.5), count=5, on=False)

    return mod, [change]


def by_shape() -> tuple[Any, list[Callable[[], None]]]:
    config = {"bias": mx.zeros((2, 3))}

    def mod(score, b, h, q_idx, kv_idx):
        bias = config["bias"]
        rows, columns = bias.shape
        return score + rows * 10 + columns + bias.size + len(bias[h]) + bias.shape[-1] * kv_idx + bias[h, -1]

    def change():
        config["bias"] = mx.ones((3, 7))

    return mod, [change]


def by_named_tuple() -> tuple[Any, list[Callable[[], None]]]:
    Config = collections.namedtuple("Config", "slope bias")
    holder = {"config": Config(0.5, [1, 2])}

    def mod(score, b, h, q_idx, kv_idx):
        slope, bias = holder["config"]
        return score * holder["config"].slope + slope + bias[0]

    def change():
        holder["config"] = Config(0.75, [3, 4])

    return mod, [change]


FRESH = [
    by_closure, by_global, by_attribute, by_item, by_default, by_keyword_default, by_partial, by_object, by_module,
    by_helper, by_list_and_symbol, by_numpy_scalar, by_shape, by_named_tuple,
]  # fmt: skip


@pytest.mark.parametrize("make", FRESH, ids=lambda make: make.__name__)
def test_changed_captures_need_no_new_trace(make: Callable[[], tuple[Any, list[Callable[[], None]]]]) -> None:
    mod, changes = make()
    call = Calls(mod)
    values = [call()]
    for change in changes:
        change()
        values.append(call())
    if make is not by_list_and_symbol:  # a longer list there leaves this point as it is
        assert len(set(values)) == len(values), "a change must show"
    assert call.made == 1
    assert not call.seen[0].volatile


def test_a_factory_finds_the_trace_of_its_first_mod() -> None:
    def make(slope):
        return lambda score, b, h, q_idx, kv_idx: score * slope

    traces = tracer.Traces()
    first, second = (traces.bind(make(slope), "score_mod") for slope in (0.5, 0.75))
    assert first.trace is second.trace and (first.numbers, second.numbers) == ([0.5], [0.75])


def test_arrays_of_every_type_are_inputs() -> None:
    for dtype in ("bool_", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "float16", "float32"):
        array = mx.array([0, 1, 1, 0]).astype(getattr(mx, dtype))

        def mod(score, b, h, q_idx, kv_idx, array=array):
            return score + array[h] * 2

        trace = tracer.trace(mod, "score_mod")
        assert trace.arrays[0].element == dtype.rstrip("_") and trace.arrays[0].name == "array"
        agrees(mod)


def test_a_0d_array_is_a_number() -> None:
    scale, n = mx.array(0.5), np.array(3)

    def mod(score, b, h, q_idx, kv_idx):
        return score * scale + n.item() % 2 if False else score * scale + q_idx // n

    agrees(mod)


def test_an_array_used_twice_is_one_input() -> None:
    ids = mx.array([0, 0, 1, 1, 2, 2, 3, 3])

    def mod(b, h, q_idx, kv_idx):
        return ids[q_idx] == ids[kv_idx]

    assert len(tracer.trace(mod, "mask_mod").arrays) == 1
    agrees(mod)


def test_unused_captures_are_no_inputs() -> None:
    unused, n = mx.array([1.0]), 3

    def mod(score, b, h, q_idx, kv_idx):
        unused[h], n + 1
        return score * n * 0 if False else score

    trace = tracer.trace(mod, "score_mod")
    assert trace.arrays == () and trace.numbers == ()


def test_merged_views_of_one_array() -> None:
    bias = mx.arange(12).reshape(2, 6)

    def mod(score, b, h, q_idx, kv_idx):
        row = bias[0] if q_idx > 2 else bias[b]
        return score + row[h]

    agrees(mod)


def test_iterating_a_captured_array() -> None:
    starts = mx.array([0, 3, 5])

    def mod(score, b, h, q_idx, kv_idx):
        return sum(q_idx >= start for start in starts) + (kv_idx in starts) + score

    agrees(mod)


# ---- what decides the trace --------------------------------------------------------------------------------------


def decided_by_branch(config, score, b, h, q_idx, kv_idx):
    if config["n"] > 2:
        return score + 1
    return score - 1


def decided_by_range(config, score, b, h, q_idx, kv_idx):
    for i in range(config["n"]):
        score = score + i * h
    return score


def decided_by_index(config, score, b, h, q_idx, kv_idx):
    return score + [10.0, 20.0, 30.0, 40.0, 50.0, 60.0][config["n"]]


def decided_by_dict_key(config, score, b, h, q_idx, kv_idx):
    return score + {i: i * i for i in range(6)}[config["n"] + 1 - 1]


def decided_by_repeat(config, score, b, h, q_idx, kv_idx):
    return score + sum([h] * config["n"]) + len("ab" * config["n"])


def decided_by_slice(config, score, b, h, q_idx, kv_idx):
    return score + sum([1, 2, 3, 4, 5][: config["n"]])


def decided_by_exponent(config, score, b, h, q_idx, kv_idx):
    return score + q_idx ** config["n"] // 2


def decided_by_conditional(config, score, b, h, q_idx, kv_idx):
    return score * (2 if config["n"] == 3 else 1) + (config["n"] == 4 and 7)


def decided_by_length(config, score, b, h, q_idx, kv_idx):
    return score + len(config["n"] * [0])


def decided_by_builtin(config, score, b, h, q_idx, kv_idx):
    return score + sorted([5, config["n"], 1])[1] + math.gcd(config["n"], 6) + len(f"{'x':>{config['n']}}")


DECIDED = [
    decided_by_branch, decided_by_range, decided_by_index, decided_by_dict_key, decided_by_repeat, decided_by_slice,
    decided_by_exponent, decided_by_conditional, decided_by_length, decided_by_builtin,
]  # fmt: skip


@pytest.mark.parametrize("function", DECIDED, ids=lambda function: function.__name__)
def test_a_number_that_decides_makes_another_trace(function: Callable[..., Any]) -> None:
    config = {"n": 2}
    call = Calls(functools.partial(function, config))
    for n in (2, 4, 2, 3, 4):
        config["n"] = n
        call()
    decisions = 2 if function is decided_by_branch else 3  # n > 2 is the same for 3 and 4
    assert call.made == decisions
    assert not any(trace.volatile for trace in call.seen)


@pytest.mark.parametrize(
    ("function", "first", "second"),
    [
        (lambda c, score, b, h, q_idx, kv_idx: score + len(c["x"]), [1, 2], [1, 2, 3]),
        (lambda c, score, b, h, q_idx, kv_idx: score + sum(c["x"]), [1, 2], [1, 2, 3]),
        (lambda c, score, b, h, q_idx, kv_idx: score + (1 if c["x"] else 2), [0], []),
        (lambda c, score, b, h, q_idx, kv_idx: score + (1 if c["x"] else 2), {"a": 1}, {}),
        (lambda c, score, b, h, q_idx, kv_idx: score + (2 in c["x"]), {2, 3}, {3, 4}),
        (lambda c, score, b, h, q_idx, kv_idx: score + (2 in c["x"]), {2: 1}, {3: 1}),
        (lambda c, score, b, h, q_idx, kv_idx: score + (h in c["x"]), frozenset({1}), frozenset({2})),
        (lambda c, score, b, h, q_idx, kv_idx: score + sum(i * h for i in c["x"]), range(3), range(4)),
        (lambda c, score, b, h, q_idx, kv_idx: score + sum(c["x"].values()), {"a": 1}, {"b": 1, "c": 2}),
        (lambda c, score, b, h, q_idx, kv_idx: score + c["x"].get("a", 5), {"a": 1}, {"b": 1}),
        (lambda c, score, b, h, q_idx, kv_idx: score + (c["x"] == [1, 2]), [1, 2], [1, 3]),
        (lambda c, score, b, h, q_idx, kv_idx: score + (c["x"] < (1, 2)), (1, 1), (1, 3)),
        (lambda c, score, b, h, q_idx, kv_idx: score + c["x"].index(2), [1, 2], [2, 1]),
        (lambda c, score, b, h, q_idx, kv_idx: score + (c["x"] is None), None, 3),
        (lambda c, score, b, h, q_idx, kv_idx: score + (0 if c["x"] is None else c["x"]), None, 3),
        (lambda c, score, b, h, q_idx, kv_idx: score + (c["x"] is Mode.CAUSAL), Mode.CAUSAL, Mode.FULL),
        (lambda c, score, b, h, q_idx, kv_idx: score + (c["x"] == Mode.CAUSAL), Mode.CAUSAL, Mode.FULL),
        (lambda c, score, b, h, q_idx, kv_idx: score + {Mode.CAUSAL: 1, Mode.FULL: 2}[c["x"]], *Mode),
        (lambda c, score, b, h, q_idx, kv_idx: score + c["x"], Level.LOW, Level.HIGH),
        (lambda c, score, b, h, q_idx, kv_idx: score + (c["x"] is Level.LOW) + (c["x"] < 3), *Level),
        (lambda c, score, b, h, q_idx, kv_idx: score + (c["x"] == "abs") + len(c["x"]), "abs", "no"),
        (lambda c, score, b, h, q_idx, kv_idx: score + (1 if c["x"].startswith("a") else 2), "abs", "no"),
        (lambda c, score, b, h, q_idx, kv_idx: score + isinstance(c["x"], int), 1, 1.5),
        (lambda c, score, b, h, q_idx, kv_idx: score + c["x"], 1, 1.5),
        (lambda c, score, b, h, q_idx, kv_idx: score + c["x"] + 1, True, 5),
        (lambda c, score, b, h, q_idx, kv_idx: score + c["x"](h), abs, lambda x: x + 1),
        (lambda c, score, b, h, q_idx, kv_idx: score + c["x"](h), math.exp, math.sin),
        (lambda c, score, b, h, q_idx, kv_idx: score + c["x"](h), mx.tanh, mx.sigmoid),
        (lambda c, score, b, h, q_idx, kv_idx: score + c["x"](h), np.exp, np.tanh),
        (lambda c, score, b, h, q_idx, kv_idx: score + c["x"](h, 2), np.maximum, mx.minimum),
        (lambda c, score, b, h, q_idx, kv_idx: score + c["x"](h), lambda x: x + 2, lambda x: x + 1),
        (lambda c, score, b, h, q_idx, kv_idx: score + c["x"][h], mx.array([1.0, 2.0]), mx.array([1, 2])),
        (lambda c, score, b, h, q_idx, kv_idx: score + c["x"].ndim, mx.zeros((2, 2)), mx.zeros((2,))),
        (lambda c, score, b, h, q_idx, kv_idx: score + (c["x"].shape == (2,)), mx.zeros(2), mx.zeros(3)),
        (lambda c, score, b, h, q_idx, kv_idx: score + (c["x"].dtype == mx.int32), mx.zeros(2), mx.array([1])),
        (lambda c, score, b, h, q_idx, kv_idx: score + sum(1 for _ in c["x"]), mx.zeros(2), mx.zeros(3)),
        (lambda c, score, b, h, q_idx, kv_idx: score + c["x"][2] * 0 + 1, mx.zeros(3), mx.zeros(3).astype(mx.int8)),
        (lambda c, score, b, h, q_idx, kv_idx: score + hasattr(c["x"], "real"), 1, "a"),
        (
            lambda c, score, b, h, q_idx, kv_idx: score + getattr(c["x"], "z", 5),
            types.SimpleNamespace(z=1),
            types.SimpleNamespace(),
        ),
        (lambda c, score, b, h, q_idx, kv_idx: score + (1 if c["x"] > 0.5 else 2), math.nan, 1.0),
        (lambda c, score, b, h, q_idx, kv_idx: score + (1 if math.copysign(1, c["x"]) > 0 else 2), 0.0, -0.0),
    ],
)
def test_a_kind_that_decides_makes_another_trace(function: Callable[..., Any], first: Any, second: Any) -> None:
    config = {"x": first}
    call = Calls(functools.partial(function, config))
    for value in (first, second, first):
        config["x"] = value
        call()
    assert call.made == 2
    assert not any(trace.volatile for trace in call.seen)


def test_a_constant_index_holds_for_longer_arrays_only() -> None:
    config = {"x": mx.array([1.0, 2.0, 3.0])}
    call = Calls(lambda score, b, h, q_idx, kv_idx: score + config["x"][2] + config["x"][-2])
    call()
    config["x"] = mx.array([1.0, 2.0, 3.0, 4.0])
    call()
    assert call.made == 1
    config["x"] = mx.array([1.0, 2.0])
    with pytest.raises(tracer.TraceError, match="index 2 is out of range for axis 0 of .*, which has size 2"):
        call()


def test_an_object_reached_by_two_paths_that_part() -> None:
    shared = [1, 2]
    config = {"a": shared, "b": shared}

    def mod(score, b, h, q_idx, kv_idx):
        return score + config["a"][0] * 10 + config["b"][0]

    call = Calls(mod)
    call()
    config["b"] = [5, 6]
    call()
    assert call.made == 2


def test_a_path_that_is_gone() -> None:
    config = {"a": 1}

    def mod(score, b, h, q_idx, kv_idx):
        return score + (config["a"] if "a" in config else 7)

    call = Calls(mod)
    call()
    del config["a"]
    call()
    assert call.made == 2


def test_a_name_assigned_late_is_not_taken_from_outside() -> None:
    def mod(score, b, h, q_idx, kv_idx):
        if len(TABLE.shape) > 5:
            SLOPE = 1.0
        return score + SLOPE

    with pytest.raises(tracer.TraceError, match="SLOPE has no value here"):
        tracer.trace(mod, "score_mod")


class Fresh:
    """An object whose property makes a new one at every look."""

    @property
    def config(self) -> Any:
        return types.SimpleNamespace(slope=0.5)

    @property
    def number(self) -> Any:
        return next(KINDS)


KINDS = iter([1, 1.5] * 1000)


def test_a_property_that_makes_objects() -> None:
    fresh = Fresh()

    def mod(score, b, h, q_idx, kv_idx):
        return score * fresh.config.slope if fresh.config is not None else score

    call = Calls(mod)
    call(), call()
    assert call.made == 1


@pytest.mark.one_reader
def test_a_property_that_never_gives_the_same() -> None:
    fresh = Fresh()
    with pytest.raises(tracer.TraceError, match="what it captures is another object at every look"):
        tracer.Traces().bind(lambda score, b, h, q_idx, kv_idx: score + fresh.number, "score_mod")


def test_traces_keep_no_captured_object_alive() -> None:
    class Table:
        def __init__(self):
            self.values, self.numbers, self.bias = mx.array([1.0, 2.0]), [1, 2], {"a": {1, 2}}

        def row(self, h):
            return self.values[h]

    table = Table()
    reference = weakref.ref(table)
    traces = tracer.Traces()

    def make(table):
        def mod(score, b, h, q_idx, kv_idx):
            found = (kv_idx in table.bias["a"]) + len(table.numbers) + sum(table.numbers)
            return score + table.row(h) + found + (table is None)

        return mod

    traces.bind(make(table), "score_mod")
    del table
    gc.collect()
    assert reference() is None


def test_what_captured_numbers_decide_is_decided_by_python() -> None:
    """In float32 0.29 * 100 is 29.0; in Python it is 28.999999999999996."""
    config = {"ratio": 0.29, "length": 100}

    def mod(score, b, h, q_idx, kv_idx):
        window = int(config["ratio"] * config["length"])
        count = sum(1 for _ in range(int(config["ratio"] * 100)))
        return score + window * 10 + count + (config["ratio"] * config["length"] >= 29) * (q_idx + 1)

    call = Calls(mod)
    call()
    assert [number.name for number in call.seen[0].numbers] == [
        "int(mul(config['ratio'], config['length']))",
        "ge(mul(config['ratio'], config['length']), 29)",
    ]
    config["length"] = 200  # other numbers, the same trace
    call()
    assert call.made == 1
    config["ratio"] = 0.57
    call()
    assert call.made == 2


def test_python_computes_with_integers_of_any_size() -> None:
    config = {"seed": 12345}

    def mod(score, b, h, q_idx, kv_idx):
        if config["seed"] * 2654435761 % 2**32 > 2**31:
            return score + 1
        return score

    call = Calls(mod)
    for seed in (12345, 1, 2, 3, 4, 5):
        config["seed"] = seed
        call()
    assert call.made == 2


def test_what_python_raises_between_captured_numbers() -> None:
    config = {"a": 1.0, "b": 2.0}

    def mod(score, b, h, q_idx, kv_idx):
        return score + int(config["a"] / config["b"])

    traces = tracer.Traces()
    traces.bind(mod, "score_mod")
    config["b"] = 0.0
    with pytest.raises(ZeroDivisionError, match=r"float division by zero, in truediv\(config\['a'\], config\['b'\]\)"):
        traces.bind(mod, "score_mod")
    with pytest.raises(tracer.TraceError, match="Python raised ZeroDivisionError in truediv"):
        tracer.trace(mod, "score_mod")


def test_a_decision_guards_what_follows_it() -> None:
    config = {"n": 2}

    def mod(score, b, h, q_idx, kv_idx):
        return score + (int(8 / config["n"]) if config["n"] != 0 else -1)

    call = Calls(mod)
    for n in (2, 4, 0, 8):
        config["n"] = n
        call()
    assert call.made == 2


# ---- functions that run as plain Python ----------------------------------------------------------------------------


def test_python_that_cannot_be_traced_runs_anew_at_every_call() -> None:
    state = {"n": 1}

    def window():
        try:
            return state["n"]
        finally:
            pass

    def mod(score, b, h, q_idx, kv_idx):
        return score + window()

    call = Calls(mod)
    assert (call(), state.update(n=5), call()) == (2.0, None, 6.0)
    assert all(trace.volatile for trace in call.seen)
    first, second = (tracer.trace(mod, "score_mod").expr for _ in range(2))
    assert first is second  # the kernel is the same


@dataclass
class Shape:
    rows: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shape) and self.rows == other.rows

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    "function",
    [
        lambda score, b, h, q_idx, kv_idx: score + (Shape(2) == SHAPE),
        lambda score, b, h, q_idx, kv_idx: score + sum(QUEUE) + len(list(QUEUE)),
        lambda score, b, h, q_idx, kv_idx: score + mx.arange(4)[h] + np.linspace(0, 1, 5)[h],
        lambda score, b, h, q_idx, kv_idx: score + len(str(SHAPE)),
    ],
)
def test_results_that_may_change_are_not_kept(function: Callable[..., Any]) -> None:
    trace = tracer.trace(function, "score_mod")
    assert trace.volatile
    agrees(function)


SHAPE = Shape(2)
QUEUE = collections.deque([1, 2, 3])


def test_a_concrete_helper_is_traced_and_follows_its_captures() -> None:
    def slope(i):
        return 2.0 ** (-i * SLOPE)

    def mod(score, b, h, q_idx, kv_idx):
        return score + sum(slope(i) * (h == i) for i in range(4))

    trace = tracer.trace(mod, "score_mod")
    assert not trace.volatile and [number.name for number in trace.numbers] == ["SLOPE"]
    agrees(mod)


# ---- numbers that cannot be used -------------------------------------------------------------------------------------


def test_a_number_that_outgrows_int32() -> None:
    config = {"n": 3}
    function = lambda score, b, h, q_idx, kv_idx: score + config["n"]
    traces = tracer.Traces()
    traces.bind(function, "score_mod")
    config["n"] = 2**31
    with pytest.raises(OverflowError, match=r"config\['n'\] = 2147483648 does not fit int32; make it a float"):
        traces.bind(function, "score_mod")
    config["n"] = -(2**31)
    assert traces.bind(function, "score_mod").numbers == [-(2**31)]


@pytest.mark.parametrize("operation", ["q_idx // n", "q_idx % n", "divmod(q_idx, n)[1]"])
def test_division_by_a_captured_zero(operation: str) -> None:
    config = {"n": 3}
    n = "config['n']"
    source = f"lambda score, b, h, q_idx, kv_idx: score + {operation.replace('n)', n + ')').replace(' n', ' ' + n)}"
    import linecache

    linecache.cache["<zero>"] = (len(source), None, [source], "<zero>")
    function = eval(compile(source, "<zero>", "eval"), {"config": config})
    traces = tracer.Traces()
    traces.bind(function, "score_mod")
    config["n"] = 0
    with pytest.raises(ZeroDivisionError, match=r"integer division or modulo by config\['n'\] = 0"):
        traces.bind(function, "score_mod")


def test_shifts_by_a_captured_negative_count() -> None:
    config = {"n": 3}

    def left(score, b, h, q_idx, kv_idx):
        return score + (q_idx << config["n"])

    def computed(score, b, h, q_idx, kv_idx):
        return score + mx.right_shift(q_idx, config["n"] - 1)

    def decided(score, b, h, q_idx, kv_idx):
        for _ in range(config["n"] + 2):
            score += q_idx >> config["n"]
        return score

    traces = tracer.Traces()
    for mod in (left, computed, decided):
        traces.bind(mod, "score_mod")
    config["n"] = -1
    with pytest.raises(ValueError, match=r"left: negative shift count config\['n'\] = -1"):
        traces.bind(left, "score_mod")
    with pytest.raises(ValueError, match=r"computed: negative shift count sub\(config\['n'\], 1\) = -2"):
        traces.bind(computed, "score_mod")
    with pytest.raises(ValueError, match=r"decided: negative shift count config\['n'\] = -1"):
        traces.bind(decided, "score_mod")


def test_division_by_a_captured_zero_that_the_trace_is_bound_to() -> None:
    config = {"n": 0, "m": 4}

    def computed(score, b, h, q_idx, kv_idx):
        return score + q_idx // (config["m"] - 4)

    def decided(score, b, h, q_idx, kv_idx):
        number = config["n"]
        return score + sum(range(number)) + q_idx % number

    with pytest.raises(ZeroDivisionError, match=r"integer division or modulo by sub\(config\['m'\], 4\) = 0"):
        tracer.Traces().bind(computed, "score_mod")
    with pytest.raises(tracer.TraceError, match=r"integer division or modulo by config\['n'\] = 0"):
        tracer.trace(decided, "score_mod")


def test_a_trace_that_no_longer_holds_reads_nothing() -> None:
    config = {"n": 3}
    function = lambda score, b, h, q_idx, kv_idx: score + (1 if config["n"] == 3 else 2)
    trace = tracer.trace(function, "score_mod")
    assert trace.reads.objects(function) is not None
    config["n"] = 4
    assert trace.reads.objects(function) is None


def test_many_values_keep_a_bounded_number_of_traces() -> None:
    config = {"n": 0}
    call = Calls(lambda score, b, h, q_idx, kv_idx: score + sum(range(config["n"])))
    for n in range(50):
        config["n"] = n
        call()
    ((_, kept),) = call.traces._by_code.values()
    assert len(kept) == tracer.Traces.PER_CODE


# ---- cost ----------------------------------------------------------------------------------------------------


def test_reading_the_captures_of_a_simple_mod_takes_few_steps() -> None:
    def mod(score, b, h, q_idx, kv_idx):
        return score + TABLE[h] * (kv_idx - q_idx) * SLOPE

    traces = tracer.Traces()
    trace = traces.bind(mod, "score_mod").trace
    assert len(trace.reads.steps) == 3  # the globals, and one for each capture in them; none for what cannot change

    assert steps(lambda: traces.bind(mod, "score_mod")) < 40


def test_names_of_captures() -> None:
    config = types.SimpleNamespace(tables=[mx.array([1.0])], slopes={"a": 0.5})

    def mod(score, b, h, q_idx, kv_idx, gain=2.0):
        return score * gain + config.tables[0][h] * config.slopes["a"] + SLOPE * TABLE[h]

    trace = tracer.trace(mod, "score_mod")
    assert [array.name for array in trace.arrays] == ["config.tables[0]", "TABLE"]
    assert [number.name for number in trace.numbers] == ["gain", "config.slopes['a']", "SLOPE"]
    assert traced(mod).shape == (4, 2, 4, 5, 5)


def test_an_int_of_a_subclass_is_an_int() -> None:
    class Position(int):
        pass

    first, last = Position(3), Position(5)

    def mod(score, b, h, q_idx, kv_idx):
        return score + first * (q_idx < last) + q_idx // first

    bound = tracer.Traces().bind(mod, "score_mod")
    assert (
        bound.numbers == [3, 5] and tracer.evaluate(bound.trace.expr, {"score": 0.5, "q_idx": 4}, numbers=[3, 5]) == 4.5
    )
