"""Mod, offset -> the same mod for queries that start at that position: q_idx + offset in q_idx's place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import mlx.core as mx
import numpy as np

from flextrace.decorators import MaskMod, ScoreMod
from flextrace.kernels.scalars import as_int, shown
from flextrace.tracer import Start, name_of

from .arguments import INT32, integers


def mask_at(mask: MaskMod, offset: Any) -> MaskMod:
    """The mask for queries that start at `offset`; itself for None. Raises ValueError."""
    if offset is None:
        return mask
    first = _first(offset)

    def placed(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return mask(b, h, q_idx + first(b), kv_idx)

    placed.__name__ = placed.__qualname__ = name_of(mask)
    return MaskMod(placed)


def score_at(score_mod: ScoreMod, offset: Any) -> ScoreMod:
    """The score_mod for queries that start at `offset`; itself for None. Raises ValueError."""
    if offset is None:
        return score_mod
    first = _first(offset)

    def placed(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score_mod(score, b, h, q_idx + first(b), kv_idx)

    placed.__name__ = placed.__qualname__ = name_of(score_mod)
    return ScoreMod(placed)


def causal_at(mask: MaskMod, offset: Any) -> MaskMod:
    """`mask_at` of a mask under which a query sees no key after it. Where no offset was said and there are more keys
    than queries, `flex_attention` and `create_block_mask` say that rows count from the first key on.

    Raises:
        ValueError: as mask_at.
    """
    if offset is None:
        mask.top_left = f"{name_of(mask)}(..., offset=kv_len - q_len)"
    return mask_at(mask, offset)


class Causal(MaskMod):
    """The mask_mod `flex.mods.causal`; called with nothing but an offset, the one for queries that start there."""

    top_left: str | None = "causal(offset=kv_len - q_len)"

    @overload
    def __call__(self, *, offset: int | mx.array | None) -> MaskMod: ...
    @overload
    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any: ...
    def __call__(self, *indices: Any, **named: Any) -> Any:
        if indices or [*named] != ["offset"]:
            return super().__call__(*indices, **named)
        return mask_at(self, named["offset"])


def _first(given: Any) -> Callable[[Any], Any]:
    """Batch -> position of its first query. An mx.array stays the caller's, so that what is written there is read.

    Raises:
        ValueError: it is neither a whole number that fits int32 nor integers of at most one axis.
    """
    number = None if isinstance(given, mx.array) else as_int(given, "offset")
    if number is not None:
        if not INT32.min <= number <= INT32.max:
            raise ValueError(f"offset is {number}; expected a whole number that fits int32")
        offset: Any = Start(number)
        return lambda b: offset
    if not isinstance(given, (mx.array, np.ndarray, list, tuple)):
        raise ValueError(
            f"offset is {shown(given)}; expected a whole number, or integers as an mx.array of shape [] or [B]"
        )
    checked = integers("offset", given, (0, 1), "[] or [B]")
    offset = given if isinstance(given, mx.array) else checked
    return (lambda b: offset[b]) if offset.ndim else (lambda b: offset)
