"""Values of a launch by name -> the 32-bit words that its kernel reads as a struct: see words.h."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, get_args, get_type_hints

import mlx.core as mx
import numpy as np

from ..gpu.arguments import bits


class AttentionParams(NamedTuple):
    """params.h"""

    query_heads: int
    kv_heads: int
    kv_batches: int
    q_len: int
    kv_len: int
    scale: float
    mask_batches: int
    mask_heads: int
    q_blocks: int
    kv_blocks: int
    q_block: int
    kv_block: int
    first_tile: int
    sharing: int = 1


class QuantiseParams(NamedTuple):
    """quantise.metal"""

    heads: int
    rows: int
    columns: int
    block: int
    mean_heads: int
    batches: int
    mean_batches: int
    group_batches: int
    most_runs: int
    scale: float


class ProductParams(NamedTuple):
    """stages/product.h"""

    a_heads: int
    b_batches: int
    b_heads: int
    m: int
    n: int
    k: int


class ListParams(NamedTuple):
    """stages/lists.h"""

    mask_batches: int
    mask_heads: int
    q_blocks: int
    columns: int
    full_columns: int
    q_block: int
    kv_block: int


class ShapeParams(NamedTuple):
    """stages/elementwise.h"""

    heads: int
    rows: int
    columns: int


class ScaleParams(NamedTuple):
    """stages/scale.metal"""

    heads: int
    rows: int
    columns: int
    factor: float


class BlockMaskParams(NamedTuple):
    """stages/block_mask.metal"""

    q_len: int
    kv_len: int
    q_block: int
    kv_block: int
    kv_blocks: int


Params = AttentionParams | QuantiseParams | ProductParams | ListParams | ShapeParams | ScaleParams | BlockMaskParams


_KINDS = {struct.__name__: tuple(get_type_hints(struct).values()) for struct in get_args(Params)}


def paired(numbers: Sequence[int]) -> mx.array:
    """int64 of 32-bit words, two in each: half as many elements."""
    return mx.array(np.array(numbers, np.int32).view(np.int64))


def words(*params: Params) -> list[int]:
    """The words of these structs, one after the other."""
    fields = (field for struct in params for field in zip(struct, _KINDS[type(struct).__name__], strict=True))
    return [bits(value) if kind is float else int(value) for value, kind in fields]
