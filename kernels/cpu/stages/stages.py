"""Stage calls -> results on the CPU: fills the struct of each stage's file and runs it on MLX's own buffers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from flextrace.tracer import Bound

from ...buffers import locate, locate_aligned, new_array
from ...call import NO_MODS, Mods
from ...spec import KernelSpec
from ...stages.protocol import BlockLists, OutputParts, SoftmaxParts
from ..launch import DTYPES, HOST_AT, Kernel, address_of, captured, overflow_message, thread_count
from ..params import (
    AttentionOutput,
    BlockMask,
    BlockSparseMatmul,
    Caller,
    Matmul,
    Scale,
    ScoreMod,
    Softmax,
    Stage,
    Tensor,
)
from ..params import BlockLists as Lists

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
        depth = steps[0] if steps else max(1, a.shape[3])
        tile = {"tile_rows": rows, "tile_columns": columns, "tile_steps": depth}
        self._run("matmul", Matmul(a=_tensor(a), b=_tensor(b), out=target, **tile))
        return out

    def scale(self, x: mx.array, factor: float) -> mx.array:
        out, target = _result(x.shape, x.dtype)
        x = _evaluated(x)
        self._run("scale", Scale(x=_tensor(x), out=target, factor=factor))
        return out

    def score_mod(self, scores: mx.array, mods: Mods, blocks: BlockLists | None) -> mx.array:
        scores = _evaluated(scores)
        out, target = _result(scores.shape, mx.float32)
        lists, kept = (Lists(q_block=1, kv_block=1), []) if blocks is None else _lists(blocks)
        stage = ScoreMod(scores=_tensor(scores), out=target, has_blocks=blocks is not None, blocks=lists)
        self._run("score_mod", stage, mods)
        del kept
        return out

    def softmax(self, x: mx.array, *, normalise: bool, dtype: mx.Dtype) -> SoftmaxParts:
        weights, target = _result(x.shape, dtype)
        max_scores, max_at = new_array(x.shape[:-1], mx.float32)
        sums, sums_at = new_array(x.shape[:-1], mx.float32)
        x = _evaluated(x)
        statistics = {"max_scores": max_at, "sums": sums_at}
        self._run("softmax", Softmax(x=_tensor(x), weights=target, **statistics, normalise=normalise))
        return SoftmaxParts(weights, max_scores, sums)

    def block_mask(
        self, mask_mod: Bound, batch: int, heads: int, q_len: int, kv_len: int, block_size: tuple[int, int]
    ) -> BlockLists:
        rows = (batch, heads, -(-q_len // block_size[0]))
        columns = -(-kv_len // block_size[1])
        made = [new_array(shape, mx.int32) for shape in (rows, (*rows, columns)) * 2]
        sizes = {"batch": batch, "heads": heads, "q_len": q_len, "kv_len": kv_len}
        blocks = {"q_block": block_size[0], "kv_block": block_size[1]}
        names = ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices")
        lists = {name: at for name, (_, at) in zip(names, made, strict=True)}
        self._run("block_mask", BlockMask(**lists, **sizes, **blocks), Mods(mask=mask_mod))
        partial, indices, full, full_indices = (array for array, _ in made)
        return BlockLists(partial, indices, full, full_indices, *block_size)

    def block_sparse_matmul(
        self, a: mx.array, b: mx.array, blocks: BlockLists, *, transpose_b: bool, dtype: mx.Dtype
    ) -> mx.array:
        b = b.swapaxes(-1, -2) if transpose_b else b
        a, b = _evaluated(a), _evaluated(b)
        out, target = _result((*a.shape[:3], b.shape[3]), dtype)
        lists, kept = _lists(blocks)
        stage = BlockSparseMatmul(a=_tensor(a), b=_tensor(b), out=target, blocks=lists, sampled=transpose_b)
        self._run("block_sparse_matmul", stage)
        del kept
        return out

    def attention_output(self, product: mx.array, max_scores: mx.array, sums: mx.array, dtype: mx.Dtype) -> OutputParts:
        given = {"product": product, "max_scores": max_scores[..., None], "sums": sums[..., None]}
        inputs = {name: _evaluated(x) for name, x in given.items()}
        out, target = _result(product.shape, dtype)
        lse, lse_at = new_array(product.shape[:-1], mx.float32)
        tensors = {name: _tensor(x) for name, x in inputs.items()}
        self._run("attention_output", AttentionOutput(**tensors, out=target, lse=lse_at))
        return OutputParts(out, lse, max_scores)

    def _run(self, name: str, call: Stage, mods: Mods = NO_MODS) -> None:
        """Run a stage.

        Raises:
            MemoryError: no room for the working memory of its threads.
            OverflowError: a captured integer array holds a value outside int32.
        """
        mx.eval(*mods.mlx_arrays)
        arrays, numbers, kept = captured(mods)
        if isinstance(call, ScoreMod | BlockMask):
            call.arrays, call.numbers = address_of(arrays), address_of(numbers)
        call.caller = Caller(max_threads=self._threads or thread_count(), host=HOST_AT)
        kernel = self._load(KernelSpec(name, mods.formulas))
        status = kernel.entry(bytes(call))
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


def _tensor(x: mx.array) -> Tensor:
    """An evaluated array of four axes at most, as a stage reads it."""
    address, strides = locate(x)
    missing = 4 - x.ndim
    return Tensor(address, (*[1] * missing, *x.shape), (*[0] * missing, *strides), DTYPES[x.dtype])


def _result(shape: tuple[int, ...], dtype: mx.Dtype) -> tuple[mx.array, Tensor]:
    """A contiguous array for a stage to fill, and its Tensor."""
    out, address = new_array(shape, dtype)
    four = (*[1] * (4 - len(shape)), *shape) if len(shape) <= 4 else (math.prod(shape[:-3]), *shape[-3:])
    strides = (math.prod(four[axis + 1 :]) for axis in range(4))
    return out, Tensor(address, four, tuple(strides), DTYPES[dtype])


def _lists(blocks: BlockLists) -> tuple[Lists, list[np.ndarray[Any, Any]]]:
    """The struct BlockLists, and the arrays that it points to."""
    mx.eval(*blocks[:4])
    kept = [np.ascontiguousarray(np.asarray(array)) for array in blocks[:4]]
    partial, indices, _, full_indices = kept
    sizes = (*partial.shape, indices.shape[-1], full_indices.shape[-1], blocks.q_block, blocks.kv_block)
    return Lists(*(array.ctypes.data for array in kept), *sizes), kept
