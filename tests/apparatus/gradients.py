"""Calls of the Metal gradient kernels in the simulator, with all checks on, and their comparison with float64 numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import reference
import zoo
from apparatus.simulated import Shape, backend, inputs, mods
from calls import attention_call
from gradient_reference import Watch, attention_gradients
from zoo import ArrayMaker

import flextrace as flex
from flextrace.kernels.call import BackwardCall
from flextrace.kernels.metal.backward.text import KERNELS
from flextrace.kernels.simulator import Report, SimulatorBackend, metal_kernel, recording

SCALE = 0.3
# What a gradient may be off by: of the largest one, and of itself.
WORTH = {"float32": (3e-5, 3e-5), "float16": (4e-3, 4e-3), "bfloat16": (3e-2, 3e-2)}


def exact(x: mx.array) -> np.ndarray:
    return np.array(x.astype(mx.float32)).astype(np.float64)


def cotangents(shape: Shape, dtype: str) -> tuple[mx.array, mx.array, mx.array]:
    """Of out, lse and max_scores."""
    b, hq, lq, *_, dv = shape
    rng = np.random.default_rng(5)
    out, *statistics = (mx.array(rng.normal(size=size)) for size in ((b, hq, lq, dv), (b, hq, lq), (b, hq, lq)))
    return (out.astype(getattr(mx, dtype)), *(x.astype(mx.float32) for x in statistics))


def backward_call(
    shape: Shape,
    dtype: str,
    score: Any = None,
    mask: Any = None,
    plain: tuple[Any, Any] = (None, None),
    block_size: Any = None,
    statistics: bool = False,
    given: tuple[mx.array, ...] | None = None,
    wanted: bool = False,
) -> BackwardCall:
    """A call of decorated mods; `plain`: the same for the reference, which gives what the forward pass would."""
    q, k, v = inputs(shape, dtype) if given is None else given[:3]
    sizes = (shape[0], shape[1], shape[2], shape[6])
    blocks = None if block_size is None else flex.create_block_mask(mask, *sizes, BLOCK_SIZE=block_size).blocks
    call = attention_call(q, k, v, SCALE, *(None if mod is None else mod.bind() for mod in (score, mask)), blocks)
    slots = tuple(n for n in call.mods.formulas.differentiable if isinstance(call.mods.arrays[n], mx.array))
    want = reference.attention(*(exact(x) for x in (q, k, v)), *plain, SCALE)
    d_out, d_lse, d_max = cotangents(shape, dtype) if given is None else (given[3], None, None)
    return BackwardCall(
        call,
        mx.array(want.out).astype(q.dtype),
        mx.array(want.lse.astype(np.float32)),
        d_out,
        d_lse if statistics else None,
        mx.array(want.max_scores.astype(np.float32)) if statistics else None,
        d_max if statistics else None,
        slots if wanted else (),
    )


def check(
    shape: Shape,
    dtype: str = "float32",
    names: tuple[str, ...] = (),
    order: str = "forward",
    block_size: Any = None,
    statistics: bool = False,
    wanted: bool = False,
    score_of: Callable[[ArrayMaker], Any] | None = None,
    on: Any = None,
) -> list[Report]:
    """Run the gradient kernels on the simulator, or on that backend, and compare; the reports of the run. score_of:
    makes a score_mod whose arrays are made by what it is given."""
    watch = Watch()
    ours, plain = mods(shape, names, zoo.mx_array), mods(shape, names, watch)
    if score_of is not None:
        ours["score"], plain["score"] = score_of(zoo.mx_array), score_of(watch)
    score, mask = (
        wrap(ours[kind]) if kind in ours else None
        for kind, wrap in (("score", flex.score_mod), ("mask", flex.mask_mod))
    )
    both = plain.get("score"), plain.get("mask")
    call = backward_call(shape, dtype, score, mask, both, block_size, statistics, wanted=wanted)
    with recording() as reports:
        found = (on or backend(order)).backward(call)
    given = [exact(x) for x in (call.call.q, call.call.k, call.call.v, call.d_out)]
    aux = [None if x is None else exact(x) for x in (call.d_lse, call.d_max_scores)]
    want = attention_gradients(
        *given, *aux, score_mod=both[0], mask_mod=both[1], scale=SCALE, watched=watch if wanted else None
    )
    what = f"{shape} {dtype} {names} {order} {block_size}"
    pairs = [(found.q, want.q), (found.k, want.k), (found.v, want.v)]
    for (mine, true), like in zip(pairs, (call.call.q, call.call.k, call.call.v), strict=True):
        assert mine.dtype == like.dtype
        close(mine, true, dtype, what)
    for report in reports:
        outputs = [b for name, b in report.buffers.items() if name.startswith("d_")]
        assert all(b.unwritten == 0 for b in outputs if b.written)
    for slot, mine in zip(call.wanted, found.arrays, strict=True):
        array = call.call.mods.arrays[slot]
        assert mine.dtype == array.dtype
        same = [np.array_equal(each.values, exact(array)) for each in watch.arrays]
        assert same.count(True) == 1, "arrays are told apart by what they hold"
        coarser = max(dtype, str(array.dtype).removeprefix("mlx.core."), key=WORTH.__getitem__)  # out is of dtype
        close(mine, want.arrays[same.index(True)], coarser, f"slot {slot} of {what}")
    return reports


def close(mine: mx.array, true: np.ndarray, dtype: str, what: str) -> None:
    absolute, relative = WORTH[dtype]
    largest = max(1.0, float(np.abs(true).max(initial=0)))
    reference.assert_close(mine, true, absolute * largest, relative, what)


def broken(right: str, wrong: str, count: int = 1, only: tuple[str, ...] = KERNELS) -> SimulatorBackend:
    """The gradient kernels with one occurrence of `right` replaced, in those that have so many."""

    def factory(**definition: Any) -> Any:
        parts = definition["header"].split(right)
        if not definition["name"].startswith(tuple(f"flextrace_{name}" for name in only)) or len(parts) <= count:
            return metal_kernel(**definition)
        definition["header"] = right.join(parts[:count]) + wrong + right.join(parts[count:])
        return metal_kernel(**definition | {"name": definition["name"] + "_broken"})

    return SimulatorBackend(factory)
