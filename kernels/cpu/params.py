"""Values by name -> the structs that a kernel's function takes: those of params.h, stage.h and the stages' own files.

Stages are filled by name. Params is packed by position, in the order of its fields here: that takes a microsecond where
assigning its fields takes several, at every call. Where the arrays of a call lie, the kernel finds out (located.h).
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any, TypeAlias

from flextrace.cache import LoadError

from ..spec import ATTENTION, BACKWARD, DECODE

MAX_NDIM = 8
Pointer: TypeAlias = ctypes.c_void_p
Int64: TypeAlias = ctypes.c_int64
Int32: TypeAlias = ctypes.c_int32
_CODES: dict[Any, str] = {Pointer: "Q", Int64: "q", Int32: "i", ctypes.c_float: "f", ctypes.c_double: "d"}


class Array(ctypes.Structure):
    _fields_ = (("data", Pointer), ("shape", Int64 * MAX_NDIM), ("strides", Int64 * MAX_NDIM), ("ndim", Int64))


class Host(ctypes.Structure):
    _fields_ = (
        *((name, Pointer) for name in ("release", "take", "check_signals")),
        *((name, Pointer) for name in ("item", "get_buffer", "release_buffer", "none")),
    )


class Caller(ctypes.Structure):
    _fields_ = (("max_threads", Int64), ("host", Pointer))


class Params(ctypes.Structure):
    _fields_ = (
        *((name, Pointer) for name in ("q", "k", "v")),
        *((name, Int64 * 4) for name in ("q_strides", "k_strides", "v_strides")),
        *((name, Pointer) for name in ("out", "lse", "max_scores")),
        *((name, Int64) for name in ("batch", "query_heads", "kv_heads", "q_len", "kv_len", "head_dim", "value_dim")),
        *(("scale", ctypes.c_float), ("dtype", Int32)),
        ("has_block_mask", Int64),
        *((name, Pointer) for name in ("run_offsets", "run_first", "run_end", "run_state")),
        *((name, Int64) for name in ("mask_batch", "mask_heads", "mask_rows", "q_block", "kv_block")),
        *((name, Pointer) for name in ("arrays", "numbers")),
        ("caller", Caller),
        ("tile_counts", Pointer),
        *((name, Pointer) for name in ("means", "key_groups", "row_groups")),
        *((name, Int64) for name in ("groups", "means_batch", "key_groups_batch", "row_groups_batch")),
        *((name, Int64) for name in ("average_keys", "add_back", "q_mean_rows", "q_scale_rows", "k_scale_rows")),
        *((name, Pointer) for name in ("k_scales", "v_scales", "v_means")),
        *(("k_scale_strides", Int64 * 3), ("v_scale_strides", Int64 * 3), ("v_mean_strides", Int64 * 4)),
    )


class Backward(ctypes.Structure):
    _fields_ = (
        *(("forward", Params), ("d_out", Pointer), ("d_out_strides", Int64 * 4)),
        *((name, Pointer) for name in ("d_lse", "d_max_scores", "dq", "dk", "dv")),
        *(("key_batch", Int64), ("gradients", Pointer)),
    )


class Tensor(ctypes.Structure):
    _fields_ = (("data", Pointer), ("shape", Int64 * 4), ("strides", Int64 * 4), ("dtype", Int64))


class BlockLists(ctypes.Structure):
    _fields_ = (
        *((name, Pointer) for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices")),
        *((name, Int64) for name in ("batch", "heads", "q_blocks", "columns", "full_columns", "q_block", "kv_block")),
    )


class Matmul(ctypes.Structure):
    _fields_ = (
        *(("a", Tensor), ("b", Tensor), ("out", Tensor)),
        *((name, Int64) for name in ("tile_rows", "tile_columns", "tile_steps")),
        ("caller", Caller),
    )


class Scale(ctypes.Structure):
    _fields_ = (("x", Tensor), ("out", Tensor), ("factor", ctypes.c_double), ("caller", Caller))


class ScoreMod(ctypes.Structure):
    _fields_ = (
        *(("scores", Tensor), ("out", Tensor), ("has_blocks", Int64), ("blocks", BlockLists)),
        *(("arrays", Pointer), ("numbers", Pointer), ("caller", Caller)),
    )


class Softmax(ctypes.Structure):
    _fields_ = (
        *(("x", Tensor), ("weights", Tensor), ("max_scores", Pointer), ("sums", Pointer)),
        *(("normalise", Int64), ("caller", Caller)),
    )


class BlockMask(ctypes.Structure):
    _fields_ = (
        *((name, Pointer) for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices")),
        *((name, Int64) for name in ("batch", "heads", "q_len", "kv_len", "q_block", "kv_block")),
        *(("arrays", Pointer), ("numbers", Pointer), ("caller", Caller)),
    )


class BlockSparseMatmul(ctypes.Structure):
    _fields_ = (
        *(("a", Tensor), ("b", Tensor), ("out", Tensor)),
        *(("blocks", BlockLists), ("sampled", Int64), ("caller", Caller)),
    )


class AttentionOutput(ctypes.Structure):
    _fields_ = (
        *((name, Tensor) for name in ("product", "max_scores", "sums", "out")),
        *(("lse", Pointer), ("caller", Caller)),
    )


Stage = Matmul | Scale | ScoreMod | Softmax | BlockMask | BlockSparseMatmul | AttentionOutput
# Kernel -> what its function takes.
TAKEN: dict[str, type[ctypes.Structure]] = {
    ATTENTION: Params,
    DECODE: Params,
    BACKWARD: Backward,
    "matmul": Matmul,
    "scale": Scale,
    "score_mod": ScoreMod,
    "softmax": Softmax,
    "block_mask": BlockMask,
    "block_sparse_matmul": BlockSparseMatmul,
    "attention_output": AttentionOutput,
}


def packed(kind: type[ctypes.Structure], first: str | None = None, last: str | None = None) -> struct.Struct:
    """What packs the values of such a struct one after the other: all, or the fields from `first` to `last`."""
    names = [name for name, *_ in kind._fields_]
    begin, end = 0 if first is None else names.index(first), len(names) if last is None else names.index(last) + 1
    return struct.Struct("=" + "".join(_format(field[1]) for field in kind._fields_[begin:end]))


def _format(kind: Any) -> str:
    if issubclass(kind, ctypes.Array):
        return _format(kind._type_) * int(kind._length_)
    if issubclass(kind, ctypes.Structure):
        return "".join(_format(field[1]) for field in kind._fields_)
    return _CODES[kind]


def check_size(library: ctypes.CDLL, kernel: str) -> None:
    """Raises LoadError where the library was compiled for another struct than the one that is packed here."""
    size = ctypes.c_int64.in_dll(library, "flextrace_struct_bytes").value
    if size != ctypes.sizeof(TAKEN[kernel]):
        raise LoadError(
            f"the compiled {kernel} kernel takes {size} bytes of parameters, and this flextrace packs "
            f"{ctypes.sizeof(TAKEN[kernel])}: it was compiled from another text"
        )
