"""Calls of the fused Metal kernel in the simulator, with all checks on, and their comparison with float64 numpy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import reference
import zoo
from calls import attention_call, run_on

import flextrace as flex
from flextrace.kernels.simulator import SimulatorBackend, metal_kernel, recording

BARRIER = "metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);"
Shape = tuple[int, int, int, int, int, int, int, int]  # B, Hq, Lq, D, Bkv, Hkv, Lkv, Dv
SHAPES: dict[str, Shape] = {
    "ragged": (1, 2, 70, 16, 1, 2, 75, 16),
    "odd_dims": (1, 3, 20, 17, 1, 3, 33, 9),
    "gqa": (2, 6, 18, 32, 2, 2, 23, 40),
    "kv_batch_one": (3, 2, 18, 8, 1, 2, 40, 24),
    "short_q": (1, 2, 1, 64, 1, 1, 150, 64),
    "long_q": (1, 2, 140, 40, 1, 2, 7, 48),
    "one": (1, 1, 1, 1, 1, 1, 1, 1),
    "tile_edges": (1, 1, 128, 64, 1, 1, 96, 64),
    "dim_80": (1, 1, 40, 80, 1, 1, 40, 80),
    "dim_128": (1, 1, 65, 128, 1, 1, 34, 128),
    "dim_192": (1, 1, 20, 192, 1, 1, 40, 128),
    "dim_200": (1, 1, 20, 200, 1, 1, 20, 200),  # threads and elements of a tile do not divide
    "dim_256": (1, 1, 20, 256, 1, 1, 40, 250),
    "dim_512": (1, 1, 20, 512, 1, 1, 40, 512),
    "dim_520": (1, 1, 20, 40, 1, 1, 33, 520),
}
DTYPES = ("float32", "float16", "bfloat16")
ORDERS = ("forward", "reverse", "shuffled")


@functools.lru_cache(maxsize=64)
def backend(order: str = "forward") -> SimulatorBackend:
    return SimulatorBackend(functools.partial(metal_kernel, lane_order=order))


def inputs(shape: Shape, dtype: str) -> tuple[mx.array, mx.array, mx.array]:
    rng = np.random.default_rng(sum(shape))
    b, hq, lq, d, bkv, hkv, lkv, dv = shape
    sizes = ((b, hq, lq, d), (bkv, hkv, lkv, d), (bkv, hkv, lkv, dv))
    q, k, v = (mx.array(rng.normal(size=size)).astype(getattr(mx, dtype)) for size in sizes)
    return q, k, v


def mods(shape: Shape, names: tuple[str, ...], array: Callable[..., Any]) -> dict[str, Any]:
    b, hq, lq, _, _, _, lkv, _ = shape
    entries = [zoo.ZOO[name] for name in names]
    return {e.kind: e.make(b, hq, lq, lkv, np.random.default_rng(0), array) for e in entries}


def check(
    shape: Shape,
    dtype: str,
    names: tuple[str, ...] = (),
    order: str = "forward",
    block_size: Any = None,
    async_copy: bool = False,
    on: Any = None,
) -> list[Any]:
    """Run on the simulator, or the backend `on`, and compare out, lse and max_scores; the reports of the run."""
    q, k, v = inputs(shape, dtype)
    ours, plain = mods(shape, names, zoo.mx_array), mods(shape, names, reference.array)
    score = flex.score_mod(ours["score"]) if "score" in ours else None
    mask = flex.mask_mod(ours["mask"]) if "mask" in ours else None
    sizes = (shape[0], shape[1], shape[2], shape[6])
    blocks = None if block_size is None else flex.create_block_mask(mask, *sizes, BLOCK_SIZE=block_size).blocks
    bound = (None if mod is None else mod.bind() for mod in (score, mask))
    call = attention_call(q, k, v, 0.3, *bound, blocks, want_lse=True, want_max=True, async_copy=async_copy)
    with recording() as reports:
        result = run_on(backend(order) if on is None else on, call)
    exact = (np.array(x.astype(mx.float32)).astype(np.float64) for x in (q, k, v))
    want = reference.attention(*exact, plain.get("score"), plain.get("mask"), 0.3)
    tolerance = reference.tolerance(dtype)
    statistic = (tolerance.statistic_absolute, tolerance.statistic_relative)
    what = f"{shape} {dtype} {names} {order} {block_size}"
    assert result.out.dtype == q.dtype and result.lse is not None and result.max_scores is not None
    reference.assert_close(result.out, want.out, tolerance.absolute, tolerance.relative, f"out of {what}")
    reference.assert_close(result.lse, want.lse, *statistic, f"lse of {what}")
    reference.assert_close(result.max_scores, want.max_scores, *statistic, f"max of {what}")
    assert all(reports[-1].buffers[name].unwritten == 0 for name in ("out", "lse", "max_scores"))
    return reports


def broken(right: str, wrong: str, count: int = 1, kernel: str = "attention") -> SimulatorBackend:
    """The attention kernel, or the one of that name, with one occurrence of `right` replaced."""

    def factory(**definition: Any) -> Any:
        if not definition["name"].startswith(f"flextrace_{kernel}"):
            return metal_kernel(**definition)
        parts = definition["header"].split(right)
        assert len(parts) > count, right
        definition["header"] = right.join(parts[:count]) + wrong + right.join(parts[count:])
        return metal_kernel(**definition | {"name": definition["name"] + "_broken"})

    return SimulatorBackend(factory)
