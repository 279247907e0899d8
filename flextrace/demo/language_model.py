"""Characters -> logits of the next one: a small transformer with a learned relative bias and a sliding window.

Pre-norm layers (Xiong et al., arXiv 2002.04745) without biases, squared ReLU (So et al., arXiv 2109.08668), one T5 bias
shared by all layers (Raffel et al., arXiv 1910.10683), a window (Mistral, arXiv 2310.06825), a learned sink per head.
Attention is an argument, so that the same model runs with flextrace and on MLX's own operations.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

import flextrace as flex
from flextrace.nn import MultiHeadAttention, RelativePositionBias

from .characters import ALPHABET
from .encoder import on_all_cores

Attend = Callable[[MultiHeadAttention, mx.array], mx.array]
"""(layer, x [batch, length, width]) -> the same shape: one layer's attention."""


class Block(nn.Module):
    """Attention, then a network of two layers, each added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.attention_norm: nn.RMSNorm = nn.RMSNorm(width)
        self.attention: MultiHeadAttention = MultiHeadAttention(width, heads, sinks=True)
        self.norm: nn.RMSNorm = nn.RMSNorm(width)
        self.inner: nn.Linear = nn.Linear(width, 4 * width, bias=False)
        self.inner_out: nn.Linear = nn.Linear(4 * width, width, bias=False)

    def __call__(self, x: mx.array, attend: Attend) -> mx.array:
        """x: [batch, length, width] -> the same shape."""
        x = x + attend(self.attention, self.attention_norm(x))
        return on_all_cores(self.network, x.reshape(-1, x.shape[-1])).reshape(x.shape)

    def network(self, x: mx.array) -> mx.array:
        inside = mx.maximum(self.inner(self.norm(x)), 0.0) ** 2  # smooth: at a kink rounding decides about gradients
        return x + self.inner_out(inside)


class LanguageModel(nn.Module):
    """Embedding, blocks, and logits by the same embedding. No position is told but by the bias and the mask."""

    def __init__(self, width: int, heads: int, layers: int, window: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.window: int = window
        self.characters: nn.Embedding = nn.Embedding(len(ALPHABET), width)
        self.position: RelativePositionBias = RelativePositionBias(heads, 32, window, bidirectional=False)
        self.blocks: list[Block] = [Block(width, heads) for _ in range(layers)]
        self.norm: nn.RMSNorm = nn.RMSNorm(width)

    def __call__(self, characters: mx.array, way: Callable[[LanguageModel, int], Attend]) -> mx.array:
        """characters: int32 [batch, length] -> logits [batch, length, len(ALPHABET)]."""
        attend = way(self, characters.shape[1])
        x = self.characters(characters)
        for block in self.blocks:
            x = block(x, attend)
        logits: mx.array = self.norm(x) @ self.characters.weight.T
        return logits


def fused(model: LanguageModel, length: int) -> Attend:
    """flextrace: the bias is a score_mod, the window a mask_mod."""
    score_mod, window = model.position.score_mod, flex.mods.sliding_window(model.window)
    return lambda layer, x: layer(x, score_mod=score_mod, block_mask=window)


def unfused(model: LanguageModel, length: int) -> Attend:
    """MLX's own attention, which takes bias and window as one array [heads, length, length]."""
    distance = mx.arange(length)[:, None] - mx.arange(length)
    bias = mx.where((distance >= 0) & (distance < model.window), model.position.dense(length, length), -mx.inf)

    def attend(layer: MultiHeadAttention, x: mx.array) -> mx.array:
        batch = x.shape[0]
        projections = (layer.query_proj, layer.key_proj, layer.value_proj)
        q, k, v = (p(x).reshape(batch, length, layer.num_heads, -1).swapaxes(1, 2) for p in projections)
        scale = q.shape[-1] ** -0.5
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=bias, sinks=layer.sinks)
        joined: mx.array = layer.out_proj(out.swapaxes(1, 2).reshape(x.shape))
        return joined

    return attend


def loss_of(model: LanguageModel, inputs: mx.array, targets: mx.array, way: Callable[..., Attend]) -> mx.array:
    """The mean cross entropy of the next character, in nats."""
    return nn.losses.cross_entropy(model(inputs, way), targets, reduction="mean")
