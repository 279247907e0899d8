"""Traces + call -> result on Apple GPUs: generate the Metal text, keep it on disk, launch it through MLX."""

from __future__ import annotations

import importlib.metadata
import threading
from pathlib import Path
from typing import Any

import mlx.core as mx

from flextrace.cache import Store, key_of
from flextrace.tracer import Trace

from ..call import AttentionCall, Result
from ..mods import Mods, describe, expressions, state_in_memory
from ..stage_types import Stages
from .generate import KernelText, kernel_source, kernel_text, looked_up
from .launch import Factory, Launch, capture_kinds, make, run, slots_by_blocks
from .probe import why_no_async_copy
from .quantise import operands
from .rounding import Rounding
from .scoring import PLAIN, Scoring, scoring_of
from .stages import MetalStages

SOURCE = "kernel.metal"
# And whether tiles are copied by the intrinsic, which arrays tile_state reads by blocks, and how scores are computed.
Key = tuple[Mods, bool, tuple[int, ...], Scoring]


class MetalBackend:
    """Attention in Metal through `mx.fast.metal_kernel`, or anything that takes the same arguments.

    A call adds one node to MLX's lazy graph and evaluates nothing of it, so it works inside mx.compile and on any
    stream. (It looks at the range of captured int64, uint64 and uint32 arrays: see mods.readable.)
    MLX takes source only: the disk keeps the text, and MLX compiles it once per process.
    """

    name = "metal"
    lazy = True
    quantises = True

    def __init__(self, metal_kernel: Factory = mx.fast.metal_kernel) -> None:
        self.metal_kernel = metal_kernel
        self._texts: dict[Key, KernelText] = {}
        self._kernels: dict[tuple[Key, str], Launch] = {}
        self._stages = MetalStages(metal_kernel)
        self._rounding = Rounding(metal_kernel)
        self._lock = threading.Lock()
        self._probed = False
        self._no_async_copy: str | None = None  # once probed
        self.generated = 0  # texts that were not on disk

    def unavailable(self) -> str | None:
        if mx.metal.is_available():
            return None
        return "MLX finds no Metal device; run on a Mac with Apple silicon, or choose the simulator or cpu backend"

    def source(self, score_mod: Trace | None, mask_mod: Trace | None) -> str:
        return kernel_source(score_mod, mask_mod)

    def prepare(self, score_mod: Trace | None, mask_mod: Trace | None) -> str:
        if (expressions(score_mod, mask_mod), False, looked_up(score_mod, mask_mod), PLAIN) in self._texts:
            return "memory"
        before = self.generated
        self.text(score_mod, mask_mod)
        return "compiled" if self.generated > before else "disk"

    def state(self, score_mod: Trace | None, mask_mod: Trace | None) -> str:
        found = state_in_memory(expressions(score_mod, mask_mod), [key[0] for key in tuple(self._texts)])
        if found is not None:
            return found
        complete = kernel_text(score_mod, mask_mod).complete()
        return "nowhere" if Store().peek(key_of(complete, self.name)) is None else "disk"

    def text(
        self,
        score_mod: Trace | None,
        mask_mod: Trace | None,
        async_copy: bool = False,
        by_blocks: tuple[int, ...] | None = None,
        scoring: Scoring = PLAIN,
    ) -> KernelText:
        """The kernel text for these mods, kept on disk for readers; `by_blocks` as in kernel_text."""
        extremes = looked_up(score_mod, mask_mod) if by_blocks is None else by_blocks
        key = (expressions(score_mod, mask_mod), async_copy, extremes, scoring)
        text = self._texts.get(key)
        if text is None:
            with self._lock:
                text = kernel_text(score_mod, mask_mod, async_copy, extremes, scoring)
                self._keep(text, score_mod, mask_mod)
                self._texts[key] = text
        return text

    def _keep(self, text: KernelText, score_mod: Trace | None, mask_mod: Trace | None) -> None:
        complete = text.complete()

        def build(folder: Path) -> dict[str, Any]:
            (folder / SOURCE).write_text(complete, encoding="ascii")
            self.generated += 1
            return {
                "backend": self.name,
                "score_mod": None if score_mod is None else describe(score_mod),
                "mask_mod": None if mask_mod is None else describe(mask_mod),
                "kernel": text.name,
                "mlx": importlib.metadata.version("mlx"),
            }

        Store().get_or_build(key_of(complete, self.name), build, [SOURCE])

    def attention(self, call: AttentionCall) -> Result:
        score, mask = (None if mod is None else mod.trace for mod in (call.score_mod, call.mask_mod))
        refusal = self.no_async_copy() if call.async_copy else None
        async_copy = call.async_copy and refusal is None
        text_key = (expressions(score, mask), async_copy, slots_by_blocks(call), scoring_of(call))
        text = self.text(score, mask, *text_key[1:])
        mods = [mod for mod in (call.score_mod, call.mask_mod) if mod is not None]
        key = (text_key, capture_kinds([array for mod in mods for array in mod.arrays]))
        kernel = self._kernels.get(key)
        if kernel is None:
            kernel = self._kernels[key] = make(self.metal_kernel, text, key[1])
        made = operands(call, self._rounding, self._stages)
        result = run(kernel, call, made, text)
        if refusal is not None:
            result.notice = (
                f"simdgroup_async_copy does not work here ({refusal}), so K and V pass through registers, which is the "
                'default and works everywhere; leave out kernel_options={"ASYNC_COPY": "intrinsic"}'
            )
        return result

    def stages(self, threads: int = 0) -> Stages:
        return self._stages

    def no_async_copy(self) -> str | None:
        """Why the intrinsic cannot be used, or None; found out once per process, at first use."""
        with self._lock:
            if not self._probed:
                self._no_async_copy = why_no_async_copy(self.metal_kernel)
                self._probed = True
        return self._no_async_copy


class SimulatorBackend(MetalBackend):
    """The same kernels, run lane by lane on the host CPU with race, bounds and initialisation checks."""

    name = "simulator"
    lazy = False

    def __init__(self, metal_kernel: Factory | None = None) -> None:
        if metal_kernel is None:
            from ..simulator import metal_kernel as simulated

            metal_kernel = simulated
        super().__init__(metal_kernel)

    def unavailable(self) -> str | None:
        from ..simulator.build import SimulatorUnavailable, compiler

        try:
            compiler()
        except SimulatorUnavailable as reason:
            return str(reason)
        return None

    def no_async_copy(self) -> str | None:
        """The simulator has the intrinsic."""
        return None
