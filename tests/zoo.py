"""Plain Python -> test cases: ONE table of score mods and mask mods for every test on every backend.

Each entry builds the user's own, undecorated function; what it captures is made by `array`, so the same body
runs on `mx.array` captures in a kernel and on numpy captures in the float64 reference (tests/reference.py).

    entry = zoo.ZOO["alibi"]
    mod = entry.make(B, H, Lq, Lkv, np.random.default_rng(0))                     # captures mx.array
    plain = entry.make(B, H, Lq, Lkv, np.random.default_rng(0), reference.array)  # numpy, same numbers
    mod(0.5, b, h, q_idx, kv_idx)                                                 # Python numbers suit both

The methods are those of the literature (ALiBi arXiv:2108.12409, T5 arXiv:1910.10683, Sandwich
arXiv:2212.10356, Graphormer arXiv:2106.05234, Longformer arXiv:2004.05150, NATTEN arXiv:2204.07143,
block diffusion arXiv:2503.09573, MLA arXiv:2405.04434); the rest walks through the Python that a mod may be
written in.
Mods are continuous in the score, so that float32 and float64 agree; steps depend on indices alone.
"""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

import flextrace as flex

Mod = Callable[..., Any]
ArrayMaker = Callable[..., Any]


def mx_array(values: Any, dtype: str = "float32") -> mx.array:
    """Captures for the kernels: values of any nesting, dtype by MLX's name."""
    return mx.array(np.asarray(values)).astype(mx.bool_ if dtype == "bool" else getattr(mx, dtype))


@dataclass(frozen=True)
class Setting:
    """What an entry may use: sizes of the score matrix, random numbers, the maker of captured arrays."""

    B: int
    H: int
    Lq: int
    Lkv: int
    rng: np.random.Generator
    array: ArrayMaker

    @property
    def width(self) -> int:
        """Columns of the grid that 2-D and video masks lay the tokens on."""
        return max(2, math.isqrt(max(self.Lq, self.Lkv)))


@dataclass(frozen=True)
class Entry:
    """One mod: `kind` is "score" or "mask"; `make` returns the plain function."""

    name: str
    kind: str
    build: Callable[[Setting], Mod]

    def make(self, B: int, H: int, Lq: int, Lkv: int, rng: np.random.Generator, array: ArrayMaker = mx_array) -> Mod:
        return self.build(Setting(B, H, Lq, Lkv, rng, array))

    def __str__(self) -> str:
        return self.name


ZOO: dict[str, Entry] = {}


def entry(kind: str) -> Callable[[Callable[[Setting], Mod]], Callable[[Setting], Mod]]:
    def register(build: Callable[[Setting], Mod]) -> Callable[[Setting], Mod]:
        assert build.__name__ not in ZOO, f"two zoo entries are called {build.__name__}: rename one"
        ZOO[build.__name__] = Entry(build.__name__, kind, build)
        return build

    return register


score, mask = entry("score"), entry("mask")


def alibi_slopes(H: int) -> list[float]:
    return [2.0 ** (-8.0 * (h + 1) / H) for h in range(H)]


# --- score mods: position biases ------------------------------------------------------------------


@score
def identity(z: Setting) -> Mod:
    def mod(score, b, h, q_idx, kv_idx):
        return score

    return mod


@score
def alibi(z: Setting) -> Mod:
    slopes = z.array(alibi_slopes(z.H))

    def mod(score, b, h, q_idx, kv_idx):
        return score + slopes[h] * (kv_idx - q_idx)

    return mod


@score
def alibi_closure_number(z: Setting) -> Mod:
    slope = 0.125

    def mod(score, b, h, q_idx, kv_idx):
        return score - slope * abs(q_idx - kv_idx)

    return mod


@score
def relative_bias(z: Setting) -> Mod:
    bias = z.array(z.rng.normal(size=(z.H, z.Lq + z.Lkv)))
    middle = z.Lkv

    def mod(score, b, h, q_idx, kv_idx):
        return score + bias[h, q_idx - kv_idx + middle]

    return mod


@score
def t5_bucket_bias(z: Setting) -> Mod:
    bias = z.array(z.rng.normal(size=(32, z.H)))

    def bucket(distance):
        start = 0
        if distance > 0:
            start = 16
        distance = abs(distance)
        if distance < 8:
            return start + distance
        # The offset keeps the steps of the logarithm off the integers.
        logarithmic = 8 + int(math.log(distance / 8) / math.log(128 / 8) * 8 + 0.01)
        return start + min(logarithmic, 15)

    def mod(score, b, h, q_idx, kv_idx):
        return score + bias[bucket(kv_idx - q_idx), h]

    return mod


@score
def distance_decay(z: Setting) -> Mod:
    rate, power = 0.5, 0.75

    def mod(score, b, h, q_idx, kv_idx):
        distance = abs(q_idx - kv_idx)
        return score - rate * math.log1p(distance**power / (h + 1))

    return mod


@score
def sandwich(z: Setting) -> Mod:
    ratio, D = 4.0, 8

    def mod(score, b, h, q_idx, kv_idx):
        waves = 0.0
        for i in range(D // 2):
            waves += math.cos((q_idx - kv_idx) / 10000.0 ** (2 * i / D))
        return score + ratio * (h + 1) / z.H * (waves - D / 2)

    return mod


@score
def graphormer_spatial(z: Setting) -> Mod:
    hops = z.array(z.rng.integers(0, 6, size=(z.B, z.Lq, z.Lkv)), "uint8")
    bias = z.array(z.rng.normal(size=(z.H, 6)))

    def mod(score, b, h, q_idx, kv_idx):
        return score + bias[h, hops[b, q_idx, kv_idx]]

    return mod


@score
def graphormer_edge(z: Setting) -> Mod:
    path = z.array(z.rng.integers(0, 5, size=(z.Lq, z.Lkv, 3)), "int32")
    weight = z.array(z.rng.normal(size=(3, 5, z.H)))

    def mod(score, b, h, q_idx, kv_idx):
        edges = [weight[step, path[q_idx, kv_idx, step], h] for step in range(path.shape[-1])]
        return score + sum(edges) / len(edges)

    return mod


@score
def mla_rope(z: Setting) -> Mod:
    q_rope = z.array(0.5 * z.rng.normal(size=(z.B, z.H, z.Lq, 4)))
    k_rope = z.array(0.5 * z.rng.normal(size=(z.B, z.Lkv, 4)))

    def mod(score, b, h, q_idx, kv_idx):
        dot = 0
        for d in range(q_rope.shape[3]):
            dot = dot + q_rope[b, h, q_idx, d] * k_rope[b, kv_idx, d]
        return score + dot

    return mod


# --- score mods: functions of the score -----------------------------------------------------------


@score
def softcap(z: Setting) -> Mod:
    cap = 5.0

    def mod(score, b, h, q_idx, kv_idx):
        return cap * math.tanh(score / cap)

    return mod


@score
def softcap_array_functions(z: Setting) -> Mod:
    cap = 2

    def mod(score, b, h, q_idx, kv_idx):
        capped = cap * mx.tanh(score / cap)
        return mx.where(q_idx == kv_idx, capped, np.tanh(score))

    return mod


@score
def sigmoid_activation(z: Setting) -> Mod:
    def mod(score, b, h, q_idx, kv_idx):
        return 1 / (1 + math.exp(-score))

    return mod


@score
def relu_activation(z: Setting) -> Mod:
    def mod(score, b, h, q_idx, kv_idx):
        return max(score, 0)

    return mod


@score
def leaky_early_return(z: Setting) -> Mod:
    leak = z.array(z.rng.uniform(0.1, 0.3, size=z.H))

    def mod(score, b, h, q_idx, kv_idx):
        if score > 0:
            return score
        else:
            return leak[h] * score

    return mod


@score
def math_functions(z: Setting) -> Mod:
    def mod(score, b, h, q_idx, kv_idx):
        x = math.sin(score) + math.cos(0.5 * score) + math.atan(score) + math.erf(score)
        y = math.sqrt(1 + score * score) - math.log(2 + abs(score)) + math.exp(-abs(score))
        t = math.fabs(score) / (1 + math.fabs(score))
        u = math.asinh(score) + math.expm1(-0.1 * score * score) + math.log2(3 + t) + 2.0**-t
        return 0.25 * (x + y) + 0.125 * u + math.floor(kv_idx / 3) * math.pi / 100 + math.ceil(q_idx / 4) / 50

    return mod


@score
def powers(z: Setting) -> Mod:
    def mod(score, b, h, q_idx, kv_idx):
        smooth = (1 + score**2) ** 0.5 + pow(0.5, h)
        return smooth + (q_idx - kv_idx) ** 2 * 1e-4 - 2.0**-3 + (h + 1) ** -1

    return mod


@score
def temperature_0d(z: Setting) -> Mod:
    temperature = z.array(0.7)
    step = z.array(2, "int32")

    def mod(score, b, h, q_idx, kv_idx):
        return score * temperature + (kv_idx % step)

    return mod


# --- score mods: the Python they are written in ---------------------------------------------------


@score
def checkerboard(z: Setting) -> Mod:
    def mod(score, b, h, q_idx, kv_idx):
        return score + 0.5 if (q_idx + kv_idx) % 2 == 0 else score - 0.5

    return mod


@score
def per_head_list(z: Setting) -> Mod:
    scales = [0.5 + 0.25 * h for h in range(z.H)]

    def mod(score, b, h, q_idx, kv_idx):
        return score * scales[h]

    return mod


@score
def per_head_loop(z: Setting) -> Mod:
    scales = tuple(0.5 + 0.25 * h for h in range(z.H))

    def mod(score, b, h, q_idx, kv_idx):
        for head, scale in enumerate(scales):
            if h == head:
                return score * scale
        return score

    return mod


@score
def chained_comparison(z: Setting) -> Mod:
    def mod(score, b, h, q_idx, kv_idx):
        near = 0 <= q_idx - kv_idx < 4
        far = -9 < kv_idx - q_idx != 3 <= 7
        return score + near * 0.75 - (0.25 if far and not near else 0)

    return mod


@score
def walrus_elif_augmented(z: Setting) -> Mod:
    def mod(score, b, h, q_idx, kv_idx):
        bias = 0
        if (distance := q_idx - kv_idx) > 6:
            bias -= 1
        elif distance > 2:
            bias += 0.5
        elif (half := distance // 2) == -2 or distance == 0:
            bias, score = 0.25, score / 2
        else:
            score *= 1.25
            bias = -half / 16
        return score + bias

    return mod


@score
def builtins_min_max_abs(z: Setting) -> Mod:
    def mod(score, b, h, q_idx, kv_idx):
        low, high = min(q_idx, kv_idx, 20), max((q_idx, kv_idx))
        return min(max(score, -1.5), 1.5, 9) + abs(low - high) * 0.03 + float(low == high) + pow(h, 2) * 0.1

    return mod


@score
def floor_division_of_negatives(z: Setting) -> Mod:
    def mod(score, b, h, q_idx, kv_idx):
        d = q_idx - kv_idx
        whole = d // 3 + d % 5 + d // -4 + d % -7 + -d // 2
        return score + 0.02 * whole + (d / 8) % 1 + (d + 0.5) // 4 * 0.125 + (d - 0.25) % -3.0 * 0.1

    return mod


@score
def bit_operations(z: Setting) -> Mod:
    def mod(score, b, h, q_idx, kv_idx):
        mixed = (q_idx ^ kv_idx) & 7 | (h << 3)
        crossing = (q_idx > 3) ^ (kv_idx > 3)
        return score + mixed * 0.05 + (~kv_idx >> 2) * 0.01 + crossing + (-q_idx >> 1) * 0.01

    return mod


@score
def conversions(z: Setting) -> Mod:
    def mod(score, b, h, q_idx, kv_idx):
        whole = int(kv_idx / 4) + round(q_idx / 4 + 0.01) + int((kv_idx - q_idx) / 3)
        return score + 0.05 * whole + bool(h) * float(kv_idx > q_idx) + math.trunc(-q_idx / 5) * 0.05

    return mod


@score
def local_function_and_lambda(z: Setting) -> Mod:
    gain = 0.5

    def mod(score, b, h, q_idx, kv_idx):
        def step(distance, width=4):
            if distance < width:
                return 0.0
            return gain

        twice = lambda x: 2 * x + h  # noqa: E731
        return score - step(abs(q_idx - kv_idx)) + twice(kv_idx % 3) * 0.1

    return mod


@score
def plain_lambda(z: Setting) -> Mod:
    slopes = z.array(alibi_slopes(z.H))
    return lambda score, b, h, q_idx, kv_idx: score - slopes[h] * abs(q_idx - kv_idx)


def _biased(bias, weight, score, b, h, q_idx, kv_idx, *, offset=0.0):
    return score + weight * bias[kv_idx] + offset


@score
def partial(z: Setting) -> Mod:
    return functools.partial(_biased, z.array(z.rng.normal(size=z.Lkv)), 0.5, offset=0.25)


class Decay:
    """A callable with state, and a method that is a mod too."""

    def __init__(self, rate: float, table: Any) -> None:
        self.rate = rate
        self.table = table

    def weight(self, distance):
        return self.rate * distance

    def __call__(self, score, b, h, q_idx, kv_idx):
        return score - self.weight(abs(q_idx - kv_idx)) + self.table[h]

    def method(self, score, b, h, q_idx, kv_idx):
        return score * self.rate + self.table[h] * (kv_idx & 1)


@score
def callable_object(z: Setting) -> Mod:
    return Decay(0.125, z.array(z.rng.normal(size=z.H)))


@score
def bound_method(z: Setting) -> Mod:
    return Decay(0.5, z.array(z.rng.normal(size=z.H))).method


@score
def nested_decorated(z: Setting) -> Mod:
    slopes = z.array(alibi_slopes(z.H))

    @flex.score_mod
    def inner(score, b, h, q_idx, kv_idx):
        if kv_idx > q_idx:
            return score
        return score + slopes[h] * (kv_idx - q_idx)

    def mod(score, b, h, q_idx, kv_idx):
        return 2.0 * math.tanh(inner(score, b, h, q_idx, kv_idx) / 2.0)

    return mod


@score
def loop_with_break(z: Setting) -> Mod:
    def mod(score, b, h, q_idx, kv_idx):
        total = 0.0
        for i in range(10):
            if i % 2:
                continue
            if i > 6:
                break
            total += 0.05 * ((q_idx >> i) & 1) - 0.05 * ((kv_idx >> i) & 1)
        else:
            total = 100.0
        while i > 5:
            i -= 1
            total += 0.01 * (h == i)
        return score + total

    return mod


@score
def comprehensions(z: Setting) -> Mod:
    def mod(score, b, h, q_idx, kv_idx):
        on_diagonal = any(q_idx - kv_idx == d for d in (0, 3, -3))
        inside = all([kv_idx >= low for low in range(3)])
        ramp = sum(0.01 * i * (kv_idx % i) for i in range(1, 5) if i != 3)
        names = {name: i for i, name in enumerate("bhqk")}
        return score + ramp + (names["q"] * 0.5 if on_diagonal else 0.0) - 0.5 * inside

    return mod


@score
def configuration(z: Setting) -> Mod:
    config = {"slope": 0.125, "tables": (z.array(z.rng.normal(size=z.H)),)}
    options = types.SimpleNamespace(use_bias=True, mode="abs", bias=z.array(z.rng.normal(size=(z.H, z.Lkv))))

    def mod(score, b, h, q_idx, kv_idx, power=2, flags=(True, False)):
        assert len(config["tables"][0]) == z.H, f"one number per head, not {config['tables'][0].shape}"
        distance = abs(q_idx - kv_idx) if options.mode == "abs" else q_idx - kv_idx
        if options.use_bias and flags[0]:
            score = score + options.bias[h, kv_idx]
        return score - config["slope"] * distance + config["tables"][0][h] ** power

    return mod


@score
def default_argument_array(z: Setting) -> Mod:
    def mod(score, b, h, q_idx, kv_idx, slopes=z.array(alibi_slopes(z.H))):  # noqa: B008
        return score + slopes[h] * (kv_idx - q_idx)

    return mod


@score
def guarded_operations(z: Setting) -> Mod:
    table = z.array(z.rng.normal(size=z.Lkv))

    def mod(score, b, h, q_idx, kv_idx):
        previous = table[kv_idx - 1] if kv_idx > 0 else 0.0
        ratio = 0 if h == 0 else kv_idx // h
        inverse = 1.0 / q_idx if q_idx != 0 and q_idx % 2 == 0 else 0.0
        return score + previous + ratio * 0.02 + inverse

    return mod


@score
def infinite_pairs_and_rows(z: Setting) -> Mod:
    def mod(score, b, h, q_idx, kv_idx):
        if q_idx % 5 == 2 or (q_idx + kv_idx) % 3 == h % 3:
            return -math.inf
        return score

    return mod


@score
def causal_as_score_mod(z: Setting) -> Mod:
    def mod(score, b, h, q_idx, kv_idx):
        return score if q_idx >= kv_idx else float("-inf")

    return mod


# --- score mods: captured arrays ------------------------------------------------------------------


@score
def numpy_captures(z: Setting) -> Mod:
    single = z.rng.normal(size=(z.H, z.Lkv)).astype(np.float32)
    double = z.rng.normal(size=z.Lq)
    whole = np.arange(z.Lkv)[::-1]
    gain = np.float32(0.5)

    def mod(score, b, h, q_idx, kv_idx):
        return score + gain * single[h, kv_idx] + double[q_idx] + 0.01 * whole[kv_idx]

    return mod


@score
def negative_indices(z: Setting) -> Mod:
    table = z.array(z.rng.normal(size=(z.H, 5)))

    def mod(score, b, h, q_idx, kv_idx):
        return score + table[-1 - h, -1] + table[h, kv_idx % 3 - 3] - table[-1, -2]

    return mod


@score
def chained_indexing(z: Setting) -> Mod:
    bias = z.array(z.rng.normal(size=(z.B, z.H, z.Lkv)))
    column = z.array(z.rng.normal(size=(z.Lq, 1, 2)))

    def mod(score, b, h, q_idx, kv_idx):
        rows = bias[b]
        assert rows.ndim == 2 and rows.shape[0] == z.H
        return score + rows[h][kv_idx] + 0.5 * rows[h, 0] + column[q_idx, 0][kv_idx % 2]

    return mod


@score
def half_precision_captures(z: Setting) -> Mod:
    half = z.array(z.rng.normal(size=z.H), "float16")
    brain = z.array(z.rng.normal(size=(z.B, z.Lkv)), "bfloat16")

    def mod(score, b, h, q_idx, kv_idx):
        return score + half[h] * brain[b, kv_idx]

    return mod


@score
def integer_captures(z: Setting) -> Mod:
    long = z.array(z.rng.integers(-9, 9, size=z.Lkv), "int64")
    tiny = z.array(z.rng.integers(-128, 128, size=z.Lkv), "int8")
    byte = z.array(z.rng.integers(0, 256, size=z.Lq), "uint8")
    short = z.array(z.rng.integers(0, 999, size=z.Lq), "uint16")
    flag = z.array(z.rng.integers(0, 2, size=(z.H, z.Lkv)), "bool")

    def mod(score, b, h, q_idx, kv_idx):
        bias = long[kv_idx] // 2 * 0.1 + (tiny[kv_idx] % 7) * 0.05 + byte[q_idx] * 0.001
        if flag[h, kv_idx]:
            bias = bias + 0.5
        return score + bias + 0.001 * short[q_idx]

    return mod


@score
def integers_beyond_float32(z: Setting) -> Mod:
    # Neighbours above 2**24 are equal once rounded to float32: the captured integers must stay exact.
    base = 2**30
    stamp_q = z.array(base + np.arange(z.Lq), "int32")
    stamp_kv = z.array(base + np.arange(z.Lkv), "uint32")

    def mod(score, b, h, q_idx, kv_idx):
        same = stamp_q[q_idx] == stamp_kv[kv_idx]
        return score + (1.0 if same else 0.0) + 0.01 * (stamp_q[q_idx] - base)

    return mod


# --- masks: one sequence --------------------------------------------------------------------------


@mask
def noop(z: Setting) -> Mod:
    def mod(b, h, q_idx, kv_idx):
        return True

    return mod


@mask
def causal(z: Setting) -> Mod:
    def mod(b, h, q_idx, kv_idx):
        return q_idx >= kv_idx

    return mod


@mask
def sliding_window(z: Setting) -> Mod:
    window = 5

    def mod(b, h, q_idx, kv_idx):
        return abs(q_idx - kv_idx) <= window

    return mod


@mask
def causal_window(z: Setting) -> Mod:
    window = 7

    def mod(b, h, q_idx, kv_idx):
        return 0 <= q_idx - kv_idx < window

    return mod


@mask
def dilated_window(z: Setting) -> Mod:
    window, dilation = 12, 3

    def mod(b, h, q_idx, kv_idx):
        distance = abs(q_idx - kv_idx)
        return (distance <= window) & (distance % dilation == 0)

    return mod


@mask
def prefix_lm(z: Setting) -> Mod:
    prefix = z.array(z.rng.integers(0, z.Lkv + 1, size=z.B), "int32")

    def mod(b, h, q_idx, kv_idx):
        return kv_idx < prefix[b] or q_idx >= kv_idx

    return mod


@mask
def global_and_window(z: Setting) -> Mod:
    is_global = z.array(z.rng.random(max(z.Lq, z.Lkv)) < 0.1, "bool")
    window = 3

    def mod(b, h, q_idx, kv_idx):
        if is_global[q_idx] or is_global[kv_idx]:
            return True
        return abs(q_idx - kv_idx) <= window

    return mod


@mask
def padding_lengths(z: Setting) -> Mod:
    lengths = z.array(z.rng.integers(1, z.Lkv + 1, size=z.B), "int64")

    def mod(b, h, q_idx, kv_idx):
        return kv_idx < lengths[b]

    return mod


@mask
def random_dropout(z: Setting) -> Mod:
    seed, rate = int(z.rng.integers(1000)), 0.25

    def mod(b, h, q_idx, kv_idx):
        return q_idx == kv_idx or flex.mods.uniform(seed, b, h, q_idx, kv_idx) >= rate

    return mod


@mask
def checkerboard_heads(z: Setting) -> Mod:
    def mod(b, h, q_idx, kv_idx):
        return (q_idx + kv_idx + h) % 2 == 0

    return mod


@mask
def empty_rows(z: Setting) -> Mod:
    def mod(b, h, q_idx, kv_idx):
        return q_idx % 3 != 1 and kv_idx >= 2

    return mod


@mask
def empty(z: Setting) -> Mod:
    def mod(b, h, q_idx, kv_idx):
        return kv_idx < 0

    return mod


@mask
def random_table(z: Setting) -> Mod:
    keep = z.array(z.rng.random((z.H, z.Lq, z.Lkv)) < 0.4, "bool")

    def mod(b, h, q_idx, kv_idx):
        return keep[h, q_idx, kv_idx]

    return mod


# --- masks: packed sequences ----------------------------------------------------------------------


def _document_ids(z: Setting, length: int) -> np.ndarray:
    return np.sort(z.rng.integers(0, 4, size=(z.B, length)), axis=1)


@mask
def document_ids(z: Setting) -> Mod:
    ids = z.array(_document_ids(z, max(z.Lq, z.Lkv)), "int32")

    def mod(b, h, q_idx, kv_idx):
        return ids[b, q_idx] == ids[b, kv_idx]

    return mod


@mask
def document_offsets(z: Setting) -> Mod:
    longest = max(z.Lq, z.Lkv)
    offsets = z.array(np.sort(z.rng.integers(0, longest, size=3)), "int32")

    def document(index):
        return sum(index >= offsets[i] for i in range(len(offsets)))

    def mod(b, h, q_idx, kv_idx):
        return document(q_idx) == document(kv_idx)

    return mod


@mask
def packed_causal_document(z: Setting) -> Mod:
    longest = max(z.Lq, z.Lkv)
    ids = _document_ids(z, longest)[0]
    starts = z.array([int(np.argmax(ids == ids[i])) for i in range(longest)], "int32")

    def mod(b, h, q_idx, kv_idx):
        return kv_idx >= starts[q_idx] and kv_idx <= q_idx

    return mod


@mask
def shared_prefix(z: Setting) -> Mod:
    prefix = z.Lkv // 3
    ids = z.array(_document_ids(z, max(z.Lq, z.Lkv))[0], "uint8")

    def mod(b, h, q_idx, kv_idx):
        in_prefix = kv_idx < prefix
        same_branch = ids[q_idx] == ids[kv_idx]
        return (same_branch & (q_idx >= kv_idx)) | in_prefix

    return mod


@mask
def block_diffusion(z: Setting) -> Mod:
    block, noisy = 4, max(z.Lq, z.Lkv) // 2

    def mod(b, h, q_idx, kv_idx):
        q_clean, kv_clean = q_idx >= noisy, kv_idx >= noisy
        q_block = (q_idx - noisy if q_clean else q_idx) // block
        kv_block = (kv_idx - noisy if kv_clean else kv_idx) // block
        diagonal = q_block == kv_block and q_clean == kv_clean
        offset = q_block > kv_block and kv_clean and not q_clean
        clean_causal = q_block >= kv_block and kv_clean and q_clean
        return diagonal or offset or clean_causal

    return mod


@mask
def tree_ancestor(z: Setting) -> Mod:
    nodes = max(z.Lq, z.Lkv)
    parent = [0] + [int(z.rng.integers(0, i)) for i in range(1, nodes)]
    table = np.eye(nodes, dtype=bool)
    for i in range(1, nodes):
        table[i] |= table[parent[i]]
    ancestor = z.array(table, "bool")

    def mod(b, h, q_idx, kv_idx):
        return ancestor[q_idx][kv_idx]

    return mod


# --- masks: images and video ----------------------------------------------------------------------


@mask
def natten_2d(z: Setting) -> Mod:
    width, height, reach = z.width, -(-max(z.Lq, z.Lkv) // z.width), 1

    def mod(b, h, q_idx, kv_idx):
        q_x, q_y = q_idx % width, q_idx // width
        kv_x, kv_y = kv_idx % width, kv_idx // width
        centre_x = min(max(q_x, reach), width - 1 - reach)
        centre_y = min(max(q_y, reach), height - 1 - reach)
        return abs(centre_x - kv_x) <= reach and abs(centre_y - kv_y) <= reach

    return mod


@mask
def tiled_natten(z: Setting) -> Mod:
    width, tile, reach = z.width, 2, 2
    tiles = -(-width // tile)

    def position(index):
        number, inside = index // (tile * tile), index % (tile * tile)
        return number % tiles * tile + inside % tile, number // tiles * tile + inside // tile

    def mod(b, h, q_idx, kv_idx):
        (q_x, q_y), (kv_x, kv_y) = position(q_idx), position(kv_idx)
        return (abs(q_x - kv_x) <= reach) & (abs(q_y - kv_y) <= reach)

    return mod


@mask
def sliding_tile_2d(z: Setting) -> Mod:
    width, tile = z.width, 3

    def mod(b, h, q_idx, kv_idx):
        q_tile = (q_idx % width // tile, q_idx // width // tile)
        kv_tile = (kv_idx % width // tile, kv_idx // width // tile)
        return all(abs(q - kv) <= 1 for q, kv in zip(q_tile, kv_tile, strict=True))

    return mod


@mask
def vision_cross_attention(z: Setting) -> Mod:
    patches = max(1, z.Lkv // 4)
    first_image = z.array(np.sort(z.rng.integers(-1, 4, size=z.Lq)), "int32")

    def mod(b, h, q_idx, kv_idx):
        image = kv_idx // patches
        return image == first_image[q_idx]

    return mod


@mask
def video_heads(z: Setting) -> Mod:
    frame = z.width

    def mod(b, h, q_idx, kv_idx):
        spatial = q_idx // frame == kv_idx // frame
        temporal = q_idx % frame == kv_idx % frame
        return (spatial if h % 2 == 0 else temporal) or kv_idx < 1

    return mod


# --- masks: compositions --------------------------------------------------------------------------


def _window(b, h, q_idx, kv_idx, *, width):
    return abs(q_idx - kv_idx) < width


@mask
def and_masks(z: Setting) -> Mod:
    return flex.and_masks(causal(z), functools.partial(_window, width=6), document_ids(z))


@mask
def or_masks(z: Setting) -> Mod:
    return flex.or_masks(functools.partial(_window, width=3), empty_rows(z))


@mask
def not_mask(z: Setting) -> Mod:
    inner = flex.mask_mod(document_ids(z))
    return lambda b, h, q_idx, kv_idx: not inner(b, h, q_idx, kv_idx)


SCORE_MODS: Sequence[Entry] = tuple(e for e in ZOO.values() if e.kind == "score")
MASK_MODS: Sequence[Entry] = tuple(e for e in ZOO.values() if e.kind == "mask")
