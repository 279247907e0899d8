"""Shared object + call -> result: fills the kernel's Params and runs it on MLX's own buffers."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from ctypes import c_float, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..call import AttentionCall, BoundMod, Result
from .buffers import locate, new_array

DTYPES = {mx.float32: 0, mx.float16: 1, mx.bfloat16: 2}
MAX_NDIM = 8


class Array(ctypes.Structure):
    """params.h: a captured array."""

    _fields_ = (("data", c_void_p), ("shape", c_int64 * MAX_NDIM), ("strides", c_int64 * MAX_NDIM), ("ndim", c_int64))


class Number(ctypes.Union):
    """params.h: a captured number."""

    _fields_ = (("i", c_int32), ("f", c_float))


class Params(ctypes.Structure):
    """params.h, field by field."""

    _fields_ = (
        *((name, c_void_p) for name in ("q", "k", "v")),
        *((name, c_int64 * 4) for name in ("q_strides", "k_strides", "v_strides")),
        *((name, c_void_p) for name in ("out", "lse", "max_scores")),
        *(
            (name, c_int64)
            for name in ("batch", "query_heads", "kv_heads", "q_len", "kv_len", "head_dim", "value_dim")
        ),
        ("scale", c_float),
        ("dtype", c_int32),
        ("has_block_mask", c_int64),
        *(
            (name, c_void_p)
            for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices")
        ),
        *(
            (name, c_int64)
            for name in ("mask_batch", "mask_heads", "mask_rows", "mask_cols", "q_block", "kv_block")
        ),
        ("arrays", ctypes.POINTER(Array)),
        ("numbers", ctypes.POINTER(Number)),
        ("max_threads", c_int64),
        ("tile_counts", c_void_p),
    )


def thread_count() -> int:
    """FLEXTRACE_NUM_THREADS, else the processors that this process may run on.

    Raises:
        ValueError: FLEXTRACE_NUM_THREADS is not a positive number.
    """
    wanted = os.environ.get("FLEXTRACE_NUM_THREADS")
    if wanted:
        if not wanted.isdigit() or int(wanted) < 1:
            raise ValueError(f"FLEXTRACE_NUM_THREADS={wanted!r} is not a positive number; unset it or write one")
        return int(wanted)
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Kernel:
    """A loaded attention kernel for one pair of mods; any shapes, strides and dtypes."""

    def __init__(self, library: Path) -> None:
        try:
            self._entry = ctypes.CDLL(str(library)).flextrace_attention
        except OSError as error:
            raise RuntimeError(
                f"the compiled kernel cannot be loaded: {error}; if its folder is mounted noexec, point "
                "FLEXTRACE_CACHE_DIR at another one"
            ) from error
        self._entry.argtypes = [ctypes.POINTER(Params)]
        self._entry.restype = ctypes.c_int

    def run(self, call: AttentionCall, tile_counts: np.ndarray[Any, Any] | None = None) -> Result:
        """Run on evaluated arrays.

        Raises:
            MemoryError: no room for the packed keys and values.
            OverflowError: a captured integer array holds a value outside int32.
        """
        q, k, v = call.q, call.k, call.v
        batch, query_heads, q_len, head_dim = q.shape
        p = Params()
        p.q, p.q_strides = _tensor(q, batch)
        p.k, p.k_strides = _tensor(k, batch)
        p.v, p.v_strides = _tensor(v, batch)
        p.batch, p.query_heads, p.q_len, p.head_dim = batch, query_heads, q_len, head_dim
        _, p.kv_heads, p.kv_len, p.value_dim = v.shape
        p.scale, p.dtype = call.scale, DTYPES[q.dtype]
        out, p.out = new_array((batch, query_heads, q_len, p.value_dim), q.dtype)
        lse = max_scores = None
        if call.want_lse:
            lse, p.lse = new_array((batch, query_heads, q_len), mx.float32)
        if call.want_max:
            max_scores, p.max_scores = new_array((batch, query_heads, q_len), mx.float32)
        mods = [mod for mod in (call.score_mod, call.mask_mod) if mod is not None]
        held = _captures(p, mods) if mods else None
        if call.blocks is not None:
            _block_mask(p, call)
        p.max_threads = call.threads or thread_count()
        if tile_counts is not None:
            p.tile_counts = tile_counts.ctypes.data
        status = self._entry(p)
        del held
        if status == 1:
            raise MemoryError("no memory for the packed keys and values of one head")
        if status == 2:
            raise OverflowError(_overflow_message(mods))
        return Result(out, lse, max_scores)


def _tensor(array: mx.array, batch: int) -> tuple[int, Any]:
    address, strides = locate(array)
    if array.shape[0] != batch:  # one batch of keys serves all
        strides[0] = 0
    return address, (c_int64 * 4)(*strides)


def _captures(p: Params, mods: Sequence[BoundMod]) -> Any:
    """Point the kernel at the captured arrays and numbers; the result keeps them alive for the call."""
    arrays = [array for mod in mods for array in mod.arrays]
    table = (Array * len(arrays))()
    for row, array in zip(table, arrays, strict=True):
        row.data, strides = locate(array)
        row.ndim = len(strides)
        row.strides[: len(strides)] = strides
        row.shape[: len(strides)] = array.shape
    values = (Number * sum(len(mod.numbers) for mod in mods))()
    slot = 0
    for mod in mods:
        for capture, number in zip(mod.trace.numbers, mod.numbers, strict=True):
            if capture.dtype == "float":
                values[slot].f = number
            else:
                values[slot].i = int(number)
            slot += 1
    p.arrays, p.numbers = table, values
    return arrays, table, values


def _block_mask(p: Params, call: AttentionCall) -> None:
    blocks = call.blocks
    assert blocks is not None
    p.has_block_mask = 1
    p.kv_num_blocks, p.kv_indices = blocks.kv_num_blocks.ctypes.data, blocks.kv_indices.ctypes.data
    if blocks.full_kv_num_blocks is not None and blocks.full_kv_indices is not None:
        p.full_kv_num_blocks = blocks.full_kv_num_blocks.ctypes.data
        p.full_kv_indices = blocks.full_kv_indices.ctypes.data
    p.mask_batch, p.mask_heads, p.mask_rows, p.mask_cols = blocks.kv_indices.shape
    p.q_block, p.kv_block = blocks.q_block, blocks.kv_block


def _overflow_message(mods: Sequence[BoundMod]) -> str:
    wide = ("int64", "uint64", "uint32")
    names = [c.name for mod in mods for c in mod.trace.arrays if c.element in wide]
    return (
        f"a captured integer array ({', '.join(names)}) holds a value outside int32, the integer type of kernels; "
        "renumber its values (for ids: the inverse of a unique) or convert it to float32"
    )
