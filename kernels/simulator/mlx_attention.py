"""MLX's own attention kernels, read from the installed package and run in the simulator: its test, and the yardstick.

Nothing of MLX's text is kept here: `steel_attention.h` and `sdpa_vector.h` are read where pip put them. The launch
shapes are those of MLX's host code (32 query rows a threadgroup, 32 or 16 keys a tile, four simdgroups).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np

from .build import build
from .kernel import record
from .launch import Argument, launch
from .report import Report
from .translate.mlx_text import KERNELS
from .translate.signature import type_name
from .translate.translate import translate

STEEL = KERNELS + "steel/attn/kernels/steel_attention.h"
VECTOR = KERNELS + "sdpa_vector.h"


def steel_attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    scale: float,
    *,
    causal: bool = False,
    mask: mx.array | None = None,
    checks: bool = True,
    lane_order: str = "forward",
) -> tuple[mx.array, Report]:
    """MLX's tiled kernel for whole sequences, as `mx.fast.scaled_dot_product_attention` launches it.

    q: [batch, query_heads, q_len, head_dim]; k, v: [batch, kv_heads, kv_len, head_dim], float32, float16 or bfloat16;
    mask: [batch, query_heads, q_len, kv_len] of bool, or of q's dtype (added). Causal aligns the ends, as MLX does.

    Raises:
        SimulationError: the checks found something wrong.
    """
    batch, heads, q_len, dim = q.shape
    kv_heads, kv_len = k.shape[1:3]
    rows, keys, simdgroups = 32, 32 if dim < 128 else 16, 4
    tiles, kv_tiles = -(-q_len // rows), -(-kv_len // keys)
    constants = {
        "align_Q": q_len % rows == 0,
        "align_K": kv_len % keys == 0,
        "has_mask": mask is not None,
        "do_causal": causal,
        "has_sinks": False,
        "save_lse": False,
    }
    params = struct.pack(
        "=6if7i12q",
        *(batch, heads, dim, q_len, kv_len, heads // kv_heads, scale, tiles, kv_tiles),
        *(q_len // rows, kv_len // keys, q_len % rows, kv_len % keys, kv_len - q_len),
        *(heads * q_len * dim, q_len * dim, dim),
        *(kv_heads * kv_len * dim, kv_len * dim, dim) * 2,
        *(heads * q_len * dim, q_len * dim, dim),
    )
    mask_type = "float" if mask is None else type_name(mask.dtype)
    arguments = f"{type_name(q.dtype)}, {rows}, {keys}, {dim}, {dim}, {simdgroups}, 1, {mask_type}, float"
    values: dict[int, tuple[str, Any]] = {0: ("Q", q), 1: ("K", k), 2: ("V", v), 4: ("params", _bytes(params))}
    if mask is not None:
        whole = (heads * q_len * kv_len, q_len * kv_len, kv_len)
        values |= {5: ("mask_params", _bytes(struct.pack("=3q", *whole))), 6: ("mask", mask)}
    grid = (32 * tiles, simdgroups * heads, batch)
    group = (32, simdgroups, 1)
    (out,), report = _run(
        STEEL,
        "attention",
        arguments,
        constants,
        values,
        {3: ("out", q.shape, q.dtype)},
        grid,
        group,
        checks,
        lane_order,
    )
    return out, report


def sdpa_vector(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    scale: float,
    *,
    causal: bool = False,
    checks: bool = True,
    lane_order: str = "forward",
) -> tuple[mx.array, Report]:
    """MLX's kernel for a few queries (decoding); arguments and errors as in `steel_attention`."""
    batch, heads, q_len, dim = q.shape
    kv_heads, kv_len = k.shape[1:3]
    constants = {
        "has_mask": False,
        "query_transposed": False,
        "do_causal": causal,
        "bool_mask": False,
        "float_mask": False,
        "has_sinks": False,
        "blocks": 0,
    }
    scalars = (
        *(("gqa_factor", "i", heads // kv_heads), ("N", "i", kv_len)),
        *(("k_head_stride", "Q", kv_len * dim), ("k_seq_stride", "Q", dim)),
        *(("v_head_stride", "Q", kv_len * dim), ("v_seq_stride", "Q", dim), ("scale", "f", scale)),
    )
    values: dict[int, tuple[str, Any]] = {0: ("queries", q), 1: ("keys", k), 2: ("values", v)}
    for index, (name, form, value) in enumerate(scalars, start=4):
        values[index] = (name, _bytes(struct.pack(form, value)))
    grid = (1024 * batch * heads, q_len, 1)
    arguments = f"{type_name(q.dtype)}, {dim}, {dim}"
    outputs, group = {3: ("out", q.shape, q.dtype)}, (1024, 1, 1)
    (out,), report = _run(VECTOR, "sdpa_vector", arguments, constants, values, outputs, grid, group, checks, lane_order)
    return out, report


def sdpa_vector_2pass(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    scale: float,
    *,
    blocks: int,
    checks: bool = True,
    lane_order: str = "forward",
) -> tuple[mx.array, tuple[Report, Report]]:
    """MLX's two kernels for a few queries over many keys, which `blocks` threadgroups of each key head share; arguments
    and errors as in `steel_attention`. The reports are those of the partial results and of their sum."""
    batch, heads, q_len, dim = q.shape
    kv_heads, kv_len = k.shape[1:3]
    names = ("has_mask", "query_transposed", "do_causal", "bool_mask", "float_mask", "has_sinks")
    constants: dict[str, bool | int] = {**dict.fromkeys(names, False), "blocks": blocks}
    scalars = (
        *(("N", "i", kv_len), ("k_head_stride", "Q", kv_len * dim), ("k_seq_stride", "Q", dim)),
        *(("v_head_stride", "Q", kv_len * dim), ("v_seq_stride", "Q", dim), ("scale", "f", scale)),
    )
    values: dict[int, tuple[str, Any]] = {0: ("queries", q), 1: ("keys", k), 2: ("values", v)}
    for index, (name, form, value) in enumerate(scalars, start=7):
        values[index] = (name, _bytes(struct.pack(form, value)))
    rows = (batch, heads, q_len, blocks)
    outputs = {3: ("out", (*rows, dim), q.dtype), 4: ("sums", rows, mx.float32), 5: ("maxs", rows, mx.float32)}
    group = (32, heads // kv_heads, q_len)
    grid = (32 * kv_heads, group[1] * batch, group[2] * blocks)
    arguments = f"{type_name(q.dtype)}, {dim}, {dim}"
    made, first = _run(
        VECTOR, "sdpa_vector_2pass_1", arguments, constants, values, outputs, grid, group, checks, lane_order
    )
    values = {i: (name, x) for i, (name, x) in enumerate(zip(("partials", "sums", "maxs"), made, strict=True))}
    values[4] = ("blocks", _bytes(struct.pack("i", blocks)))
    outputs = {3: ("out", (batch, heads, q_len, dim), q.dtype)}
    grid, group = (1024 * batch * heads, q_len, 1), (1024, 1, 1)
    arguments = f"{type_name(q.dtype)}, {dim}"
    (out,), second = _run(
        VECTOR, "sdpa_vector_2pass_2", arguments, constants, values, outputs, grid, group, checks, lane_order
    )
    return out, (first, second)


def _bytes(data: bytes) -> np.ndarray[Any, Any]:
    return np.frombuffer(data, np.uint8).copy()


def _run(
    file: str,
    kernel: str,
    arguments: str,
    constants: Mapping[str, bool | int],
    values: Mapping[int, tuple[str, Any]],
    outputs: Mapping[int, tuple[str, tuple[int, ...], mx.Dtype]],
    grid: tuple[int, int, int],
    threadgroup: tuple[int, int, int],
    checks: bool,
    lane_order: str,
) -> tuple[list[mx.array], Report]:
    """Launch one kernel of MLX; `values` are its buffers by index, and so are `outputs`: name, shape and dtype."""
    text, parameters = translate(f'#include "{file}"\n', kernel, arguments, constants)
    library = build(text, checks, kernel)
    contents = {index: (name, _numpy(value)) for index, (name, value) in values.items()}
    results = {i: np.empty(shape, _numpy(mx.zeros(0, kind)).dtype) for i, (_, shape, kind) in outputs.items()}
    contents |= {index: (outputs[index][0], result) for index, result in results.items()}
    buffers = []
    declared = {parameter.index: parameter for parameter in parameters if parameter.attribute == "buffer"}
    for index in range(1 + max(declared)):
        name, content = contents.get(index, ("", np.empty(0, np.uint8)))
        wanted, constant = index in outputs, index in declared and declared[index].constant
        place = (content.ctypes.data, content.nbytes, content.itemsize)
        buffers.append(Argument(name, *place, 0, wanted, not wanted, constant))
    report = record(launch(library, kernel, buffers, grid, threadgroup, lane_order, checks))
    made = [mx.array(results[index]) for index in outputs]
    kinds = [kind for _, _, kind in outputs.values()]
    return [x.view(kind) if kind == mx.bfloat16 else x for x, kind in zip(made, kinds, strict=True)], report


def _numpy(value: Any) -> np.ndarray[Any, Any]:
    if not isinstance(value, mx.array):
        return np.asarray(value)
    whole = mx.contiguous(value)
    return np.array(whole.view(mx.uint16) if value.dtype == mx.bfloat16 else whole)
