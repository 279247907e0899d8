"""Checked tensors -> one launch of a stage kernel of `stages/`, as a node of MLX's lazy graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import mlx.core as mx

from flextrace.tracer import Bound

from ...call import NO_MODS, Mods
from ...gpu.arguments import bits, captured_arrays, words_of_captures
from ...spec import KernelSpec
from ...stages.protocol import BlockLists, OutputParts, SoftmaxParts
from ..launch import Launchable
from .plan import ProductPlan, plan_of
from .text import StageVariant

THREADS = 128  # of a block, where a stage is no product: THREADS of plan.h
MOST_BLOCKS = 1 << 16  # of such a stage: each takes several rows where there are more


class CudaStages:
    """The stage kernels through `mx.fast.precompiled_cuda_kernel`. `load` gives one of them, for a GPU of that compute
    capability.

    Nothing is evaluated and no value is read, so they work inside mx.compile and on any stream. Tensors that do not lie
    row after row are copied.
    """

    def __init__(self, load: Callable[[KernelSpec], Launchable], architecture: int) -> None:
        self._load = load
        self._architecture = architecture

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
        """Raises ValueError for tiles that are no multiples of 8 or do not fit a block."""
        a, b = _of_one_dtype(a.swapaxes(-1, -2) if transpose_a else a, b)
        plan = plan_of(_name(a.dtype), tiles, a.shape[3], self._architecture)
        return self._product("matmul", a, b, plan, {"TRANSPOSE_B": transpose_b}, dtype)

    def scale(self, x: mx.array, factor: float) -> mx.array:
        if x.size == 0:
            return x
        columns = x.shape[-1] if x.ndim else 1
        variant = StageVariant(_name(x.dtype), _name(x.dtype))
        scalars = [x.size // columns, columns, bits(factor)]
        (out,) = self._run("scale", variant, [x], scalars, -(-x.size // THREADS), [(x.shape, x.dtype)])
        return out

    def score_mod(self, scores: mx.array, mods: Mods, blocks: BlockLists | None) -> mx.array:
        if scores.size == 0:
            return scores
        states, sizes = _states(blocks, *scores.shape[2:])
        variant = StageVariant(constants=_constants(LISTED=blocks is not None))
        shape = scores.shape
        outputs = [(shape, mx.float32)]
        scalars = [*shape, *sizes, *words_of_captures(mods)]
        (out,) = self._run("score_mod", variant, [scores, states], scalars, math.prod(shape[:3]), outputs, mods)
        return out

    def softmax(self, x: mx.array, *, normalise: bool, dtype: mx.Dtype) -> SoftmaxParts:
        rows = x.shape[:-1]
        if x.size == 0:
            return SoftmaxParts(mx.zeros(x.shape, dtype), mx.full(rows, -mx.inf, mx.float32), mx.zeros(rows))
        count = math.prod(rows)
        outputs = [(x.shape, dtype), (rows, mx.float32), (rows, mx.float32)]
        scalars = [count, x.shape[-1], int(normalise)]
        weights, largest, sums = self._run("softmax", StageVariant(written=_name(dtype)), [x], scalars, count, outputs)
        return SoftmaxParts(weights, largest, sums)

    def block_mask(
        self, mask_mod: Bound, batch: int, heads: int, q_len: int, kv_len: int, block_size: tuple[int, int]
    ) -> BlockLists:
        q_block, kv_block = block_size
        rows, kv_blocks = (batch, heads, -(-q_len // q_block)), -(-kv_len // kv_block)
        shapes = [rows, (*rows, kv_blocks)] * 2
        if math.prod(rows) * kv_blocks == 0:
            lists: Sequence[mx.array] = [mx.zeros(shape, mx.int32) for shape in shapes]
        else:
            mods, outputs = Mods(mask=mask_mod), [(shape, mx.int32) for shape in shapes]
            sizes = (min(q_block, q_len), min(kv_block, kv_len))  # no block is larger than the scores
            scalars = [batch, heads, q_len, kv_len, *sizes, *words_of_captures(mods)]
            lists = self._run("block_mask", StageVariant(), [], scalars, math.prod(rows), outputs, mods)
        return BlockLists(lists[0], lists[1], lists[2], lists[3], q_block, kv_block)

    def block_sparse_matmul(
        self, a: mx.array, b: mx.array, blocks: BlockLists, *, transpose_b: bool, dtype: mx.Dtype
    ) -> mx.array:
        a, b = _of_one_dtype(a, b)
        if transpose_b and a.shape[3] == 0:  # products of nothing are 0 in the listed blocks
            a, b = (mx.zeros((*x.shape[:3], 1), x.dtype) for x in (a, b))
        constants = {"LISTED": True, "TRANSPOSE_B": transpose_b, "SAMPLED": transpose_b}
        plan = ProductPlan(_name(a.dtype))
        return self._product("block_sparse_matmul", a, b, plan, constants, dtype, blocks)

    def attention_output(self, product: mx.array, max_scores: mx.array, sums: mx.array, dtype: mx.Dtype) -> OutputParts:
        rows, value_dim = max_scores.shape, product.shape[-1]
        if max_scores.size == 0:
            return OutputParts(product.astype(dtype), max_scores, max_scores)
        given = product if value_dim else mx.zeros((*rows, 1))  # statistics have no columns
        columns, variant = given.shape[-1], StageVariant(written=_name(dtype))
        outputs = [(given.shape, dtype), (rows, mx.float32)]
        scalars = [max_scores.size, columns]
        inputs = [given, max_scores, sums]
        out, lse = self._run("attention_output", variant, inputs, scalars, max_scores.size, outputs)
        return OutputParts(out[..., :value_dim] if value_dim == 0 else out, lse, max_scores)

    def _product(
        self,
        stage: str,
        a: mx.array,
        b: mx.array,
        plan: ProductPlan,
        constants: dict[str, bool],
        dtype: mx.Dtype,
        blocks: BlockLists | None = None,
    ) -> mx.array:
        transpose_b = constants["TRANSPOSE_B"]
        batch, heads, m, k = a.shape
        n = b.shape[2 if transpose_b else 3]
        shape = (batch, heads, m, n)
        if math.prod(shape) * k == 0:
            return mx.zeros(shape, dtype)
        scalars, inputs = [heads, b.shape[0], b.shape[1], m, n, k], [a, b]
        if blocks is not None:
            states, sizes = _states(blocks, m, n if transpose_b else k)
            scalars, inputs = [*scalars, *sizes], [*inputs, states]
        given = (*_constants(**constants), *plan.constants().items())
        (out,) = self._run(
            stage,
            StageVariant(_name(a.dtype), _name(dtype), given),
            inputs,
            scalars,
            batch * heads * -(-m // plan.bm) * -(-n // plan.bn),
            [(shape, dtype)],
            plan=plan,
            shared_memory=plan.shared_bytes(transpose_b),
        )
        return out

    def _run(
        self,
        stage: str,
        variant: StageVariant,
        inputs: Sequence[mx.array],
        scalars: Sequence[int],
        blocks: int,
        outputs: Sequence[tuple[Sequence[int], mx.Dtype]],
        mods: Mods = NO_MODS,
        plan: ProductPlan | None = None,
        shared_memory: int = 0,
    ) -> Sequence[mx.array]:
        kernel = self._load(KernelSpec(stage, mods.formulas, variant))
        threads, count = (THREADS, min(blocks, MOST_BLOCKS)) if plan is None else (plan.threads, blocks)
        return kernel.launch(
            inputs=[*inputs, *captured_arrays(mods, True)],
            output_shapes=[tuple(shape) for shape, _ in outputs],
            output_dtypes=[dtype for _, dtype in outputs],
            scalars=list(scalars),
            grid=(count * threads, 1, 1),
            threadgroup=(threads, 1, 1),
            shared_memory=shared_memory,
            ensure_row_contiguous=True,
        )


def _name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")


def _constants(**values: bool) -> tuple[tuple[str, str], ...]:
    return tuple((name, str(value).lower()) for name, value in values.items())


def _of_one_dtype(a: mx.array, b: mx.array) -> tuple[mx.array, mx.array]:
    """Both as they are, or in float32, which holds the others exactly."""
    return (a, b) if a.dtype == b.dtype else (a.astype(mx.float32), b.astype(mx.float32))


def _states(blocks: BlockLists | None, q_len: int, kv_len: int) -> tuple[mx.array, list[int]]:
    """The state of each block, uint8 [batch, heads, q_blocks, kv_blocks], enum State of blocks.h; and BlockSizes. An
    index that names no block is passed over. No block is larger than the scores."""
    if blocks is None:
        return mx.zeros((1, 1, 1, 1), mx.uint8), [1] * 6
    kv_blocks = -(-kv_len // blocks.kv_block)
    states = mx.zeros((*blocks.kv_num_blocks.shape, kv_blocks + 1), mx.uint8)  # the last is for what names none
    partial, full = blocks.kv_num_blocks, blocks.full_kv_num_blocks
    for state, counts, indices in ((1, partial, blocks.kv_indices), (2, full, blocks.full_kv_indices)):
        if indices.size:
            named = (mx.arange(indices.shape[3]) < counts[..., None]) & (indices >= 0) & (indices < kv_blocks)
            at = mx.where(named, indices, kv_blocks)
            states = mx.put_along_axis(states, at, mx.array(state, mx.uint8), axis=-1)
    sizes = (min(q_len, blocks.q_block), min(kv_len, blocks.kv_block))
    return states[..., :kv_blocks], [*states.shape[:3], kv_blocks, *sizes]
