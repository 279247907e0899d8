"""Kernel text -> what MLX can launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from ..gpu.arguments import SMALLEST
from .scoring import PLAIN, Scoring
from .text import KernelText

Launch = Callable[..., Sequence[mx.array]]
Factory = Callable[..., Any]  # mx.fast.metal_kernel, or what stands in for it


class Variant(NamedTuple):
    """What else, beside the mods, makes two Metal kernels differ.

    async_copy: tiles are copied by the intrinsic.
    by_blocks: the slots of captured arrays that tile_state reads by blocks; None: all that it looks up.
    scoring: how scores are computed.
    kinds: how MLX declares captured arrays, which belongs to a kernel's name.
    sites: of gradient kernels: the numbers of the reads whose gradients they sum.
    fast_math: the score_mod takes Metal's fast functions.
    """

    async_copy: bool = False
    by_blocks: tuple[int, ...] | None = None
    scoring: Scoring = PLAIN
    kinds: str = ""
    sites: tuple[int, ...] = ()
    fast_math: bool = False


@dataclass(frozen=True)
class Launchable:
    """A kernel text and MLX's callable for it."""

    text: KernelText
    launch: Launch


def launchable(metal_kernel: Factory, text: KernelText, kinds: str) -> Launch:
    """MLX's callable for a kernel text. `kinds` sets apart kernels whose captures are declared otherwise."""
    kernel: Launch = metal_kernel(
        name=text.name + kinds,
        input_names=list(text.inputs),
        output_names=list(text.outputs),
        source=text.body,
        header=text.header,
        ensure_row_contiguous=False,
    )
    return kernel


def capture_kinds(arrays: Sequence[mx.array | np.ndarray[Any, Any]]) -> str:
    """How MLX declares captured arrays: c where it passes one in the constant address space, d in device, and its type.

    It belongs to a kernel's name: MLX up to 0.32.0 ran stale code under an equal one.
    """
    return "".join(
        f"_{'c' if array.size < SMALLEST else 'd'}_{str(array.dtype).removeprefix('mlx.core.')}" for array in arrays
    )
