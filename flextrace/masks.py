"""mask_mods -> mask_mod: the masks that combine others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .mod import MaskMod, as_mod


def noop_mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> bool:
    """The mask that keeps every pair."""
    return True


def and_masks(*masks: Callable[..., Any]) -> MaskMod:
    """The mask that keeps what all of `masks` (mask_mods or plain functions) keep.

    Example:
        >>> import flextrace as flex
        >>> band = flex.and_masks(lambda b, h, q, kv: q >= kv, lambda b, h, q, kv: q - kv < 64)
        >>> band(0, 0, 100, 50), band(0, 0, 100, 30)
        (True, False)
    """
    mods = tuple(as_mod(mask, MaskMod, "and_masks") for mask in masks)

    def all_of(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        keep = True
        for mod in mods:
            keep = keep and bool(mod(b, h, q_idx, kv_idx))
        return keep

    return MaskMod(all_of)


def or_masks(*masks: Callable[..., Any]) -> MaskMod:
    """The mask that keeps what any of `masks` (mask_mods or plain functions) keeps."""
    mods = tuple(as_mod(mask, MaskMod, "or_masks") for mask in masks)

    def any_of(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        keep = False
        for mod in mods:
            keep = keep or bool(mod(b, h, q_idx, kv_idx))
        return keep

    return MaskMod(any_of)
