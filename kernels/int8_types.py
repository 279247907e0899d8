"""What a call says about quantising and smoothing q and k: plain data, read by every backend.

The methods are SageAttention's (Zhang et al., arXiv 2410.02367; smoothing of q: arXiv 2411.10958).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import mlx.core as mx

from .scalars import as_bool, as_int, shown

LEVELS = 127  # int8: an element becomes round(x / scale), scale = largest magnitude of its block / LEVELS
SMALLEST = 2.0**-119  # of a block: what is smaller all over counts as zero, as LEVELS / x would overflow


@dataclass(frozen=True)
class QKQuant:
    """How q and k become int8 for `kernel_options={"QK_QUANT": QKQuant(...)}`; "int8" is `QKQuant()`.

    granularity: "row": one float32 scale for each row of q and of k, the more accurate and no slower on a CPU;
        "block": one for `q_block` rows of a query head and for `k_block` rows of a key head, as SageAttention has it.
    smooth_k: subtract from each key the mean of its kv head (of its document, under a document mask); exact.
    smooth_q: subtract from each query the mean of its block of `q_block` rows; exact.
    q_block, k_block: rows that share a scale; q_block also the rows that share a mean of q.

    Rounding takes a pass over all keys, which many query rows share. A few rows (decode) would wait for it longer than
    for attention itself, so they multiply keys as they are, exactly; what makes decode faster is a cache that
    is in int8 already (`Int8KV`).

    Example:
        >>> import mlx.core as mx, flextrace as flex
        >>> q = mx.random.normal((1, 2, 64, 32), key=mx.random.key(0))
        >>> exact = flex.flex_attention(q, q, q)
        >>> quant = flex.QKQuant(smooth_q=True)
        >>> rounded = flex.flex_attention(q, q, q, kernel_options={"BACKEND": "cpu", "QK_QUANT": quant})
        >>> bool(mx.allclose(rounded, exact, atol=0.02))
        True
    """

    granularity: Literal["block", "row"] = "row"
    smooth_k: bool = True
    smooth_q: bool = False
    q_block: int = 128
    k_block: int = 64

    def __post_init__(self) -> None:
        if self.granularity not in ("block", "row"):
            raise ValueError(f"QKQuant: granularity is 'block' or 'row'; got {self.granularity!r}")
        for name in ("smooth_k", "smooth_q"):
            flag = as_bool(getattr(self, name), name)
            if flag is None:
                raise ValueError(f"QKQuant: {name} is True or False; got {shown(getattr(self, name))}")
            object.__setattr__(self, name, flag)
        for name in ("q_block", "k_block"):
            given = getattr(self, name)
            size = as_int(given, name)
            if size is None or not 1 <= size < 2**31:
                raise ValueError(f"QKQuant: {name} is a positive whole number of rows; got {shown(given)}")
            object.__setattr__(self, name, size)


@dataclass(frozen=True, eq=False)
class Smoothing:
    """What to subtract from the keys, and what a kernel does with the row term t = scale * q . mean that this drops.

    A kernel computes scale * q . (k - means[group of k]) instead of scale * q . k. For every pair that the mask keeps,
    row and key are of one group, so the difference t = scale * q . means[group of the row] is one number per row.

    means: float32 [batches of k, kv_heads, groups, head_dim], finite.
    key_groups: int32 [1 or batches of k, kv_len], values 0 to groups - 1; None: all keys are of group 0.
    row_groups: int32 [1 or batch, q_len], values 0 to groups - 1; None, with key_groups: all rows are of group 0.
    add_back: True: add t to the score before score_mod, which is not invariant to it. False: leave it out, and add it
        to lse and max_scores.
    averages: means are those of the groups of k, as far as it is finite, so a kernel may make them itself and leave
        this array, a lazy one, unevaluated.
    """

    means: mx.array
    key_groups: mx.array | None = None
    row_groups: mx.array | None = None
    add_back: bool = False
    averages: bool = False


class Int8Rows(NamedTuple):
    """Keys or values that are in int8 already, for `flex_attention`: row = values * scales + means.

    values: int8 [batch, kv_heads, length, columns]; scales: float32 [batch, kv_heads, length], nan for a row that
    holds an infinity or a nan; means: float32 [batch, kv_heads, 1, columns], finite, or None for zeros.

    Example:
        >>> import mlx.core as mx
        >>> rows = Int8Rows(mx.array([[[[2, -4]]]], mx.int8), mx.array([[[0.5]]]))
        >>> rows.shape, rows.float32().tolist()
        ((1, 1, 1, 2), [[[[1.0, -2.0]]]])
    """

    values: mx.array
    scales: mx.array
    means: mx.array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the rows: [batch, kv_heads, length, columns]."""
        return self.values.shape

    def float32(self) -> mx.array:
        """The rows as numbers, float32 [batch, kv_heads, length, columns]."""
        rows = self.values.astype(mx.float32) * self.scales[..., None]
        return rows if self.means is None else rows + self.means
