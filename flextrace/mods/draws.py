"""Seed, position -> a random number, and what is made of it: without a state, so that all kernels agree."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from flextrace.decorators import MaskMod, mask_mod
from flextrace.kernels.scalars import as_float, as_int, shown

from .arguments import INT32


def uniform(seed: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    """A random number in [0, 1) for one position: the same on every backend, and in plain Python.

    The upper 24 bits of MurmurHash3_x86_32 over the four indices as int32 in little-endian order, with that seed, as a
    multiple of 2**-24: exact in float32. To be called in a mod, or with Python numbers.

    Args:
        seed: a number that fits int32, or an integer mx.array without axes; as a captured one it compiles nothing new.
            Take another for each layer and step: equal seeds give equal numbers.
        b, h, q_idx, kv_idx: the indices of the mod, or any other ints in their place: `uniform(seed, b, 0, q_idx, 0)`
            is one number for all heads and keys of a row.

    Source: Appleby, MurmurHash3 (2011), github.com/aappleby/smhasher. Random numbers as a function of a counter: Salmon
    et al., Parallel Random Numbers: As Easy as 1, 2, 3 (SC 2011). It is no generator for secrets.

    Example:
        >>> import flextrace as flex
        >>> round(flex.mods.uniform(0, 0, 0, 3, 4), 6)
        0.574353
        >>> @flex.score_mod
        ... def jitter(score, b, h, q_idx, kv_idx):
        ...     return score + 0.1 * flex.mods.uniform(7, b, h, q_idx, kv_idx)
    """
    state = seed
    for word in (b, h, q_idx, kv_idx):
        mixed = _int32(_rotated(_int32(word * (0xCC9E2D51 - 2**32)), 15) * 0x1B873593)
        state = _int32(_rotated(state ^ mixed, 13) * 5 + (0xE6546B64 - 2**32))
    state ^= 16  # bytes
    state = _int32((state ^ (state >> 16 & 0xFFFF)) * (0x85EBCA6B - 2**32))
    state = _int32((state ^ (state >> 13 & 0x7FFFF)) * (0xC2B2AE35 - 2**32))
    state ^= state >> 16 & 0xFFFF
    return (state >> 8 & 0xFFFFFF) / 2**24


def _int32(x: Any) -> Any:
    """An int as the int32 of its last 32 bits. An int of a kernel is that already: there this is x itself."""
    return (x & 0x7FFFFFFF) - ((x >> 31 & 1) << 31)


def _rotated(x: Any, count: int) -> Any:
    """An int32 with its bits rotated to the left."""
    return _int32(x << count) | (x >> 32 - count & (1 << count) - 1)


def dropout(rate: float, seed: Any) -> MaskMod:
    """A random mask: each pair of query and key is left out with probability `rate`.

    uniform(seed, b, h, q_idx, kv_idx) >= rate

    By itself (`mask & dropout(...)`) this is DropKey: softmax renormalises what is left, so that the weights of a row
    still sum to 1 and need no factor. Dropout of the weights, torch's `dropout_p`, drops after softmax and divides by
    1 - rate: `dropout_output` makes it of this mask's result. Tiles cannot be skipped for a random mask; pass it as a
    mask_mod, and not through create_block_mask, which would look at every pair.

    Args:
        rate: in [0, 1).
        seed: a number that fits int32, or an integer mx.array without axes. Another one for each layer and step.

    Raises:
        ValueError: rate or seed is not of that kind.

    Source: Li et al., DropKey, arXiv 2208.02646; Srivastava et al., Dropout (JMLR 15, 2014).

    Example:
        >>> import flextrace as flex
        >>> drop = flex.mods.dropout(0.5, seed=1)
        >>> [int(drop(0, 0, 0, kv_idx)) for kv_idx in range(8)]
        [1, 0, 0, 1, 1, 1, 1, 1]
        >>> masked = flex.mods.causal & drop
    """
    rate, seed = _rate(rate), _seed(seed)

    @mask_mod
    def dropout(b: int, h: int, q_idx: int, kv_idx: int) -> Any:
        return uniform(seed, b, h, q_idx, kv_idx) >= rate

    return dropout


def dropout_output(out: mx.array, lse: mx.array, full_lse: mx.array, rate: float) -> mx.array:
    """Attention under `dropout` -> attention with dropout of its weights: out * exp(lse - full_lse) / (1 - rate).

    With weights p = softmax(scores) over all keys, and m_j = 1 where key j is kept, else 0: the sum over j of
    m_j p_j v_j / (1 - rate), whose expectation is attention without dropout.

    Args:
        out: [batch, query_heads, q_len, value_dim], of `flex_attention` with `dropout` in its mask.
        lse: [batch, query_heads, q_len], its log-sum-exp.
        full_lse: the log-sum-exp of the same call without `dropout`.
        rate: the rate of `dropout`.

    Returns:
        An array of out's shape and dtype; 0 for a row that keeps nothing.

    Raises:
        ValueError: rate is not in [0, 1), or shapes differ.

    Source: Srivastava et al., Dropout: A Simple Way to Prevent Neural Networks from Overfitting (JMLR 15, 2014), on the
    weights as in Vaswani et al., arXiv 1706.03762 (its code).

    Example:
        >>> import mlx.core as mx, flextrace as flex
        >>> q = k = mx.zeros((1, 1, 4, 8))
        >>> v, drop = mx.ones((1, 1, 4, 8)), flex.mods.dropout(0.5, seed=3)
        >>> out, lse = flex.flex_attention(q, k, v, block_mask=drop, return_lse=True)
        >>> _, full = flex.flex_attention(q, k, v[..., :1], return_lse=True)
        >>> flex.mods.dropout_output(out, lse, full, 0.5)[0, 0, :, 0]  # 2 / 4 for each key that is kept
        array([1, 1, 1, 1.5], dtype=float32)
    """
    rate = _rate(rate)
    if lse.shape != out.shape[:-1] or full_lse.shape != lse.shape:
        raise ValueError(
            f"out has shape {out.shape}, lse {lse.shape}, full_lse {full_lse.shape}; expected the latter two of out's "
            "shape without its last axis"
        )
    factor = mx.where(lse == -mx.inf, 0.0, mx.exp(lse - full_lse)) / (1 - rate)
    return (out.astype(mx.float32) * factor[..., None]).astype(out.dtype)


def _rate(rate: Any) -> float:
    """A Python float in [0, 1) that float32 has too, so that kernels and Python decide alike."""
    number = as_float(rate, "rate")
    if number is None or not 0 <= number < 1:
        raise ValueError(f"rate is {shown(rate)}; expected a number in [0, 1)")
    return float(np.float32(number))


def _seed(seed: Any) -> Any:
    if isinstance(seed, mx.array) and not seed.ndim and mx.issubdtype(seed.dtype, mx.integer):
        return seed
    number = as_int(seed, "seed")
    if number is None or not INT32.min <= number <= INT32.max:
        raise ValueError(f"seed is {shown(seed)}; expected a whole number that fits int32, or an integer mx.array")
    return number
