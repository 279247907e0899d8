"""Parameters -> score_mod: functions of the score itself, and the rotary part of latent attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from flextrace.decorators import ScoreMod, score_mod

from .arguments import real, reals


def softcap(cap: float) -> ScoreMod:
    """Scores held within (-cap, cap): cap * tanh(score / cap).

    Args:
        cap: positive number (Gemma 2 takes 50), or a 0-d float mx.array, which may be learnable.

    Raises:
        ValueError: cap is not positive.

    Source: Gemma Team, Gemma 2, arXiv 2408.00118 (logit soft-capping).

    Example:
        >>> from flextrace import mods
        >>> mods.softcap(50.0).expr
        number0 * tanh((score / number0))
    """
    cap = real("cap", cap)
    if not isinstance(cap, mx.array) and not 0 < cap < math.inf:
        raise ValueError(f"cap is {cap!r}; expected a positive number")

    @score_mod
    def softcap(score: float, b: int, h: int, q_idx: int, kv_idx: int) -> float:
        return cap * math.tanh(score / cap)

    return softcap


def mla_rope(q_rope: Any, k_rope: Any, scale: float = 1.0) -> ScoreMod:
    """The rotary part of multi-head latent attention: score + scale * sum over d of q_rope[.., d] * k_rope[.., d].

    A small dot product inside the mod: the latent part goes through query and key, the rotary part is added here.

    Args:
        q_rope: floats [B, query_heads, q_len, R], already rotated.
        k_rope: floats [B, kv_len, R], shared by all heads, or [B, rope_heads, kv_len, R] where rope_heads divides
            query_heads; already rotated.
        scale: factor of the dot product; `flex_attention` scales only its own, so pass the same scale here.

    Raises:
        ValueError: shapes do not fit each other.

    Source: DeepSeek-AI, DeepSeek-V2 (multi-head latent attention), arXiv 2405.04434.

    Example:
        >>> import mlx.core as mx
        >>> from flextrace import mods
        >>> mods.mla_rope(mx.ones((1, 4, 8, 2)), mx.ones((1, 8, 2)), scale=0.5)(1.0, 0, 3, 7, 7).item()
        2.0
    """
    q_rope = reals("q_rope", q_rope, (4,), "[B, query_heads, q_len, R]")
    k_rope = reals("k_rope", k_rope, (3, 4), "[B, kv_len, R] or [B, rope_heads, kv_len, R]")
    scale = real("scale", scale)
    rope_heads = k_rope.shape[1] if k_rope.ndim == 4 else 1
    if q_rope.shape[-1] != k_rope.shape[-1] or q_rope.shape[0] != k_rope.shape[0] or q_rope.shape[1] % rope_heads:
        raise ValueError(
            f"q_rope has shape {q_rope.shape}, k_rope {k_rope.shape}; expected equal B and R, and "
            "query_heads a multiple of rope_heads"
        )
    group = q_rope.shape[1] // rope_heads

    @score_mod
    def mla_rope(score: float, b: int, h: int, q_idx: int, kv_idx: int) -> Any:
        query = q_rope[b, h, q_idx]
        key = k_rope[b, h // group, kv_idx] if k_rope.ndim == 4 else k_rope[b, kv_idx]
        return score + scale * sum(query[d] * key[d] for d in range(q_rope.shape[3]))

    return mla_rope


def _relu(score: Any) -> Any:
    return max(score, 0.0)


def _squared_relu(score: Any) -> Any:
    return max(score, 0.0) ** 2


def _sigmoid(score: Any) -> Any:
    return 1 / (1 + math.exp(-score))


def _gelu(score: Any) -> Any:
    return 0.5 * score * (1 + math.erf(score / math.sqrt(2)))


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": _relu,
    "squared_relu": _squared_relu,
    "sigmoid": _sigmoid,
    "gelu": _gelu,
}


def activation(function: str | Callable[[Any], Any], offset: float = 0.0) -> ScoreMod:
    """Another function in softmax's place: log(function(score) + offset), -inf where that is not positive.

    Softmax of this score is (f(s) + offset) / sum of the same, so with lse the sum can be undone: `undo_softmax` makes
    f(S) V of the result. Causal and other masks work as ever.

    Args:
        function: "relu", "squared_relu", "sigmoid", "gelu", or a plain Python function of the score.
        offset: makes f(s) + offset positive where f can be negative (gelu: 0.2 is enough, 1.0 is stable).

    Raises:
        ValueError: there is no activation of that name, or offset is negative.

    Source: Wortsman et al., Replacing softmax with ReLU in Vision Transformers, arXiv 2309.08586; Ramapuram et al.,
    Theory, Analysis, and Best Practices for Sigmoid Self-Attention, arXiv 2409.04431; the logarithm from attention-gym.

    Example:
        >>> import mlx.core as mx, flextrace as flex
        >>> q = k = mx.array([[[[2.0]]]])
        >>> out, lse = flex.flex_attention(
        ...     q, k, mx.array([[[[3.0]]]]), score_mod=flex.mods.activation("relu"), return_lse=True)
        >>> round(flex.mods.undo_softmax(out, lse).item(), 4)  # relu(2 * 2) * 3
        12.0
    """
    if isinstance(function, str) and function not in ACTIVATIONS:
        raise ValueError(
            f"there is no activation {function!r}; take one of {', '.join(ACTIVATIONS)}, or pass a function"
        )
    offset = real("offset", offset)
    if not isinstance(offset, mx.array) and not 0 <= offset < math.inf:
        raise ValueError(f"offset is {offset!r}; expected a number of at least 0")
    act = ACTIVATIONS[function] if isinstance(function, str) else function

    @score_mod
    def activation(score: float, b: int, h: int, q_idx: int, kv_idx: int) -> Any:
        weight = act(score) + offset
        return math.log(weight) if weight > 0 else -math.inf

    return activation


def undo_softmax(out: mx.array, lse: mx.array, offset: float = 0.0, value_sum: mx.array | None = None) -> mx.array:
    """Attention under `activation` -> f(S) V: out * exp(lse) - offset * value_sum.

    Args:
        out: [batch, query_heads, q_len, value_dim], result of `flex_attention`.
        lse: [batch, query_heads, q_len], its log-sum-exp.
        offset: the offset of `activation`.
        value_sum: with an offset, the sum of v over the keys that each query sees, broadcast against out (without a
            mask, `v.sum(axis=2, keepdims=True)`; causal, `mx.cumsum(v, axis=2)`).

    Returns:
        f(S) V, of out's shape and dtype; 0 for a row that sees nothing.

    Raises:
        ValueError: there is an offset and no value_sum.

    Source: attention-gym's activation example, for FlexAttention (Dong et al., arXiv 2412.05496).

    Example:
        >>> import math, mlx.core as mx
        >>> from flextrace import mods
        >>> mods.undo_softmax(mx.array([[[[3.0]]]]), mx.array([[[math.log(4.0)]]])).item()
        12.0
    """
    offset = real("offset", offset)
    if value_sum is None and (isinstance(offset, mx.array) or offset):
        raise ValueError("undo_softmax with an offset needs value_sum, the sum of v over the keys of each query")
    total = out.astype(mx.float32) * mx.exp(lse)[..., None]
    if value_sum is not None:
        total = total - offset * value_sum.astype(mx.float32)
    return total.astype(out.dtype)
