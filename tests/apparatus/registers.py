"""Metal kernel text -> registers of a thread, as clang gives them to another GPU with simdgroups of 32 lanes.

There is no compiler for Apple's GPUs here. gfx1100 stands in: the same text with its address spaces as numbers, every
8x8 product and every exchange between lanes one opaque instruction, everything inlined. It is a yardstick beside other
kernels by the same compiler, no more: halves take more room there than on an Apple GPU, and its scheduler is another.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from apparatus.clang_check import CLANG, ELEMENTS

from flextrace.kernels.metal.generate import complete
from flextrace.kernels.metal.text import KernelText

PRELUDE = Path(__file__).parent / "registers.h"
TARGET = ("-target", "amdgcn-amd-amdhsa", "-mcpu=gfx1100", "-nogpulib", "-w", "-O2", "-S")
IR = ("-x", "c++", "-std=c++17", "-fno-exceptions", "-fno-rtti", "-ffp-contract=off", "-emit-llvm")
INLINED = ("-amdgpu-early-inline-all=true", "-amdgpu-function-calls=false", "-inline-threshold=1000000")
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
        "return *reinterpret_cast<const device Piece*>(start);",
        "{ typedef T V __attribute__((ext_vector_type(PIECE)));"
        " struct __attribute__((packed, aligned(sizeof(T)))) Packed { V v; };"
        " const auto v = reinterpret_cast<const device Packed*>(start)->v; Piece read; __builtin_memcpy(&read, &v, 16);"
        " return read; }",
    ),
    (
        "*reinterpret_cast<threadgroup Piece*>(to + place.row * LD + place.column) = piece;",
        "{ typedef T V __attribute__((ext_vector_type(PIECE))); V v; __builtin_memcpy(&v, &piece, 16);"
        " *reinterpret_cast<threadgroup V*>(to + place.row * LD + place.column) = v; }",
    ),
)


def _has_target() -> bool:
    if CLANG is None:
        return False
    return "amdgcn" in subprocess.run([CLANG, "-print-targets"], capture_output=True, text=True, check=False).stdout


needs_target = pytest.mark.skipif(not _has_target(), reason="no clang with the target amdgcn: apt-get install clang")


def spilled(text: KernelText, plan: Any, blocks: int, folder: Path, registers: int = 128) -> int:
    """Bytes that a thread keeps in memory for want of registers, where it may have so many."""
    source, ir, assembly = (folder / f"kernel.{ending}" for ending in ("cpp", "ll", "s"))
    source.write_text(_source(text, plan, blocks), encoding="ascii")
    _run(*IR, "-Xclang", "-disable-llvm-passes", "-include", str(PRELUDE), str(source), "-o", str(ir))
    threads = f'"amdgpu-flat-work-group-size"="{plan.threads},{plan.threads}" "amdgpu-num-vgpr"="{registers}"'
    kernel = r"(define [^\n]*amdgpu_kernel void @flextrace[^\n]*?) (#\d+)"
    attributed, count = re.subn(kernel, rf"\1 {threads} \2", ir.read_text(), count=1)
    assert count == 1
    ir.write_text(attributed)
    _run("-x", "ir", *(word for option in INLINED for word in ("-mllvm", option)), str(ir), "-o", str(assembly))
    found = re.search(r"; ScratchSize: (\d+)", assembly.read_text())
    assert found is not None
    return int(found[1])


def _source(text: KernelText, plan: Any, blocks: int) -> str:
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


def _run(*arguments: str) -> None:
    assert CLANG is not None
    done = subprocess.run([CLANG, *TARGET, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
