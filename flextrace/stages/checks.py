"""Arguments of the stage functions -> errors, before any work; every message names the remedy."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from flextrace.decorators import MaskMod, ScoreMod
from flextrace.kernels.scalars import as_float, check_block_size, name_of, positive_ints, shown
from flextrace.kernels.stages.protocol import BlockLists
from flextrace.tracer import Bound, Kind
from flextrace.tracer.errors import with_article

DTYPES = (mx.float32, mx.float16, mx.bfloat16)


def check_tensor(
    name: str, x: Any, axes: str, *, least: int, most: int | None = None, only_float32: bool = False
) -> None:
    """x must be an mx.array of floats with `least` to `most` axes; `axes` names them for the message."""
    if not isinstance(x, mx.array):
        raise TypeError(f"{name} is {with_article(type(x).__name__)}; convert it with mx.array(...)")
    if x.ndim < least or (most is not None and x.ndim > most):
        raise ValueError(f"{name} has shape {x.shape}; expected {axes}")
    if only_float32 and x.dtype != mx.float32:
        raise TypeError(f"{name} is {name_of(x.dtype)}; make it float32 with .astype(mx.float32)")
    if x.dtype not in DTYPES:
        raise TypeError(f"{name} is {name_of(x.dtype)}; make it float32, float16 or bfloat16 with .astype(...)")


def check_dtype(dtype: Any, default: mx.Dtype) -> mx.Dtype:
    """The dtype of a result: the default for None."""
    if dtype is None:
        return default
    if dtype not in DTYPES:
        shown = name_of(dtype) if isinstance(dtype, mx.Dtype) else repr(dtype)
        raise TypeError(f"dtype is {shown}; expected mx.float32, mx.float16 or mx.bfloat16, or None")
    return dtype  # type: ignore[no-any-return]


def check_number(name: str, value: Any) -> float:
    number = as_float(value, name)
    if number is None:
        raise TypeError(f"{name} is {shown(value)}; expected a number")
    return number


def four_axes(x: mx.array) -> mx.array:
    """Leading axes of size 1 where there are fewer than four."""
    return x[(None,) * (4 - x.ndim)] if x.ndim < 4 else x


def check_leading(a: mx.array, b: mx.array) -> None:
    """Batch and heads of two tensors of four axes: b's batch is 1 or a's, b's heads divide a's."""
    if b.shape[0] not in (1, a.shape[0]):
        raise ValueError(f"batch sizes: a {a.shape[0]}, b {b.shape[0]}; b needs {a.shape[0]}, or 1 for all")
    if a.shape[1] != b.shape[1] and (b.shape[1] == 0 or a.shape[1] % b.shape[1]):
        raise ValueError(f"the {a.shape[1]} heads of a must be a multiple of the {b.shape[1]} heads of b")


def check_inner(a: int, b: int, what: str) -> None:
    if a != b:
        raise ValueError(f"a has {a} {what}, b has {b}; they must be equal: see transpose_a and transpose_b")


def check_tiles(tiles: Any) -> tuple[int, ...] | None:
    if tiles is None:
        return None
    given = positive_ints(tiles, "tiles")
    if len(given) not in (2, 3):
        raise ValueError(f"tiles is {shown(tiles)}; expected positive ints (BM, BN) or (BM, BN, BK), or None")
    return given


def check_blocks(blocks: Any, batch: int, heads: int, q_len: int) -> BlockLists:
    """Lists that fit scores of [batch, heads, q_len, ...]. Their contents are not looked at."""
    if not isinstance(blocks, BlockLists):
        raise TypeError(
            f"blocks is {with_article(type(blocks).__name__)}; expected BlockLists as block_mask gives them (of a "
            "BlockMask m: BlockLists(m.kv_num_blocks, m.kv_indices, m.full_kv_num_blocks, m.full_kv_indices, "
            "*m.BLOCK_SIZE))"
        )
    check_block_size((blocks.q_block, blocks.kv_block))
    for name, x, axes in zip(BlockLists._fields, blocks[:4], (3, 4, 3, 4), strict=False):
        if not isinstance(x, mx.array) or x.dtype != mx.int32 or x.ndim != axes:
            shown = (
                f"{name_of(x.dtype)} of shape {x.shape}" if isinstance(x, mx.array) else with_article(type(x).__name__)
            )
            raise TypeError(f"blocks.{name} is {shown}; expected an int32 mx.array of {axes} axes")
        b, h, rows = x.shape[:3]
        wanted = -(-q_len // blocks.q_block)
        if b not in (1, batch) or h not in (1, heads) or rows != wanted or x.shape[:3] != blocks[0].shape[:3]:
            raise ValueError(
                f"blocks.{name} has shape {x.shape}; expected batch {batch} or 1, heads {heads} or 1 and {wanted} rows "
                f"of blocks for {q_len} queries in blocks of {blocks.q_block}: make the lists for these lengths"
            )
    return blocks


def check_lists_stand_for(lists: BlockLists, mask_mod: Bound, scores: mx.array) -> None:
    """Lists of one batch or head do not serve several that the mask tells apart."""
    for axis, (name, index) in enumerate((("B", "b"), ("H", "h"))):
        made, wanted = lists.kv_num_blocks.shape[axis], scores.shape[axis]
        if made == 1 < wanted and index in mask_mod.trace.expr.varies:
            raise ValueError(
                f"blocks are of {name}=1 and the mask depends on {index}, so they are not those of {wanted}: make them "
                f"with block_mask(..., {name}={wanted}), or mx.repeat each of the four arrays if they hold for all"
            )


def as_bound(mod: Any, kind: Kind, argument: str) -> Bound | None:
    """A Bound, a decorated mod or a plain function -> Bound, with what it captures now.

    Raises:
        TypeError: it is none of these, or a mod of the other kind.
        TraceError: it cannot become a kernel.
    """
    if mod is None:
        return None
    if not isinstance(mod, Bound) and callable(getattr(mod, "bind", None)):
        mod = mod.bind()
    if isinstance(mod, Bound):
        if mod.trace.kind != kind:
            raise TypeError(f"{argument} takes a {kind}; {mod.trace.name} is a {mod.trace.kind}")
        return mod
    if not callable(mod):
        raise TypeError(
            f"{argument} takes a {kind}: a function, a decorated one or a Bound, not {with_article(type(mod).__name__)}"
        )
    return (ScoreMod if kind == "score_mod" else MaskMod)(mod).bind()


def fits(what: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if tuple(shape) != tuple(expected):
        raise ValueError(
            f"{what} has shape {tuple(shape)}; expected {tuple(expected)}, product's without its last axis"
        )
