"""flex_attention: scaled dot-product attention under any score_mod and mask, as one fused kernel.

    out = softmax(mask(score_mod(scale * Q K^T))) V

check the arguments -> trace the mods -> choose a backend -> run. The stages are `flextrace.tracer` (Python function
-> expression), `flextrace.kernels` (expression -> kernel) and `flextrace.cache` (kernels on disk).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, overload

import mlx.core as mx

from flextrace.kernels import AttentionCall, Blocks, Int8Rows
from flextrace.kernels.call import Mods
from flextrace.tracer.errors import with_article
from flextrace.tracer.source.signature import MaskFunction, ScoreFunction

from . import notices
from .advice.keywords import OF_ATTENTION, knows
from .block_mask import BlockMask
from .checks import check_sinks, check_tensors, checked_scale
from .decorators import MaskMod, ScoreMod, as_mod
from .merge import with_sinks
from .options import NO_OPTIONS, Options, options_of
from .run import run


@dataclass(frozen=True)
class AuxRequest:
    """Which by-products `flex_attention(..., return_aux=...)` also returns.

    Example:
        >>> import mlx.core as mx, flextrace as flex
        >>> q = mx.ones((1, 2, 16, 8))
        >>> out, aux = flex.flex_attention(q, q, q, return_aux=flex.AuxRequest(lse=True))
        >>> aux.lse.shape, aux.max_scores is None
        ((1, 2, 16), True)
    """

    lse: bool = False
    max_scores: bool = False
    intermediates: bool = False


@dataclass(frozen=True)
class AuxOutput:
    """By-products of attention; None where not requested. lse, max_scores: float32 [batch, query_heads, q_len].

    lse: natural log of the sum of exp(score) over the keys of a row, after score_mod; -inf for an empty row.
    max_scores: the largest score of a row, after score_mod; -inf for an empty row.
    intermediates: what each stage gave, by name and in order: see flextrace.kernels.stages.pipeline.run_staged.

    Example:
        >>> import mlx.core as mx, flextrace as flex
        >>> q = mx.zeros((1, 1, 2, 8))
        >>> _, aux = flex.flex_attention(q, q, q, return_aux=flex.AuxRequest(lse=True, max_scores=True))
        >>> aux.lse  # two keys of score 0: log(2)
        array([[[0.693147, 0.693147]]], dtype=float32)
        >>> aux.max_scores
        array([[[0, 0]]], dtype=float32)
    """

    lse: mx.array | None = None
    max_scores: mx.array | None = None
    intermediates: Mapping[str, mx.array] | None = None


NOTHING, LSE = AuxRequest(), AuxRequest(lse=True)
KernelOptions = Mapping[str, Any] | None
Score = ScoreMod | ScoreFunction | None
Mask = BlockMask | MaskMod | MaskFunction | None


@overload
def flex_attention(
    query: mx.array,
    key: mx.array | Int8Rows,
    value: mx.array | Int8Rows,
    score_mod: Score = None,
    block_mask: Mask = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: Literal[False] = False,
    kernel_options: KernelOptions = None,
    *,
    return_aux: None = None,
    sinks: mx.array | None = None,
) -> mx.array: ...
@overload
def flex_attention(
    query: mx.array,
    key: mx.array | Int8Rows,
    value: mx.array | Int8Rows,
    score_mod: Score = None,
    block_mask: Mask = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    return_lse: Literal[True],
    kernel_options: KernelOptions = None,
    return_aux: None = None,
    sinks: mx.array | None = None,
) -> tuple[mx.array, mx.array]: ...
@overload
def flex_attention(
    query: mx.array,
    key: mx.array | Int8Rows,
    value: mx.array | Int8Rows,
    score_mod: Score = None,
    block_mask: Mask = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: Literal[False] = False,
    kernel_options: KernelOptions = None,
    *,
    return_aux: AuxRequest,
    sinks: mx.array | None = None,
) -> tuple[mx.array, AuxOutput]: ...
@overload
def flex_attention(
    query: mx.array,
    key: mx.array | Int8Rows,
    value: mx.array | Int8Rows,
    score_mod: Score = None,
    block_mask: Mask = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    kernel_options: KernelOptions = None,
    *,
    return_aux: None = None,
    sinks: mx.array | None = None,
) -> mx.array | tuple[mx.array, mx.array]: ...
@overload
def flex_attention(
    query: mx.array,
    key: mx.array | Int8Rows,
    value: mx.array | Int8Rows,
    score_mod: Score = None,
    block_mask: Mask = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    kernel_options: KernelOptions = None,
    *,
    return_aux: AuxRequest | None,
    sinks: mx.array | None = None,
) -> mx.array | tuple[mx.array, mx.array] | tuple[mx.array, AuxOutput]: ...
@knows(OF_ATTENTION)
def flex_attention(
    query: mx.array,
    key: mx.array | Int8Rows,
    value: mx.array | Int8Rows,
    score_mod: Score = None,
    block_mask: Mask = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    kernel_options: KernelOptions = None,
    *,
    return_aux: AuxRequest | None = None,
    sinks: mx.array | None = None,
) -> mx.array | tuple[mx.array, mx.array] | tuple[mx.array, AuxOutput]:
    """Attention whose scores and mask are plain Python functions.

    Args:
        query: [batch, query_heads, q_len, head_dim], float32, float16 or bfloat16; any strides.
        key: [batch or 1, kv_heads, kv_len, head_dim], dtype of query.
            Or `Int8Rows`, which a cache keeps (`Int8KV`): then the query is rounded to int8 too, as with QK_QUANT.
        value: [batch or 1, kv_heads, kv_len, value_dim], dtype of query; or, beside such keys, `Int8Rows`.
        score_mod: `(score, b, h, q_idx, kv_idx) -> score`, or None. `score` is already scaled; `h` is the query head.
        block_mask: a `BlockMask`, or a mask_mod `(b, h, q_idx, kv_idx) -> bool` itself, or None.
        scale: factor of the dot products; None is 1 / sqrt(head_dim).
        enable_gqa: allow query_heads to be a multiple of kv_heads (grouped-query attention).
        return_lse: also return the log-sum-exp.
        kernel_options: a dict, of which a backend ignores what is not its.
            "BACKEND": "metal", "cuda", "simulator", "cpu" or "ops".
            "NUM_THREADS": how many threads the cpu backend takes.
            "ASYNC_COPY": "intrinsic" copies tiles of key and value by simdgroup_async_copy (metal and simulator;
            experimental: the intrinsic is undocumented; macOS 15 and earlier on M1 and M2; elsewhere a notice, and the
            default, "pipelined").
            "MATH": "fast" takes Metal's fast exp, log, sqrt, tanh and sigmoid in a score_mod, for finite arguments
            (metal and simulator, fused; elsewhere nothing changes): tanh and sigmoid are then right to within 1e-6, in
            about 9 instructions instead of 40 by estimate; exp(x) to 3 + 2 |x| ulp. The default, "precise", is right to
            1 ulp.
            "PIPELINE": "staged" runs the stage kernels one after the other instead of the fused one, in quadratic
            memory (cpu, metal, cuda, simulator).
            "QK_QUANT": "int8" or a `QKQuant` multiplies query and key as int8, with key smoothed (not for the few rows
            of decode). See `QKQuant`.
            "SMOOTH_K": False, beside QK_QUANT, leaves key as it is; True by itself smooths and does not quantise.
            "SMOOTH_Q": True, beside QK_QUANT, smooths query too.
        return_aux: which by-products to return as an `AuxOutput`.
        sinks: [query_heads], float32 or query's dtype: a logit per head that only the denominator of the softmax sees,
            not multiplied by scale; learned, or None. lse then counts it, and max_scores does not.

    Returns:
        out [batch, query_heads, q_len, value_dim] of query's dtype; or (out, lse); or (out, AuxOutput). A row that
        attends to nothing gives 0, with lse -inf (or its sink) and max_scores -inf.

    Raises:
        TypeError, ValueError: arguments that do not fit, before any work; also captured arrays that are too short.
        TraceError: a mod cannot become a kernel; the message shows its line.
        OverflowError: a captured integer does not fit int32. (Of an array that mx.compile or mx.vmap replaces nobody
            sees the values: they are taken modulo 2**32.)
        BackendUnavailable: the backend asked for cannot run here.

    Captured arrays and numbers are read at every call; a changed number compiles nothing. MLX differentiates the result
    by query, key, value and captured floating arrays, the cpu backend by a fused kernel whose bits do not depend on
    threads: docs/training.md has what that costs, and what raises GradientError instead.

    The API is that of torch.nn.attention.flex_attention (Dong et al., arXiv 2412.05496); the algorithm is
    FlashAttention (Dao et al., arXiv 2205.14135), its backward that of FlashAttention-2 (Dao, arXiv 2307.08691).

    Example:
        >>> import mlx.core as mx, flextrace as flex
        >>> q = k = v = mx.ones((1, 2, 16, 8))
        >>> @flex.mask_mod
        ... def causal(b, h, q_idx, kv_idx):
        ...     return q_idx >= kv_idx
        >>> flex.flex_attention(q, k, v, block_mask=causal).shape
        (1, 2, 16, 8)
        >>> sinks = mx.log(mx.array([0.0, 16.0]))  # the weight of no key, and of 16
        >>> flex.flex_attention(q, k, v, scale=0.0, sinks=sinks)[0, :, 0, 0]
        array([1, 0.5], dtype=float32)
    """
    check_tensors(query, key, value, enable_gqa)
    if sinks is not None:
        check_sinks(sinks, query)
    factor = checked_scale(scale, query.shape[-1])
    aux = _by_products(return_lse, return_aux)
    options = NO_OPTIONS if kernel_options is None else options_of(kernel_options, key)
    _check_intermediates(aux, options)
    mods, blocks = _mods(score_mod, block_mask, query, key)
    want_lse = aux.lse or sinks is not None
    call = AttentionCall.of(query, key, value, factor, mods, blocks, want_lse, aux.max_scores, **options.asked)
    result = run(call, options.backend)
    if sinks is not None:
        result = with_sinks(result, sinks)
    lse = result.lse if aux.lse else None
    if return_aux is not None:
        return result.out, AuxOutput(lse, result.max_scores, result.intermediates if aux.intermediates else None)
    return result.out if lse is None else (result.out, lse)


def _by_products(return_lse: bool, return_aux: AuxRequest | None) -> AuxRequest:
    """Raises TypeError, ValueError."""
    if return_lse and return_aux is not None:
        raise ValueError("return_lse and return_aux exclude each other; write return_aux=AuxRequest(lse=True)")
    if return_aux is not None and not isinstance(return_aux, AuxRequest):
        raise TypeError(f"return_aux takes an AuxRequest, not {with_article(type(return_aux).__name__)}")
    return return_aux or (LSE if return_lse else NOTHING)


def _check_intermediates(aux: AuxRequest, options: Options) -> None:
    """Raises ValueError where they are wanted, and no stages run that have them."""
    if aux.intermediates and not options.asked.get("staged"):
        raise ValueError(
            'AuxRequest(intermediates=True) needs kernel_options={"PIPELINE": "staged"}; the fused kernel has none'
        )


def _mods(score_mod: Score, block_mask: Mask, query: mx.array, key: mx.array | Int8Rows) -> tuple[Mods, Blocks | None]:
    """The mods of a call with what they capture now, which is long enough for it; a BlockMask is a mask_mod and its
    blocks.

    Raises:
        TypeError, ValueError, TraceError, OverflowError, ZeroDivisionError: as flex_attention says.
    """
    score = None if score_mod is None else as_mod(score_mod, ScoreMod, "score_mod").bind()
    mask, blocks = None, None
    if isinstance(block_mask, BlockMask):
        mask, blocks = block_mask.for_call(query, key)
    elif block_mask is not None:
        mod = as_mod(block_mask, MaskMod, "block_mask")
        mask, q_len, kv_len = mod.bind(), query.shape[2], key.shape[2]
        if mod.top_left is not None and q_len < kv_len and notices.TOP_LEFT not in notices.said:
            notices.say_top_left(mod.top_left, q_len, kv_len, f"flex.mods.{mod.top_left}")
    mods = Mods(score, mask)
    mods.check_sizes((query.shape[0], query.shape[1], query.shape[2], key.shape[2]))
    return mods, blocks
