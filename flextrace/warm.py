"""Mods, options -> kernels on disk: what a later call needs, built now, without running it.

cpu: one kernel of C++ for a pair of mods and a way to read keys, for all shapes and dtypes; another for few query rows.
simulator: another for each dtype, head_dim, kind of captured array, and for a BlockMask.
metal: the text only; MLX compiles that in every process anew.
cuda: a cubin for each dtype, head dims, kind of mask and architecture, which need not be that of this machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx

from flextrace.cache import Store
from flextrace.kernels import AttentionCall, Backend, BackendUnavailable, backend_for
from flextrace.kernels.cuda.device import LEAST, capability_of, made_for
from flextrace.kernels.cuda.nvrtc import REMEDY, find_nvrtc
from flextrace.kernels.stages.pipeline import mask_shape

from .block_mask import create_block_mask
from .decorators import MaskMod, ScoreMod, bound, title_of
from .int8.smoothing import smoothed
from .options import options_of
from .run import refuse_what_is_not_followed

Shape = tuple[int, int, int, int]
Pair = tuple[ScoreMod | None, MaskMod | None]


@dataclass(frozen=True)
class Warmed:
    """One kernel that a later call finds. found: "compiled" just now, or "on disk" before.

    key: the key of its cache entry; "" for a Metal text, which is on disk for readers only.
    """

    mods: str
    backend: str
    kernel: str
    key: str
    found: str
    seconds: float


@dataclass(frozen=True)
class Step:
    """One kernel to look for, or a call's kernels; `run` finds or builds them."""

    title: str
    run: Callable[[], list[Warmed]]


def steps(
    pairs: Sequence[Pair],
    shapes: Sequence[Sequence[Shape]],
    dtypes: Sequence[str],
    backend: str,
    options: Mapping[str, Any] | None = None,
    block_mask: bool = False,
    gradients: bool = False,
    architecture: str | None = None,
) -> list[Step]:
    """What to do so that `flex_attention` on any of these shapes of (query, key, value) and dtypes compiles nothing.

    Kernels that several of the calls share are built once. block_mask: the calls pass `create_block_mask` of the mask,
    not the mask_mod itself. gradients: they are differentiated. architecture: of the NVIDIA GPU that the calls will run
    on, as "sm_90a"; None for the one here. A process there finds the kernels if its NVRTC is of the same version.

    Raises:
        ValueError: the backend keeps no kernels of gradients on disk.
        ValueError: the backend does not follow the options, or an option is not known.
        ValueError: the architecture is not known, too old, or the backend has none.
        BackendUnavailable: it cannot run here.
        TraceError, OverflowError, ZeroDivisionError: a mod cannot be used.
    """
    if architecture is not None and backend != "cuda":
        raise ValueError(
            f"only kernels of the cuda backend are of an architecture, and this is {backend}; leave it out"
        )
    elsewhere = _other_machine(architecture)
    chosen = backend_for(backend, to_run=architecture is None)
    if gradients and not chosen.keeps_gradients:
        raise ValueError(f"the {backend} backend keeps no kernels of gradients on disk; leave that out, or choose cpu")
    with elsewhere():
        calls = [
            (title_of(*pair) or "no mod", _call(chosen, pair, shape, dtype, options, block_mask))
            for pair in pairs
            for shape in shapes
            for dtype in dtypes
        ]
    disk, seen = _Disk(), set[str]()

    def step(title: str, call: AttentionCall) -> Step:
        def run() -> list[Warmed]:
            start = time.perf_counter()
            with elsewhere():
                built = chosen.build(call, gradients)
            found = [each for each in built if each.for_readers or each.key not in seen]
            seconds = (time.perf_counter() - start) / max(1, len(found))
            seen.update(each.key for each in found)
            return [
                Warmed(title, backend, kernel, "" if for_readers else key, disk.found(key), seconds)
                for kernel, key, for_readers in found
            ]

        return Step(title, run)

    return [step(title, call) for title, call in calls]


def _other_machine(architecture: str | None) -> Callable[[], AbstractContextManager[None]]:
    """What makes kernels those of that architecture. Raises ValueError, BackendUnavailable."""
    if architecture is None:
        return nullcontext
    found, nvrtc = capability_of(architecture), find_nvrtc()
    if nvrtc is None:
        raise BackendUnavailable(f"NVRTC is missing; {REMEDY}")
    if found not in nvrtc.architectures():
        known = ", ".join(f"sm_{each}" for each in nvrtc.architectures() if each >= LEAST)
        version = ".".join(map(str, nvrtc.version))
        raise ValueError(f"NVRTC {version} does not know {architecture}; it knows {known}")
    return partial(made_for, found)


class _Disk:
    """Which entries were whole before."""

    def __init__(self) -> None:
        store = Store()
        self._whole = {entry.key for entry in store.entries()} - store.verify().keys()

    def found(self, key: str) -> str:
        if key in self._whole:
            return "on disk"
        self._whole.add(key)
        return "compiled"


def _call(
    backend: Backend,
    pair: Pair,
    shapes: Sequence[Shape],
    dtype: str,
    options: Mapping[str, Any] | None,
    block_mask: bool,
) -> AttentionCall:
    """The call as flex_attention makes it, on zeros that need no memory."""
    zero = mx.zeros((), getattr(mx, dtype))
    q, k, v = (mx.broadcast_to(zero, shape) for shape in shapes)
    asked = options_of(options, k).asked
    score, mask = pair
    mods, blocks = bound(score, mask), None
    if block_mask and mask is not None and mods.mask is not None:
        batch, heads = mask_shape(mods.mask, q.shape[0], q.shape[1])
        blocks = create_block_mask(mask, batch, heads, q.shape[2], k.shape[2]).blocks
    call = AttentionCall.of(q, k, v, 1.0 / math.sqrt(q.shape[-1]), mods, blocks, **asked)
    refuse_what_is_not_followed(backend, call)
    return smoothed(call)
