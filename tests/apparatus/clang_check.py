"""Metal kernel text -> what clang says of its address spaces, read as C++ for OpenCL."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flextrace.kernels.metal.attention.plan import Plan
from flextrace.kernels.metal.generate import complete
from flextrace.kernels.metal.text import KernelText
from flextrace.kernels.simulator import registers

CLANG = shutil.which("clang-19") or shutil.which("clang")
OPTIONS = ("-x", "clcpp", "-cl-std=clc++2021", "-fsyntax-only")
PRELUDE = Path(__file__).parent / "address_spaces.h"
TYPES = Path(__file__).parents[2] / "kernels" / "simulator" / "registers"  # metal_types.h
Node = dict[str, Any]
needs_clang = pytest.mark.skipif(CLANG is None, reason="no clang: apt-get install clang")
needs_stand_in = pytest.mark.skipif(registers.why_not() is not None, reason=registers.why_not() or "")
ELEMENTS = {"float32": "float", "float16": "half", "bfloat16": "bfloat16_t"}


def instance(text: KernelText, plan: Plan, blocks: int) -> str:
    """The kernel with its template arguments written in: OpenCL has no kernel templates."""
    values = [f"constexpr {'bool' if isinstance(v, bool) else 'int'} {n} = {int(v)};" for n, v in plan.template()]
    values += [f"constexpr int BLOCKS = {blocks};", f"typedef {ELEMENTS[plan.dtype]} T;"]
    source = re.sub(r"#include <[^>]*>", "", complete(text, plan))
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


def narrow_offsets(source: str, folder: Path) -> list[str]:
    """Functions that reach into device memory by an offset of 32 bits, or by a product of such, from clang's tree.

    A list of int32 may be indexed by an int: the launcher's words and tile lists are read so.
    """
    found: set[str] = set()

    def products(node: Node) -> Iterator[Node]:
        if node.get("opcode") == "*":
            yield node
        for child in node.get("inner", []):
            yield from products(child)

    def visit(node: Node, function: str) -> None:
        if node.get("kind") in ("FunctionDecl", "CXXMethodDecl"):
            function = node.get("name", "")
        inner = node.get("inner", [])
        moves = node.get("kind") == "ArraySubscriptExpr" or node.get("opcode") in ("+", "+=", "-", "-=")
        if moves and len(inner) == 2:
            pointer, offset = inner[0]["type"]["qualType"], inner[1]
            if "__global" in pointer and "*" in pointer and "<dependent" not in _bare(offset)["type"]["qualType"]:
                narrow = [_bare(offset)] if "__global int *" not in pointer else []
                narrow += products(offset)
                if any(_is_narrow(part) for part in narrow):
                    found.add(function)
        for child in inner:
            visit(child, function)

    visit(json.loads(_run(source, folder, "-w", "-Xclang", "-ast-dump=json").stdout), "")
    return sorted(found)


def _bare(node: Node) -> Node:
    while node["kind"] in ("ImplicitCastExpr", "ParenExpr"):
        node = node["inner"][0]
    return node


def _is_narrow(node: Node) -> bool:
    kind = node["type"].get("desugaredQualType", node["type"]["qualType"]).replace("__private ", "")
    return node["kind"] != "IntegerLiteral" and kind.removeprefix("const ") in ("int", "unsigned int", "uint")


def _run(source: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    assert CLANG is not None
    file = folder / "kernel.clcpp"
    file.write_text(source, encoding="ascii")
    command = [CLANG, *OPTIONS, *options, "-I", str(TYPES), "-include", str(PRELUDE)]
    return subprocess.run([*command, str(file)], capture_output=True, text=True, check=False)
