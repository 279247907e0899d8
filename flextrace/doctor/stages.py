"""Stages -> checks: each stage kernel on a tiny problem, compared with its definition in float64 numpy."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np

from flextrace.decorators import MaskMod, ScoreMod, bound
from flextrace.kernels.stages.protocol import BlockLists, Stages

from .exactness import Array, after_mods, alibi, causal, compare, exact, softmax, tensors

HEADS, ROWS, COLUMNS, DIM, BLOCK = 2, 37, 45, 24, 16
SCORES = (1, HEADS, ROWS, COLUMNS)


def matmul(stages: Stages, dtype: str) -> None:
    a, b = tensors([(1, HEADS, ROWS, DIM), (1, HEADS, DIM, COLUMNS)], dtype)
    kind = getattr(mx, dtype)
    want = exact(a) @ exact(b)
    for transpose_a in (False, True):
        for transpose_b in (False, True):
            left, right = (_turned(x) if turn else x for x, turn in ((a, transpose_a), (b, transpose_b)))
            got = stages.matmul(left, right, transpose_a=transpose_a, transpose_b=transpose_b, tiles=None, dtype=kind)
            turned = f"{'T' if transpose_a else 'N'}{'T' if transpose_b else 'N'}"
            compare(got, want, dtype, f"matmul {turned}")


def scale(stages: Stages, dtype: str) -> None:
    (x,) = tensors([SCORES], dtype)
    compare(stages.scale(x, 0.3), 0.3 * exact(x), dtype, "scale")


def score_mod(stages: Stages, dtype: str) -> None:
    (scores,) = tensors([SCORES], "float32")
    mods = bound(ScoreMod(alibi), MaskMod(causal))
    want = after_mods(exact(scores), alibi, causal)
    compare(stages.score_mod(scores, mods, None), want, "float32", "score_mod")
    compare(stages.score_mod(scores, mods, _causal_blocks()), want, "float32", "score_mod in blocks")


def softmax_of_rows(stages: Stages, dtype: str) -> None:
    (scores,) = tensors([SCORES], "float32")
    weights, highest, total = softmax(exact(scores))
    for normalise in (False, True):
        got = stages.softmax(scores, normalise=normalise, dtype=getattr(mx, dtype))
        compare(got.weights, weights / total[..., None] if normalise else weights, dtype, "softmax")
        compare(got.max_scores, highest, "float32", "softmax's max_scores")
        compare(got.sums, total, "float32", "softmax's sums")


def block_mask(stages: Stages, dtype: str) -> None:
    got = stages.block_mask(MaskMod(causal).bind(), 1, HEADS, ROWS, COLUMNS, (BLOCK, BLOCK))
    partial, full = _lists(got.kv_num_blocks, got.kv_indices), _lists(got.full_kv_num_blocks, got.full_kv_indices)
    rows = -(-ROWS // BLOCK)
    wanted = [[row] for row in range(rows)], [list(range(row)) for row in range(rows)]
    for what, found, want in (("partial", partial, wanted[0]), ("full", full, wanted[1])):
        if found != [want] * HEADS:
            raise AssertionError(f"block_mask lists the {what} blocks {found}, expected {[want] * HEADS}")


def block_sparse_matmul(stages: Stages, dtype: str) -> None:
    q, k, p, v = tensors([(1, HEADS, ROWS, DIM), (1, HEADS, COLUMNS, DIM), SCORES, (1, HEADS, COLUMNS, DIM)], dtype)
    listed = np.arange(ROWS)[:, None] // BLOCK >= np.arange(COLUMNS) // BLOCK
    scores = stages.block_sparse_matmul(q, k, _causal_blocks(), transpose_b=True, dtype=mx.float32)
    want = np.where(listed, exact(q) @ exact(k).swapaxes(-1, -2), -np.inf)
    compare(scores, want, dtype, "block_sparse_matmul Q K^T")
    out = stages.block_sparse_matmul(p, v, _causal_blocks(), transpose_b=False, dtype=mx.float32)
    compare(out, np.where(listed, exact(p), 0.0) @ exact(v), dtype, "block_sparse_matmul P V")


def attention_output(stages: Stages, dtype: str) -> None:
    product, highest = tensors([(1, HEADS, ROWS, DIM), SCORES[:3]], "float32")
    sums = mx.abs(highest) + 1.0
    got = stages.attention_output(product, highest, sums, getattr(mx, dtype))
    compare(got.out, exact(product) / exact(sums)[..., None], dtype, "attention_output")
    compare(got.lse, exact(highest) + np.log(exact(sums)), "float32", "attention_output's lse")
    compare(got.max_scores, exact(highest), "float32", "attention_output's max_scores")


STAGES: dict[str, Callable[[Stages, str], None]] = {
    "matmul": matmul,
    "scale": scale,
    "score_mod": score_mod,
    "softmax": softmax_of_rows,
    "block_mask": block_mask,
    "block_sparse_matmul": block_sparse_matmul,
    "attention_output": attention_output,
}


def _turned(x: mx.array) -> mx.array:
    return mx.contiguous(x.swapaxes(-1, -2))


def _causal_blocks() -> BlockLists:
    """Causal over ROWS x COLUMNS in blocks: the diagonal is partial, what lies before it is full."""
    rows, columns = -(-ROWS // BLOCK), -(-COLUMNS // BLOCK)
    at = np.arange(rows, dtype=np.int32).reshape(1, 1, rows)
    partial = np.zeros((1, 1, rows, columns), np.int32)
    partial[..., 0] = at
    full = np.broadcast_to(np.arange(columns, dtype=np.int32), (1, 1, rows, columns))
    full = np.where(full < at[..., None], full, 0)
    ones = mx.ones((1, 1, rows), mx.int32)
    return BlockLists(ones, mx.array(partial), mx.array(at), mx.array(full), BLOCK, BLOCK)


def _lists(counts: mx.array, indices: mx.array) -> list[list[list[int]]]:
    """The blocks listed for each head and row of blocks of the first batch."""
    numbers: Array = np.array(counts[0])
    blocks: Array = np.array(indices[0])
    return [
        [[int(i) for i in blocks[h, row, : numbers[h, row]]] for row in range(numbers.shape[1])]
        for h in range(numbers.shape[0])
    ]
