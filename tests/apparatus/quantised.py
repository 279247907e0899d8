"""Calls of the fused kernel with int8 or smoothed keys, run on Metal's, and the same rounding in numpy beside them."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import quant_reference
import reference
import zoo
from apparatus.simulated import Shape, backend, inputs
from calls import attention_call, run_on
from reference import Array

import flextrace as flex
from flextrace.kernels import AttentionCall, QKQuant, Result, Smoothing
from flextrace.kernels.simulator import recording

Tensors = tuple[mx.array, mx.array, mx.array]
SCALE = 0.3


def biased(shape: Shape, dtype: str, bias: float = 2.0) -> Tensors:
    """Keys with a mean of their own per channel, as the method is for."""
    q, k, v = inputs(shape, dtype)
    offset = mx.array(np.random.default_rng(1).normal(size=k.shape[-1]) * bias)
    return q, (k + offset).astype(k.dtype), v


def floats(tensors: Tensors) -> list[Array]:
    return [np.array(x.astype(mx.float32)) for x in tensors]


def smoothing(k: mx.array, ids: Array | None = None, rows: Array | None = None, add_back: bool = False) -> Smoothing:
    """ids, rows: [1 or batch, length], the documents 0, 1, ... of keys and query rows."""
    values = np.array(k.astype(mx.float32))
    keys = np.zeros((1, values.shape[2]), int) if ids is None else ids
    means = np.zeros((*values.shape[:2], int(keys.max()) + 1, values.shape[3]), np.float32)
    for b in range(len(values)):
        of_batch = keys[b % len(keys)]
        for h in range(values.shape[1]):
            all_means = quant_reference.key_means(values[b, h], of_batch)
            means[b, h, of_batch] = all_means
    groups = (None if x is None else mx.array(x.astype(np.int32)) for x in (ids, rows))
    return Smoothing(mx.array(means), *groups, add_back)


QUANTS = {
    "block": QKQuant("block"),
    "row": QKQuant("row"),
    "odd_blocks": QKQuant("block", q_block=33, k_block=10),
    "smooth_q": QKQuant("block", smooth_q=True),
    "row_smooth_q": QKQuant("row", smooth_q=True, q_block=20),
    "odd_smooth_q": QKQuant("block", smooth_q=True, q_block=9, k_block=50),
    "no_smoothing": QKQuant("block", smooth_k=False, smooth_q=True),
}
MODS = {"alibi": False, "relative_bias": False, "softcap": True, "sigmoid_activation": True}  # name: add_back
MASKS = ("causal", "checkerboard_heads", "empty_rows", "padding_lengths")


def made(name: str, shape: Shape) -> list[Any]:
    """A mod of the zoo for the kernel, and for numpy."""
    sizes, rng = (shape[0], shape[1], shape[2], shape[6]), np.random.default_rng
    return [zoo.ZOO[name].make(*sizes, rng(3), array) for array in (zoo.mx_array, reference.array)]


def call_of(
    tensors: Tensors,
    quant: QKQuant | None,
    smooth: Smoothing | None,
    score_mod: Any = None,
    mask_mod: Any = None,
    block_size: Any = None,
    **asked: Any,
) -> AttentionCall:
    """A call that wants all results."""
    score = None if score_mod is None else flex.score_mod(score_mod).bind()
    mask = None if mask_mod is None else flex.mask_mod(mask_mod)
    sizes = (*tensors[0].shape[:3], tensors[1].shape[2])
    blocks = None if block_size is None else flex.create_block_mask(mask, *sizes, BLOCK_SIZE=block_size).blocks
    asked |= {"quant": quant, "smoothing": smooth, "want_lse": True, "want_max": True}
    return attention_call(*tensors, SCALE, score, None if mask is None else mask.bind(), blocks, **asked)


def run(
    tensors: Tensors,
    quant: QKQuant | None,
    smooth: Smoothing | None,
    score_mod: Any = None,
    mask_mod: Any = None,
    order: str = "forward",
    block_size: Any = None,
    async_copy: bool = False,
) -> Result:
    call = call_of(tensors, quant, smooth, score_mod, mask_mod, block_size, async_copy=async_copy)
    with recording() as reports:
        result = run_on(backend(order), call)
    assert all(reports[-1].buffers[name].unwritten == 0 for name in ("out", "lse", "max_scores"))
    return result


def relative_l1(got: mx.array, exact: Array) -> float:
    return quant_reference.figures(np.array(got.astype(mx.float32)), exact).relative_l1


# A few elements lie so near the middle of two whole numbers that MLX rounds them the other way than numpy.
OUT = {"float32": 3e-4, "float16": 1e-3, "bfloat16": 6e-3}


def compare(
    tensors: Tensors, result: Result, quant: QKQuant, smooth: Smoothing | None, score: Any = None, mask: Any = None
) -> None:
    """A result beside what the rounding of numpy gives; score and mask are called with Python numbers."""
    documents = [
        None if x is None else np.array(x) for x in (smooth and smooth.row_groups, smooth and smooth.key_groups)
    ]
    add_back = smooth is not None and smooth.add_back
    want = quant_reference.attention(*floats(tensors), quant, score, mask, SCALE, *documents, add_back=add_back)
    assert relative_l1(result.out, want.out) < OUT[str(tensors[0].dtype).removeprefix("mlx.core.")]
    for got, wanted in ((result.lse, want.lse), (result.max_scores, want.max_scores)):
        assert got is not None
        reference.assert_close(got, wanted, 5e-2, 3e-3, "lse or max_scores")
        finite = np.isfinite(wanted)
        assert abs(np.array(got)[finite] - wanted[finite]).mean() < 1e-3
