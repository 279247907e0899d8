"""Traces -> what the generators of all backends share: slots of two mods side by side, and what manifests say."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from flextrace.tracer import Bound, Expr, Trace
from flextrace.tracer.expr.node import rebuild

Mods = tuple[Expr | None, Expr | None]  # the expressions of a score_mod and a mask_mod


def shift_slots(expr: Expr, arrays: int, numbers: int) -> Expr:
    """The expression with its captures numbered from `arrays` and `numbers` on."""

    def shifted(node: Expr, args: Sequence[Expr]) -> Expr:
        value = node.value
        if node.op == "param":
            value = value + numbers
        elif node.op == "load":
            value = (value[0] + arrays, value[1])
        return Expr(node.op, node.dtype, tuple(args), value)

    return rebuild(expr, shifted)


def describe(mod: Trace) -> dict[str, Any]:
    """What a manifest says about a mod: name, source, expression, captured inputs."""
    return {
        "name": mod.name,
        "source": mod.source().split("\n"),
        "expression": repr(mod.expr).split("\n"),
        "arrays": [f"{a.name}: {a.element}, {a.ndim} dimensions" for a in mod.arrays],
        "numbers": [f"{n.name}: {n.dtype}" for n in mod.numbers],
    }


def expressions(score_mod: Trace | None, mask_mod: Trace | None) -> Mods:
    """What a kernel in memory is known by: expressions are interned, so equal mods share it."""
    return (None if score_mod is None else score_mod.expr, None if mask_mod is None else mask_mod.expr)


def state_in_memory(mods: Mods, loaded: Collection[Mods]) -> str | None:
    """Of loaded kernels: "memory" where one is for just these mods, "paired" where one is for a single mod and another;
    else None."""
    if mods in loaded:
        return "memory"
    return "paired" if any(None in mods and _has(pair, mods) for pair in loaded) else None


def _has(pair: Mods, mods: Mods) -> bool:
    """Whether the one mod of `mods` is in its place in `pair`."""
    return any(mod is not None and mod is found for mod, found in zip(mods, pair, strict=True))


def readable(mod: Bound, array: mx.array | np.ndarray[Any, Any]) -> mx.array:
    """A captured array for gathers. Integers beyond int32 are refused; where MLX hides the values (an array that
    mx.compile or mx.vmap replaces), they are taken modulo 2**32."""
    # A copy, because numpy calls an axis of one element contiguous whatever its stride, and MLX takes no negative ones.
    given = mx.array(np.array(array, order="C")) if isinstance(array, np.ndarray) else array
    if given.dtype in (mx.int64, mx.uint64, mx.uint32) and given.size:
        try:
            low, high = int(given.min()), int(given.max())
        except (ValueError, RuntimeError):  # MLX's refusal to evaluate inside a transformation
            return given
        if low < -(2**31) or high >= 2**31:
            raise OverflowError(
                f"{mod.trace.name}: a captured integer array holds a value outside int32, the integer type of "
                "kernels; renumber its values (for ids: the inverse of a unique) or convert it to float32"
            )
    return given
