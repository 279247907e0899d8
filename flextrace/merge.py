"""Two attentions over disjoint keys -> the attention over all of them."""

from __future__ import annotations

import mlx.core as mx


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
    lse, lse2 = lse.astype(mx.float32), lse2.astype(mx.float32)
    highest = mx.stop_gradient(mx.maximum(lse, lse2))
    highest = mx.where(highest == -mx.inf, 0.0, highest)
    weight, weight2 = mx.exp(lse - highest), mx.exp(lse2 - highest)
    total = weight + weight2
    seen = total > 0
    total = mx.where(seen, total, 1.0)
    merged = (weight / total)[..., None] * out.astype(mx.float32) + (weight2 / total)[..., None] * out2.astype(
        mx.float32
    )
    return merged.astype(out.dtype), mx.where(seen, highest + mx.log(total), -mx.inf)
