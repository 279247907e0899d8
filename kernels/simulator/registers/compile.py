"""Metal kernel text -> registers of a thread, as clang gives them to another GPU with simdgroups of 32 lanes.

There is no compiler for Apple's GPUs here. gfx1100 stands in: the same text with its address spaces as numbers, every
8x8 product and every exchange between lanes one opaque instruction, everything inlined. It is a yardstick beside other
kernels by the same compiler, no more: halves take more room there than on an Apple GPU, and its scheduler is another.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ...metal.generate import Templated, complete
from ...metal.text import KernelText
from .steel import steel_text

LIBRARY = Path(__file__).parent / "library.h"
APPLE = 128  # registers of a thread, before fewer threads are resident
TARGET = ("-target", "amdgcn-amd-amdhsa", "-mcpu=gfx1100", "-nogpulib", "-w", "-O2", "-S")
IR = ("-x", "c++", "-std=c++17", "-fno-exceptions", "-fno-rtti", "-ffp-contract=off", "-emit-llvm", "-Wno-narrowing")
INLINED = ("-amdgpu-early-inline-all=true", "-amdgpu-function-calls=false", "-inline-threshold=1000000")
ELEMENTS = {"float32": "float", "float16": "half", "bfloat16": "bfloat16_t"}
PLACE = """
metal::uint3 threadgroup_position_in_grid = {__builtin_amdgcn_workgroup_id_x(), __builtin_amdgcn_workgroup_id_y(),
                                             __builtin_amdgcn_workgroup_id_z()};
metal::uint3 threadgroups_per_grid = {uint(tile_lists[100]), uint(tile_lists[101]), uint(tile_lists[102])};
uint simdgroup_index_in_threadgroup = __builtin_amdgcn_workitem_id_x() / 32;
uint thread_index_in_simdgroup = __builtin_amdgcn_workitem_id_x() % 32;
"""
# Copies of structs between address spaces, which C++ has no words for.
COPIES = (
    (
        "piece = *reinterpret_cast<const device Piece<T, N>*>(start);",
        "typedef T V __attribute__((ext_vector_type(N)));"
        " struct __attribute__((packed, aligned(sizeof(T)))) Packed { V v; };"
        " const auto v = reinterpret_cast<const device Packed*>(start)->v; __builtin_memcpy(&piece, &v, sizeof(v));",
    ),
    (
        "return *reinterpret_cast<const device Piece*>(start);",
        "{ typedef T V __attribute__((ext_vector_type(PIECE)));"
        " struct __attribute__((packed, aligned(sizeof(T)))) Packed { V v; };"
        " const auto v = reinterpret_cast<const device Packed*>(start)->v; Piece read;"
        " __builtin_memcpy(&read, &v, sizeof(read)); return read; }",
    ),
    (
        "*reinterpret_cast<threadgroup Piece*>(to + place.row * LD + place.column) = piece;",
        "{ typedef T V __attribute__((ext_vector_type(PIECE))); V v; __builtin_memcpy(&v, &piece, sizeof(piece));"
        " *reinterpret_cast<threadgroup V*>(to + place.row * LD + place.column) = v; }",
    ),
)


class NoCompiler(RuntimeError):
    """Nothing here compiles for the stand-in; the message says what to install."""


class Plan(Templated, Protocol):
    """What it takes of a kernel's plan."""

    @property
    def dtype(self) -> str: ...

    @property
    def threads(self) -> int: ...


@dataclass(frozen=True)
class Registers:
    """What a thread of a kernel needs. free: registers, where it may have as many as there are, 256. spilled: bytes
    that it keeps in memory where it may have APPLE. code: bytes of the kernel's instructions, then."""

    free: int
    spilled: int
    code: int


def why_not() -> str | None:
    """Why this machine cannot compile for the stand-in; None if it can."""
    try:
        _clang()
    except NoCompiler as reason:
        return str(reason)
    return None


def measured(text: KernelText, plan: Plan, blocks: int = 0) -> Registers:
    """Of one kernel, with the template arguments of its plan; blocks: enum Blocks of walk.h.

    Raises:
        NoCompiler: as `why_not` says.
        RuntimeError: clang does not take the text.
    """
    return _measured(_instance(text, plan, blocks), plan.threads)


def measured_steel(head_dim: int, dtype: str) -> Registers:
    """Of MLX's attention kernel, read from the installed package, without a mask; errors as `measured`."""
    return _measured(steel_text(head_dim, ELEMENTS[dtype]), 128)


@functools.cache
def _clang() -> str:
    found = shutil.which("clang-19") or shutil.which("clang")
    if found is None:
        raise NoCompiler("no clang, which counts registers: apt-get install clang-19")
    targets = subprocess.run([found, "-print-targets"], capture_output=True, text=True, check=False).stdout
    if "amdgcn" not in targets:
        raise NoCompiler(f"{found} has no target amdgcn, for which registers are counted: apt-get install clang-19")
    return found


@functools.lru_cache(maxsize=256)
def _measured(source: str, threads: int) -> Registers:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text, untouched = folder / "kernel.cpp", folder / "all.ll"
        text.write_text(source, encoding="utf-8")
        _run(*IR, "-Xclang", "-disable-llvm-passes", "-include", LIBRARY, text, to=untouched)
        ir = untouched.read_text()
        found = {most: _compiled(ir, threads, most, folder) for most in (None, APPLE)}
    return Registers(found[None]["NumVgprs"], found[APPLE]["ScratchSize"], found[APPLE]["codeLenInByte"])


def _compiled(ir: str, threads: int, most: int | None, folder: Path) -> dict[str, int]:
    """What clang writes of the only kernel, which may have so many registers."""
    given = f'"amdgpu-flat-work-group-size"="{threads},{threads}"'
    given += "" if most is None else f' "amdgpu-num-vgpr"="{most}"'
    attributed, count = re.subn(r"(define [^\n]*amdgpu_kernel void @[^\n]*?) (#\d+)", rf"\1 {given} \2", ir)
    assert count == 1, f"{count} kernels"
    (folder / "kernel.ll").write_text(attributed)
    options = (word for option in INLINED for word in ("-mllvm", option))
    _run("-x", "ir", *options, folder / "kernel.ll", to=folder / "kernel.s")
    figures = re.findall(r"; (\w+)(?: =|:) (\d+)", (folder / "kernel.s").read_text())
    return {name: int(number) for name, number in figures}


def _instance(text: KernelText, plan: Plan, blocks: int) -> str:
    values = [f"constexpr {'bool' if isinstance(v, bool) else 'int'} {n} = {int(v)};" for n, v in plan.template()]
    values += [f"constexpr int BLOCKS = {blocks};", f"typedef {ELEMENTS[plan.dtype]} T;"]
    source = re.sub(r"#include <[^>]*>", "", complete(text, plan)).replace("constexpr constant ", "constexpr ")
    source = re.sub(r"\ntemplate <typename T, int HEAD_DIM, [^\n]*>\n", "\n" + "\n".join(values) + "\n", source)
    for right, wrong in COPIES:
        source = source.replace(right, wrong)
    head, signature = source.split("[[kernel]] void")
    signature, body = signature.split(") {", 1)
    buffers = re.sub(r" \[\[buffer\(\d+\)\]\]", "", signature)
    buffers = re.sub(r",\n    \w+ \w+ \[\[\w+\]\]", "", buffers)
    body = re.sub(
        r"^threadgroup (\w+ \w+\[)", r"[[clang::loader_uninitialized]] static threadgroup \1", body, flags=re.M
    )
    return f'{head}extern "C" __attribute__((amdgpu_kernel)) void{buffers}) {{{PLACE}{body}'


def _run(*arguments: str | Path, to: Path) -> None:
    done = subprocess.run([_clang(), *TARGET, *arguments, "-o", to], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"clang does not compile the kernel for the stand-in:\n{done.stderr}")
