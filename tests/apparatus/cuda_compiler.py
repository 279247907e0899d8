"""CUDA text -> what its compiler says of it, here or on any machine: NVRTC where it is found, else nvcc."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from flextrace.kernels.cuda.nvrtc import find_nvrtc


@dataclass(frozen=True)
class Report:
    """registers: of a thread; spilled: bytes of stores; cubin: its size in bytes; said: all that was said."""

    registers: int
    spilled: int
    cubin: int
    said: str


def compile_cuda(text: str, architecture: str, folder: Path) -> Report:
    """Skips the test where there is neither compiler. Raises AssertionError with what was said where it is refused."""
    nvrtc, nvcc = find_nvrtc(), shutil.which("nvcc")
    if nvrtc is not None:
        cubin, said = nvrtc.compile(text, architecture)
        size = len(cubin)
    elif nvcc is not None:
        number = architecture.removeprefix("sm_")
        (folder / "kernel.cu").write_text(text, encoding="ascii")
        target = f"-gencode=arch=compute_{number},code=sm_{number}"
        command = [nvcc, "-cubin", "-std=c++17", target, "--ptxas-options=-v", "kernel.cu", "-o", "kernel.cubin"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        size = (folder / "kernel.cubin").stat().st_size
    else:
        pytest.skip("neither NVRTC nor nvcc is here: pip install nvidia-cuda-nvrtc, to compile CUDA text without a GPU")
    registers, spilled = re.search(r"Used (\d+) registers", said), re.search(r"(\d+) bytes spill stores", said)
    assert registers is not None, said
    return Report(int(registers[1]), int(spilled[1]) if spilled else 0, size, said)
