"""CUDA text -> cubin: NVRTC, the compiler that MLX's CUDA build brings along, through ctypes; no GPU is needed."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..toolchain import CompileError

LIBRARIES = ("libnvrtc.so.13", "libnvrtc.so.12")
FLAGS = ("-std=c++17", "-default-device", "--ptxas-options=-v")
REMEDY = 'install MLX with CUDA, which brings it: pip install "mlx[cuda13]"; or: pip install nvidia-cuda-nvrtc'


class CudaCompileError(CompileError):
    """NVRTC refused a kernel; the message holds what it said."""


@dataclass(frozen=True)
class Nvrtc:
    """NVRTC, loaded. fingerprint: part of a kernel's key."""

    library: ctypes.CDLL
    version: tuple[int, int]

    @property
    def fingerprint(self) -> str:
        return f"nvrtc {self.version[0]}.{self.version[1]} {' '.join(FLAGS)}"

    def architectures(self) -> tuple[int, ...]:
        """The compute capabilities, times 10, that it compiles for."""
        count = ctypes.c_int()
        self._call("GetNumSupportedArchs", ctypes.byref(count))
        found = (ctypes.c_int * count.value)()
        self._call("GetSupportedArchs", found)
        return tuple(found)

    def compile(self, text: str, architecture: str) -> tuple[bytes, str]:
        """The cubin, and what the compiler says of its resources.

        Args:
            architecture: as "sm_90a".

        Raises:
            CudaCompileError: the text is refused, or the architecture is unknown.
        """
        program = ctypes.c_void_p()
        self._call("CreateProgram", ctypes.byref(program), text.encode("ascii"), b"kernel.cu", 0, None, None)
        try:
            options = [f"--gpu-architecture={architecture}".encode(), *(flag.encode() for flag in FLAGS)]
            refused = self.library.nvrtcCompileProgram(
                program, len(options), (ctypes.c_char_p * len(options))(*options)
            )
            log = self._read(program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
            if refused:
                raise CudaCompileError(f"NVRTC {self.version[0]}.{self.version[1]} for {architecture}:\n{log.strip()}")
            return self._read(program, "CUBIN"), log
        finally:
            self._call("DestroyProgram", ctypes.byref(program))

    def _read(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"Get{what}Size", program, ctypes.byref(size))
        found = ctypes.create_string_buffer(size.value)
        self._call(f"Get{what}", program, found)
        return found.raw

    def _call(self, function: str, *arguments: object) -> None:
        code = getattr(self.library, f"nvrtc{function}")(*arguments)
        if code:
            describe = self.library.nvrtcGetErrorString
            describe.restype = ctypes.c_char_p
            raise CudaCompileError(f"nvrtc{function} failed: {describe(code).decode()}")


@functools.cache
def find_nvrtc() -> Nvrtc | None:
    """NVRTC where the loader finds it, or in the packages of the Python that runs; None without one."""
    for path in _candidates():
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        major, minor = ctypes.c_int(), ctypes.c_int()
        if library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)) == 0:
            return Nvrtc(library, (major.value, minor.value))
    return None


def _candidates() -> Iterator[str]:
    yield from LIBRARIES
    packages = importlib.util.find_spec("nvidia")
    for folder in () if packages is None else packages.submodule_search_locations or ():
        for name in LIBRARIES:
            for found in sorted(Path(folder).glob(f"*/lib/{name}")):
                for builtins in sorted(found.parent.glob("libnvrtc-builtins.so.*")):  # which it looks for by name
                    ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
                yield str(found)
