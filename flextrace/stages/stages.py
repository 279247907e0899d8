"""Tensors -> tensors: the stages of attention as functions, each one a kernel by itself.

    scores = matmul(q, k, transpose_b=True)            or, at the blocks of a mask, block_sparse_matmul
    scores = score_mod(scale(scores, factor), ...)
    weights, max_scores, sums = softmax(scores, normalise=False)
    out, lse, max_scores = attention_output(matmul(weights, v), max_scores, sums)

Every function takes tensors of any strides, computes in float32 unless it says otherwise, and runs on
`backend` "metal", "cuda", "simulator" or "cpu" (None: FLEXTRACE_BACKEND, or the one that owns MLX's default device). On
metal and cuda a call adds to MLX's lazy graph. Besides what they say themselves, all of them raise

    TypeError, ValueError: arguments that do not fit, before any work;
    BackendUnavailable: the backend cannot run here, or not inside mx.compile and mx.vmap;
    GradientError: they are differentiated. None has a backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, overload

import mlx.core as mx

from flextrace.block_mask.create import check_broadcast
from flextrace.kernels.backend import BackendUnavailable, needs_values
from flextrace.kernels.call import Mods
from flextrace.kernels.gradients import refuse_gradient
from flextrace.kernels.registry import backend_for, chosen_name, default_name
from flextrace.kernels.scalars import check_block_size, check_size
from flextrace.kernels.stages.protocol import BlockLists, OutputParts, SoftmaxParts, Stages
from flextrace.tracer import Bound
from flextrace.tracer.source.signature import MaskFunction, ScoreFunction

from .checks import (
    as_bound,
    check_blocks,
    check_dtype,
    check_inner,
    check_leading,
    check_lists_stand_for,
    check_number,
    check_tensor,
    check_tiles,
    fits,
    four_axes,
)

Score = ScoreFunction | Bound | None  # a plain function, or a decorated mod, which has the same call
Mask = MaskFunction | Bound | None


def matmul(
    a: mx.array,
    b: mx.array,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    tiles: tuple[int, ...] | None = None,
    dtype: mx.Dtype | None = None,
    backend: str | None = None,
) -> mx.array:
    """a @ b, tile by tile.

    Args:
        a: [..., M, K], or [..., K, M] if transpose_a; 2 to 4 axes; float32, float16 or bfloat16.
        b: [..., K, N], or [..., N, K] if transpose_b; 2 to 4 axes. Leading axes are [batch, heads] or [heads]: b's
            batch is a's or 1, b's heads divide a's (grouped queries: head h of a meets head h // (a's heads / b's)).
        tiles: (BM, BN), tiles of the result, each over the whole of K at once; (BM, BN, BK) takes K in blocks of BK;
            None lets a model of the memory near the cores choose.
        dtype: the result's; None is a's.

    Returns:
        [..., M, N]. Sums are float32; products too, but half where both are float16 on metal.

    Raises:
        ValueError: tiles do not fit threadgroup memory; the message names the largest that do.

    Tiling as in Volkov and Demmel, "Benchmarking GPUs to tune dense linear algebra" (SC 2008).

    Example:
        >>> import mlx.core as mx
        >>> from flextrace.stages import matmul
        >>> a, b = mx.ones((2, 3)), mx.array([[1.0, 2.0, 3.0]])
        >>> matmul(a, b, transpose_b=True, backend="cpu")
        array([[6],
               [6]], dtype=float32)
    """
    for name, x in (("a", a), ("b", b)):
        check_tensor(name, x, "2 to 4 axes", least=2, most=4)
    axes = max(a.ndim, b.ndim)
    wide, keys = four_axes(a), four_axes(b)
    check_leading(wide, keys)
    check_inner(wide.shape[2 if transpose_a else 3], keys.shape[3 if transpose_b else 2], "steps")
    tiles, dtype = check_tiles(tiles), check_dtype(dtype, a.dtype)

    def compute(stages: Stages) -> list[mx.array]:
        return [stages.matmul(wide, keys, transpose_a=transpose_a, transpose_b=transpose_b, tiles=tiles, dtype=dtype)]

    (out,) = _run("matmul", backend, [a, b], compute)
    return out if axes == 4 else out.reshape(out.shape[4 - axes :])


def scale(x: mx.array, factor: float, *, backend: str | None = None) -> mx.array:
    """x * factor.

    Args:
        x: any shape; float32, float16 or bfloat16.
        factor: a number; 1 / sqrt(head_dim) for attention.

    Returns:
        The shape and dtype of x, rounded once from float32.

    Example:
        >>> import mlx.core as mx
        >>> from flextrace.stages import scale
        >>> scale(mx.array([1.0, 2.0]), 0.5, backend="cpu")
        array([0.5, 1], dtype=float32)
    """
    check_tensor("x", x, "any shape", least=0)
    factor = check_number("factor", factor)
    return _run("scale", backend, [x], lambda stages: [stages.scale(x, factor)])[0]


def score_mod(
    scores: mx.array,
    score_mod: Score = None,
    mask_mod: Mask = None,
    *,
    blocks: BlockLists | None = None,
    backend: str | None = None,
) -> mx.array:
    """mask(score_mod(scores)): the stage where a user's functions run.

    Args:
        scores: [batch, heads, q_len, kv_len], float32, already scaled, natural units.
        score_mod: `(score, b, h, q_idx, kv_idx) -> score`, plain, decorated or bound; None changes nothing.
        mask_mod: `(b, h, q_idx, kv_idx) -> bool`; scores that it drops become -inf.
        blocks: which blocks to look at, as `block_mask` gives them: scores outside become -inf unseen, and mask_mod is
            asked in partial blocks only.

    Returns:
        float32, the shape of scores.

    Raises:
        TraceError: a mod cannot become a kernel; the message shows its line.
        ValueError: blocks of one batch or head, several of scores, and a mask_mod that tells them apart.
        OverflowError: a captured integer does not fit int32.

    The mods are those of FlexAttention (Dong et al., arXiv 2412.05496).

    Example:
        >>> import mlx.core as mx
        >>> from flextrace.stages import score_mod
        >>> far = lambda score, b, h, q_idx, kv_idx: score - (q_idx - kv_idx)
        >>> score_mod(mx.zeros((1, 1, 2, 2)), far, lambda b, h, q_idx, kv_idx: q_idx >= kv_idx, backend="cpu")
        array([[[[0, -inf],
                 [-1, 0]]]], dtype=float32)
    """
    check_tensor("scores", scores, "4 axes: [batch, heads, q_len, kv_len]", least=4, most=4, only_float32=True)
    mods = Mods(as_bound(score_mod, "score_mod", "score_mod"), as_bound(mask_mod, "mask_mod", "mask_mod"))
    mods.check_sizes((scores.shape[0], scores.shape[1], scores.shape[2], scores.shape[3]))
    lists = None if blocks is None else check_blocks(blocks, *scores.shape[:3])
    if lists is not None and mods.mask is not None:
        check_lists_stand_for(lists, mods.mask, scores)
    inputs = [scores, *mods.mlx_arrays]
    return _run("score_mod", backend, inputs, lambda stages: [stages.score_mod(scores, mods, lists)])[0]


@overload
def softmax(
    x: mx.array, *, normalise: Literal[True] = True, dtype: mx.Dtype | None = None, backend: str | None = None
) -> mx.array: ...
@overload
def softmax(
    x: mx.array, *, normalise: Literal[False], dtype: mx.Dtype | None = None, backend: str | None = None
) -> SoftmaxParts: ...
def softmax(
    x: mx.array, *, normalise: bool = True, dtype: mx.Dtype | None = None, backend: str | None = None
) -> mx.array | SoftmaxParts:
    """exp(x - max) / sum over the last axis, of rows of any length.

    Args:
        x: [..., S], float32, natural units.
        normalise: divide by the sum; False leaves that to `attention_output` and also returns the statistics.
        dtype: the weights'; None is float32.

    Returns:
        Weights [..., S]; or, without `normalise`, SoftmaxParts: weights, max_scores [...] and sums [...], both float32.
        A row of -inf has weights 0, max -inf and sum 0.

    Maximum and sum come from one pass over a row, tile by tile (Milakov and Gimelshein, arXiv 1805.02867).

    Example:
        >>> import mlx.core as mx
        >>> from flextrace.stages import softmax
        >>> softmax(mx.array([[0.0, 0.0], [-mx.inf, -mx.inf]]), backend="cpu")
        array([[0.5, 0.5],
               [0, 0]], dtype=float32)
    """
    check_tensor("x", x, "at least 1 axis", least=1, only_float32=True)
    dtype = check_dtype(dtype, mx.float32)
    parts = _run("softmax", backend, [x], lambda stages: stages.softmax(x, normalise=normalise, dtype=dtype))
    return parts[0] if normalise else SoftmaxParts(*parts)


def block_mask(
    mask_mod: Mask,
    B: int | None,
    H: int | None,
    q_len: int,
    kv_len: int,
    block_size: int | tuple[int, int] = (128, 128),
    *,
    backend: str | None = None,
) -> BlockLists:
    """Which blocks a mask leaves, found on the device by asking it for every position.

    Args:
        mask_mod: `(b, h, q_idx, kv_idx) -> bool`, plain, decorated or bound.
        B, H: batch and heads of the mask; None is 1, for a mask that does not depend on it.
        q_len, kv_len: lengths; they need not be multiples of the block size.
        block_size: rows and columns of a block.

    Returns:
        BlockLists: numbers [B, H, q_blocks] and indices [B, H, q_blocks, kv_blocks] of partial and of full blocks,
        int32, ascending, 0 beyond the number: torch's BlockMask. A block that the end cuts is full if the mask
        keeps all of it that exists.

    Raises:
        TraceError: the mask_mod cannot become a kernel.
        ValueError: B or H is None though the mask reads b or h.

    Block lists as in FlexAttention (Dong et al., arXiv 2412.05496).

    Example:
        >>> from flextrace.stages import block_mask
        >>> causal = lambda b, h, q_idx, kv_idx: q_idx >= kv_idx
        >>> lists = block_mask(causal, None, None, 6, 6, 2, backend="cpu")
        >>> lists.kv_indices.tolist(), lists.full_kv_num_blocks.tolist()
        ([[[[0, 0, 0], [1, 0, 0], [2, 0, 0]]]], [[[0, 1, 2]]])
    """
    bound = as_bound(mask_mod, "mask_mod", "mask_mod")
    if bound is None:
        raise TypeError("mask_mod is None; without a mask every block is full: pass lambda b, h, q_idx, kv_idx: True")
    check_broadcast("block_mask", bound, B, H)
    batch, heads = (check_size(name, 1 if n is None else n, 1) for name, n in (("B", B), ("H", H)))
    lengths = check_size("q_len", q_len, 0), check_size("kv_len", kv_len, 0)
    size = check_block_size(block_size)
    bound.check_sizes((batch, heads, *lengths))

    def compute(stages: Stages) -> Sequence[mx.array]:
        return stages.block_mask(bound, batch, heads, *lengths, size)[:4]

    counts, indices, full_counts, full_indices = _run("block_mask", backend, Mods(mask=bound).mlx_arrays, compute)
    return BlockLists(counts, indices, full_counts, full_indices, *size)


def block_sparse_matmul(
    a: mx.array,
    b: mx.array,
    blocks: BlockLists,
    *,
    transpose_b: bool = False,
    dtype: mx.Dtype | None = None,
    backend: str | None = None,
) -> mx.array:
    """A product at the blocks that a mask leaves, partial and full ones alike; the others cost nothing.

    Args:
        a: [batch, heads, q_len, head_dim] with transpose_b, else [batch, heads, q_len, kv_len].
        b: [batch or 1, kv_heads, kv_len, dim]; kv_heads divides heads.
        blocks: as `block_mask` gives them; their batch and heads are those of a, or 1.
        transpose_b: a @ b^T, sampled at the blocks (Q K^T); False is a @ b, of a's blocks alone (P V).
        dtype: the result's; None is float32.

    Returns:
        With transpose_b [batch, heads, q_len, kv_len], -inf outside the blocks; else [batch, heads, q_len, dim], where
        what lies outside the blocks counts as 0 and is never read, and a 0 in a leaves its row of b out, whatever that
        holds (a key that is not attended to may be inf or nan). Sums are float32.

    The sampled dense-dense and the block-sparse dense product of sparse attention (Child et al., arXiv 1904.10509).

    Example:
        >>> import mlx.core as mx
        >>> from flextrace.stages import block_mask, block_sparse_matmul
        >>> lists = block_mask(lambda b, h, q_idx, kv_idx: q_idx >= kv_idx, None, None, 2, 2, 1, backend="cpu")
        >>> ones = mx.ones((1, 1, 2, 4))
        >>> block_sparse_matmul(ones, ones, lists, transpose_b=True, backend="cpu")
        array([[[[4, -inf],
                 [4, 4]]]], dtype=float32)
    """
    for name, x in (("a", a), ("b", b)):
        check_tensor(name, x, "4 axes: [batch, heads, length, dim]", least=4, most=4)
    check_leading(a, b)
    if transpose_b:
        check_inner(a.shape[3], b.shape[3], "columns")
    else:
        check_inner(a.shape[3], b.shape[2], "keys")
    lists, dtype = check_blocks(blocks, *a.shape[:3]), check_dtype(dtype, mx.float32)

    def compute(stages: Stages) -> list[mx.array]:
        return [stages.block_sparse_matmul(a, b, lists, transpose_b=transpose_b, dtype=dtype)]

    return _run("block_sparse_matmul", backend, [a, b], compute)[0]


def attention_output(
    product: mx.array,
    max_scores: mx.array,
    sums: mx.array,
    dtype: mx.Dtype | None = None,
    *,
    backend: str | None = None,
) -> OutputParts:
    """The end of attention: out = product / sums, lse = max_scores + log(sums).

    Args:
        product: [..., D], float32: weights that are not normalised, times values.
        max_scores, sums: [...], float32, as `softmax(normalise=False)` gives them.
        dtype: out's; None is float32.

    Returns:
        OutputParts: out [..., D]; lse, natural log, and max_scores, float32 [...]. A row of sum 0 has out 0, lse -inf.

    As at the end of FlashAttention's loop (Dao et al., arXiv 2205.14135).

    Example:
        >>> import mlx.core as mx
        >>> from flextrace.stages import attention_output
        >>> out, lse, _ = attention_output(mx.array([[6.0, 2.0]]), mx.array([0.0]), mx.array([2.0]), backend="cpu")
        >>> out, lse
        (array([[3, 1]], dtype=float32), array([0.693147], dtype=float32))
    """
    check_tensor("product", product, "at least 1 axis", least=1, only_float32=True)
    for name, x in (("max_scores", max_scores), ("sums", sums)):
        check_tensor(name, x, "product's shape without its last axis", least=0, only_float32=True)
        fits(name, x.shape, product.shape[:-1])
    dtype = check_dtype(dtype, mx.float32)

    def compute(stages: Stages) -> OutputParts:
        return stages.attention_output(product, max_scores, sums, dtype)

    return OutputParts(*_run("attention_output", backend, [product, max_scores, sums], compute))


def _run(
    name: str, wanted: str | None, inputs: Sequence[mx.array], compute: Callable[[Stages], Sequence[mx.array]]
) -> Sequence[mx.array]:
    """One stage on the backend asked for; its results refuse to be differentiated."""
    backend = backend_for(chosen_name(wanted) or default_name())
    try:
        outputs = compute(backend.stages())
    except (ValueError, RuntimeError) as error:
        if not needs_values(error):
            raise
        raise BackendUnavailable(
            f"the {backend.name} backend needs values, which mx.compile and mx.vmap hide; call {name} outside them"
        ) from None
    message = f"{name} has no backward pass; differentiate the same formula in MLX operations"
    return refuse_gradient(inputs, outputs, backend.lazy, message)
