"""Mods, options -> kernels on disk: what a later call needs, built now, without running it.

cpu: one kernel of C++ for a pair of mods and a way to read keys, for all shapes and dtypes.
simulator: another for each dtype, head_dim, kind of captured array, and for a BlockMask.
metal: the text only; MLX compiles that in every process anew.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from flextrace.cache import Store
from flextrace.kernels import AttentionCall, Backend, backend_for
from flextrace.kernels.cpu import CpuBackend
from flextrace.kernels.cpu.launch import keys_of
from flextrace.kernels.smoothing import smoothing
from flextrace.kernels.staged import mask_shape

from .block_mask import create_block_mask
from .checks import check_options
from .decorators import MaskMod, ScoreMod, title_of
from .quantise import quant_options, refuse_unless_quantising
from .show.cache_table import kernel_title

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
) -> list[Step]:
    """What to do so that `flex_attention` on any of these shapes of (query, key, value) and dtypes compiles nothing.

    Kernels that several of the calls share are built once. block_mask: the calls pass `create_block_mask` of the mask,
    not the mask_mod itself.

    Raises:
        ValueError: the backend does not follow the options, or an option is not known.
        BackendUnavailable: it cannot run here.
        TraceError, OverflowError, ZeroDivisionError: a mod cannot be used.
    """
    chosen = backend_for(backend)
    calls = [
        (title_of(*pair) or "no mod", _call(chosen, pair, shape, dtype, options, block_mask))
        for pair in pairs
        for shape in shapes
        for dtype in dtypes
    ]
    disk = _Disk()
    if isinstance(chosen, CpuBackend):
        return list(_on_cpu(chosen, calls, disk))
    return list(_on_metal(chosen.name, calls, disk))


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
    quant, smooth_k = quant_options(check_options(options))
    zero = mx.zeros((), getattr(mx, dtype))
    q, k, v = (mx.broadcast_to(zero, shape) for shape in shapes)
    score, mask = (None if mod is None else mod.bind() for mod in pair)
    call = AttentionCall(q, k, v, 1.0 / math.sqrt(q.shape[-1]), score, mask, quant=quant)
    if block_mask and mask is not None:
        assert pair[1] is not None
        batch, heads = mask_shape(mask, q.shape[0], q.shape[1])
        call.blocks = create_block_mask(pair[1], batch, heads, q.shape[2], k.shape[2]).blocks
    refuse_unless_quantising(backend, call, smooth_k)
    if smooth_k:
        call.smoothing = smoothing(call)
    return call


def _on_cpu(backend: CpuBackend, calls: Sequence[tuple[str, AttentionCall]], disk: _Disk) -> Iterator[Step]:
    seen = set()
    for title, call in calls:
        score, mask = (None if mod is None else mod.trace for mod in (call.score_mod, call.mask_mod))
        keys = keys_of(call)
        identity = (*(None if mod is None else mod.expr for mod in (score, mask)), keys)
        if identity in seen:
            continue
        seen.add(identity)

        def run(title: str = title, score: Any = score, mask: Any = mask, keys: Any = keys) -> list[Warmed]:
            start = time.perf_counter()
            entry, _ = backend.library("attention", score, mask, keys)
            kernel = "attention" if keys == "PLAIN" else f"attention, keys {keys.lower()}"
            return [Warmed(title, "cpu", kernel, entry.key, disk.found(entry.key), time.perf_counter() - start)]

        yield Step(title, run)


def _on_metal(name: str, calls: Sequence[tuple[str, AttentionCall]], disk: _Disk) -> Iterator[Step]:
    from flextrace.kernels.metal import MetalBackend, SimulatorBackend

    built: list[tuple[str, Path]] = []
    make = _built_only(built) if name == "simulator" else _not_built
    backend = (SimulatorBackend if name == "simulator" else MetalBackend)(make)
    seen: set[str] = set()
    for title, call in calls:

        def run(title: str = title, call: AttentionCall = call) -> list[Warmed]:
            built.clear()
            start, before = time.perf_counter(), backend.generated
            backend.attention(call)
            seconds = time.perf_counter() - start
            if name == "metal":
                found = "compiled" if backend.generated > before else "on disk"
                return [Warmed(title, name, "text", "", found, seconds)]
            new = {path.parent.name: kernel for kernel, path in built if path.parent.name not in seen}
            seen.update(new)
            of = f"{str(call.q.dtype).removeprefix('mlx.core.')}, head_dim {call.q.shape[-1]}"
            return [
                Warmed(title, name, f"{kernel}, {of}", key, disk.found(key), seconds / len(new))
                for key, kernel in new.items()
            ]

        yield Step(title, run)


def _not_built(**definition: Any) -> Callable[..., list[mx.array]]:
    """A stand-in for mx.fast.metal_kernel that runs nothing."""
    return lambda **call: _zeros(call)


def _built_only(built: list[tuple[str, Path]]) -> Callable[..., Callable[..., list[mx.array]]]:
    """A stand-in for the simulator's metal_kernel that compiles what a call needs, and runs nothing."""
    from flextrace.kernels.simulator import metal_kernel
    from flextrace.kernels.simulator.build import build
    from flextrace.kernels.simulator.kernel import PREFIX
    from flextrace.kernels.simulator.signature import template_text
    from flextrace.kernels.simulator.translate import translate

    def factory(**definition: Any) -> Callable[..., list[mx.array]]:
        kernel = metal_kernel(**definition)

        def launch(**call: Any) -> list[mx.array]:
            template = call.get("template") or ()
            text = kernel.text([mx.array(given) for given in call["inputs"]], call["output_dtypes"], template)
            values = ", ".join(template_text(value) for _, value in template)
            translated, _ = translate(text, f"{PREFIX}{kernel.name}", values)
            built.append((kernel_title(kernel.name), build(translated, kernel.checks, kernel.name).path))
            return _zeros(call)

        return launch

    return factory


def _zeros(call: Mapping[str, Any]) -> list[mx.array]:
    """They need no memory, also where a launch of several is begun."""
    return [
        mx.broadcast_to(mx.zeros((), t), s) for s, t in zip(call["output_shapes"], call["output_dtypes"], strict=True)
    ]
