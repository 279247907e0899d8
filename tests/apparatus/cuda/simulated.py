"""The cuda backend without a GPU: its plan, its text and its launches as they are, the kernels on the host.

A kernel's text, as NVRTC gets it, is compiled by g++ and run thread by thread in the runtime of the Metal simulator,
under its checks: races, memory that nobody wrote, accesses that miss their buffer, barriers that not all threads reach.
"""

from __future__ import annotations

import ctypes
import shutil
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import mlx.core as mx
import numpy as np

from flextrace.cache import Store, key_of
from flextrace.kernels import registry
from flextrace.kernels.buffers import locate
from flextrace.kernels.cuda import device, nvrtc
from flextrace.kernels.cuda.hopper.maps import shaped_maps
from flextrace.kernels.simulator.build import (
    CHECKED,
    LANGUAGE,
    PLAIN,
    RUNTIME_FLAGS,
    RUNTIME_FOLDER,
    Library,
    compiler,
)
from flextrace.kernels.simulator.kernel import record
from flextrace.kernels.simulator.launch import Argument, launch
from flextrace.kernels.simulator.report import Report

from .translate import FOLDER, parameters_of, to_host

HEADERS = ("device.h", "intrinsics.h", "instructions.h", "asynchronous.h", "floats.h", "runtime.cpp")
FLAGS = ("-std=c++17", *(flag for flag in LANGUAGE[1:] if flag != "-fsingle-precision-constant"))
_libraries: dict[str, Library] = {}


@dataclass
class Simulated:
    """A stand-in for NVRTC and for MLX's launches. reports: of each launch, in order; texts: of each compilation.

    order: in which warps and lanes run. checks: whether the runtime watches every access; without it is faster.
    """

    order: str = "forward"
    checks: bool = True
    reports: list[Report] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    inputs: list[list[mx.array]] = field(default_factory=list)  # of each launch, as they were given
    change: Any = None  # (text) -> text, a mistake that a test plants
    fingerprint: str = "simulated"
    version: tuple[int, int] = (13, 0)

    def architectures(self) -> tuple[int, ...]:
        """In place of Nvrtc.architectures."""
        return (75, 80, 90, 120)

    def compile(self, text: str, architecture: str) -> tuple[bytes, str]:
        """In place of Nvrtc.compile: the text itself is the cubin."""
        return text.encode("ascii"), f"simulated for {architecture}"

    def precompiled_cuda_kernel(
        self,
        *,
        name: str,
        compiled_source: bytes,
        inputs: Sequence[mx.array],
        output_shapes: Sequence[Sequence[int]],
        output_dtypes: Sequence[mx.Dtype],
        scalars: Sequence[int],
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
        shared_memory: int = 0,
        init_value: float | None = None,
        ensure_row_contiguous: bool = False,
        stream: Any = None,
    ) -> list[mx.array]:
        """In place of mx.fast.precompiled_cuda_kernel. Runs at once. Raises SimulationError."""
        text = compiled_source.decode("ascii")
        self.texts.append(text)
        library = built(text if self.change is None else self.change(text), self.checks)
        assert not any(isinstance(scalar, float) for scalar in scalars), "MLX refuses Python floats"
        assert all(block <= whole for block, whole in zip(threadgroup, grid, strict=True)), "a block beyond the grid"
        arrays = [mx.contiguous(array) if ensure_row_contiguous else array for array in inputs]
        mx.eval(arrays)
        self.inputs.append(arrays)
        names = [name for kind, name in parameters_of(text) if "*" in kind]
        assert len(names) == len(inputs) + len(output_shapes), "as many arrays as the entry has pointers"
        arguments = [_input(name, array) for name, array in zip(names, arrays, strict=False)]
        outputs = [
            _filled(tuple(shape), dtype, init_value) for shape, dtype in zip(output_shapes, output_dtypes, strict=True)
        ]
        for label, output in zip(names[len(arrays) :], outputs, strict=True):
            place = (output.ctypes.data, output.nbytes, output.itemsize)
            arguments.append(Argument(label, *place, 0, True, init_value is not None))
        words = np.array([shared_memory, *scalars, *_places(arguments)], np.int64).astype(np.int32)
        arguments.append(Argument("scalars", words.ctypes.data, words.nbytes, 4))
        report = launch(library, name, arguments, grid, threadgroup, self.order, self.checks)
        self.reports.append(report)
        record(report)
        return [
            mx.array(content).view(dtype) if dtype == mx.bfloat16 else mx.array(content)
            for content, dtype in zip(outputs, output_dtypes, strict=True)
        ]


@contextmanager
def simulated_cuda(architecture: int | None = 80, **options: Any) -> Iterator[Simulated]:
    """kernel_options={"BACKEND": "cuda"} works inside, on arrays of the CPU, as on a GPU of that compute capability.

    architecture: None for a machine with NVRTC and without a GPU. options: of `Simulated`.
    """
    found = Simulated(**options)
    replaced: dict[int, Any] = {
        id(nvrtc.find_nvrtc): lambda: found,
        id(device.driver): Driver,
        id(device.capability): lambda: device._made_for.get() or architecture,
    }
    with (
        mock.patch.dict(registry.made),
        mock.patch.object(mx.fast, "precompiled_cuda_kernel", found.precompiled_cuda_kernel),
    ):
        registry.made.pop("cuda", None)
        import flextrace.kernels.cuda.backend  # noqa: F401  (its modules are patched below)

        patches = [
            mock.patch.object(module, name, replaced[id(value)])
            for title, module in list(sys.modules.items())
            if title.startswith("flextrace.") and module is not device
            for name, value in list(vars(module).items())
            if id(value) in replaced
        ]
        for patch in patches:
            patch.start()
        shaped_maps.cache_clear()
        try:
            yield found
        finally:
            shaped_maps.cache_clear()
            for patch in reversed(patches):
                patch.stop()


class Driver:
    """What libcuda does for the backend."""

    @staticmethod
    def cuTensorMapEncodeTiled(
        to: Any, dtype: int, rank: int, address: Any, sizes: Any, strides: Any, box: Any, *rest: Any
    ) -> int:
        """A tensor map as asynchronous.h reads it: TensorMap. Not 0: what the driver's manual forbids."""
        element_strides, interleave, swizzle, _, fill = rest
        inner = 2 * box[0]
        wrong = any(stride % 16 for stride in strides) or any(not 0 < size <= 256 for size in box) or inner % 16
        wrong = wrong or (swizzle == 3 and inner > 128) or any(step != 1 for step in element_strides)
        wrong = wrong or interleave or fill or address.value % 16 or dtype not in (6, 9)
        if wrong:
            return 1
        padded = lambda values: [*values, *[1] * (5 - len(values))]  # noqa: E731
        packed = struct.pack(
            "<Q3I5I5I4x4Q", address.value, rank, dtype, swizzle, *padded(box), *padded(sizes), *padded(strides)[:4]
        )
        ctypes.memmove(to, packed.ljust(128, b"\0"), 128)
        return 0


def built(text: str, checks: bool) -> Library:
    """The shared object of a CUDA text, from the cache or compiled now. Raises CompileError, SimulatorUnavailable."""
    gcc = compiler()
    source = to_host(text)
    flags = (*FLAGS, *(CHECKED if checks else PLAIN))
    key = key_of("simulated cuda", source, _texts(), gcc.fingerprint, " ".join(flags))

    def make(folder: Path) -> dict[str, Any]:
        (folder / "kernel.cpp").write_text(source, encoding="ascii")
        compile_ = replace(gcc, flags=(*flags, f"-I{FOLDER}", f"-I{RUNTIME_FOLDER}", "-c"))
        compile_.build(folder / "kernel.cpp", folder / "kernel.o")
        (folder / "runtime.o").write_bytes(_runtime())
        replace(gcc, flags=("-shared", "-Wl,-Bsymbolic", str(folder / "runtime.o"))).build(
            folder / "kernel.o", folder / "kernel.so"
        )
        for name in ("kernel.o", "runtime.o"):
            (folder / name).unlink()
        return {"backend": "simulated cuda", "kernel": "a kernel"}

    if key not in _libraries:
        entry, loaded = Store().load_or_build(key, make, "kernel.so", _load, ["kernel.cpp"])
        _libraries[key] = Library(loaded, entry.folder / "kernel.so")
    return _libraries[key]


def _load(path: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(path))
    loaded.flextrace_simulate.restype = ctypes.c_int
    return loaded


def _runtime() -> bytes:
    gcc = compiler()

    def make(folder: Path) -> dict[str, Any]:
        for file in RUNTIME_FOLDER.iterdir():
            shutil.copyfile(file, folder / file.name.replace("runtime.cpp", "simulator_runtime.cpp"))
        for name in HEADERS:
            shutil.copyfile(FOLDER / name, folder / name)
        compile_ = replace(gcc, flags=(*RUNTIME_FLAGS, f"-I{folder}", "-c"))
        compile_.build(folder / "runtime.cpp", folder / "runtime.o")
        return {"backend": "simulated cuda", "kernel": "the runtime"}

    key = key_of("simulated cuda runtime", _texts(), gcc.fingerprint)
    return Store().get_or_build(key, make, ["runtime.o"]).contents["runtime.o"]


def _texts() -> str:
    files = [*(FOLDER / name for name in HEADERS), *sorted(RUNTIME_FOLDER.iterdir())]
    return "".join(f"{file.name}\n{file.read_text(encoding='ascii')}" for file in files)


def _input(name: str, array: mx.array) -> Argument:
    item = array.dtype.size
    if not array.size:
        return Argument(name, 0, 0, item)
    address, strides = locate(array)
    steps = [(size - 1) * stride for size, stride in zip(array.shape, strides, strict=True)]
    low, high = sum(min(0, step) for step in steps), sum(max(0, step) for step in steps) + 1
    return Argument(name, address + low * item, (high - low) * item, item, -low * item)


def _places(arguments: Sequence[Argument]) -> Iterator[int]:
    """The buffer in which each argument lies, and the bytes from where that one begins: an array that is part of one
    before shares its memory, as for a GPU."""
    for i, argument in enumerate(arguments):
        start = argument.address + argument.origin
        whole = next(
            j
            for j, other in enumerate(arguments)
            if j == i
            or (other.address <= argument.address and argument.address + argument.size <= other.address + other.size)
        )
        yield whole
        yield start - arguments[whole].address - arguments[whole].origin


def _filled(shape: tuple[int, ...], dtype: mx.Dtype, value: float | None) -> np.ndarray[Any, Any]:
    start = mx.full(shape, 0 if value is None else value).astype(dtype)
    return np.array(start.view(mx.uint16) if dtype == mx.bfloat16 else start)
