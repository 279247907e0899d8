"""Two attentions over disjoint keys -> the attention over all of them; a sink is one over a key without a value."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx

from flextrace.kernels import Result


def merge_attention(out: mx.array, lse: mx.array, out2: mx.array, lse2: mx.array) -> tuple[mx.array, mx.array]:
    """Merge partial attentions of the same queries over two disjoint sets of keys; exact, not an approximation.

    lse' = log(exp(lse) + exp(lse2));  out' = exp(lse - lse') * out + exp(lse2 - lse') * out2

    For a shared prefix computed once, keys split over devices or calls, or two kinds of mask. Made of MLX operations:
    it can be differentiated and compiled. Merge is commutative and associative; a half without keys (out 0, lse -inf)
    changes nothing, and two such halves give one.

    Args:
        out, out2: [..., q_len, value_dim], as `flex_attention` returns them.
        lse, lse2: [..., q_len], float32, natural log.

    Returns:
        (out', lse') of the shapes of out and lse; out' in out's dtype, the arithmetic in float32.

    Raises:
        ValueError: shapes differ, or lse has not out's shape without its last axis.

    Source: Ye et al., FlashInfer, arXiv 2501.01005 (merging attention states); Juravsky et al., Hydragen,
    arXiv 2402.05099.

    Example:
        >>> import mlx.core as mx
        >>> import flextrace as flex
        >>> out, lse = flex.merge_attention(
        ...     mx.array([[1.0]]), mx.array([0.0]), mx.array([[4.0]]), mx.array([0.6931472]))  # weights 1 and 2
        >>> round(out.item(), 5), round(lse.item(), 5)
        (3.0, 1.09861)
    """
    if out.shape != out2.shape or lse.shape != lse2.shape or lse.shape != out.shape[:-1]:
        raise ValueError(
            f"out has shape {out.shape}, out2 {out2.shape}, lse {lse.shape}, lse2 {lse2.shape}; expected equal shapes, "
            "and lse that of out without its last axis"
        )
    share, share2, merged_lse = _shares(lse.astype(mx.float32), lse2.astype(mx.float32))
    merged = share[..., None] * out.astype(mx.float32) + share2[..., None] * out2.astype(mx.float32)
    return merged.astype(out.dtype), merged_lse


def with_sinks(result: Result, sinks: mx.array) -> Result:
    """The result as if each row had one more key, whose score is its head's sink and whose value is 0.

    lse' = log(exp(lse) + exp(sink));  out' = exp(lse - lse') * out

    A row without keys stays 0, and its lse is the sink. max_scores is over the keys, as before. These are MLX
    operations: on a lazy backend they are lazy, and gradients go through (out, lse) to the kernel.

    Args:
        result: with lse.
        sinks: [query_heads], float32 or the dtype of out. It is not multiplied by the scale of the scores.

    Returns:
        out' in out's dtype, rounded once from float32; lse' float32. So are "out" and "lse" of the intermediates.

    Source: attention sinks as gpt-oss learns them (OpenAI, arXiv 2508.10925), after Xiao et al., StreamingLLM,
    arXiv 2309.17453; the argument of that name of mx.fast.scaled_dot_product_attention.

    Example:
        >>> import mlx.core as mx
        >>> found = Result(mx.ones((1, 1, 1, 2)), mx.zeros((1, 1, 1)), None)
        >>> with_sinks(found, mx.array([0.0])).out  # a key and a sink of the same weight
        array([[[[0.5, 0.5]]]], dtype=float32)
    """
    assert result.lse is not None
    share, _, lse = _shares(result.lse, sinks.astype(mx.float32)[:, None])
    out = (share[..., None] * result.out.astype(mx.float32)).astype(result.out.dtype)
    replaced = {name: {"out": out, "lse": lse}.get(name, array) for name, array in result.intermediates.items()}
    return replace(result, out=out, lse=lse, intermediates=replaced)


def _shares(lse: mx.array, lse2: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """How much of the whole each half is, and the lse of the whole; of two halves without keys nothing and -inf."""
    highest = mx.stop_gradient(mx.maximum(lse, lse2))
    highest = mx.where(highest == -mx.inf, 0.0, highest)
    weight, weight2 = mx.exp(lse - highest), mx.exp(lse2 - highest)
    total = weight + weight2
    seen = total > 0
    total = mx.where(seen, total, 1.0)
    return weight / total, weight2 / total, mx.where(seen, highest + mx.log(total), -mx.inf)
