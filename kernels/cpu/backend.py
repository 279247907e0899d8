"""Traces + call -> result on the CPU: generate, compile or load from disk, launch."""

from __future__ import annotations

import importlib.metadata
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx

from flextrace.cache import Entry, Store, key_of
from flextrace.tracer import Expr, Trace

from ..call import AttentionCall, Result
from ..mods import describe, expressions, state_in_memory
from ..registry import BackendUnavailable
from .generate import Keys, kernel_source
from .launch import MAX_NDIM, Kernel, keys_of, load
from .stages import CpuStages
from .toolchain import Compiler, find_compiler, no_compiler

LIBRARY, SOURCE = "kernel.so", "kernel.cpp"


class CpuBackend:
    """Attention in C++ on all cores, for MLX's CPU build and for arrays in unified memory."""

    name = "cpu"
    lazy = False
    quantises = True

    def __init__(self) -> None:
        self._kernels: dict[tuple[Keys, Expr | None, Expr | None], Kernel] = {}
        self._stages: dict[tuple[str, Expr | None, Expr | None], Callable[[bytes], int]] = {}
        self._lock = threading.Lock()
        if hasattr(os, "register_at_fork"):  # a thread that the child lacks may hold the lock
            os.register_at_fork(after_in_child=lambda: setattr(self, "_lock", threading.Lock()))
        self.compiled = 0  # kernels compiled by this process

    def unavailable(self) -> str | None:
        if self._compiler() is not None:
            return None
        return f"the cpu backend found {no_compiler(os.environ.get('CXX'))}"

    @staticmethod
    def _compiler() -> Compiler | None:
        return find_compiler(os.environ.get("CXX"))

    def source(self, score_mod: Trace | None, mask_mod: Trace | None) -> str:
        return kernel_source(score_mod, mask_mod)

    def prepare(self, score_mod: Trace | None, mask_mod: Trace | None) -> str:
        if ("PLAIN", *expressions(score_mod, mask_mod)) in self._kernels:
            return "memory"
        before = self.compiled
        self.kernel(score_mod, mask_mod)
        return "compiled" if self.compiled > before else "disk"

    def state(self, score_mod: Trace | None, mask_mod: Trace | None) -> str:
        mods, compiler = expressions(score_mod, mask_mod), self._compiler()
        if (found := state_in_memory(mods, [key[1:] for key in tuple(self._kernels)])) is not None:
            return found
        if compiler is None:
            return "nowhere"
        key = key_of(kernel_source(score_mod, mask_mod), compiler.fingerprint)
        return "nowhere" if Store().peek(key) is None else "disk"

    def kernel(self, score_mod: Trace | None, mask_mod: Trace | None, keys: Keys = "PLAIN") -> Kernel:
        """The loaded kernel for these mods and this way to read keys: from memory, from disk, or compiled now."""
        key = (keys, *expressions(score_mod, mask_mod))
        kernel = self._kernels.get(key)
        if kernel is None:
            with self._lock:
                kernel = self._kernels.get(key)
                if kernel is None:
                    _, entry = self.library("attention", score_mod, mask_mod, keys)
                    kernel = self._kernels[key] = Kernel(entry)
        return kernel

    def stage(self, name: str, score_mod: Trace | None, mask_mod: Trace | None) -> Callable[[bytes], int]:
        """The loaded stage kernel of that name for these mods."""
        key = (name, *expressions(score_mod, mask_mod))
        stage = self._stages.get(key)
        if stage is None:
            with self._lock:
                stage = self._stages.get(key)
                if stage is None:
                    _, stage = self.library(name, score_mod, mask_mod)
                    self._stages[key] = stage
        return stage

    def stages(self, threads: int = 0) -> CpuStages:
        return CpuStages(self.stage, threads)

    def library(
        self, kernel: str, score_mod: Trace | None, mask_mod: Trace | None, keys: Keys = "PLAIN"
    ) -> tuple[Entry, Callable[[bytes], int]]:
        """The compiled kernel of that name for these mods, from disk or made now, and its function."""
        for mod in (score_mod, mask_mod):
            for capture in mod.arrays if mod is not None else ():
                if capture.ndim > MAX_NDIM:
                    raise ValueError(f"{capture.name} has {capture.ndim} dimensions; the cpu backend reads {MAX_NDIM}")
        compiler = self._compiler()
        if compiler is None:  # it was there when this backend was made
            raise BackendUnavailable(self.unavailable() or "the C++ compiler is gone")
        text = kernel_source(score_mod, mask_mod, kernel, keys)

        def build(folder: Path) -> dict[str, Any]:
            (folder / SOURCE).write_text(text, encoding="ascii")
            compiler.build(folder / SOURCE, folder / LIBRARY)
            self.compiled += 1
            return {
                "backend": self.name,
                "kernel": kernel,
                "keys": keys,
                "score_mod": None if score_mod is None else describe(score_mod),
                "mask_mod": None if mask_mod is None else describe(mask_mod),
                "compiler": compiler.version(),
                "flags": [*compiler.words, *compiler.flags],
                "mlx": importlib.metadata.version("mlx"),
            }

        function = "flextrace_attention" if kernel == "attention" else "flextrace_stage"
        key = key_of(text, compiler.fingerprint)
        return Store().load_or_build(key, build, LIBRARY, lambda path: load(path, function), [SOURCE])

    def attention(self, call: AttentionCall) -> Result:
        mods = [mod for mod in (call.score_mod, call.mask_mod) if mod is not None]
        score, mask = (None if mod is None else mod.trace for mod in (call.score_mod, call.mask_mod))
        # MLX refuses this inside mx.compile and mx.vmap; reading the buffers below needs the values.
        mx.eval(call.q, call.k, call.v, call.k_scales, call.v_scales, call.v_means)
        mx.eval(*(a for mod in mods for a in mod.arrays if isinstance(a, mx.array)))
        return self.kernel(score, mask, keys_of(call)).run(call)
