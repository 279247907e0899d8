"""Every float function over all magnitudes of float32, in numpy and in kernels, against float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from expressions import APPROXIMATED

import flextrace as flex
from flextrace import tracer

# 8 numbers to each power of two, subnormals included, of both signs; and what lies next to 0, 1 and the ends.
POWERS = np.concatenate([np.ldexp(1 + np.arange(8) / 8, n) for n in range(-149, 128)])
EDGES = [0.0, 1.0, np.nextafter(np.float32(1), np.float32(0)), 3.4028235e38, 1.17549435e-38, math.inf]
POSITIVE = np.unique(np.float32([*POWERS, *EDGES]))
NUMBERS = np.concatenate([POSITIVE, -POSITIVE])
TABLE = mx.array(NUMBERS)
FUNCTIONS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {  # as a mod has it, in float64
    **{name: (getattr(math, name), row.f) for name, row in APPROXIMATED.items()},
    "sqrt": (math.sqrt, np.sqrt),
    "rsqrt": (mx.rsqrt, lambda x: 1 / np.sqrt(x)),
    "sigmoid": (mx.sigmoid, lambda x: 1 / (1 + np.exp(-x))),
    "exp2": (np.exp2, np.exp2),
    "square": (mx.square, lambda x: x * x),
    "reciprocal": (mx.reciprocal, lambda x: 1 / x),
    "hypot": (lambda x: math.hypot(x, x), lambda x: np.hypot(x, x)),
    "hypot of 3": (lambda x: math.hypot(x, 3.0 * x, x), lambda x: np.sqrt(11.0) * np.abs(x)),
    "hypot with 1": (lambda x: math.hypot(x, 1.0), lambda x: np.hypot(x, 1.0)),
    "hypot with nan": (lambda x: math.hypot(x, math.nan), lambda x: np.hypot(x, np.nan)),
    "logaddexp": (lambda x: mx.logaddexp(x, 1.0), lambda x: np.logaddexp(x, 1.0)),
    "logaddexp of both": (lambda x: mx.logaddexp(x, x), lambda x: np.logaddexp(x, x)),
    "root of the square": (lambda x: abs(x) ** 1.0, np.abs),
    "divided": (lambda x: x / 3.0, lambda x: x / 3.0),
}
# Where a row of APPROXIMATED says that a function is compared; elsewhere its argument is reduced too coarsely.
DOMAINS = {name: row.domain for name, row in APPROXIMATED.items()}
SLACK = {name: row.slack for name, row in APPROXIMATED.items()} | {"hypot": lambda r: 0.0}


def assert_near(name: str, got: np.ndarray, units: int = 16) -> None:
    """Within some units in the last place of float64's value, and of the allowance that the fuzz gives near 0."""
    x = NUMBERS.astype(np.float64)
    with np.errstate(all="ignore"):
        exact = np.asarray(FUNCTIONS[name][1](x), np.float64)
        want = exact.astype(np.float32)
        unit = np.spacing(np.abs(np.where(np.isfinite(want), want, 0)).astype(np.float32)).astype(np.float64)
        slack = np.array([SLACK.get(name, lambda r: 1e-37)(r) if math.isfinite(r) else 0.0 for r in exact])
        near = np.abs(got.astype(np.float64) - exact) <= units * unit + slack
    same = (got == want) | (np.isnan(got) & np.isnan(want)) | near
    same |= np.isinf(got) & (np.abs(exact) > 3.4e38)  # next to the largest number
    low, high = DOMAINS.get(name, (-math.inf, math.inf))
    wrong = ~same & ((x >= low) & (x <= high) | ~np.isfinite(x))
    if wrong.any():
        i = np.flatnonzero(wrong)[0]
        pytest.fail(f"{name}({NUMBERS[i]!r}) is {got[i]!r}, expected {exact[i]!r}; {wrong.sum()} are wrong")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_in_numpy(name: str) -> None:
    function = FUNCTIONS[name][0]
    trace = tracer.trace(lambda score, b, h, q_idx, kv_idx: function(score), "score_mod")
    assert_near(name, np.broadcast_to(tracer.evaluate(trace.expr, {"score": NUMBERS}), NUMBERS.shape))


@pytest.mark.parametrize("backend", ["cpu", "ops"])
def test_in_a_kernel(backend: str) -> None:
    """A head for each function, and one key, so that the highest score is the function's value."""
    functions = [function for function, _ in FUNCTIONS.values()]

    def each(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        x = TABLE[q_idx]
        result = x
        for i in range(len(functions)):
            if h == i:
                result = functions[i](x)
        return result

    q = mx.zeros((1, len(functions), len(NUMBERS), 1))
    k = mx.zeros((1, len(functions), 1, 1))
    aux = flex.flex_attention(
        q, k, k, score_mod=each, return_aux=flex.AuxRequest(max_scores=True), kernel_options={"BACKEND": backend}
    )[1]
    highest = np.array(aux.max_scores)[0]
    for name, got in zip(FUNCTIONS, highest, strict=True):
        exact = FUNCTIONS[name][1](NUMBERS.astype(np.float64))
        got = np.where(np.isnan(exact) | (exact == -np.inf), exact.astype(np.float32), got)
        assert_near(name, got, units=16 if backend == "cpu" else 64)  # MLX's own exp is off by 20 in places
