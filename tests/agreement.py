"""The yardstick of the tracer's tests: a traced function, evaluated in numpy, against calling it in Python."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from flextrace import tracer

GRID = {
    "score": (-1.75, 0.0, 0.5, 3.25),
    "b": (0, 1),
    "h": (0, 1, 2, 3),
    "q_idx": (0, 1, 2, 5, 6),
    "kv_idx": (0, 1, 3, 4, 7),
}


def kind_of(function: Callable[..., Any]) -> tracer.Kind:
    return "score_mod" if tracer.count_parameters(function) == 5 else "mask_mod"


def traced(function: Callable[..., Any], kind: tracer.Kind | None = None, **grid: tuple[Any, ...]) -> np.ndarray:
    """The value at every point of the grid, from the expression."""
    kind = kind or kind_of(function)
    bound = tracer.Traces().bind(function, kind)
    names = list(GRID)[kind == "mask_mod" :]
    points = np.meshgrid(*((grid or GRID).get(name, GRID[name]) for name in names), indexing="ij")
    values = dict(zip(names, points, strict=True))
    arrays = [np.array(array) for array in bound.arrays]
    got = tracer.evaluate(bound.trace.expr, values, numbers=bound.numbers, arrays=arrays)
    return np.broadcast_to(got, points[0].shape)


def called(function: Callable[..., Any], kind: tracer.Kind | None = None, **grid: tuple[Any, ...]) -> np.ndarray:
    """The value at every point of the grid, from Python."""
    kind = kind or kind_of(function)
    names = list(GRID)[kind == "mask_mod" :]
    axes = [(grid or GRID).get(name, GRID[name]) for name in names]
    convert = float if kind == "score_mod" else bool
    values = [convert(function(*point)) for point in itertools.product(*axes)]
    return np.array(values).reshape([len(axis) for axis in axes])


def agrees(function: Callable[..., Any], kind: tracer.Kind | None = None, **grid: tuple[Any, ...]) -> None:
    """Fails unless the expression gives what Python gives."""
    got, want = traced(function, kind, **grid), called(function, kind, **grid)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6, err_msg=tracer.name_of(function))
