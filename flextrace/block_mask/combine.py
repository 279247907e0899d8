"""mask_mods -> mask_mod: what all of them keep, or any."""

from __future__ import annotations

import functools
import operator
from typing import Any

from flextrace.decorators import MaskMod, as_mod
from flextrace.tracer.source.signature import MaskFunction

from .block_mask import BlockMask
from .views import noop_mask


def and_masks(*masks: MaskMod | MaskFunction) -> MaskMod:
    """The mask that keeps what all of `masks` (mask_mods or plain functions) keep. `&` between two does the same.

    Example:
        >>> import flextrace as flex
        >>> band = flex.and_masks(lambda b, h, q, kv: q >= kv, lambda b, h, q, kv: q - kv < 64)
        >>> band(0, 0, 100, 50), band(0, 0, 100, 30)
        (True, False)
    """
    mods = [_mask_mod(mask, "and_masks", "&") for mask in masks]
    return functools.reduce(operator.and_, mods) if mods else MaskMod(noop_mask)


def or_masks(*masks: MaskMod | MaskFunction) -> MaskMod:
    """The mask that keeps what any of `masks` (mask_mods or plain functions) keeps. `|` between two does the same.

    Example:
        >>> import flextrace as flex
        >>> either = flex.or_masks(lambda b, h, q, kv: kv < 4, lambda b, h, q, kv: q == kv)
        >>> either(0, 0, 9, 3), either(0, 0, 9, 8)
        (True, False)
    """
    mods = [_mask_mod(mask, "or_masks", "|") for mask in masks]
    return functools.reduce(operator.or_, mods) if mods else ~MaskMod(noop_mask)


def _mask_mod(mask: Any, caller: str, sign: str) -> MaskMod:
    if isinstance(mask, BlockMask):
        raise TypeError(f"{caller} takes mask_mods; a BlockMask combines by itself: write `block_mask {sign} other`")
    return as_mod(mask, MaskMod, caller)
