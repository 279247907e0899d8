"""Shared object + call -> result: fills the kernel's Params and runs it on MLX's own buffers."""

from __future__ import annotations

import ctypes
import math
import os
import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from flextrace.cache import LoadError

from ..blocks import Blocks
from ..buffers import empty_array, locate, locate_aligned
from ..call import AttentionCall, Mods, Result
from ..int8_types import QKQuant, Smoothing
from ..spec import ATTENTION, BACKWARD, DECODE, KernelSpec
from .params import MAX_NDIM, Array, Host, Params, check_size, packed

DTYPES = {mx.float32: 0, mx.float16: 1, mx.bfloat16: 2}
FEW_ROWS, FEW_SHARED = 8, 96  # of a head, and of all heads that share keys: quicker with keys read in place than packed
MOST_THREADS = 2**31 - 1  # that may be asked for; far fewer ever start
ARRAY = packed(Array)
FLOAT = struct.Struct("=f")
OUT_OF_MEMORY, INTEGER_OVERFLOW, UNALIGNED = 1, 2, 4  # a kernel's status, beside 0: Result of params.h

# Params in parts, one after the other.
LOCATED = bytes(packed(Params, last="max_scores").size)
SIZES = packed(Params, "batch", "dtype")
BLOCKS = packed(Params, "has_block_mask", "kv_block")
CALLER = packed(Params, "arrays", "tile_counts")
SMOOTHING = packed(Params, "means", "add_back")
ROUNDING = packed(Params, "q_mean_rows", "k_scale_rows")
LOCATED_INT8 = bytes(packed(Params, "k_scales").size)
NO_BLOCKS, NO_SMOOTHING = bytes(BLOCKS.size), SMOOTHING.pack(0, 0, 0, 1, 1, 1, 1, 0, 0)
NO_ROUNDING = ROUNDING.pack(0, 1, 1)


def thread_count() -> int:
    """FLEXTRACE_NUM_THREADS, else the processors that this process may run on.

    Raises:
        ValueError: FLEXTRACE_NUM_THREADS is not a positive number.
    """
    wanted = os.environ.get("FLEXTRACE_NUM_THREADS")
    if wanted:
        digits = wanted.strip().lstrip("0")
        if not (digits.isascii() and digits.isdigit()):
            raise ValueError(f"FLEXTRACE_NUM_THREADS={wanted!r} is not a positive number; unset it or write one")
        if len(digits) > 10 or int(digits) > MOST_THREADS:
            raise ValueError(f"FLEXTRACE_NUM_THREADS={wanted!r} is more than {MOST_THREADS}; unset it or write less")
        return int(digits)
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load(library: Path, name: str, kernel: str = ATTENTION) -> Callable[..., int]:
    """The function of that name: takes the packed struct of that kernel, and the tuple of located.h where it is no
    stage; gives a status, or raises what a signal raises meanwhile.

    It is called with Python's lock and releases it (threads.h). The library stays for good, as a thread of an earlier
    call may still have its last instructions before it.

    Raises:
        LoadError: the system refuses the library, or it has no such function, or one that takes another struct.
    """
    try:
        loaded = ctypes.PyDLL(str(library), mode=os.RTLD_NODELETE)
        entry = getattr(loaded, name)
        check_size(loaded, kernel)
    except (OSError, AttributeError, ValueError) as error:
        raise LoadError(
            f"the compiled kernel cannot be loaded: {error}; if its folder is mounted noexec, point TMPDIR or "
            "FLEXTRACE_CACHE_DIR at another one, else name another C++ compiler in CXX"
        ) from error
    takes_arrays = kernel in (ATTENTION, DECODE, BACKWARD)
    entry.argtypes = [ctypes.c_char_p, ctypes.py_object] if takes_arrays else [ctypes.c_char_p]
    entry.restype = ctypes.c_int
    return entry  # type: ignore[no-any-return]


class Kernel:
    """A loaded kernel for one pair of mods; any shapes, strides and dtypes."""

    def __init__(self, entry: Callable[..., int], key: str = "") -> None:
        self.entry = entry  # takes a packed struct (Params, or that of a stage) and arrays, gives a status
        self.key = key  # of its entry in the cache

    def run(self, call: AttentionCall, tile_counts: np.ndarray[Any, Any] | None = None) -> Result:
        """Run the attention kernel on evaluated arrays.

        tile_counts: int64 [4], gets added, a tile being one of keys for a group of rows: tiles skipped, run with the
        mask, run without; and tiles for which the mask was evaluated to find out.

        Raises:
            MemoryError: no room for the packed keys and values.
            OverflowError: a captured integer array holds a value outside int32.
            KeyboardInterrupt: Ctrl-C, or what else the handler of a signal raises; seen between two jobs.
        """
        rows = call.q.shape[:3]
        out = empty_array((*rows, call.v.shape[3]), call.q.dtype)
        lse = empty_array(rows, mx.float32) if call.want_lse else None
        max_scores = empty_array(rows, mx.float32) if call.want_max else None
        run_kernel(self.entry, call, (out, lse, max_scores), tile_counts=tile_counts)
        return Result(out, lse, max_scores)


def run_kernel(
    entry: Callable[..., int],
    call: AttentionCall,
    results: tuple[mx.array | None, ...],
    rest: bytes = b"",
    tile_counts: np.ndarray[Any, Any] | None = None,
) -> None:
    """Call a kernel whose struct is Params, or begins with it, on evaluated arrays.

    results: out, lse and max_scores, contiguous; rest: what follows Params.

    Raises:
        MemoryError, OverflowError, KeyboardInterrupt: as Kernel.run.
    """
    smoothing = None if call.smoothing is None else contiguous(call.smoothing)
    params = packed_params(call, smoothing, tile_counts) + rest + packed_numbers(call.mods)
    arrays = arrays_of(call, results)
    status = entry(params, arrays)
    if status == UNALIGNED:
        status = entry(params, tuple([array if array is None else locate_aligned(array)[0] for array in arrays]))
        assert status != UNALIGNED, "a copy is aligned"
    if status == OUT_OF_MEMORY:
        raise MemoryError("no memory for the packed keys and values of one head")
    if status == INTEGER_OVERFLOW:
        raise OverflowError(overflow_message(call.mods))


def arrays_of(call: AttentionCall, results: tuple[mx.array | None, ...]) -> tuple[Any, ...]:
    """The tuple of located.h.

    MLX's arrays are taken by copies that share their memory: an assignment `q[...] = x` by another thread leaves the
    copy as it was, where it would take the memory of `q` from under the kernel.
    """
    given = (call.q, call.k, call.v, *results, call.k_scales, call.v_scales, call.v_means, *call.mods.arrays)
    return tuple([array.__copy__() if isinstance(array, mx.array) else array for array in given])


def packed_params(call: AttentionCall, smoothing: Smoothing | None, tile_counts: np.ndarray[Any, Any] | None) -> bytes:
    """Params of a call, less what the kernel finds; smoothing: that of the call, laid out as the kernel reads it."""
    q, v = call.q, call.v
    batch, query_heads, q_len, head_dim = q.shape
    _, kv_heads, kv_len, value_dim = v.shape
    counts_at = 0 if tile_counts is None else tile_counts.ctypes.data
    return b"".join(  # by position: tests/kernels/test_params.py looks up each value by its name
        (
            LOCATED,
            SIZES.pack(
                *(batch, query_heads, kv_heads, q_len, kv_len, head_dim, value_dim, call.scale, DTYPES[q.dtype])
            ),
            NO_BLOCKS if call.blocks is None else BLOCKS.pack(*_block_mask(call.blocks)),
            CALLER.pack(0, 0, call.threads or thread_count(), HOST_AT, counts_at),
            NO_SMOOTHING if smoothing is None else SMOOTHING.pack(*_smoothing(smoothing)),
            NO_ROUNDING if call.quant is None else ROUNDING.pack(*_quant(call.quant)),
            LOCATED_INT8,
        )
    )


def spec_of(call: AttentionCall) -> KernelSpec:
    """The kernel for a call. Its variant is how it reads keys, by the names of params.h.

    The kernel for few rows rounds no keys and takes no mean from them: that would be a pass over all of them, where
    reading them as they are is the result, and exact.
    """
    if _has_few_rows(call):
        return KernelSpec(DECODE, call.mods.formulas, None if call.k_scales is None else "QUANTISED")
    keys = "QUANTISED" if call.quant is not None else "SMOOTHED" if call.smoothing is not None else None
    return KernelSpec(ATTENTION, call.mods.formulas, keys)


def _has_few_rows(call: AttentionCall) -> bool:
    """Whether the rows of a head are few, all of one row of blocks, and those of all heads that share keys not many."""
    rows = call.q.shape[2]
    if rows > FEW_ROWS or rows * call.q.shape[1] > FEW_SHARED * call.k.shape[1]:
        return False
    return call.blocks is None or rows <= call.blocks.q_block


def contiguous(smoothing: Smoothing) -> Smoothing:
    """The same, laid out as the kernel reads it; evaluated, but for means that it makes itself."""
    groups = (smoothing.key_groups, smoothing.row_groups)
    key_groups, row_groups = (None if array is None else mx.contiguous(array) for array in groups)
    means = None if smoothing.averages else mx.contiguous(smoothing.means)
    mx.eval(means, key_groups, row_groups)
    return replace(
        smoothing, means=smoothing.means if means is None else means, key_groups=key_groups, row_groups=row_groups
    )


def _smoothing(smoothing: Smoothing) -> tuple[int, ...]:
    arrays = (smoothing.means, smoothing.key_groups, smoothing.row_groups)
    read = (None if smoothing.averages else smoothing.means, *arrays[1:])
    addresses = (0 if array is None else locate(array)[0] for array in read)
    batches = (1 if array is None else array.shape[0] for array in arrays)
    flags = (int(smoothing.averages), int(smoothing.add_back))
    return (*addresses, smoothing.means.shape[2], *batches, *flags)


def _quant(quant: QKQuant) -> tuple[int, int, int]:
    q_rows, k_rows = (quant.q_block, quant.k_block) if quant.granularity == "block" else (1, 1)
    return (quant.q_block if quant.smooth_q else 0, q_rows, k_rows)


def address_of(data: bytes) -> int:
    """Where immutable bytes lie, for a kernel to read while they live."""
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0 if data else 0


def _host() -> bytes:
    needed = {
        **{"release": "PyEval_SaveThread", "take": "PyEval_RestoreThread", "check_signals": "PyErr_CheckSignals"},
        **{"item": "PyTuple_GetItem", "get_buffer": "PyObject_GetBuffer", "release_buffer": "PyBuffer_Release"},
    }
    functions = {field: ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p) for field, name in needed.items()}
    return bytes(Host(**functions, none=id(None)))


HOST = _host()
HOST_AT = address_of(HOST)


def captured(mods: Mods) -> tuple[bytes, bytes, list[Any]]:
    """The captured arrays and numbers as a stage reads them, and what has to live as long as they."""
    arrays, kept = [], []
    for array, address, strides in map(locate_aligned, mods.arrays):
        kept.append(array)
        rest = (0,) * (MAX_NDIM - len(strides))
        arrays.append(ARRAY.pack(address, *array.shape, *rest, *strides, *rest, len(strides)))
    return b"".join(arrays), packed_numbers(mods), kept


def packed_numbers(mods: Mods) -> bytes:
    """The captured numbers as a kernel reads them; one beyond float32 is infinite."""
    packed_by = mods.formulas.packed_numbers
    try:
        return packed_by.pack(*mods.numbers)
    except OverflowError:
        return packed_by.pack(*[_in_float32(number) for number in mods.numbers])


def _in_float32(number: bool | int | float) -> bool | int | float:
    try:
        FLOAT.pack(number)
    except OverflowError:
        return math.copysign(math.inf, number)
    return number


def _block_mask(blocks: Blocks) -> tuple[int, ...]:
    runs = (blocks.offsets, blocks.first, blocks.end, blocks.state)
    return (1, *(array.ctypes.data for array in runs), *blocks.shape[:3], blocks.q_block, blocks.kv_block)


def overflow_message(mods: Mods) -> str:
    """What to say of a captured integer outside int32."""
    names = [array.name for array in mods.formulas.arrays if array.element in ("int64", "uint64", "uint32")]
    return (
        f"a captured integer array ({', '.join(names)}) holds a value outside int32, the integer type of kernels; "
        "renumber its values (for ids: the inverse of a unique) or convert it to float32"
    )
