"""AttentionCall -> kernel on NVIDIA GPUs: its CUDA text, compiled to a cubin that is kept on disk."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from flextrace.cache import Store, key_of

from ..backend import BackendUnavailable, Built
from ..call import AttentionCall, BackwardCall, Gradients, Result
from ..gpu.extremes import slots_by_blocks
from ..gpu.tile_lists import tiles_for
from ..loading import Kernels
from ..spec import ATTENTION, DECODE, Formulas, KernelSpec
from ..stages.protocol import Stages
from .attention.plan import Plan, plan_for
from .backward.text import GradientVariant, gradient_specs, gradient_text
from .decode.launch import decode_tiles, plan_of, run_decode
from .decode.plan import PLAIN, DecodePlan
from .decode.text import decode_text, merge_text
from .device import HOPPER, LEAST, capability
from .generate import CudaText, attention_text
from .gradients import gradients
from .hopper.launch import run_hopper
from .hopper.plan import HopperPlan, hopper_plan
from .hopper.text import TENSOR_MAPS, hopper_text, maps_text
from .int8.launch import run_rounded
from .int8.operands import scoring_of, values
from .launch import empty, run
from .nvrtc import REMEDY, Nvrtc, find_nvrtc
from .stages.stages import CudaStages
from .stages.text import StageVariant, stage_text

CUBIN, SOURCE, REPORT = "kernel.cubin", "kernel.cu", "resources.txt"
MERGE = "attention_merge"  # the kernel behind that of few query rows
PLAIN_CAPABILITY = 80  # whose text is shown where there is no GPU


class Variant(NamedTuple):
    """plan: how a block cuts its work. blocks: enum Blocks of walk.h. extremes: slots whose blocks tile_state reads."""

    plan: Plan | HopperPlan
    blocks: int = 0
    extremes: tuple[int, ...] = ()


class DecodeVariant(NamedTuple):
    """The same of the kernel for few query rows. value_means: values lack a mean row."""

    plan: DecodePlan
    blocks: int = 0
    extremes: tuple[int, ...] = ()
    value_means: bool = False


class MergeVariant(NamedTuple):
    """dtype: of the result. value_means: values lack a mean row."""

    dtype: str = "float16"
    value_means: bool = False


class CudaBackend:
    """Attention in CUDA through `mx.fast.precompiled_cuda_kernel`: a node of MLX's lazy graph."""

    name = "cuda"
    lazy = True
    quantises = True
    keeps_gradients = False
    forward: tuple[str, ...] = (ATTENTION, DECODE)

    def __init__(self) -> None:
        self.kernels: Kernels[CudaKernel] = Kernels(self._made)
        self.load: Callable[[KernelSpec], CudaKernel] = self.kernels.__getitem__
        self.built = 0  # kernels compiled by this process

    def unavailable(self) -> str | None:
        found = capability()
        if found is None:
            return "no NVIDIA driver answers; choose the cpu or ops backend"
        if found < LEAST:
            return f"this GPU is sm_{found}, and the cuda backend needs sm_80 or later; choose the ops backend"
        if find_nvrtc() is None:
            return f"NVRTC is missing; {REMEDY}"
        return None

    def spec(self, call: AttentionCall) -> KernelSpec:
        few = plan_of(call)
        if few is not None:
            mode, by_blocks = decode_tiles(call).mode, slots_by_blocks(call)
            return KernelSpec(DECODE, call.mods.formulas, DecodeVariant(few, mode, by_blocks, call.v_means is not None))
        dtype = str(call.q.dtype).removeprefix("mlx.core.")
        dims, found = (call.q.shape[3], call.v.shape[3]), capability() or PLAIN_CAPABILITY
        plan: Plan | HopperPlan | None = None
        scoring = scoring_of(call)
        if found == HOPPER and scoring is None:
            masked = call.mods.mask is not None or call.blocks is not None
            plan = hopper_plan(*dims, dtype, masked or call.mods.score is not None, masked)
        plan = plan or plan_for(*dims, dtype, found, scoring)
        tiles = tiles_for(call.blocks, plan, call.q.shape[2], call.k.shape[2])
        return KernelSpec(ATTENTION, call.mods.formulas, Variant(plan, tiles.mode, slots_by_blocks(call)))

    def named(self, mods: Formulas) -> dict[str, KernelSpec]:
        gradients = gradient_specs(mods, capability() or PLAIN_CAPABILITY)
        return {"attention": KernelSpec(ATTENTION, mods), "decode": KernelSpec(DECODE, mods), **gradients}

    def text(self, spec: KernelSpec) -> str:
        return _text(spec).text

    def key(self, spec: KernelSpec) -> str | None:
        nvrtc = find_nvrtc()
        return None if nvrtc is None else _key(self.text(spec), nvrtc)

    def build(self, call: AttentionCall, gradients: bool = False) -> list[Built]:
        spec = self.spec(call)
        made = self._made(spec)
        return [
            Built(spec.title, made.key),
            *(Built(f"{spec.title}: second kernel", other.key) for other in made.others),
        ]

    def backward(self, call: BackwardCall) -> Gradients:
        """Gradients of a call, as nodes of MLX's lazy graph; nothing is evaluated.

        Raises ValueError where head dims do not fit a block, or gradients of captured arrays need too much memory.
        """
        return gradients(call, self.load, capability() or PLAIN_CAPABILITY)

    def stages(self, threads: int = 0) -> Stages:
        return CudaStages(self.load, capability() or PLAIN_CAPABILITY)

    def _made(self, spec: KernelSpec) -> CudaKernel:
        text, nvrtc = _text(spec), find_nvrtc()
        if nvrtc is None:
            raise BackendUnavailable(f"NVRTC is missing; {REMEDY}")
        key = _key(text.text, nvrtc)

        def build(folder: Path) -> dict[str, Any]:
            cubin, report = nvrtc.compile(text.text, architecture())
            (folder / SOURCE).write_text(text.text, encoding="ascii")
            (folder / CUBIN).write_bytes(cubin)
            (folder / REPORT).write_text(report)
            self.built += 1
            mlx = importlib.metadata.version("mlx")
            compiler = f"{nvrtc.fingerprint} {architecture()}"
            return {
                "backend": self.name,
                "kernel": spec.title,
                **spec.mods.described(),
                "compiler": compiler,
                "mlx": mlx,
            }

        _, cubin = Store().load_or_build(key, build, CUBIN, Path.read_bytes, [SOURCE, REPORT])
        variant = _variant(spec)
        other = None
        if isinstance(variant, DecodeVariant):
            other = self._made(KernelSpec(MERGE, variant=MergeVariant(variant.plan.dtype, variant.value_means)))
        elif spec.kernel == ATTENTION and isinstance(variant, Variant) and isinstance(variant.plan, HopperPlan):
            other = self._made(KernelSpec(TENSOR_MAPS))
        return CudaKernel(cubin, text.name, variant, key, other)


@dataclass(frozen=True)
class CudaKernel:
    """A cubin, and what a launch of it needs. other: what is launched with it: tensor maps before that of Hopper, the
    merge behind that of few query rows."""

    cubin: bytes
    name: str
    variant: Variant | DecodeVariant | MergeVariant
    key: str
    other: CudaKernel | None = None

    @property
    def others(self) -> list[CudaKernel]:
        """That one, if there is one."""
        return [] if self.other is None else [self.other]

    def launch(self, **call: Any) -> Sequence[mx.array]:
        """The outputs of one launch, as nodes of MLX's graph."""
        return mx.fast.precompiled_cuda_kernel(name=self.name, compiled_source=self.cubin, **call)

    def run(self, call: AttentionCall) -> Result:
        nothing = empty(call)
        if nothing is not None:
            return nothing
        if isinstance(self.variant, MergeVariant):
            raise ValueError("the kernel that merges splits runs behind that of few query rows")
        plan, extremes = self.variant.plan, self.variant.extremes
        if isinstance(plan, DecodePlan):
            assert self.other is not None
            return run_decode(self.launch, self.other.launch, plan, extremes, call)
        tiles = tiles_for(call.blocks, plan, call.q.shape[2], call.k.shape[2])
        if isinstance(plan, Plan) and plan.scoring is not None:
            return run_rounded(self.launch, plan, tiles, extremes, call)
        if call.k.dtype != call.q.dtype or call.v.dtype != call.q.dtype:  # in int8, and without an element of q or k
            call = call._replace(k=call.k.astype(call.q.dtype), v=values(call))
        if isinstance(plan, Plan):
            return run(self.launch, plan, tiles, extremes, call)
        assert self.other is not None
        return run_hopper(self.launch, self.other.launch, plan, tiles, extremes, call)


def architecture() -> str:
    """As NVRTC calls it: that of this GPU, with the instructions of that chip alone."""
    found = capability() or PLAIN_CAPABILITY
    return f"sm_{found}a" if found >= 90 else f"sm_{found}"


def _key(text: str, nvrtc: Nvrtc) -> str:
    return key_of(text, f"{nvrtc.fingerprint} {architecture()}")


def _variant(spec: KernelSpec) -> Variant | DecodeVariant | MergeVariant:
    if isinstance(spec.variant, (Variant, DecodeVariant, MergeVariant)):
        return spec.variant
    if spec.kernel == MERGE:
        return MergeVariant()
    if spec.kernel == DECODE:
        return DecodeVariant(PLAIN)
    return Variant(plan_for(64, 64, "float16", capability() or PLAIN_CAPABILITY))


def _text(spec: KernelSpec) -> CudaText:
    if spec.kernel == TENSOR_MAPS:
        return maps_text()
    if isinstance(spec.variant, GradientVariant):
        return gradient_text(spec.kernel, spec.mods, spec.variant)
    if isinstance(spec.variant, StageVariant):
        return stage_text(spec.kernel, spec.mods, spec.variant)
    variant = _variant(spec)
    if isinstance(variant, MergeVariant):
        return merge_text(variant.dtype, variant.value_means)
    if isinstance(variant.plan, DecodePlan):
        return decode_text(spec.mods, variant.plan, variant.blocks, variant.extremes)
    if isinstance(variant.plan, HopperPlan):
        return hopper_text(spec.mods, variant.plan, variant.blocks, variant.extremes)
    return attention_text(spec.mods, variant.plan, variant.blocks, variant.extremes)
