"""Parameters -> mask_mod: windows around the query, also with holes, global tokens or attention sinks."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from flextrace.decorators import MaskMod, mask_mod

from .arguments import flags, whole
from .offsets import causal_at, mask_at


def sliding_window(window: int, *, offset: int | mx.array | None = None) -> MaskMod:
    """The last `window` keys, the query's own included: 0 <= q_idx - kv_idx < window.

    Args:
        window: number of keys a query sees, at least 1.
        offset: position of the first query, an int or integers [] or [B] in an mx.array; see `causal`.

    Raises:
        ValueError: window is not a positive whole number.

    Source: Jiang et al., Mistral 7B, arXiv 2310.06825.

    Example:
        >>> import flextrace as flex
        >>> print(flex.create_block_mask(flex.mods.sliding_window(4), None, None, 8, 8, BLOCK_SIZE=2).to_string())
        +...
        #+..
        +#+.
        .+#+
    """
    window = whole("window", window)

    @mask_mod
    def sliding_window(b: int, h: int, q_idx: int, kv_idx: int) -> bool:
        return 0 <= q_idx - kv_idx < window

    return causal_at(sliding_window, offset)


def bidirectional_window(radius: int, *, offset: int | mx.array | None = None) -> MaskMod:
    """Keys at most `radius` away on either side: |q_idx - kv_idx| <= radius.

    Args:
        radius: distance, at least 0 (0 leaves the diagonal).
        offset: position of the first query, an int or integers [] or [B] in an mx.array; see `causal`.

    Raises:
        ValueError: radius is negative or not whole.

    Source: Beltagy et al., Longformer, arXiv 2004.05150 (a window of 2 * radius + 1 keys).

    Example:
        >>> from flextrace import mods
        >>> near = mods.bidirectional_window(2)
        >>> [near(0, 0, 5, kv_idx) for kv_idx in range(2, 9)]
        [False, True, True, True, True, True, False]
    """
    radius = whole("radius", radius, at_least=0)

    @mask_mod
    def bidirectional_window(b: int, h: int, q_idx: int, kv_idx: int) -> bool:
        return -radius <= q_idx - kv_idx <= radius

    return mask_at(bidirectional_window, offset)


def dilated_window(window: int, dilation: int, *, offset: int | mx.array | None = None) -> MaskMod:
    """Every `dilation`-th of the last `window` positions: 0 <= q_idx - kv_idx < window, divisible by dilation.

    Args:
        window: positions looked back over, the query's own included; ceil(window / dilation) of them are seen.
        dilation: step between keys; 1 is `sliding_window`.
        offset: position of the first query, an int or integers [] or [B] in an mx.array; see `causal`.

    Raises:
        ValueError: window or dilation is not a positive whole number.

    Source: Beltagy et al., Longformer, arXiv 2004.05150 (dilated sliding window).

    Example:
        >>> from flextrace import mods
        >>> mask = mods.dilated_window(window=6, dilation=2)
        >>> [kv_idx for kv_idx in range(12) if mask(0, 0, 10, kv_idx)]
        [6, 8, 10]
    """
    window, dilation = whole("window", window), whole("dilation", dilation)

    @mask_mod
    def dilated_window(b: int, h: int, q_idx: int, kv_idx: int) -> bool:
        return 0 <= q_idx - kv_idx < window and (q_idx - kv_idx) % dilation == 0

    return causal_at(dilated_window, offset)


def global_window(is_global: Any, radius: int, *, offset: int | mx.array | None = None) -> MaskMod:
    """A window, and global tokens that see and are seen by all: |q_idx - kv_idx| <= radius, or either is global.

    Args:
        is_global: bools [length] or [B, length], True for global tokens.
        radius: distance of the window, at least 0.
        offset: position of the first query, an int or integers [] or [B] in an mx.array; see `causal`.

    Raises:
        ValueError: is_global is not a bool array of that shape, or radius is negative.

    Source: Beltagy et al., Longformer, arXiv 2004.05150.

    Example:
        >>> import flextrace as flex
        >>> mask = flex.mods.global_window([True] + 11 * [False], radius=1)
        >>> print(flex.create_block_mask(mask, None, None, 12, 12, BLOCK_SIZE=2).to_string())
        #+++++
        +#+...
        ++#+..
        +.+#+.
        +..+#+
        +...+#
    """
    is_global, radius = flags("is_global", is_global, (1, 2), "[length] or [B, length]"), whole("radius", radius, 0)

    @mask_mod
    def global_window(b: int, h: int, q_idx: int, kv_idx: int) -> Any:
        marked = is_global[b] if is_global.ndim == 2 else is_global
        return -radius <= q_idx - kv_idx <= radius or marked[q_idx] or marked[kv_idx]

    return mask_at(global_window, offset)


def attention_sinks(sinks: int, window: int, *, offset: int | mx.array | None = None) -> MaskMod:
    """The first `sinks` tokens and the last `window`: kv_idx <= q_idx and (kv_idx < sinks or q_idx - kv_idx < window).

    Args:
        sinks: tokens at the start that stay visible, at least 0.
        window: number of latest keys, the query's own included, at least 1.
        offset: position of the first query, an int or integers [] or [B] in an mx.array; see `causal`.

    Raises:
        ValueError: sinks or window is out of range.

    Source: Xiao et al., StreamingLLM, arXiv 2309.17453.

    Example:
        >>> from flextrace import mods
        >>> mask = mods.attention_sinks(sinks=2, window=3)
        >>> [kv_idx for kv_idx in range(10) if mask(0, 0, 8, kv_idx)]
        [0, 1, 6, 7, 8]
    """
    sinks, window = whole("sinks", sinks, at_least=0), whole("window", window)

    @mask_mod
    def attention_sinks(b: int, h: int, q_idx: int, kv_idx: int) -> bool:
        return kv_idx <= q_idx and (kv_idx < sinks or q_idx - kv_idx < window)

    return causal_at(attention_sinks, offset)
