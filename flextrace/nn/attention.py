"""Tokens -> tokens: attention with learned projections, whose scores and mask are plain Python functions."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from flextrace.advice.keywords import OF_ATTENTION, knows
from flextrace.attention import KernelOptions, Mask, Score, flex_attention
from flextrace.mods.arguments import whole


class MultiHeadAttention(nn.Module):
    """Attention of many heads, with projections around it: `mlx.nn.MultiHeadAttention` with mods.

    Args:
        dims: width of queries, keys, values and the result; a multiple of num_heads.
        num_heads: query heads, a multiple of num_kv_heads.
        num_kv_heads: heads of keys and values; None: as many as query heads.
        bias: projections add a bias.
        sinks: learn a logit per query head that only the denominator of the softmax sees, from 0 on.

    Attributes:
        query_proj, key_proj, value_proj, out_proj: `nn.Linear`, named as in `mlx.nn.MultiHeadAttention`: without
            num_kv_heads and sinks its weights load here.
        sinks: float32 [num_heads], or None.

    Raises:
        ValueError: a size is not a positive whole number, or is no multiple of another.

    Source: Vaswani et al., Attention Is All You Need, arXiv 1706.03762; grouped heads: Ainslie et al., arXiv
    2305.13245; sinks: see `flex_attention`.

    Example:
        >>> import mlx.core as mx, flextrace as flex
        >>> layer = flex.nn.MultiHeadAttention(dims=32, num_heads=4, num_kv_heads=2, sinks=True)
        >>> bias = flex.nn.RelativePositionBias(num_heads=4)
        >>> x = mx.ones((1, 10, 32))
        >>> layer(x, score_mod=bias.score_mod, block_mask=flex.mods.causal).shape
        (1, 10, 32)
    """

    def __init__(
        self, dims: int, num_heads: int, num_kv_heads: int | None = None, bias: bool = False, sinks: bool = False
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        dims, heads = whole("dims", dims), whole("num_heads", num_heads)
        kv_heads = heads if num_kv_heads is None else whole("num_kv_heads", num_kv_heads)
        if dims % heads:
            raise ValueError(f"dims is {dims}; expected a multiple of the {heads} heads")
        if heads % kv_heads:
            raise ValueError(f"num_heads is {heads}; expected a multiple of the {kv_heads} key heads")
        kv_dims = dims // heads * kv_heads
        self.num_heads: int = heads
        self.num_kv_heads: int = kv_heads
        self.query_proj: nn.Linear = nn.Linear(dims, dims, bias=bias)
        self.key_proj: nn.Linear = nn.Linear(dims, kv_dims, bias=bias)
        self.value_proj: nn.Linear = nn.Linear(dims, kv_dims, bias=bias)
        self.out_proj: nn.Linear = nn.Linear(dims, dims, bias=bias)
        self.sinks: mx.array | None = mx.zeros((heads,)) if sinks else None

    def _extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}, sinks={self.sinks is not None}"

    @knows(OF_ATTENTION)
    def __call__(
        self,
        queries: mx.array,
        keys: mx.array | None = None,
        values: mx.array | None = None,
        score_mod: Score = None,
        block_mask: Mask = None,
        kernel_options: KernelOptions = None,
    ) -> mx.array:
        """Attention of queries to keys.

        Args:
            queries: [batch, q_len, dims].
            keys: [batch, kv_len, dims]; None: the queries.
            values: [batch, kv_len, dims]; None: the keys.
            score_mod, block_mask, kernel_options: as `flex_attention` takes them; `h` is the query head.

        Returns:
            [batch, q_len, dims], the dtype of queries.

        Raises:
            ValueError, TypeError, TraceError: as flex_attention says.
        """
        keys = queries if keys is None else keys
        values = keys if values is None else values
        out = flex_attention(
            _in_heads(self.query_proj(queries), self.num_heads),
            _in_heads(self.key_proj(keys), self.num_kv_heads),
            _in_heads(self.value_proj(values), self.num_kv_heads),
            score_mod,
            block_mask,
            enable_gqa=True,
            kernel_options=kernel_options,
            sinks=self.sinks,
        )
        joined: mx.array = self.out_proj(out.swapaxes(1, 2).reshape(queries.shape))
        return joined


def _in_heads(x: mx.array, heads: int) -> mx.array:
    """[batch, length, heads * head_dim] -> [batch, heads, length, head_dim]."""
    batch, length, width = x.shape
    return x.reshape(batch, length, heads, width // heads).swapaxes(1, 2)
