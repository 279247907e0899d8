"""Random smooth score_mods that capture arrays in every way -> their gradients on the cpu, against plain Python.

hypothesis writes the text of a function; what it means is what Python makes of it, whose differences are the reference
(tests/gradient_reference.py). It has no source file: it is read from its bytecode.
"""

from __future__ import annotations

import math
from typing import Any

import gradient_reference
import mlx.core as mx
import numpy as np
import pytest
import reference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import flextrace as flex

B, H, L, LK, D = 2, 2, 5, 7, 4
RNG = np.random.default_rng(0)
X, Y = RNG.integers(0, 3, L), RNG.integers(0, 2, LK)
VALUES = {
    "number": RNG.normal(size=()),
    "by_head": RNG.normal(size=(H,)),
    "by_row": RNG.normal(size=(B, L)),
    "by_key": RNG.normal(size=(LK,)),
    "by_difference": RNG.normal(size=(H, L + LK)),
    "dense": RNG.normal(size=(L, LK)),
    "dense_by_head": RNG.normal(size=(LK, H, L)),
    "table": RNG.normal(size=(3, 2)),
}
READS = (
    "number",
    "by_head[h]",
    "by_head[(h + 1) % 2]",
    "by_head[i % 2]",
    "by_row[b, i]",
    "by_row[0][abs(i - 1)]",
    "by_key[j]",
    "by_key[j // 2]",
    "by_difference[h, i - j + 7]",
    "by_difference[h][abs(i - j)]",
    "by_difference[0, i + j]",
    "by_difference[1 - h, min(abs(i - j), 3)]",
    "dense[i, j]",
    "dense_by_head[j, h, i]",
    "table[x[i], y[j]]",
    "table[x[i], h]",
)
CONDITIONS = ("i >= j", "j > 2", "(i + j) % 2 == 0", "h == 0", "abs(i - j) < 3")


def expressions() -> st.SearchStrategy[str]:
    numbers = st.sampled_from(["s", "s", "0.5", "-1.25", "2.0", "(i - j)", "h", *READS])

    def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        two = ["({} + {})", "({} - {})", "({} * {})", "({0} / (1.5 + {1} * {1}))"]
        both = st.tuples(st.sampled_from(two), inner, inner)
        one = ["math.tanh({})", "math.sin({})", "math.atan({})", "(1 / (1 + math.exp(-{})))", "(-{})"]
        one += ["math.exp(-{0} * {0})", "math.sqrt(1 + {0} * {0})", "math.log1p({0} * {0})"]
        return st.one_of(
            both.map(lambda parts: parts[0].format(*parts[1:])),
            st.tuples(st.sampled_from(one), inner).map(lambda parts: parts[0].format(parts[1])),
            st.tuples(inner, st.sampled_from(CONDITIONS), inner).map(lambda parts: "({} if {} else {})".format(*parts)),
        )

    return st.recursive(numbers, larger, max_leaves=8).map(lambda text: f"s * 0.5 + math.tanh({text}) * 3")


def function(text: str, arrays: dict[str, Any], x: Any, y: Any) -> Any:
    names: dict[str, Any] = {"math": math, "x": x, "y": y, **arrays}
    exec(f"def mod(s, b, h, i, j):\n    return {text}", names)
    return names["mod"]


def check(text: str, window: bool) -> None:
    q, k, v, d_out = (np.random.default_rng(n).normal(size=(B, H, rows, D)) for n, rows in enumerate((L, LK, LK, L)))
    watch = gradient_reference.Watch()
    watched = {name: watch(value) for name, value in VALUES.items()}
    mask = (lambda b, h, i, j: j - i < 4) if window else None
    exact = [reference.array(x) for x in (q, k, v, d_out)]
    want = gradient_reference.attention_gradients(
        *exact, score_mod=function(text, watched, X, Y), mask_mod=mask, watched=watch
    )
    arrays = [mx.array(value.astype(np.float32)) for value in VALUES.values()]
    x, y = mx.array(X), mx.array(Y)

    def out(q: mx.array, k: mx.array, v: mx.array, *given: mx.array) -> list[mx.array]:
        mod = function(text, dict(zip(VALUES, given, strict=True)), x, y)
        return [flex.flex_attention(q, k, v, mod, mask, kernel_options={"BACKEND": "cpu"})]

    inputs = [mx.array(each.astype(np.float32)) for each in (q, k, v, d_out)]
    _, got = mx.vjp(out, [*inputs[:3], *arrays], inputs[3:])
    for name, mine, gradient in zip(["q", "k", "v", *VALUES], got, [*want[:3], *want.arrays], strict=True):
        largest = max(1.0, float(np.abs(gradient).max()))
        reference.assert_close(mine, gradient, 5e-5 * largest, 5e-5, f"{text}: the gradient of {name}")


SETTINGS = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@pytest.mark.long
@settings(max_examples=300, **SETTINGS)
@given(expressions(), st.booleans())
def test_many_random_score_mods(text: str, window: bool) -> None:
    check(text, window)


def test_every_read_by_itself() -> None:
    check("s * 0.5 + math.tanh(" + " + ".join(f"0.2 * {read}" for read in READS) + ")", True)
