"""Arguments -> errors: everything about shapes, dtypes and options that is wrong is said before any work."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from flextrace.kernels import Int8Rows, QKQuant

DTYPES = (mx.float32, mx.float16, mx.bfloat16)
OPTIONS: dict[str, tuple[type, ...]] = {
    "BACKEND": (str,),
    "NUM_THREADS": (int,),
    "ASYNC_COPY": (str,),
    "PIPELINE": (str,),
    "QK_QUANT": (str, QKQuant),
    "SMOOTH_K": (bool,),
    "SMOOTH_Q": (bool,),
}
CHOICES: dict[str, tuple[str, ...]] = {
    "ASYNC_COPY": ("pipelined", "intrinsic"),
    "PIPELINE": ("fused", "staged"),
    "QK_QUANT": ("int8",),
}


Rows = mx.array | Int8Rows


def check_tensors(query: mx.array, key: Rows, value: Rows, scale: float | None, enable_gqa: bool) -> None:
    """Raises TypeError or ValueError unless q, k and v fit together."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if isinstance(tensor, Int8Rows) and name != "query":
            _check_int8(name, tensor)
        elif not isinstance(tensor, mx.array):
            raise TypeError(f"{name} is a {type(tensor).__name__}; convert it with mx.array(...)")
        if len(tensor.shape) != 4:
            raise ValueError(f"{name} has shape {tensor.shape}; expected 4 axes: [batch, heads, length, head_dim]")
    if isinstance(value, Int8Rows) and not isinstance(key, Int8Rows):
        raise TypeError("value is in int8, key is not; give both as flex.Int8KV keeps them, or value.float32()")
    if query.dtype not in DTYPES or any(isinstance(x, mx.array) and x.dtype != query.dtype for x in (key, value)):
        raise TypeError(
            f"query, key and value are {_name(query)}, {_name(key)} and {_name(value)}; make all three float32, "
            "float16 or bfloat16 with .astype(...)"
        )
    (b, hq, _, d), (bk, hkv, s, dk), (bv, hv, sv, _) = query.shape, key.shape, value.shape
    if d != dk:
        raise ValueError(f"head_dim of query is {d}, of key {dk}; they must be equal")
    if (hkv, s) != (hv, sv):
        raise ValueError(f"key has {hkv} heads of length {s}, value {hv} of length {sv}; they must be equal")
    if bk != bv or bk not in (b, 1):
        raise ValueError(f"batch sizes: query {b}, key {bk}, value {bv}; key and value need {b}, or 1 for all")
    if hq != hkv:
        if not enable_gqa:
            raise ValueError(
                f"query has {hq} heads, key and value have {hkv}; pass enable_gqa=True for grouped-query attention"
            )
        if hkv == 0 or hq % hkv:
            raise ValueError(f"with enable_gqa the {hq} query heads must be a multiple of the {hkv} key heads")
    if scale is not None and (not isinstance(scale, (int, float)) or not math.isfinite(scale)):
        raise ValueError(f"scale is {scale!r}; expected a finite number, or None for 1 / sqrt(head_dim)")


def _check_int8(name: str, rows: Int8Rows) -> None:
    """Raises TypeError or ValueError unless the parts of ready-made int8 rows fit each other."""
    for part, array in rows._asdict().items():
        if not isinstance(array, mx.array) and not (part == "means" and array is None):
            raise TypeError(f"{name}.{part} is a {type(array).__name__}; expected an mx.array")
    if rows.values.dtype != mx.int8 or rows.scales.dtype != mx.float32:
        raise TypeError(f"{name} has {_name(rows)} and scales {_name(rows.scales)}; expected int8 and float32")
    batch_heads_length, columns = rows.shape[:-1], rows.shape[-1:]
    if rows.scales.shape != batch_heads_length:
        raise ValueError(f"{name}.scales has shape {rows.scales.shape}; expected one number a row {batch_heads_length}")
    if rows.means is not None:
        expected = (*batch_heads_length[:-1], 1, *columns)
        if rows.means.dtype != mx.float32 or rows.means.shape != expected:
            raise ValueError(f"{name}.means is {_name(rows.means)} {rows.means.shape}; expected float32 {expected}")


def _name(tensor: Rows) -> str:
    tensor = tensor.values if isinstance(tensor, Int8Rows) else tensor
    return str(tensor.dtype).removeprefix("mlx.core.")


def check_options(options: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Raises ValueError on an unknown kernel option or a value that it does not take."""
    if options is None:
        return {}
    for key, value in options.items():
        if key not in OPTIONS:
            near = difflib.get_close_matches(str(key).upper(), OPTIONS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"unknown kernel option {key!r}; known: {', '.join(OPTIONS)}{hint}")
        types = OPTIONS[key]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise ValueError(f"kernel option {key} takes a {' or a '.join(t.__name__ for t in types)}, not {value!r}")
        if isinstance(value, str) and value not in CHOICES.get(key, (value,)):
            raise ValueError(f"kernel option {key} is one of {', '.join(CHOICES[key])}; got {value!r}")
    if options.get("NUM_THREADS", 1) < 1:
        raise ValueError(f"kernel option NUM_THREADS is {options['NUM_THREADS']}; expected at least 1")
    return options
