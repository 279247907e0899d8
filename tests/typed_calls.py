"""Calls as users write them, for type checkers: what is right is known exactly, what is wrong is an error.

`make lint` reads this file with mypy, tests/test_public_types.py with pyright. An error that is expected is named in
its line, and is itself an error where there is none.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true, reportMissingTypeStubs=false

from __future__ import annotations

import functools
from typing import Any

import mlx.core as mx
from typing_extensions import assert_type

import flextrace as flex
from flextrace.stages import score_mod as score_stage

Pair = tuple[mx.array, mx.array]


@flex.score_mod
def soft(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score / 2


@flex.mask_mod
def causal(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx >= kv_idx


def near(width: int, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx - kv_idx < width


class Window:
    def __init__(self, size: int) -> None:
        self.size = size

    def keeps(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return q_idx - kv_idx < self.size


def results(q: mx.array, flag: bool, request: flex.AuxRequest | None) -> None:
    assert_type(flex.flex_attention(q, q, q), mx.array)
    assert_type(flex.flex_attention(q, q, q, sinks=q), mx.array)
    assert_type(flex.flex_attention(q, q, q, return_lse=True), Pair)
    assert_type(flex.flex_attention(q, q, q, return_lse=flag), mx.array | Pair)
    assert_type(flex.flex_attention(q, q, q, None, None, None, False, flag), mx.array | Pair)
    assert_type(flex.flex_attention(q, q, q, return_aux=flex.AuxRequest(lse=True)), tuple[mx.array, flex.AuxOutput])
    assert_type(
        flex.flex_attention(q, q, q, return_lse=flag, return_aux=request),
        mx.array | Pair | tuple[mx.array, flex.AuxOutput],
    )


def mods(q: mx.array, later: Any) -> None:
    flex.flex_attention(q, q, q, soft, causal)
    flex.flex_attention(q, q, q, later, later)
    flex.flex_attention(q, q, q, lambda s, b, h, q_idx, kv_idx: s + kv_idx, lambda b, h, q_idx, kv_idx: q_idx >= kv_idx)
    flex.flex_attention(q, q, q, block_mask=functools.partial(near, 3))
    flex.flex_attention(q, q, q, block_mask=Window(3).keeps)
    flex.flex_attention(q, q, q, flex.mods.alibi(8), flex.create_block_mask(causal, None, None, 8, 8))
    flex.flex_attention(q, q, q, block_mask=flex.and_masks(causal, Window(3).keeps) | ~causal)
    score_stage(q, soft, causal)
    flex.visualize.score_mod(soft, 8, mask=causal)
    flex.BlockMask.from_kv_blocks(q, q, mask_mod=causal)


def modules(x: mx.array) -> None:
    layer, bias = flex.nn.MultiHeadAttention(32, 4, sinks=True), flex.nn.RelativePositionBias(4)
    assert_type(layer(x), mx.array)
    assert_type(layer(x, score_mod=bias.score_mod, block_mask=causal), mx.array)
    assert_type(bias.weight, mx.array)
    assert_type(bias.score_mod, flex.ScoreMod)
    assert_type(flex.nn.AlibiSlopes(4).dense(8, 8), mx.array)


def mistakes(q: mx.array) -> None:
    flex.flex_attention(q, q, q, causal, soft)  # type: ignore[arg-type]
    flex.flex_attention(q, q, q, score_mod=causal)  # type: ignore[arg-type]
    flex.flex_attention(q, q, q, block_mask=soft)  # type: ignore[arg-type]
    flex.flex_attention(q, q, q, flex.create_block_mask(causal, None, None, 8, 8))  # type: ignore[call-overload]
    flex.flex_attention(q, q, q, block_mask=near)  # type: ignore[arg-type]
    flex.flex_attention(q, q, q, block_mask=q)  # type: ignore[call-overload]
    flex.create_block_mask(soft, None, None, 8, 8)  # type: ignore[arg-type]
    flex.create_mask(near, None, None, 8, 8)  # type: ignore[arg-type]
    flex.and_masks(causal, soft)  # type: ignore[arg-type]
    score_stage(q, causal, soft)  # type: ignore[arg-type]
    flex.visualize.score_mod(causal, 8)  # type: ignore[arg-type]
