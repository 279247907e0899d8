"""Checked tensors -> one launch of a stage kernel of `stages/`, as a node of MLX's lazy graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from flextrace.tracer import Bound

from ...call import NO_MODS, Mods
from ...gpu.arguments import SMALLEST, captured_arrays, in_device_memory, words_of_captures
from ...spec import KernelSpec
from ...stages.protocol import BlockLists, OutputParts, SoftmaxParts
from ..device import LANES
from ..kernel import Launchable, Variant, capture_kinds
from ..params import BlockMaskParams, ListParams, Params, ProductParams, ScaleParams, ShapeParams, words
from .product_plan import Operands, choose, plan_of

ITEMS, ELEMENTWISE_THREADS = 4, 256  # ITEMS of stages/tensor.h
SLAB = 16  # of score_mod.metal
SIMDGROUPS = 4  # of softmax.metal and block_mask.metal
LONG_ROW = 1024  # from here on all simdgroups of a threadgroup share a row of the softmax


class MetalStages:
    """The stage kernels through `mx.fast.metal_kernel`, or what takes the same arguments. `load` gives one of them.

    Nothing is evaluated and no value is read, so they work inside mx.compile and on any stream. Inputs are read where
    they lie, whatever their strides.
    """

    def __init__(self, load: Callable[[KernelSpec], Launchable]) -> None:
        self._load = load

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
        """Raises ValueError for tiles that are no multiples of 8 or do not fit a threadgroup."""
        batch, heads, *sides = a.shape
        m, k = reversed(sides) if transpose_a else sides
        n = b.shape[2 if transpose_b else 3]
        operands = _operands(a, b, transpose_a, transpose_b)
        plan = choose(operands, max(1, m), max(1, n), max(1, k)) if tiles is None else plan_of(operands, tiles, k)
        shape = (batch, heads, m, n)
        if math.prod(shape) * k == 0:
            return mx.zeros(shape, dtype)
        template = [("A", a.dtype), ("B", b.dtype), ("O", dtype), *plan.template()]
        template += [("TRANSPOSE_A", transpose_a), ("TRANSPOSE_B", transpose_b), ("WHOLE", plan.whole)]
        (out,) = self._run(
            "matmul",
            [in_device_memory(a), in_device_memory(b), _params(_product(heads, b, m, n, k))],
            template=template,
            groups=(-(-n // plan.bn), -(-m // plan.bm), batch * heads),
            threadgroup=(plan.threads, 1, 1),
            outputs=[(shape, dtype)],
        )
        return out

    def scale(self, x: mx.array, factor: float) -> mx.array:
        if x.size == 0:
            return x
        rows = _four_axes(x)
        groups, threadgroup = _elementwise(rows.shape)
        (out,) = self._run(
            "scale",
            [in_device_memory(rows), _params(ScaleParams(*_shape(rows), factor))],
            template=[("T", x.dtype)],
            groups=groups,
            threadgroup=threadgroup,
            outputs=[(rows.shape, x.dtype)],
        )
        return out.reshape(x.shape)

    def score_mod(self, scores: mx.array, mods: Mods, blocks: BlockLists | None) -> mx.array:
        if scores.size == 0:
            return scores
        batch, heads, q_len, kv_len = scores.shape
        groups, threadgroup = _elementwise(scores.shape)
        lists, of_lists = _lists(blocks, q_len, kv_len)
        params = _params(ShapeParams(heads, q_len, kv_len), of_lists, captures=mods)
        if blocks is not None:
            slabs = -(-min(q_len, blocks.q_block) // SLAB)
            groups = (_most_entries(blocks, kv_len), -(-q_len // blocks.q_block) * slabs, batch * heads)
            threadgroup = (ELEMENTWISE_THREADS, 1, 1)
        (out,) = self._run(
            "score_mod",
            [in_device_memory(scores), params, *lists],
            mods,
            template=[("LISTED", blocks is not None)],
            groups=groups,
            threadgroup=threadgroup,
            outputs=[(scores.shape, mx.float32)],
            init_value=None if blocks is None else -math.inf,
        )
        return out

    def softmax(self, x: mx.array, *, normalise: bool, dtype: mx.Dtype) -> SoftmaxParts:
        if x.size == 0:
            return SoftmaxParts(
                mx.zeros(x.shape, dtype), mx.full(x.shape[:-1], -mx.inf, mx.float32), mx.zeros(x.shape[:-1])
            )
        rows = _four_axes(x)
        batch, heads, count, columns = rows.shape
        row_groups = SIMDGROUPS if columns >= LONG_ROW else 1
        weights, largest, sums = self._run(
            "softmax",
            [in_device_memory(rows), _params(ShapeParams(heads, count, columns))],
            template=[("O", dtype), ("ROW_GROUPS", row_groups), ("NORMALISE", normalise)],
            groups=(-(-count * row_groups // SIMDGROUPS), heads, batch),
            threadgroup=(SIMDGROUPS * LANES, 1, 1),
            outputs=[(rows.shape, dtype), (rows.shape[:-1], mx.float32), (rows.shape[:-1], mx.float32)],
        )
        return SoftmaxParts(weights.reshape(x.shape), largest.reshape(x.shape[:-1]), sums.reshape(x.shape[:-1]))

    def block_mask(
        self, mask_mod: Bound, batch: int, heads: int, q_len: int, kv_len: int, block_size: tuple[int, int]
    ) -> BlockLists:
        q_block, kv_block = block_size
        rows, kv_blocks = (batch, heads, -(-q_len // q_block)), -(-kv_len // kv_block)
        shapes = [rows, (*rows, kv_blocks)] * 2
        if math.prod(rows) * kv_blocks == 0:
            zeros = [mx.zeros(shape, mx.int32) for shape in shapes]
            return BlockLists(zeros[0], zeros[1], zeros[2], zeros[3], q_block, kv_block)
        mods = Mods(mask=mask_mod)
        lists = self._run(
            "block_mask",
            [_params(BlockMaskParams(q_len, kv_len, q_block, kv_block, kv_blocks), captures=mods)],
            mods,
            template=[],
            groups=(rows[2], heads, batch),
            threadgroup=(SIMDGROUPS * LANES, 1, 1),
            outputs=[(shape, mx.int32) for shape in shapes],
        )
        return BlockLists(lists[0], lists[1], lists[2], lists[3], q_block, kv_block)

    def block_sparse_matmul(
        self, a: mx.array, b: mx.array, blocks: BlockLists, *, transpose_b: bool, dtype: mx.Dtype
    ) -> mx.array:
        batch, heads, m, k = a.shape
        n = b.shape[2 if transpose_b else 3]
        shape = (batch, heads, m, n)
        if math.prod(shape) == 0 or (k == 0 and not transpose_b):
            return mx.zeros(shape, dtype)
        # A tile stays inside its block: no larger than one, and one block may have several.
        kv_len = n if transpose_b else k
        rows, keys = min(m, blocks.q_block), min(kv_len, blocks.kv_block)
        columns, depth = (keys, k) if transpose_b else (n, keys)
        plan = choose(_operands(a, b, False, transpose_b), rows, columns, max(1, depth))
        across = -(-columns // plan.bn) * (_most_entries(blocks, n) if transpose_b else 1)
        lists, of_lists = _lists(blocks, m, kv_len)
        params = _params(_product(heads, b, m, n, k), of_lists)
        template = [("A", a.dtype), ("B", b.dtype), ("O", dtype), *plan.template(), ("SAMPLED", transpose_b)]
        (out,) = self._run(
            "block_sparse_matmul",
            [in_device_memory(a), in_device_memory(b), params, *lists],
            template=template,
            groups=(across, -(-m // blocks.q_block) * -(-rows // plan.bm), batch * heads),
            threadgroup=(plan.threads, 1, 1),
            outputs=[(shape, dtype)],
            init_value=-math.inf if transpose_b else None,
        )
        return out

    def attention_output(self, product: mx.array, max_scores: mx.array, sums: mx.array, dtype: mx.Dtype) -> OutputParts:
        if max_scores.size == 0:
            return OutputParts(product.astype(dtype), max_scores, max_scores)
        value_dim = product.shape[-1]
        rows = _four_axes(product)
        groups, threadgroup = _elementwise(rows.shape)
        out, lse = self._run(
            "attention_output",
            [
                in_device_memory(rows),
                *(in_device_memory(_four_axes(mx.expand_dims(x, -1))) for x in (max_scores, sums)),
                _params(_shape(rows)),
            ],
            template=[("O", dtype)],
            groups=groups,
            threadgroup=threadgroup,
            outputs=[((*rows.shape[:-1], max(1, value_dim)), dtype), (rows.shape[:-1], mx.float32)],
        )
        return OutputParts(out[..., :value_dim].reshape(product.shape), lse.reshape(max_scores.shape), max_scores)

    def _run(
        self,
        stage: str,
        inputs: Sequence[mx.array],
        mods: Mods = NO_MODS,
        *,
        template: Sequence[tuple[str, Any]],
        groups: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
        outputs: Sequence[tuple[Sequence[int], mx.Dtype]],
        init_value: float | None = None,
    ) -> Sequence[mx.array]:
        given = captured_arrays(mods, packed=False)
        kernel = self._load(KernelSpec(stage, mods.formulas, Variant(kinds=capture_kinds(given))))
        captured = [mx.contiguous(x) for x in given] if kernel.text.packed else given
        x, y, z = (count * threads for count, threads in zip(groups, threadgroup, strict=True))
        return kernel.launch(
            inputs=[*inputs, *captured],
            template=list(template),
            grid=(x, y, z),
            threadgroup=threadgroup,
            output_shapes=[tuple(shape) for shape, _ in outputs],
            output_dtypes=[dtype for _, dtype in outputs],
            init_value=init_value,
        )


def _operands(a: mx.array, b: mx.array, transpose_a: bool, transpose_b: bool) -> Operands:
    half = a.dtype == b.dtype == mx.float16
    return Operands(a.dtype.size, b.dtype.size, half, transpose_a, transpose_b)


def _elementwise(shape: Sequence[int]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Threadgroups and their threads for work on [batch, heads, rows, columns], as stages/tensor.h shares it out."""
    batch, heads, rows, columns = shape
    wide = LANES
    while wide < ELEMENTWISE_THREADS and wide * ITEMS < columns:
        wide *= 2
    high = ELEMENTWISE_THREADS // wide
    return (max(1, -(-columns // (wide * ITEMS))), -(-rows // high), batch * heads), (wide, high, 1)


def _four_axes(x: mx.array) -> mx.array:
    if x.ndim > 4:
        return x.reshape(-1, *x.shape[-3:])
    return mx.expand_dims(x, tuple(range(4 - x.ndim)))


def _shape(x: mx.array) -> ShapeParams:
    _, heads, rows, columns = x.shape
    return ShapeParams(heads, rows, columns)


def _product(heads: int, b: mx.array, m: int, n: int, k: int) -> ProductParams:
    return ProductParams(heads, b_batches=b.shape[0], b_heads=b.shape[1], m=m, n=n, k=k)


def _params(*params: Params, captures: Mods = NO_MODS) -> mx.array:
    """The words of these structs and of what the mods capture, in device memory."""
    numbers = [*words(*params), *words_of_captures(captures), *[0] * SMALLEST]
    return mx.array(np.array(numbers, np.int64).astype(np.int32))


def _lists(blocks: BlockLists | None, q_len: int, kv_len: int) -> tuple[list[mx.array], ListParams]:
    """The four lists, flat, and what the kernel must know of them. No block is larger than the scores."""
    if blocks is None:
        return [mx.zeros(SMALLEST, mx.int32)] * 4, ListParams(1, 1, 0, 0, 0, q_block=1, kv_block=1)
    lists = (blocks.kv_num_blocks, blocks.kv_indices, blocks.full_kv_num_blocks, blocks.full_kv_indices)
    sizes = (min(q_len, blocks.q_block), min(kv_len, blocks.kv_block))
    batch, heads, q_blocks = blocks.kv_num_blocks.shape
    columns, full_columns = blocks.kv_indices.shape[3], blocks.full_kv_indices.shape[3]
    params = ListParams(batch, heads, q_blocks, columns, full_columns, *sizes)
    return [in_device_memory(mx.contiguous(x).reshape(-1)) for x in lists], params


def _most_entries(blocks: BlockLists, kv_len: int) -> int:
    """How long both lists of one row of blocks can be together, at least 1: a block is in one of them, once."""
    columns = blocks.kv_indices.shape[3] + blocks.full_kv_indices.shape[3]
    return max(1, min(columns, -(-kv_len // blocks.kv_block)))
