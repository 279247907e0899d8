"""Parameters -> score_mod: a number for the distance of query and key, added to the score."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np

from flextrace.decorators import ScoreMod, score_mod
from flextrace.kernels.scalars import as_int

from .arguments import reals, whole
from .offsets import score_at


def alibi_slopes(heads: int) -> mx.array:
    """ALiBi's slopes: float32 [heads], 2 ** (-8 (h + 1) / heads) where heads is a power of two.

    Otherwise the slopes of the power of two below, then every second one of the next power's, as in the paper's code.

    Raises:
        ValueError: heads is not a positive whole number.

    Source: Press et al., Train Short, Test Long (ALiBi), arXiv 2108.12409.

    Example:
        >>> from flextrace import mods
        >>> mods.alibi_slopes(4).tolist()
        [0.25, 0.0625, 0.015625, 0.00390625]
    """
    heads = whole("heads", heads)
    power = 2 ** (heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * (h + 1) / power) for h in range(power)]
    slopes += [2.0 ** (-8 * (h + 1) / (2 * power)) for h in range(0, 2 * (heads - power), 2)]
    return mx.array(slopes)


def alibi(slopes: Any, symmetric: bool = False, *, offset: int | mx.array | None = None) -> ScoreMod:
    """A penalty that grows with distance: score + slopes[h] * (kv_idx - q_idx).

    Args:
        slopes: number of query heads (then `alibi_slopes`), or floats [query_heads], which may be learnable.
        symmetric: -slopes[h] * |q_idx - kv_idx|, for attention to both sides; the same under a causal mask.
        offset: position of the first query, an int or integers [] or [B] in an mx.array; see `causal`.

    Raises:
        ValueError: slopes is neither a positive whole number nor floats of one axis.

    Source: Press et al., Train Short, Test Long (ALiBi), arXiv 2108.12409.

    Example:
        >>> from flextrace import mods
        >>> mods.alibi(8).expr
        score + (array0[h] * float((kv_idx - q_idx)))
    """
    heads = as_int(slopes, "slopes")
    slopes = reals("slopes", slopes, (1,), "[query_heads]") if heads is None else alibi_slopes(heads)

    @score_mod
    def alibi(score: float, b: int, h: int, q_idx: int, kv_idx: int) -> Any:
        return score + slopes[h] * (-abs(q_idx - kv_idx) if symmetric else kv_idx - q_idx)

    return score_at(alibi, offset)


def relative_bias(table: Any, *, offset: int | mx.array | None = None) -> ScoreMod:
    """A learned number for each distance, clipped: score + table[h, clip(kv_idx - q_idx, -r, r) + r].

    Args:
        table: floats [query_heads, 2 * r + 1]; the middle column is distance 0.
        offset: position of the first query, an int or integers [] or [B] in an mx.array; see `causal`.

    Raises:
        ValueError: table has another shape, or an even number of columns.

    Source: after Shaw et al., Self-Attention with Relative Position Representations, arXiv 1803.02155 (its clipping,
    one number in place of a vector).

    Example:
        >>> from flextrace import mods
        >>> bias = mods.relative_bias([[-1.0, 0.0, 1.0]])
        >>> [float(bias(0.0, 0, 0, 5, kv_idx)) for kv_idx in (0, 4, 5, 6, 9)]
        [-1.0, -1.0, 0.0, 1.0, 1.0]
    """
    table = reals("table", table, (2,), "[query_heads, 2 * r + 1]")
    if table.shape[1] % 2 == 0:
        raise ValueError(f"table has shape {table.shape}; expected an odd number of columns, distance 0 in the middle")
    reach = table.shape[1] // 2

    @score_mod
    def relative_bias(score: float, b: int, h: int, q_idx: int, kv_idx: int) -> Any:
        return score + table[h, min(max(kv_idx - q_idx, -reach), reach) + reach]

    return score_at(relative_bias, offset)


def t5_bias(
    table: Any, bidirectional: bool = True, max_distance: int = 128, *, offset: int | mx.array | None = None
) -> ScoreMod:
    """A learned number for each bucket of distance: score + table[bucket(kv_idx - q_idx), h].

    Near distances have a bucket each, farther ones share buckets that grow logarithmically up to max_distance. With
    `bidirectional` half of the buckets are for keys after the query; else those all count as distance 0. Buckets
    are read from a captured table of distances, so that no logarithm runs in the kernel.

    Args:
        table: floats [buckets, query_heads], as T5's `relative_attention_bias`. T5 does not scale its scores: pass
            scale=1.0 to `flex_attention` for its weights.
        bidirectional: True in an encoder, False in a decoder.
        max_distance: distances from here on share the last bucket.
        offset: position of the first query, an int or integers [] or [B] in an mx.array; see `causal`.

    Raises:
        ValueError: table has another shape, or max_distance does not exceed the buckets of single distances.

    Source: Raffel et al., T5, arXiv 1910.10683.

    Example:
        >>> from flextrace import mods
        >>> bias = mods.t5_bias([[float(bucket)] for bucket in range(32)])
        >>> [int(bias(0.0, 0, 0, 100, kv_idx)) for kv_idx in (0, 80, 99, 100, 101, 120, 300)]
        [15, 10, 1, 0, 17, 26, 31]
    """
    table, last = reals("table", table, (2,), "[buckets, query_heads]"), whole("max_distance", max_distance)
    side = table.shape[0] // 2 if bidirectional else table.shape[0]
    single = side // 2
    if single < 1 or last <= single:
        raise ValueError(
            f"table has {table.shape[0]} buckets, {single} for single distances, and max_distance is {last}; expected "
            "at least 4 buckets (2 in a decoder) and a larger max_distance"
        )
    far = np.arange(last + 1, dtype=np.float32)
    grown = np.log(np.maximum(far, 1) / np.float32(single)) / np.float32(math.log(last / single)) * (side - single)
    bucket = np.where(far < single, far, np.minimum(single + grown.astype(np.int64), side - 1))
    buckets = mx.array(bucket.astype(np.int32))

    @score_mod
    def t5_bias(score: float, b: int, h: int, q_idx: int, kv_idx: int) -> Any:
        distance = q_idx - kv_idx
        if bidirectional:
            start = side if distance < 0 else 0
            return score + table[start + buckets[min(abs(distance), last)], h]
        return score + table[buckets[min(max(distance, 0), last)], h]

    return score_at(t5_bias, offset)


def sandwich(heads: int, max_length: int, dims: int = 128, *, offset: int | mx.array | None = None) -> ScoreMod:
    """Sandwich: the product of two sinusoidal position embeddings, weaker in later heads.

    score + heads / (8 (h + 1)) * sum over i < dims / 2 of cos((q_idx - kv_idx) / 10000 ** (2 i / dims))

    The sums are read from a captured table of distances.

    Args:
        heads: query heads.
        max_length: the longest sequence; farther distances count as the farthest of the table.
        dims: dimensions of the embeddings, even.
        offset: position of the first query, an int or integers [] or [B] in an mx.array; see `causal`.

    Raises:
        ValueError: a size is not a positive whole number, or dims is odd.

    Source: Chi et al., Dissecting Transformer Length Extrapolation via the Lens of Receptive Field Analysis,
    arXiv 2212.10356.

    Example:
        >>> from flextrace import mods
        >>> mods.sandwich(heads=4, max_length=64).expr
        score + (array0[h] * array1[min(abs((q_idx - kv_idx)), number0)])
    """
    heads, farthest, dims = whole("heads", heads), whole("max_length", max_length) - 1, whole("dims", dims)
    if dims % 2:
        raise ValueError(f"dims is {dims}; expected an even number, one sine and one cosine for each frequency")
    frequency = 10000.0 ** (-2 * np.arange(dims // 2) / dims)
    by_distance = mx.array(np.cos(np.arange(farthest + 1)[:, None] * frequency).sum(1).astype(np.float32))
    by_head = mx.array((heads / (8 * np.arange(1, heads + 1))).astype(np.float32))

    @score_mod
    def sandwich(score: float, b: int, h: int, q_idx: int, kv_idx: int) -> Any:
        return score + by_head[h] * by_distance[min(abs(q_idx - kv_idx), farthest)]

    return score_at(sandwich, offset)
