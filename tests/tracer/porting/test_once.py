"""Random draws and clocks in a mod are refused, however they are reached; arrays drawn outside are inputs."""

from __future__ import annotations

import datetime
import functools
import os
import random
import secrets
import time
import uuid
from random import gauss as normal
from time import perf_counter as clock
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from expressions import define

from flextrace import tracer

RNG, OWN, OLD = np.random.default_rng(0), random.Random(1), np.random.RandomState(2)


def helper() -> float:
    return OWN.random()


def deeper(n: int = 3) -> float:
    return sum(helper() for _ in range(n))


class Dice(random.Random):
    """A generator of the user's own."""


class Noise:
    def __init__(self) -> None:
        self.rng = RNG

    def draw(self) -> Any:
        return self.rng.normal()


NAMES = {
    **{module.__name__: module for module in (random, secrets, os, time, uuid, datetime)},
    **{
        "mx": mx,
        "np": np,
        "RNG": RNG,
        "OWN": OWN,
        "OLD": OLD,
        "helper": helper,
        "deeper": deeper,
        "noise": Noise(),
        "dice": Dice(1),
    },
    **{"part": functools.partial(random.uniform, 0, 1), "normal": normal, "clock": clock},
    "drawn": random.random(),
    "table": mx.random.uniform(shape=(4, 4)),
}
DRAWS = """mx.random.normal() mx.random.uniform(0,1,()) mx.random.bernoulli(0.5) mx.random.key(3)[0] random.random()
random.uniform(0,1) random.randint(0,3) random.choice([1,2]) random.Random(3).random() OWN.gauss(0,1) np.random.rand()
np.random.randn() np.random.uniform() np.random.default_rng(0).random() RNG.random() RNG.integers(3) OLD.rand()
secrets.randbelow(4) secrets.randbits(8) secrets.choice([1,2]) os.urandom(1)[0] uuid.uuid4().int%7 part() normal(0,1)
dice.random() helper() deeper() deeper(2) noise.draw() sum(map(random.gauss,(0,1),(1,1)))""".split()
CLOCKS = """time.time() time.time_ns() time.perf_counter() time.monotonic() clock() datetime.datetime.now().second
datetime.date.today().day datetime.datetime.utcnow().hour""".split()


def trace(expression: str) -> tracer.Trace:
    source = f"def mod(score, b, h, q_idx, kv_idx):\n    return score + {expression}\n"
    return tracer.trace(define(source, "mod", NAMES), "score_mod")


@pytest.mark.parametrize("expression", DRAWS)
def test_a_draw_is_refused(expression: str) -> None:
    with pytest.raises(tracer.TraceError) as raised:
        trace(expression)
    assert "would be drawn once, and be the same number for the whole matrix" in raised.value.reason
    assert "flex.mods.uniform(seed, b, h, q_idx, kv_idx)" in raised.value.remedy


@pytest.mark.parametrize("expression", CLOCKS)
def test_a_clock_is_refused(expression: str) -> None:
    with pytest.raises(tracer.TraceError) as raised:
        trace(expression)
    assert "would be read once, and be the same for the whole matrix" in raised.value.reason


def test_the_line_that_draws_is_shown() -> None:
    with pytest.raises(tracer.TraceError) as raised:
        trace("deeper()")
    assert "return OWN.random()" in str(raised.value) and "return sum(helper()" in str(raised.value)


def test_what_is_drawn_outside_is_an_input() -> None:
    assert repr(trace("drawn * table[q_idx % 4, kv_idx % 4]").expr).startswith("score + (")
    assert not trace("drawn").volatile
