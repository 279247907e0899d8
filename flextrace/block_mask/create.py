"""mask_mod, lengths -> dense mask or BlockMask: the arguments' checks."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from flextrace.advice.keywords import OF_BLOCK_MASK, knows
from flextrace.decorators import MaskMod, as_mod
from flextrace.kernels.scalars import check_size, check_whole
from flextrace.notices import say_top_left
from flextrace.tracer import Bound, Start, evaluate
from flextrace.tracer.source.signature import MaskFunction

from .block_mask import DEFAULT_BLOCK, BlockMask
from .lists import block_size
from .refine import captured_arrays

UNSAID = Start(0)  # the offset that nobody gave: a 0 that can be told from any other


def _sizes(*, B: Any, H: Any, Q_LEN: Any, KV_LEN: Any) -> tuple[int | None, int | None, int, int]:
    """The sizes of a mask as Python ints. Raises ValueError."""
    heads = [None if size is None else check_size(name, size, 1, " or None") for name, size in (("B", B), ("H", H))]
    return heads[0], heads[1], check_size("Q_LEN", Q_LEN, 0), check_size("KV_LEN", KV_LEN, 0)


def check_broadcast(caller: str, mask_mod: Bound, batch: int | None, heads: int | None) -> None:
    """B and H may be None only where the mask does not ask for them."""
    for name, size, index in (("B", batch, "b"), ("H", heads, "h")):
        if size is None and index in mask_mod.trace.expr.varies:
            raise ValueError(f"the mask depends on {index}, so {caller} needs {name}, not None")


@knows(OF_BLOCK_MASK)
def create_mask(mask_mod: MaskMod | MaskFunction, B: int | None, H: int | None, Q_LEN: int, KV_LEN: int) -> mx.array:
    """The dense mask: bool [B or 1, H or 1, Q_LEN, KV_LEN]. For looking at and comparing; kernels never need it.

    Raises:
        TraceError: the mask_mod cannot be traced.
        ValueError: a size is not positive, B or H is None though the mask reads b or h, or a captured array is
            too short for these sizes.

    Example:
        >>> import flextrace as flex
        >>> flex.create_mask(lambda b, h, q, kv: q >= kv, None, None, 2, 2)
        array([[[[True, False],
                 [True, True]]]], dtype=bool)
    """
    B, H, Q_LEN, KV_LEN = _sizes(B=B, H=H, Q_LEN=Q_LEN, KV_LEN=KV_LEN)
    bound = as_mod(mask_mod, MaskMod, "mask_mod").bind()
    check_broadcast("create_mask", bound, B, H)
    bound.check_sizes((B or 1, H or 1, Q_LEN, KV_LEN))
    values = {
        "b": np.arange(B or 1).reshape(-1, 1, 1, 1),
        "h": np.arange(H or 1).reshape(1, -1, 1, 1),
        "q_idx": np.arange(Q_LEN).reshape(-1, 1),
        "kv_idx": np.arange(KV_LEN),
    }
    kept = evaluate(bound.trace.expr, values, numbers=bound.numbers, arrays=captured_arrays(bound))
    return mx.array(np.broadcast_to(kept, (B or 1, H or 1, Q_LEN, KV_LEN)))


@knows(OF_BLOCK_MASK)
def create_block_mask(
    mask_mod: MaskMod | MaskFunction,
    B: int | None,
    H: int | None,
    Q_LEN: int,
    KV_LEN: int,
    BLOCK_SIZE: int | tuple[int, int] = DEFAULT_BLOCK,
    *,
    offset: int = UNSAID,
) -> BlockMask:
    """The BlockMask of a mask_mod.

    Args:
        mask_mod: a mask_mod or plain function `(b, h, q_idx, kv_idx) -> bool`.
        B, H: batch and query heads that the mask depends on; None where it does not, then it broadcasts.
        Q_LEN, KV_LEN: lengths; they need not be multiples of the block size.
        BLOCK_SIZE: rows and columns of a block.
        offset: position in the sequence of the first query (decoding, context parallelism); keys start at 0. Without
            one, and with more keys than queries, `flex.mods.causal` says once that it is aligned top left.

    Raises:
        TraceError: the mask_mod cannot be traced.
        ValueError: a size is not positive, B or H is None though the mask reads b or h, or a captured array is
            too short for these sizes.

    Example:
        >>> import flextrace as flex
        >>> print(flex.create_block_mask(lambda b, h, q, kv: q >= kv, None, None, 384, 384))
        BlockMask(shape=(1, 1, 384, 384), BLOCK_SIZE=(128, 128), sparsity=33.33%)
        +..
        #+.
        ##+
    """
    B, H, Q_LEN, KV_LEN = _sizes(B=B, H=H, Q_LEN=Q_LEN, KV_LEN=KV_LEN)
    block, start = block_size(BLOCK_SIZE), check_whole("offset", offset)
    mod = as_mod(mask_mod, MaskMod, "mask_mod")
    check_broadcast("create_block_mask", mod.bind(), B, H)
    if offset is UNSAID and mod.top_left is not None and Q_LEN < KV_LEN:
        say_top_left(mod.top_left, Q_LEN, KV_LEN, "create_block_mask(..., offset=kv_len - q_len)")
    return BlockMask.from_mask(mod, (B or 1, H or 1, Q_LEN, KV_LEN), block, offset=start)
