"""A learned table -> score_mod: modules that add a number for the distance of query and key to the score."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from flextrace import decorators
from flextrace.mods.arguments import whole
from flextrace.mods.biases import alibi_slopes


class RelativePositionBias(nn.Module):
    """T5's bias: a learned number for each head and each bucket of distances kv_idx - q_idx.

    Small distances have a bucket each; larger ones share buckets that grow by a constant factor up to max_distance, and
    all beyond that share the last.

    Args:
        num_heads: query heads.
        num_buckets: rows of the table; half of them are for keys after the query where bidirectional.
        max_distance: the distance from which on all share one bucket.
        bidirectional: False gives no bucket to keys after the query (they share that of distance 0), for causal masks.

    Attributes:
        weight: the parameter, float32 [num_buckets, num_heads], drawn as `nn.Embedding` draws; T5's own name and shape.
        score_mod: reads the weight of the moment: it is traced once, however often an optimiser replaces the weight.

    Raises:
        ValueError: a size is not a positive whole number, or there are too few buckets, or too many for max_distance.

    Source: Raffel et al., Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer (T5),
    arXiv 1910.10683, section 2.1. T5 itself does not divide scores by sqrt(head_dim): pass scale=1.0 for its weights.

    Example:
        >>> import mlx.core as mx, flextrace as flex
        >>> bias = flex.nn.RelativePositionBias(num_heads=4, num_buckets=16, max_distance=64)
        >>> bias.weight.shape
        (16, 4)
        >>> q = mx.ones((1, 4, 32, 8))
        >>> flex.flex_attention(q, q, q, score_mod=bias.score_mod).shape
        (1, 4, 32, 8)
        >>> bias.score_mod.expr
        score + array0[array1[min(max(((kv_idx - q_idx) + number0), 0), (number0 * 2))], h]
    """

    def __init__(
        self, num_heads: int, num_buckets: int = 32, max_distance: int = 128, bidirectional: bool = True
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        num_heads, num_buckets = whole("num_heads", num_heads), whole("num_buckets", num_buckets, at_least=2)
        max_distance = whole("max_distance", max_distance)
        buckets = relative_position_buckets(num_buckets, max_distance, bidirectional)
        self.weight: mx.array = mx.random.normal((num_buckets, num_heads), scale=num_heads**-0.5)
        self._buckets: mx.array = mx.array(buckets, mx.int32)  # by distance; an underscore: no parameter
        self.max_distance: int = max_distance
        self.bidirectional: bool = bidirectional

    def _extra_repr(self) -> str:
        num_buckets, num_heads = self.weight.shape
        return f"{num_heads=}, {num_buckets=}, max_distance={self.max_distance}, bidirectional={self.bidirectional}"

    @decorators.score_mod
    def score_mod(self, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        place = min(max(kv_idx - q_idx + self.max_distance, 0), 2 * self.max_distance)
        return score + self.weight[self._buckets[place], h]

    def dense(self, q_len: int, kv_len: int) -> mx.array:
        """What score_mod adds, as an array [num_heads, q_len, kv_len]: for pictures, and for MLX's own attention."""
        place = mx.clip(_distances(q_len, kv_len) + self.max_distance, 0, 2 * self.max_distance)
        return self.weight[self._buckets[place]].transpose(2, 0, 1)


def relative_position_buckets(num_buckets: int, max_distance: int, bidirectional: bool = True) -> list[int]:
    """T5's bucket of each distance kv_idx - q_idx from -max_distance to max_distance, in exact integers.

    Of the buckets of one direction the first half are the distances 0, 1, 2 and so on. Where e is the first distance
    beyond them, and m buckets are left, distance n has bucket e + floor(m * log(n / e) / log(max_distance / e)), and
    none more than the last: it is at least e + j where (n / e) ** m >= (max_distance / e) ** j.

    Raises:
        ValueError: too few buckets, or too many for max_distance.

    Example:
        >>> relative_position_buckets(4, 4, bidirectional=False)
        [3, 3, 2, 1, 0, 0, 0, 0, 0]
    """
    ways = 2 if bidirectional else 1
    one_way = num_buckets // ways
    exact = one_way // 2
    if exact < 1 or num_buckets % ways:
        kinds = "an even number of at least 4" if bidirectional else "at least 2"
        raise ValueError(f"num_buckets is {num_buckets}; expected {kinds}")
    if max_distance <= exact:
        raise ValueError(
            f"max_distance is {max_distance}; expected more than {exact}, the distances that have a bucket"
        )
    shared = one_way - exact

    def bucket(distance: int) -> int:
        if distance < exact:
            return distance
        power = distance**shared
        steps = (j for j in range(1, shared) if power * exact**j >= max_distance**j * exact**shared)
        return exact + max(steps, default=0)

    before = [bucket(distance) for distance in range(max_distance, 0, -1)]
    after = [one_way + bucket(n) if bidirectional else 0 for n in range(1, max_distance + 1)]
    return [*before, 0, *after]


class AlibiSlopes(nn.Module):
    """ALiBi whose slopes are learned: score + slopes[h] * (kv_idx - q_idx).

    Args:
        num_heads: query heads.
        symmetric: -slopes[h] * |q_idx - kv_idx|, for attention to both sides; the same under a causal mask.

    Attributes:
        slopes: the parameter, float32 [num_heads]; it begins as ALiBi's own slopes.
        score_mod: reads the slopes of the moment: it is traced once, however often an optimiser replaces them.

    Raises:
        ValueError: num_heads is not a positive whole number.

    Source: Press et al., Train Short, Test Long (ALiBi), arXiv 2108.12409, which does not train them.

    Example:
        >>> import mlx.core as mx, flextrace as flex
        >>> bias = flex.nn.AlibiSlopes(4)
        >>> bias.slopes.tolist()
        [0.25, 0.0625, 0.015625, 0.00390625]
        >>> q = mx.ones((1, 4, 32, 8))
        >>> flex.flex_attention(q, q, q, bias.score_mod, flex.mods.causal).shape
        (1, 4, 32, 8)
    """

    def __init__(self, num_heads: int, symmetric: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.slopes: mx.array = alibi_slopes(num_heads)
        self.symmetric: bool = symmetric

    def _extra_repr(self) -> str:
        return f"num_heads={self.slopes.size}, symmetric={self.symmetric}"

    @decorators.score_mod
    def score_mod(self, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score + self.slopes[h] * (-abs(q_idx - kv_idx) if self.symmetric else kv_idx - q_idx)

    def dense(self, q_len: int, kv_len: int) -> mx.array:
        """What score_mod adds, as an array [num_heads, q_len, kv_len]: for pictures, and for MLX's own attention."""
        distances = _distances(q_len, kv_len)
        return self.slopes[:, None, None] * (-mx.abs(distances) if self.symmetric else distances)


def _distances(q_len: int, kv_len: int) -> mx.array:
    """kv_idx - q_idx: int32 [q_len, kv_len]."""
    return mx.arange(kv_len, dtype=mx.int32) - mx.arange(q_len, dtype=mx.int32)[:, None]
