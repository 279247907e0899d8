"""Python constructs -> traced, simplified, evaluated in numpy: the value that calling the function gives."""

# ruff: noqa: B007, B008, B023, E711, E731, RUF060, SIM222, SIM223
from __future__ import annotations

import functools
import gc
import itertools
import math
import operator
import threading
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from agreement import agrees, called, traced
from control_flow import Writer
from steps import steps

import flextrace as flex
from flextrace import tracer
from flextrace.tracer.expr.node import walk

MODS: list[Callable[..., Any]] = []


def mod(function: Callable[..., Any]) -> Callable[..., Any]:
    """Into the table of functions that must agree with Python."""
    MODS.append(function)
    return function


# ---- arithmetic and comparisons ------------------------------------------------------------------------------


@mod
def promotions(score, b, h, q_idx, kv_idx):
    flag = q_idx > kv_idx
    return flag + flag * 2 - (-flag) + (+flag) + flag / 2 + flag // 1 + flag % 2 + (flag << 2) + score * flag


@mod
def float_floor_and_modulo(score, b, h, q_idx, kv_idx):
    return score // 0.75 + score % -0.75 + (q_idx - kv_idx) // 1.5 + divmod(kv_idx - q_idx, 3)[1]


@mod
def int_division_by_both_signs(score, b, h, q_idx, kv_idx):
    d = q_idx - kv_idx
    return d // 3 * 100 + d % 3 * 10 + d // -3 + d % -3 * 0.1 + 7 // (h + 1) + -7 % (h + 1) + 8 // -4


@mod
def powers(score, b, h, q_idx, kv_idx):
    d = q_idx - kv_idx
    return d**2 + d**3 + d**0 + 2.0**h + 0.5**h + abs(score) ** 0.5 + (h + 1) ** -1 + pow(score, 2) + (d * d) ** 1.5


@mod
def integers_stay_integers(score, b, h, q_idx, kv_idx):
    return (q_idx**2 + 1) // 2 % 3 + (q_idx & kv_idx | 4) + (h ^ 1) + (~q_idx) + (kv_idx << h) + (kv_idx >> 1)


@mod
def bool_bit_operations(score, b, h, q_idx, kv_idx):
    p, q = q_idx > 2, kv_idx > 2
    return (p & q) + 2 * (p | q) + 4 * (p ^ q) + ((p & 1) << 3)


@mod
def chained_comparison(score, b, h, q_idx, kv_idx):
    return (0 < q_idx <= 5 != kv_idx) + 2 * (1 < h < 3 < q_idx) + 4 * (1 < 2 < h) + 8 * (2 < 1 < h)


@mod
def chained_comparison_assigns_between(score, b, h, q_idx, kv_idx):
    limit = 0
    inside = 0 < (d := q_idx - kv_idx) < (limit := 4)
    return d * 10 + limit + inside


@mod
def int_against_float(score, b, h, q_idx, kv_idx):
    return (q_idx < 2.5) + 2 * (q_idx >= 1e10) + 4 * (q_idx == 2.0) + 8 * (kv_idx < 2.5) + 16 * (q_idx != 0.5)


@mod
def too_large_integers_against_floats(score, b, h, q_idx, kv_idx):
    return (score < 10**12) + 2 * (q_idx < 2**40) + 4 * (kv_idx < -(2**40)) + score * 10**10 / 10**10


@mod
def equality_with_other_kinds(score, b, h, q_idx, kv_idx):
    return (q_idx == "a") + 2 * (q_idx != None) + 4 * (score is None) + 8 * (h is not None)


# ---- logic ---------------------------------------------------------------------------------------------------


@mod
def and_or_return_operands(score, b, h, q_idx, kv_idx):
    return (q_idx and kv_idx) + 10 * (q_idx or kv_idx) + 100 * ((h and b) or q_idx) + (score and 2.5)


@mod
def and_or_with_constants(score, b, h, q_idx, kv_idx):
    return (True and q_idx) + (0 or kv_idx) + (None or h) + ("" or 1) + (q_idx and 3) + (([] and q_idx) or 2)


@mod
def not_of_numbers(score, b, h, q_idx, kv_idx):
    return (not q_idx) + 2 * (not score) + 4 * (bool(kv_idx)) + 8 * (not []) + 16 * (not None)


@mod
def guarded_walrus(score, b, h, q_idx, kv_idx):
    d = -1
    if q_idx > 2 and (d := q_idx - kv_idx) > 1:
        return d * 1.0
    return d + 100.0


@mod
def conditional_expression_nests(score, b, h, q_idx, kv_idx):
    return 1 if q_idx > 3 else 2.5 if kv_idx > 3 else (h > 1)


@mod
def any_all_sum(score, b, h, q_idx, kv_idx):
    hits = [q_idx == i for i in range(3)]
    return any(hits) + 2 * all(q_idx >= i for i in range(2)) + 4 * sum(hits) + any([]) + all([]) + sum([], 0.5)


# ---- statements ----------------------------------------------------------------------------------------------


@mod
def early_returns(score, b, h, q_idx, kv_idx):
    if q_idx == kv_idx:
        return 0.0
    if q_idx < kv_idx:
        if h == 0:
            return 1.0
        score = score + 1
    elif h == 3:
        return score * 2
    else:
        score -= h
    return score


@mod
def if_else_both_return(score, b, h, q_idx, kv_idx):
    if q_idx > kv_idx:
        if h > 1:
            return 1
        else:
            return 2
    else:
        return score


@mod
def elif_chain_merges(score, b, h, q_idx, kv_idx):
    if h == 0:
        a, c = 1, 2.0
    elif h == 1:
        a, c = q_idx, kv_idx
    elif h == 2:
        a = c = True
    else:
        a, c = score, 0
    return a * 10 + c


@mod
def merged_containers(score, b, h, q_idx, kv_idx):
    if q_idx > 2:
        pair, xs, table = (1, score), [q_idx, 2], {"a": h, "b": (1, 2)}
    else:
        pair, xs, table = (h, 2.0), [3, kv_idx], {"a": 0.5, "b": (b, kv_idx)}
    return pair[0] + pair[1] + xs[0] * xs[1] + table["a"] + table["b"][1]


@mod
def for_with_symbolic_break(score, b, h, q_idx, kv_idx):
    n = 0
    for i in range(6):
        if i == q_idx:
            break
        if i + h == kv_idx:
            continue
        n += i + 1
    return n


@mod
def for_with_symbolic_return(score, b, h, q_idx, kv_idx):
    total = 0
    for i in range(5):
        if i > q_idx:
            return total * 100
        if (i + kv_idx) % 3 == 0:
            continue
        total += i + h
    return total


@mod
def break_continue_and_return_in_one_loop(score, b, h, q_idx, kv_idx):
    x = 0
    for i in range(6):
        x += 1
        if i == q_idx:
            continue
        x += 10
        if i == kv_idx:
            break
        if i == h + 3:
            return -x
        x += 100
    return x


@mod
def nested_loops(score, b, h, q_idx, kv_idx):
    count = 0
    for i in range(4):
        for j in range(4):
            if i * j > q_idx:
                break
            if i + j == kv_idx:
                continue
            count += 1
        else:
            count += 100
        if i == h:
            break
    return count


@mod
def for_else(score, b, h, q_idx, kv_idx):
    for i in range(4):
        if i == q_idx:
            break
    else:
        i = 50
    for j in []:
        pass
    else:
        i += 1000
    return i


@mod
def for_else_that_returns(score, b, h, q_idx, kv_idx):
    for i in range(3):
        if i == h:
            found = i * 10
            break
    else:
        return -1.0
    return found + score


@mod
def while_with_concrete_condition(score, b, h, q_idx, kv_idx):
    i, total = 0, 0
    while i < 5:
        i += 1
        if i == 3:
            continue
        total += i * q_idx
        if kv_idx == i:
            break
    else:
        total += 0.5
    return total


@mod
def while_true_with_concrete_break(score, b, h, q_idx, kv_idx):
    i = 0
    while True:
        i += 1
        if i > 4:
            break
    return i + q_idx


@mod
def every_lane_leaves_the_loop(score, b, h, q_idx, kv_idx):
    for i in range(9):
        if q_idx > i:
            x = i
            break
        else:
            return -1
    return x + h


@mod
def unpacking(score, b, h, q_idx, kv_idx):
    first, *middle, last = [q_idx, kv_idx, h, b]
    (x, y), [z] = (first, last), [score]
    *rest, w = middle
    first, last = last, first
    return x * 1000 + y * 100 + z + sum(rest) * 10 + w + first - last


@mod
def augmented_assignments(score, b, h, q_idx, kv_idx):
    xs = [q_idx, 2, 3]
    xs[0] += h
    xs[-1] *= xs[0]
    ys = xs
    xs += [kv_idx]
    table = {"a": 1}
    table["a"] -= score
    n = 7
    n //= 2
    n <<= 1
    n |= 1
    n ^= 2
    n %= 5
    n **= 2
    return sum(ys) + table["a"] + n + len(ys)


@mod
def annotated_and_multiple_targets(score, b, h, q_idx, kv_idx):
    x: float = score
    y: int
    y = z = q_idx
    return x + y * z


@mod
def lists_grow(score, b, h, q_idx, kv_idx):
    xs = []
    for i in range(3):
        xs.append(q_idx + i)
    xs.extend((kv_idx, h))
    xs.insert(0, b)
    last = xs.pop()
    ys = list(xs)
    ys.reverse()
    return sum(ys) + last * 10 + ys[0] * 100 + xs[1:3][1] + len([*ys, *xs])


@mod
def lists_grow_inside_a_branch(score, b, h, q_idx, kv_idx):
    if q_idx > 2:
        xs = [score]
        xs.append(1.0)
        total = sum(xs)
    else:
        total = 0
    return total


@mod
def dicts(score, b, h, q_idx, kv_idx):
    d = {"a": q_idx, **{"b": kv_idx}}
    d["c"] = h
    d.update({"e": 1})
    d.setdefault("f", score)
    x = d.pop("e")
    total = sum(d.values()) + d.get("z", 5) + d.get("a") * 10 + x + len(d)
    for key, value in d.items():
        total += value * len(key)
    return total + ("a" in d) + ("zz" in d)


@mod
def comprehensions(score, b, h, q_idx, kv_idx):
    grid = [i * q_idx + j for i in range(3) for j in range(i) if j != 1]
    table = {i: i * kv_idx for i in range(3)}
    odd = {i % 2 for i in range(4)}
    return sum(grid) + table[2] + len(odd) + sum(x for x in [h, b]) + max([i + h for i in range(2)])


@mod
def comprehension_scopes(score, b, h, q_idx, kv_idx):
    i = 100
    xs = [(last := i + q_idx) for i in range(3)]
    ys = [i for i in [i]]
    return i + last * 1000 + xs[0] + ys[0]


@mod
def side_values_in_any(score, b, h, q_idx, kv_idx):
    found = any((hit := i) == 2 for i in range(4))
    return hit * 10 + found + q_idx


@mod
def membership(score, b, h, q_idx, kv_idx):
    return (
        (q_idx in (1, 5, 7))
        + 2 * (kv_idx not in [3, h])
        + 4 * (q_idx in range(1, 6, 2))
        + 8 * (q_idx in range(6, 0, -3))
        + 16 * (kv_idx in range(2, 5))
        + 32 * (kv_idx in {1, 4})
        + 64 * (h in ())
        + 128 * (2 in (1, 2))
        + 256 * ("a" in "abc")
        + 512 * (score in range(4))
        + 1024 * (score in range(0))
    )


@mod
def comparing_tuples(score, b, h, q_idx, kv_idx):
    return ((q_idx, h) == (1, 2)) + 2 * ((q_idx, h) != (kv_idx, 0)) + 4 * ((1, 2) == (1, 2)) + 8 * ([h] == [h, h])


@mod
def concrete_conditions(score, b, h, q_idx, kv_idx):
    if 0:
        return "never"
    if [1] and "x":
        score += 1
    while False:
        pass
    assert True, "fine"
    return score if 1 else None


@mod
def pass_docstring_and_statement_expressions(score, b, h, q_idx, kv_idx):
    """A docstring."""
    pass
    q_idx + 1
    ...
    return score


# ---- functions -----------------------------------------------------------------------------------------------


@mod
def local_functions(score, b, h, q_idx, kv_idx):
    def near(x, width=2, *, scale=1.0):
        if x < width:
            return scale
        return 0.25

    def twice(f, x):
        return f(x) + f(x, 4)

    def nothing():
        pass

    add = lambda x, y=1: x + y + h
    return near(abs(q_idx - kv_idx)) + near(q_idx, scale=3.0) + twice(near, kv_idx) + add(1) + (nothing() is None)


@mod
def arguments_of_every_sort(score, b, h, q_idx, kv_idx):
    def f(x, /, y, *more, key, other=2, **rest):
        return x + 10 * y + 100 * sum(more) + 1000 * key + other * 0.5 + sum(rest.values()) * 0.25

    return f(1, 2, *[h, 3], key=q_idx, **{"extra": kv_idx, "other": b}) + f(h, y=1, key=0)


@mod
def closures_bind_late(score, b, h, q_idx, kv_idx):
    fs = [lambda: i * q_idx for i in range(3)]
    gs = [lambda i=i: i * q_idx for i in range(3)]
    x = 1
    late = lambda: x
    x = kv_idx
    return fs[0]() + 10 * gs[1]() + late()


@mod
def recursion_with_concrete_depth(score, b, h, q_idx, kv_idx):
    def power(x, n):
        return 1 if n == 0 else x * power(x, n - 1)

    def halve(x, n):
        if n == 0:
            return x
        if x % 2 == 0:
            return halve(x // 2, n - 1)
        return x

    return power(h, 3) + halve(q_idx, 4)


@mod
def partials_and_maps(score, b, h, q_idx, kv_idx):
    def f(x, y, z=0):
        return x - y * 2 + z

    half = functools.partial(f, h, z=3)
    mapped = list(map(lambda x: x * x, [q_idx, kv_idx]))
    kept = list(filter(lambda i: i % 2, range(5)))
    folded = functools.reduce(lambda x, y: x * 2 + y, [q_idx, h, 1])
    return half(kv_idx) + sum(mapped) + sum(kept) + folded + functools.reduce(operator.add, [b, h])


@mod
def decorated_inside(score, b, h, q_idx, kv_idx):
    def doubled(f):
        return lambda x: 2 * f(x)

    @doubled
    @doubled
    def g(x):
        return x + h

    return g(q_idx)


@mod
def iteration_tools(score, b, h, q_idx, kv_idx):
    total = 0
    for i, (x, y) in enumerate(zip([q_idx, kv_idx], (1, 2), strict=True)):
        total += i * x + y
    for i, j in itertools.product(range(2), range(3)):
        total += (i * 3 + j == q_idx) * (i + 1)
    for x in reversed([h, b]):
        total = total * 2 + x
    iterator = iter([q_idx, 5])
    return total + next(iterator) + sum(itertools.chain([h], (b,))) + sorted([3, 1, 2])[0]


Point = namedtuple("Point", "x y")


@dataclass
class Window:
    left: Any
    right: Any = 2

    def covers(self, d):
        return -self.right <= d <= self.left


@mod
def records(score, b, h, q_idx, kv_idx):
    p = Point(q_idx, y=kv_idx)
    w = Window(h)
    x, y = p
    return p.x * 10 + p[1] + w.left + w.covers(x - y) * 100


@mod
def builtins_of_numbers(score, b, h, q_idx, kv_idx):
    d = q_idx - kv_idx
    return (
        abs(d) + min(q_idx, kv_idx, 3) * 2 + max([h, b]) + round(score) + int(score) + float(d) + bool(d)
        + int(d > 0) + int("7") + float("1.5") + round(2.567, 1) + isinstance(d, int)
        + 2 * isinstance(score, (int, str))
        + (type(d) is int) + 2 * (type(score) is float) + min(score, 1) + max(1.5, score, h)
    )  # fmt: skip


@mod
def math_functions(score, b, h, q_idx, kv_idx):
    x = abs(score) + 0.5
    return (
        math.exp(-x) + math.log(x) + math.log(x, 2) + math.log2(x) + math.log10(x) + math.log1p(x) + math.sqrt(x)
        + math.sin(x) + math.cos(x) + math.tan(x) + math.tanh(x) + math.sinh(x) + math.cosh(x) + math.atan(x)
        + math.asinh(x) + math.acosh(x + 1) + math.atanh(x / 9) + math.asin(x / 9) + math.acos(x / 9) + math.erf(x)
        + math.atan2(score, x) + math.fabs(score) + math.pow(x, 1.5) + math.floor(score) + math.ceil(score)
        + math.trunc(score) + math.isnan(score) + math.isinf(score) + math.isfinite(score) + math.degrees(x) / 9
        + math.radians(x) + math.copysign(2, score) + math.expm1(x) + math.fmod(score, 0.75) + math.hypot(x, q_idx)
        + math.prod([x, q_idx, 2]) + math.pi + math.floor(2.5) + math.gcd(4, 6) + math.copysign(1.0, -0.0)
    )  # fmt: skip


@mod
def array_functions(score, b, h, q_idx, kv_idx):
    score, b, h, q_idx = mx.array(score), mx.array(b), mx.array(h), mx.array(q_idx)
    x = mx.abs(score) + 0.5
    y = mx.where(q_idx > 2, mx.exp(-x), mx.rsqrt(x)) + mx.sigmoid(score) + mx.maximum(score, 0) + mx.minimum(h, 1.5)
    y += mx.clip(score, -1, 1) + mx.sign(score) + mx.square(h) + mx.reciprocal(x) + mx.logaddexp(score, 1.0)
    y += mx.floor(score) + mx.ceil(score) + mx.round(score) + mx.erf(score) + mx.arctan2(score, x)
    y += mx.remainder(q_idx, 3) + mx.floor_divide(q_idx, 2) + mx.power(x, 2) + mx.divide(h, 2) + mx.negative(h)
    # Sums of bools are ints in a mod, as in Python; MLX's own would stay bool.
    y += 1.0 * mx.logical_and(h, b) + 1.0 * mx.logical_or(h, b) + mx.logical_not(h) + mx.bitwise_and(q_idx, 3)
    y += mx.left_shift(h, 1) + mx.right_shift(q_idx, 1) + 1.0 * mx.isnan(score) + mx.isposinf(score)
    y += mx.degrees(score) * 0.01 + mx.equal(h, b)
    y += mx.greater_equal(h, 2)
    y += mx.isinf(score) + 2 * mx.isneginf(score)
    y += mx.add(h, 1) - mx.subtract(q_idx, 1) + mx.multiply(h, 2) + mx.zeros_like(score) + mx.ones_like(h)
    return y + mx.array(0.5) + mx.stop_gradient(score) + mx.exp(0.0) + mx.divmod(q_idx, 2)[0]


@mod
def numpy_functions(score, b, h, q_idx, kv_idx):
    y = np.rint(score) + np.tanh(score) + np.exp2(score) + np.float32(0.25) + np.where(q_idx > 2, h, score)
    y += np.trunc(score) + np.mod(q_idx, 3) + np.true_divide(h, 2) + np.hypot(score, 1) + np.fmod(score, 0.75)
    y += np.logical_xor(h, b) + np.invert(q_idx) + np.invert(h > b) + np.sign(score)
    return y + np.float32(h) + np.int32(score) + np.pi


@mod
def methods_of_numbers(score, b, h, q_idx, kv_idx):
    x = mx.array(score)
    return mx.abs(x).sqrt() + x.astype(mx.int32) + mx.array(h).astype(mx.float32) + x.ndim + x.size + len(x.shape)


@mod
def casts_to_types(score, b, h, q_idx, kv_idx):
    x, n = mx.array(score), mx.array(q_idx)
    return n.astype(mx.bool_) + x.astype(mx.int32) + (x.dtype == mx.float32) + 2 * (n.dtype == mx.int32)


@mod
def operator_functions(score, b, h, q_idx, kv_idx):
    return operator.add(h, 1) + operator.mul(q_idx, 2) + operator.floordiv(q_idx, 2) + operator.lt(h, 2)


@mod
def list_indexed_by_symbol(score, b, h, q_idx, kv_idx):
    local = [0.5, score, q_idx, 4]
    return local[h] + (10, 20)[b] + [1, 2, 3][-1 - b] + [[1, 2], [3, h]][1][b]


@mod
def strings(score, b, h, q_idx, kv_idx):
    names = "a,b".split(",")
    label = f"{names[0]!r:>5}{1.5:.2f}{names}"
    print(f"{h}", label + str(q_idx))
    return score + len(names) + ("b" in names) + {"x": 1}[f"{'x'}"] + len("-".join(names)) + label.startswith("  ")


@mod
def imports_inside(score, b, h, q_idx, kv_idx):
    import math as m
    import os.path
    from math import sqrt

    return m.exp(-abs(score)) + sqrt(h) + len(os.path.sep)


@mod
def infinities(score, b, h, q_idx, kv_idx):
    return score if q_idx >= kv_idx else float("-inf") if h else -math.inf


@mod
def mask_from_score_like_values(b, h, q_idx, kv_idx):
    return q_idx - kv_idx


@mod
def mask_of_and_or(b, h, q_idx, kv_idx):
    return (q_idx >= kv_idx and q_idx - kv_idx < 4) or h == 3 or not kv_idx


@pytest.mark.parametrize("function", MODS, ids=lambda f: f.__name__)
def test_agrees_with_python(function: Callable[..., Any]) -> None:
    agrees(function)


# ---- kinds of callables --------------------------------------------------------------------------------------


def plain(score, b, h, q_idx, kv_idx):
    return score + h


def shifted(offset, score, b, h, q_idx, kv_idx, *, scale=1.0, table=(1, 2)):
    return score * scale + offset + table[0] * h


def with_star(*args):
    score, _b, h, *_ = args
    return score + h


def with_defaults(score, b, h, q_idx, kv_idx, slope=0.5, biases=mx.array([1.0, 2.0, 3.0, 4.0])):
    return score + slope * kv_idx + biases[h]


class Bias:
    scale = 2.0

    def __init__(self, offset: float) -> None:
        self.offset = offset
        self.__hidden = 0.25

    def __call__(self, score, b, h, q_idx, kv_idx):
        return score + self.offset * self.weight(h) + self.hidden

    @property
    def hidden(self):
        return self.__hidden

    def weight(self, h):
        return h * self.scale + self.__hidden

    def method(self, score, b, h, q_idx, kv_idx):
        return self(score, b, h, q_idx, kv_idx) * 2

    @staticmethod
    def static(score, b, h, q_idx, kv_idx):
        return score - h

    @classmethod
    def of_class(cls, score, b, h, q_idx, kv_idx):
        return score * cls.scale


class Steeper(Bias):
    def weight(self, h):
        return super().weight(h) if False else h * 3


@functools.lru_cache
def cached_helper(n):
    return n * 2


def uses_cached(score, b, h, q_idx, kv_idx):
    return score + cached_helper(h) + cached_helper(3)


def logged(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


@logged
@logged
def wrapped(score, b, h, q_idx, kv_idx):
    return score - kv_idx


@flex.score_mod
def decorated(score, b, h, q_idx, kv_idx):
    return score * 3


@flex.mask_mod
def decorated_mask(b, h, q_idx, kv_idx):
    return q_idx >= kv_idx


def uses_decorated(score, b, h, q_idx, kv_idx):
    return decorated(score, b, h, q_idx, kv_idx) if decorated_mask(b, h, q_idx, kv_idx) else 0.0


CALLABLES: dict[str, tuple[Any, tracer.Kind]] = {
    "function": (plain, "score_mod"),
    "lambda": (lambda b, h, q_idx, kv_idx: q_idx > kv_idx, "mask_mod"),
    "partial": (functools.partial(shifted, 2), "score_mod"),
    "partial with keywords": (functools.partial(shifted, 1.5, scale=0.5, table=[3.0]), "score_mod"),
    "partial of partial": (functools.partial(functools.partial(shifted, scale=4), 0.5), "score_mod"),
    "partial of method": (functools.partial(Bias(2.0).method), "score_mod"),
    "star": (with_star, "score_mod"),
    "defaults": (with_defaults, "score_mod"),
    "callable object": (Bias(1.5), "score_mod"),
    "method": (Bias(0.5).method, "score_mod"),
    "overriding method": (Steeper(0.5).method, "score_mod"),
    "static method": (Bias.static, "score_mod"),
    "class method": (Bias.of_class, "score_mod"),
    "cached": (uses_cached, "score_mod"),
    "wrapped twice": (wrapped, "score_mod"),
    "decorated inside": (uses_decorated, "score_mod"),
    "decorated itself": (decorated, "score_mod"),
}


@pytest.mark.parametrize("name", CALLABLES)
def test_callables(name: str) -> None:
    function, kind = CALLABLES[name]
    agrees(function, kind)
    assert not tracer.trace(function, kind).volatile


class Base:
    def __init__(self, scale):
        self.scale = scale

    def mod(self, score, b, h, q_idx, kv_idx):
        return score * self.scale - h


class Middle(Base):
    def mod(self, score, b, h, q_idx, kv_idx):
        return super().mod(score, b, h, q_idx, kv_idx) + kv_idx

    @classmethod
    def of_class(cls, score, b, h, q_idx, kv_idx):
        return score - super().__name__ if False else score - len(cls.__mro__)


class Last(Middle):
    def mod(this, score, b, h, q_idx, kv_idx):  # Python takes the first argument, whatever its name
        if kv_idx > q_idx:
            score = score * 2
        return super().mod(score, b, h, q_idx, kv_idx)


@pytest.mark.parametrize("function", [Middle(0.5).mod, Last(2.0).mod, Last.of_class], ids=lambda f: f.__qualname__)
def test_super_without_arguments(function: Any) -> None:
    agrees(function, "score_mod")


def test_super_follows_the_instance_of_each_call() -> None:
    layer = Last(2.0)
    mod = flex.score_mod(layer.mod)
    assert mod.bind().numbers.count(2.0) == 1
    layer.scale = 3.0
    assert mod.bind().numbers.count(3.0) == 1 and 2.0 not in mod.bind().numbers


def test_a_method_decorated_in_its_class() -> None:
    class Model:
        slope = 0.5

        @flex.score_mod
        def bias(self, score, b, h, q_idx, kv_idx):
            return score - self.slope * kv_idx

    model = Model()
    assert repr(model.bias.expr) == "score - (number0 * float(kv_idx))"


# ---- random control flow -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_random_control_flow(seed: int) -> None:
    writer = Writer(seed)
    body = [*writer.block(3, "        "), *writer.block(3, "        ")]
    head, tail = (
        ["def mod(score, b, h, q_idx, kv_idx):", "    def f(x, y):"],
        "    return f(q_idx, kv_idx) + f(h, 1) * 0.001",
    )
    source = "\n".join([*head, *body, "        return x * 7 + y", tail])
    function = define(source, "mod")
    got = traced(function, score=(0.0,), b=(0,), h=(0, 1))
    np.testing.assert_allclose(got, called(function, score=(0.0,), b=(0,), h=(0, 1)), rtol=1e-6, err_msg=source)


# ---- cost ----------------------------------------------------------------------------------------------------


def sequential_ifs(count: int) -> Callable[..., Any]:
    lines = ["def several(score, b, h, q_idx, kv_idx):"]
    for i in range(count):
        lines += [f"    if (q_idx + {i}) % 7 == h:", f"        score = score * 1.01 + {i}", "    else:"]
        lines += [f"        score = score - {i}"]
    return define("\n".join([*lines, "    return score"]), "several")


def define(source: str, name: str, **names: Any) -> Any:
    import linecache

    filename = f"<defined {name} {id(names)}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    exec(compile(source, filename, "exec"), names)
    return names[name]


def test_forty_sequential_ifs_are_linear() -> None:
    function = sequential_ifs(40)
    expr = tracer.trace(function, "score_mod").expr
    ten, forty = (steps(functools.partial(tracer.trace, sequential_ifs(n), "score_mod")) for n in (10, 40))
    assert forty < 4.5 * ten
    assert sum(1 for _ in walk(expr)) < 40 * 12
    agrees(function, score=(0.5,), b=(0,))


def test_forty_early_returns_are_linear() -> None:
    lines = ["def forty(score, b, h, q_idx, kv_idx):"]
    for i in range(40):
        lines += [f"    if q_idx * {i} == kv_idx + {i}:", f"        return score + {i}"]
    function = define("\n".join([*lines, "    return 0.0"]), "forty")
    assert sum(1 for _ in walk(tracer.trace(function, "score_mod").expr)) < 40 * 12
    agrees(function, score=(0.5,), b=(0,), h=(0,))


def test_a_loop_of_2000_operations_does_not_nest() -> None:
    def long(score, b, h, q_idx, kv_idx):
        for i in range(1000):
            score = score * 0.999 + (i * q_idx) % 5
        return score

    trace = tracer.trace(long, "score_mod")
    agrees(long, score=(0.5,), b=(0,), h=(0,), kv_idx=(0,))
    for language in (tracer.CPP, tracer.METAL, tracer.PYTHON):
        emitted = tracer.emit(trace.expr, language)
        assert max(text.count("(") for text in [*emitted.statements, emitted.result]) < 60
    assert len(repr(trace.expr)) > 1000


def test_a_loop_with_1000_symbolic_breaks() -> None:
    def search(score, b, h, q_idx, kv_idx):
        for i in range(1000):
            if i == q_idx:
                break
        return i

    assert traced(search, "score_mod")[0, 0, 0, 3, 0] == 5


def test_a_sum_of_400_terms_in_one_expression() -> None:
    terms = " + ".join(f"{i} * q_idx" for i in range(400))
    function = define(f"def long(score, b, h, q_idx, kv_idx):\n    return {terms}\n", "long")
    assert traced(function, "score_mod")[0, 0, 0, 1, 0] == sum(range(400))


def test_large_expressions_are_freed_without_recursion() -> None:
    from flextrace.tracer.expr import node as expr

    def chain(score, b, h, q_idx, kv_idx):
        for i in range(5000):
            score = score + i
        return score

    trace = tracer.trace(chain, "score_mod")
    gc.collect()
    before = len(expr._interned)
    del trace
    gc.collect()
    assert len(expr._interned) < before - 4000


def test_threads_build_identical_nodes() -> None:
    results: list[Any] = []
    barrier = threading.Barrier(8)

    def work() -> None:
        def mine(score, b, h, q_idx, kv_idx):
            x = score
            for i in range(50):
                x = x * 1.5 + (q_idx - kv_idx * i) % 11
            return x

        barrier.wait()
        results.append(tracer.trace(mine, "score_mod").expr)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8 and all(result is results[0] for result in results)


@pytest.mark.one_reader
def test_print_runs_while_tracing(capsys: pytest.CaptureFixture[str]) -> None:
    def chatty(score, b, h, q_idx, kv_idx):
        print("distance", q_idx - kv_idx)
        return score

    tracer.trace(chatty, "score_mod")
    assert capsys.readouterr().out == "distance q_idx - kv_idx\n"


def test_the_same_function_gives_the_same_node() -> None:
    assert tracer.trace(plain, "score_mod").expr is tracer.trace(plain, "score_mod").expr


def test_branches_that_differ_only_in_order_share_their_parts() -> None:
    def both(score, b, h, q_idx, kv_idx):
        if q_idx > kv_idx:
            d = abs(q_idx - kv_idx)
        else:
            d = abs(q_idx - kv_idx)
        return score + d

    expr = tracer.trace(both, "score_mod").expr
    assert not [node for node in walk(expr) if node.op == "where"]


def test_python_is_its_own_reference() -> None:
    assert called(plain, "score_mod").shape == traced(plain, "score_mod").shape
