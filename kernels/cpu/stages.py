"""Stage calls -> results on the CPU: fills the struct of each stage's .cpp file and runs it on MLX's own buffers."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from flextrace.tracer import Bound

from ..call import NO_MODS, Mods
from ..spec import KernelSpec
from ..stage_types import BlockLists, OutputParts, SoftmaxParts
from .buffers import locate, locate_aligned, new_array
from .launch import DTYPES, HOST_AT, Kernel, address_of, captured, overflow_message, thread_count

TENSOR = struct.Struct("=Q 4q 4q q")  # data, shape, strides, dtype
LISTS = struct.Struct("=4Q 3q 2q 2q")  # the lists; batch, heads, q_blocks; columns of both; q_block, kv_block
NO_LISTS = LISTS.pack(*[0] * 9, 1, 1)
# A tile of the result and the blocks of a and b that are added to it: 270 kB, which a second-level cache holds.
TILES = (96, 128, 256)


class CpuStages:
    """The stage kernels in C++. `load` gives a compiled one; threads 0 is as many as there are."""

    def __init__(self, load: Callable[[KernelSpec], Kernel], threads: int = 0) -> None:
        self._load = load
        self._threads = threads

    def matmul(
        self,
        a: mx.array,
        b: mx.array,
        *,
        transpose_a: bool,
        transpose_b: bool,
        tiles: tuple[int, ...] | None,
        dtype: mx.Dtype,
    ) -> mx.array:
        a = a.swapaxes(-1, -2) if transpose_a else a
        b = b.swapaxes(-1, -2) if transpose_b else b
        a, b = _evaluated(a), _evaluated(b)
        out, target = _result((*a.shape[:3], b.shape[3]), dtype)
        rows, columns, *steps = TILES if tiles is None else tiles
        sizes = struct.pack("=3q", rows, columns, steps[0] if steps else max(1, a.shape[3]))
        self._run("matmul", _tensor(a) + _tensor(b) + target + sizes)
        return out

    def scale(self, x: mx.array, factor: float) -> mx.array:
        out, target = _result(x.shape, x.dtype)
        x = _evaluated(x)
        self._run("scale", _tensor(x) + target + struct.pack("=d", factor))
        return out

    def score_mod(self, scores: mx.array, mods: Mods, blocks: BlockLists | None) -> mx.array:
        scores = _evaluated(scores)
        out, target = _result(scores.shape, mx.float32)
        lists, kept = (NO_LISTS, []) if blocks is None else _lists(blocks)
        has_blocks = struct.pack("=q", blocks is not None)
        self._run("score_mod", _tensor(scores) + target + has_blocks + lists, mods, captures=True)
        del kept
        return out

    def softmax(self, x: mx.array, *, normalise: bool, dtype: mx.Dtype) -> SoftmaxParts:
        weights, target = _result(x.shape, dtype)
        max_scores, max_at = new_array(x.shape[:-1], mx.float32)
        sums, sums_at = new_array(x.shape[:-1], mx.float32)
        x = _evaluated(x)
        self._run("softmax", _tensor(x) + target + struct.pack("=2Q q", max_at, sums_at, normalise))
        return SoftmaxParts(weights, max_scores, sums)

    def block_mask(
        self, mask_mod: Bound, batch: int, heads: int, q_len: int, kv_len: int, block_size: tuple[int, int]
    ) -> BlockLists:
        rows = (batch, heads, -(-q_len // block_size[0]))
        columns = -(-kv_len // block_size[1])
        made = [new_array(shape, mx.int32) for shape in (rows, (*rows, columns)) * 2]
        sizes = struct.pack("=4Q 6q", *(at for _, at in made), batch, heads, q_len, kv_len, *block_size)
        self._run("block_mask", sizes, Mods(mask=mask_mod), captures=True)
        partial, indices, full, full_indices = (array for array, _ in made)
        return BlockLists(partial, indices, full, full_indices, *block_size)

    def block_sparse_matmul(
        self, a: mx.array, b: mx.array, blocks: BlockLists, *, transpose_b: bool, dtype: mx.Dtype
    ) -> mx.array:
        b = b.swapaxes(-1, -2) if transpose_b else b
        a, b = _evaluated(a), _evaluated(b)
        out, target = _result((*a.shape[:3], b.shape[3]), dtype)
        lists, kept = _lists(blocks)
        self._run("block_sparse_matmul", _tensor(a) + _tensor(b) + target + lists + struct.pack("=q", transpose_b))
        del kept
        return out

    def attention_output(self, product: mx.array, max_scores: mx.array, sums: mx.array, dtype: mx.Dtype) -> OutputParts:
        inputs = [_evaluated(x) for x in (product, max_scores[..., None], sums[..., None])]
        out, target = _result(product.shape, dtype)
        lse, lse_at = new_array(product.shape[:-1], mx.float32)
        self._run("attention_output", b"".join(_tensor(x) for x in inputs) + target + struct.pack("=Q", lse_at))
        return OutputParts(out, lse, max_scores)

    def _run(self, name: str, packed: bytes, mods: Mods = NO_MODS, *, captures: bool = False) -> None:
        """Run a stage; `captures`: its struct ends with what the mods capture.

        Raises:
            MemoryError: no room for the working memory of its threads.
            OverflowError: a captured integer array holds a value outside int32.
        """
        mx.eval(*mods.mlx_arrays)
        arrays, numbers, kept = captured(mods)
        if captures:
            packed += struct.pack("=2Q", address_of(arrays), address_of(numbers))
        kernel = self._load(KernelSpec(name, mods.formulas))
        status = kernel.entry(packed + struct.pack("=qQ", self._threads or thread_count(), HOST_AT))
        del kept
        if status == 1:
            raise MemoryError(f"no working memory for {name}; give it smaller tiles or fewer threads")
        if status == 2:
            raise OverflowError(overflow_message(mods))


def _evaluated(x: mx.array) -> mx.array:
    """The array in memory, with four axes at most: the first ones are joined. MLX refuses this inside mx.compile and
    mx.vmap."""
    x = x.reshape(math.prod(x.shape[:-3]), *x.shape[-3:]) if x.ndim > 4 else x
    mx.eval(x)
    aligned: mx.array = locate_aligned(x)[0]
    return aligned


def _tensor(x: mx.array) -> bytes:
    """The struct Tensor of an evaluated array of four axes at most."""
    address, strides = locate(x)
    missing = 4 - x.ndim
    return TENSOR.pack(address, *[1] * missing, *x.shape, *[0] * missing, *strides, DTYPES[x.dtype])


def _result(shape: tuple[int, ...], dtype: mx.Dtype) -> tuple[mx.array, bytes]:
    """A contiguous array for a stage to fill, and its Tensor."""
    out, address = new_array(shape, dtype)
    four = (*[1] * (4 - len(shape)), *shape) if len(shape) <= 4 else (math.prod(shape[:-3]), *shape[-3:])
    strides = [math.prod(four[axis + 1 :]) for axis in range(4)]
    return out, TENSOR.pack(address, *four, *strides, DTYPES[dtype])


def _lists(blocks: BlockLists) -> tuple[bytes, list[np.ndarray[Any, Any]]]:
    """The struct BlockLists, and the arrays that it points to."""
    mx.eval(*blocks[:4])
    kept = [np.ascontiguousarray(np.asarray(array)) for array in blocks[:4]]
    partial, indices, _, full_indices = kept
    sizes = (*partial.shape, indices.shape[-1], full_indices.shape[-1], blocks.q_block, blocks.kv_block)
    return LISTS.pack(*(array.ctypes.data for array in kept), *sizes), kept
