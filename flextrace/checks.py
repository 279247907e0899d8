"""Tensors -> errors: everything about shapes and dtypes that is wrong is said before any work."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from flextrace.kernels import Int8Rows
from flextrace.kernels.scalars import as_float, name_of, shown
from flextrace.tracer.errors import with_article

from .int8 import Int8KV

DTYPES = (mx.float32, mx.float16, mx.bfloat16)
LARGEST = float(mx.finfo(mx.float32).max)
Rows = mx.array | Int8Rows


def check_tensors(query: mx.array, key: Rows, value: Rows, enable_gqa: bool) -> None:
    """Raises TypeError or ValueError unless q, k and v fit together."""
    shapes = []
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if not isinstance(tensor, mx.array):
            if isinstance(tensor, Int8KV):
                raise TypeError(f"{name} is an Int8KV; pass its rows: flex_attention(query, cache.key, cache.value)")
            if name == "query" or not isinstance(tensor, Int8Rows):
                raise TypeError(f"{name} is {with_article(type(tensor).__name__)}; convert it with mx.array(...)")
            _check_int8(name, tensor)
        shape = tensor.shape
        if len(shape) != 4:
            raise ValueError(f"{name} has shape {shape}; expected 4 axes: [batch, heads, length, head_dim]")
        shapes.append(shape)
    if isinstance(value, Int8Rows) and not isinstance(key, Int8Rows):
        raise TypeError("value is in int8, key is not; give both as flex.Int8KV keeps them, or value.float32()")
    dtype = query.dtype
    same = all([x.dtype == dtype for x in (key, value) if isinstance(x, mx.array)])
    if dtype not in DTYPES or not same:
        remedy = "make all three float32, float16 or bfloat16 with .astype(...)"
        if isinstance(key, Int8Rows):
            remedy = "beside a key in int8 make query (and a value that is not) all float32, float16 or bfloat16"
        elif "int8" in (_name(key), _name(value)):
            remedy = "int8 needs its scales: pass flex.Int8Rows, or what flex.Int8KV keeps"
        raise TypeError(f"query, key and value are {_name(query)}, {_name(key)} and {_name(value)}; {remedy}")
    (b, hq, _, d), (bk, hkv, s, dk), (bv, hv, sv, _) = shapes
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


def check_sinks(sinks: Any, query: mx.array) -> None:
    """Raises TypeError or ValueError unless there is a number for each query head, float32 or of query's dtype."""
    if not isinstance(sinks, mx.array):
        raise TypeError(f"sinks is {with_article(type(sinks).__name__)}; convert it with mx.array(...)")
    heads = query.shape[1]
    if sinks.shape != (heads,):
        raise ValueError(f"sinks has shape {sinks.shape}; expected one number per query head: ({heads},)")
    if sinks.dtype not in (mx.float32, query.dtype):
        kinds = " or ".join(dict.fromkeys(("float32", _name(query))))
        raise TypeError(f"sinks is {_name(sinks)}; make it {kinds} with .astype(...)")


def checked_scale(scale: Any, head_dim: int) -> float:
    """The factor of the dot products. Raises ValueError."""
    if scale is None:
        return 1.0 / math.sqrt(max(1, head_dim))
    number = as_float(scale, "scale")
    if number is None or not abs(number) <= LARGEST:
        expected = "a finite number of float32, or None for 1 / sqrt(head_dim)"
        raise ValueError(f"scale is {shown(scale)}; expected {expected}")
    return number


def _check_int8(name: str, rows: Int8Rows) -> None:
    """Raises TypeError or ValueError unless the parts of ready-made int8 rows fit each other."""
    for part, array in rows._asdict().items():
        if not isinstance(array, mx.array) and not (part == "means" and array is None):
            raise TypeError(f"{name}.{part} is {with_article(type(array).__name__)}; expected an mx.array")
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
    return name_of(tensor.dtype)
