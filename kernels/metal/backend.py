"""AttentionCall -> kernel on Apple GPUs: its Metal text, kept on disk, and MLX's callable for it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from flextrace.cache import Store, key_of

from ..backend import Built
from ..call import AttentionCall, BackwardCall, Gradients, Result
from ..gpu.extremes import slots_by_blocks
from ..loading import Kernels
from ..spec import ATTENTION, DECODE, Formulas, KernelSpec
from ..stages.protocol import Stages
from .async_copy.probe import why_no_async_copy
from .backward.text import KERNELS as GRADIENT_KERNELS
from .backward.text import gradient_specs, gradient_text
from .decode.launch import keys_in_place, plan_of, run_decode
from .decode.plan import decode_plan
from .decode.text import MERGE, decode_text, merge_text
from .generate import complete, kernel_text
from .gradients import gradients
from .int8.quantise import operands
from .int8.rounding import KERNEL as QUANTISE
from .int8.rounding import Rounding, quantise_text
from .kernel import Factory, Launchable, Variant, capture_kinds, launchable
from .launch import run
from .scoring import scoring_of
from .stages.stages import MetalStages
from .stages.text import stage_text
from .text import KernelText

SOURCE = "kernel.metal"


class MetalBackend:
    """Attention in Metal through `mx.fast.metal_kernel`, or anything that takes the same arguments.

    A call adds one node to MLX's lazy graph and evaluates nothing of it, so it works inside mx.compile and on any
    stream. (It looks at the range of captured int64, uint64 and uint32 arrays: see Mods.readable.)
    MLX takes source only: the disk keeps the text, and MLX compiles it once per process.
    """

    name = "metal"
    lazy = True
    quantises = True
    keeps_gradients = False
    forward: tuple[str, ...] = (ATTENTION, DECODE)

    def __init__(self, metal_kernel: Factory = mx.fast.metal_kernel) -> None:
        self.metal_kernel = metal_kernel
        self.kernels: Kernels[MetalKernel] = Kernels(self._made)
        self.load: Callable[[KernelSpec], MetalKernel] = self.kernels.__getitem__
        self.rounding: Rounding = Rounding(self.load)
        self._stages = MetalStages(self.load)
        self._probed: list[str | None] = []  # what no_async_copy found out
        self.built = 0  # texts that were not on disk

    def unavailable(self) -> str | None:
        if mx.metal.is_available():
            return None
        return "MLX finds no Metal device; run on a Mac with Apple silicon, or choose the simulator or cpu backend"

    def spec(self, call: AttentionCall) -> KernelSpec:
        async_copy = call.async_copy and self.no_async_copy() is None
        few = not async_copy and plan_of(call) is not None
        call = keys_in_place(call) if few else call
        variant = Variant(
            async_copy,
            slots_by_blocks(call),
            scoring_of(call),
            capture_kinds(call.mods.arrays),
            fast_math=call.fast_math and call.mods.score is not None,
        )
        return KernelSpec(DECODE if few else ATTENTION, call.mods.formulas, variant)

    def named(self, mods: Formulas) -> dict[str, KernelSpec]:
        return {"attention": KernelSpec(ATTENTION, mods), "decode": KernelSpec(DECODE, mods), **gradient_specs(mods)}

    def text(self, spec: KernelSpec) -> str:
        text = _text(spec)
        return _complete(text, spec.kernel) if spec.kernel in self.forward else text.header + text.body

    def key(self, spec: KernelSpec) -> str | None:
        return key_of(self.text(spec), self.name)

    def build(self, call: AttentionCall, gradients: bool = False) -> list[Built]:
        """The text is all that there is on disk; the launches lead to nothing."""
        spec = self.spec(call)
        type(self)(_not_built).load(spec).run(call)
        return [Built("text", key_of(self.text(spec), self.name), for_readers=True)]

    def backward(self, call: BackwardCall) -> Gradients:
        """Gradients of a call, as nodes of MLX's lazy graph; nothing is evaluated.

        Raises ValueError where the mods capture more arrays than a Metal kernel has buffers.
        """
        return gradients(call, self.load)

    def stages(self, threads: int = 0) -> Stages:
        return self._stages

    def no_async_copy(self) -> str | None:
        """Why the intrinsic cannot be used, or None; found out once per process, at first use."""
        if not self._probed:
            self._probed.append(why_no_async_copy(self.metal_kernel))
        return self._probed[0]

    def _made(self, spec: KernelSpec) -> MetalKernel:
        text = _text(spec)
        if spec.kernel in (*self.forward, *GRADIENT_KERNELS):
            self._keep(text, spec)
        kinds = spec.variant.kinds if isinstance(spec.variant, Variant) else ""
        return MetalKernel(text, launchable(self.metal_kernel, text, kinds), self)

    def _keep(self, text: KernelText, spec: KernelSpec) -> None:
        whole = _complete(text, spec.kernel)

        def build(folder: Path) -> dict[str, Any]:
            (folder / SOURCE).write_text(whole, encoding="ascii")
            self.built += 1
            mlx = importlib.metadata.version("mlx")
            return {"backend": self.name, **spec.mods.described(), "kernel": text.name, "mlx": mlx}

        Store().get_or_build(key_of(whole, self.name), build, [SOURCE])


@dataclass(frozen=True)
class MetalKernel(Launchable):
    """A kernel of this backend; that of attention can run."""

    backend: MetalBackend

    def run(self, call: AttentionCall) -> Result:
        if self.text.kernel == DECODE:
            call = keys_in_place(call)
        made = operands(call, self.backend.rounding, self.backend.stages())
        if self.text.kernel == DECODE:
            merge = self.backend.load(KernelSpec(MERGE))
            result = run_decode(self.launch, merge.launch, call, made, self.text)
        else:
            result = run(self.launch, call, made, self.text)
        refusal = self.backend.no_async_copy() if call.async_copy else None
        if refusal is not None:
            result.notice = (
                f"simdgroup_async_copy does not work here ({refusal}), so K and V pass through registers, which is the "
                'default and works everywhere; leave out kernel_options={"ASYNC_COPY": "intrinsic"}'
            )
        return result


def _text(spec: KernelSpec) -> KernelText:
    if spec.kernel == QUANTISE:
        return quantise_text()
    variant = spec.variant if isinstance(spec.variant, Variant) else Variant()
    if spec.kernel in GRADIENT_KERNELS:
        return gradient_text(spec.kernel, spec.mods, variant)
    if spec.kernel == MERGE:
        return merge_text()
    if spec.kernel == DECODE:
        return decode_text(spec.mods, variant.by_blocks, variant.scoring, variant.fast_math)
    if spec.kernel != ATTENTION:
        return stage_text(spec.kernel, spec.mods)
    return kernel_text(spec.mods, variant.async_copy, variant.by_blocks, variant.scoring, variant.fast_math)


def _complete(text: KernelText, kernel: str) -> str:
    return complete(text, decode_plan(64, 64, "float32", 1) if kernel == DECODE else None)


def _not_built(**definition: Any) -> Any:
    """A stand-in for mx.fast.metal_kernel that runs nothing."""
    return lambda **call: no_results(call)


def no_results(call: Mapping[str, Any]) -> list[mx.array]:
    """Zeros for what a launch gives. They need no memory, also where a launch of several is begun."""
    return [
        mx.broadcast_to(mx.zeros((), t), s) for s, t in zip(call["output_shapes"], call["output_dtypes"], strict=True)
    ]
