"""Kernel options -> QKQuant: what "QK_QUANT", "SMOOTH_K" and "SMOOTH_Q" ask for together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import mlx.core as mx

from flextrace.kernels import BACKENDS, AttentionCall, Backend, Int8Rows, QKQuant, Smoothing, backend_for
from flextrace.kernels.smoothing import needs_row_term


def quant_options(options: Mapping[str, Any]) -> tuple[QKQuant | None, bool]:
    """How q and k are quantised, or None; and whether k is smoothed. "SMOOTH_K" and "SMOOTH_Q" go before the object.

    Raises:
        ValueError: "SMOOTH_Q" without "QK_QUANT".
    """
    asked = options.get("QK_QUANT")
    if asked is None:
        if options.get("SMOOTH_Q"):
            raise ValueError(
                'kernel option SMOOTH_Q smooths what is quantised; add "QK_QUANT": "int8", or leave it out'
            )
        return None, bool(options.get("SMOOTH_K", False))
    quant = asked if isinstance(asked, QKQuant) else QKQuant()
    changes = {name.lower(): options[name] for name in ("SMOOTH_K", "SMOOTH_Q") if name in options}
    quant = replace(quant, **changes)
    return quant, quant.smooth_k


def quant_of_int8_keys(options: Mapping[str, Any]) -> tuple[QKQuant, bool]:
    """The same where k is in int8 already: by rows, and nothing more is smoothed.

    Raises:
        ValueError: options that ask for something else.
    """
    for name in ("QK_QUANT", "SMOOTH_K", "SMOOTH_Q"):
        asked = options.get(name)
        by_rows = isinstance(asked, QKQuant) and asked.granularity == "row" and not asked.smooth_q
        if asked and asked != "int8" and not by_rows:
            raise ValueError(
                f"kernel option {name}={asked!r} does not go with a key in int8, which was rounded by rows before; "
                "leave it out (Int8KV says how it smooths), or pass *cache.dequantised()"
            )
    return QKQuant("row", smooth_k=False), False


def elements(rows: mx.array | Int8Rows) -> mx.array:
    """What a kernel reads of keys or values."""
    return rows.values if isinstance(rows, Int8Rows) else rows


def add_scales(call: AttentionCall, key: mx.array | Int8Rows, value: mx.array | Int8Rows) -> None:
    """Give the call what else there is of keys and values in int8."""
    if isinstance(key, Int8Rows):
        call.k_scales = key.scales
        if key.means is not None:
            call.smoothing = Smoothing(key.means, add_back=needs_row_term(call.mods.score))
    if isinstance(value, Int8Rows):
        call.v_scales, call.v_means = value.scales, value.means


def refuse_unless_quantising(backend: Backend, call: AttentionCall, smooth_k: bool) -> None:
    """Raises ValueError where the call wants q and k quantised or smoothed, and this backend or pipeline does not."""
    if call.quant is None and not smooth_k:
        return
    asked = "QK_QUANT" if call.quant is not None else "SMOOTH_K"
    if call.staged:
        raise ValueError(f'{asked} and "PIPELINE": "staged" exclude each other: stages neither quantise nor smooth')
    if not backend.quantises:
        able = [name for name in BACKENDS if backend_for(name, to_run=False).quantises]
        choice = f"choose BACKEND {', '.join(able)}, or " if able else "no backend of this version does; "
        if call.k_scales is not None:
            raise ValueError(
                f"the {backend.name} backend does not read int8 keys; {choice}pass *cache.dequantised() of the Int8KV"
            )
        raise ValueError(
            f"the {backend.name} backend neither quantises nor smooths query and key; {choice}leave {asked} out"
        )
