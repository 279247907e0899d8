"""Metal kernel text -> what clang says of its address spaces, read as C++ for OpenCL."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from flextrace.kernels.metal.generate import KernelText
from flextrace.kernels.metal.plan import Plan

CLANG = shutil.which("clang-19") or shutil.which("clang")
OPTIONS = ("-x", "clcpp", "-cl-std=clc++2021", "-fsyntax-only")
PRELUDE = Path(__file__).parent / "address_spaces.h"
ELEMENTS = {"float32": "float", "float16": "half", "bfloat16": "bfloat16_t"}


def instance(text: KernelText, plan: Plan, blocks: int) -> str:
    """The kernel with its template arguments written in: OpenCL has no kernel templates."""
    values = [f"constexpr {'bool' if isinstance(v, bool) else 'int'} {n} = {int(v)};" for n, v in plan.template()]
    values += [f"constexpr int BLOCKS = {blocks};", f"typedef {ELEMENTS[plan.dtype]} T;"]
    source = re.sub(r"#include <[^>]*>", "", text.complete(plan))
    source = re.sub(r"\ntemplate <typename T, int HEAD_DIM, [^\n]*>\n", "\n" + "\n".join(values) + "\n", source)
    source = source.replace("[[kernel]]", "__kernel").replace("\n    uint3 ", "\n    metal::uint3 ")
    source = source.replace("static constexpr constant ", "static constexpr ")  # a member lies nowhere
    return re.sub(r" \[\[\w+(\(\d+\))?\]\]", "", source)


def complaints(source: str, folder: Path) -> str:
    """What clang prints, empty where it finds nothing wrong."""
    return _run(source, folder, "-Wall", "-Wno-unused-function", "-Wno-unused-variable").stderr


def unqualified_pointers(source: str, folder: Path) -> list[str]:
    """The names of pointers that no address space qualifies, from clang's syntax tree."""
    tree = _run(source, folder, "-w", "-Xclang", "-ast-dump").stdout
    pointer = r"(?:Parm|)VarDecl \S+ <[^>]*> \S+ (?:used |referenced )*(\w+) '[^']*__generic[^']*\*(?:__private)?'"
    return sorted(set(re.findall(pointer, tree)))


def _run(source: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    assert CLANG is not None
    file = folder / "kernel.clcpp"
    file.write_text(source, encoding="ascii")
    command = [CLANG, *OPTIONS, *options, "-include", str(PRELUDE)]
    return subprocess.run([*command, str(file)], capture_output=True, text=True, check=False)
