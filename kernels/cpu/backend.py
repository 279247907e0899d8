"""AttentionCall -> kernel on the CPU: its text compiled, or loaded from disk."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flextrace.cache import Store, key_of

from ..backend import BackendUnavailable, Built
from ..call import AttentionCall, BackwardCall, Gradients
from ..loading import Kernels
from ..spec import ATTENTION, BACKWARD, DECODE, Formulas, KernelSpec
from ..toolchain import Compiler, find_compiler, no_compiler
from .backward import differentiate
from .generate import kernel_text
from .launch import Kernel, load, spec_of
from .params import MAX_NDIM
from .stages.stages import CpuStages

LIBRARY, SOURCE = "kernel.so", "kernel.cpp"
FUNCTIONS = {
    ATTENTION: "flextrace_attention",
    DECODE: "flextrace_attention",
    BACKWARD: "flextrace_backward",
}  # a stage's has one name


class CpuBackend:
    """Attention in C++ on all cores, for MLX's CPU build and for arrays in unified memory."""

    name = "cpu"
    lazy = False
    quantises = True
    keeps_gradients = True
    forward: tuple[str, ...] = (ATTENTION, DECODE)
    spec: Callable[[AttentionCall], KernelSpec] = staticmethod(spec_of)
    text: Callable[[KernelSpec], str] = staticmethod(kernel_text)

    def __init__(self) -> None:
        self.kernels: Kernels[Kernel] = Kernels(self._made)
        self.load: Callable[[KernelSpec], Kernel] = self.kernels.__getitem__
        self.built = 0  # kernels compiled by this process

    def named(self, mods: Formulas) -> dict[str, KernelSpec]:
        return {
            "attention": KernelSpec(ATTENTION, mods),
            "decode": KernelSpec(DECODE, mods),
            "backward": KernelSpec(BACKWARD, mods, mods.differentiable),
        }

    def unavailable(self) -> str | None:
        if self._compiler() is not None:
            return None
        return f"the cpu backend found {no_compiler(os.environ.get('CXX'))}"

    @staticmethod
    def _compiler() -> Compiler | None:
        return find_compiler(os.environ.get("CXX"))

    def key(self, spec: KernelSpec) -> str | None:
        compiler = self._compiler()
        return None if compiler is None else key_of(self.text(spec), compiler.fingerprint)

    def build(self, call: AttentionCall, gradients: bool = False) -> list[Built]:
        """One kernel, for all shapes and dtypes; of gradients one of q, k and v alone, and one of all arrays that the
        score_mod captures, too. They are looked for on disk, also where they are in memory."""
        formulas, specs = call.mods.formulas, [self.spec(call)]
        if gradients:
            specs += [KernelSpec(BACKWARD, formulas, slots) for slots in sorted({(), formulas.differentiable})]
        return [self._built(spec) for spec in specs]

    def _built(self, spec: KernelSpec) -> Built:
        if spec.kernel == BACKWARD:
            title = f"{spec.title} of q, k, v" + (" and captured arrays" if spec.variant else "")
        else:
            title = spec.title if spec.variant is None else f"{spec.title}, keys {str(spec.variant).lower()}"
        return Built(title, self._made(spec).key)

    def backward(self, call: BackwardCall) -> Gradients:
        return differentiate(self.load(KernelSpec(BACKWARD, call.call.mods.formulas, call.wanted)).entry, call)

    def stages(self, threads: int = 0) -> CpuStages:
        return CpuStages(self.load, threads)

    def _made(self, spec: KernelSpec) -> Kernel:
        """The compiled kernel, from disk or made now."""
        for capture in spec.mods.arrays:
            if capture.ndim > MAX_NDIM:
                raise ValueError(f"{capture.name} has {capture.ndim} dimensions; the cpu backend reads {MAX_NDIM}")
        compiler = self._compiler()
        if compiler is None:  # it was there when this backend was made
            raise BackendUnavailable(self.unavailable() or "the C++ compiler is gone")
        text = self.text(spec)

        def build(folder: Path) -> dict[str, Any]:
            (folder / SOURCE).write_text(text, encoding="ascii")
            compiler.build(folder / SOURCE, folder / LIBRARY)
            self.built += 1
            return {
                "backend": self.name,
                "kernel": spec.title,
                **({"gradients": spec.variant} if spec.kernel == BACKWARD else {"keys": spec.variant or "PLAIN"}),
                **spec.mods.described(),
                "compiler": compiler.version(),
                "flags": [*compiler.words, *compiler.flags],
                "mlx": importlib.metadata.version("mlx"),
            }

        function = FUNCTIONS.get(spec.kernel, "flextrace_stage")
        key = key_of(text, compiler.fingerprint)
        _, entry = Store().load_or_build(key, build, LIBRARY, lambda path: load(path, function, spec.kernel), [SOURCE])
        return Kernel(entry, key)
