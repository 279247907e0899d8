"""Formulas -> how a Metal kernel is given what the mods capture: its buffers, and the parts of the generated `mod.h`.

A kernel has 31 buffers. Of an array with axes MLX passes three: its elements, its shape and its strides, read where it
lies. Where these are too many, the arrays are *packed*: each lies row after row, copied if need be, and is one buffer;
the shapes follow the captured numbers in `params`, and strides are products of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from flextrace.tracer import ArrayCapture, NumberCapture

from ...gpu.extremes import extremes_type
from ..device import MAX_BUFFERS

MSL = {"float16": "half", "bfloat16": "bfloat16_t", "float32": "float", "float64": "float"}
_READ_NUMBER = {
    "float": "as_type<float>(numbers[{}])",
    "int": "numbers[{}]",
    "bool": "numbers[{}] != 0",
}


def are_packed(arrays: Sequence[ArrayCapture], others: int, fewer: int = 0) -> bool:
    """Whether the arrays have to be packed in a kernel with so many other buffers, or so many fewer if they are.

    Raises ValueError where they are too many even so.
    """
    if others + sum(3 if array.ndim else 1 for array in arrays) <= MAX_BUFFERS:
        return False
    most = MAX_BUFFERS - others + fewer
    if len(arrays) > most:
        names = ", ".join(array.name for array in arrays)
        raise ValueError(
            f"the mods capture {len(arrays)} arrays ({names}); beside its own buffers this Metal kernel has room for "
            f"{most}. Remedy: stack some into one array, table = mx.stack([a, b]), and write table[0, h] for a[h], "
            "table[1, h] for b[h]"
        )
    return True


def passed_on(arrays: Sequence[ArrayCapture], packed: bool) -> list[str]:
    """What the kernel's body passes to captured_by_mods of each array."""
    names = [f"array{slot}" for slot in range(len(arrays))]
    return [
        f"{name}, {name}_shape, {name}_strides" if array.ndim and not packed else name
        for name, array in zip(names, arrays, strict=True)
    ]


@dataclass
class Declared:
    """Parts of mod.h: members of Mods; parameters of captured_by_mods; what it assigns beside its parameters."""

    pointers: list[str] = field(default_factory=list)
    fields: list[str] = field(default_factory=list)
    parameters: list[str] = field(default_factory=list)
    assignments: list[str] = field(default_factory=list)

    def struct(self) -> str:
        """The head of Mods, and what it holds."""
        return "\n".join([*self._template(), "struct Mods {", *self.fields])

    def function(self, space: str) -> str:
        """The text of captured_by_mods, whose words of captures lie in that address space."""
        parameters = ", ".join([f"const {space} int* numbers", *self.parameters])
        kind = f"Mods<{', '.join(self.pointers)}>" if self.pointers else "Mods"
        head = f"INLINE {kind} captured_by_mods({parameters}) {{"
        return "\n".join([*self._template(), head, f"  {kind} mods;", *self.assignments, "  return mods;", "}"])

    def _template(self) -> list[str]:
        names = ", ".join(f"typename {name}" for name in self.pointers)
        return [f"template <{names}>"] if names else []

    def passed(self, kind: str, name: str) -> None:
        """A member that is a parameter of its name."""
        self.fields.append(f"  {kind} {name};")
        self.parameters.append(f"{kind} {name}")
        self.assignments.append(f"  mods.{name} = {name};")


def declared(
    arrays: Sequence[ArrayCapture], numbers: Sequence[NumberCapture], extremes: Collection[int], packed: bool
) -> Declared:
    """MLX passes small arrays in the constant address space and others in device: the type of a pointer is a template
    argument, Array0 for array0. `extremes`: the slots of arrays whose blocks tile_state reads."""
    made = Declared([f"Array{slot}" for slot, array in enumerate(arrays) if array.ndim])
    shape_at = len(numbers)  # word of `numbers` behind all numbers
    for slot, array in enumerate(arrays):
        name = f"array{slot}"
        made.passed(f"Array{slot}" if array.ndim else msl_type(array.element), name)
        if array.ndim and packed:
            made.fields.append(f"  const device int* {name}_shape;")
            made.fields.append(f"  RowMajor<{array.ndim}> {name}_strides;")
            made.assignments.append(f"  mods.{name}_shape = mods.{name}_strides.shape = numbers + {shape_at};")
            shape_at += array.ndim
        elif array.ndim:
            made.passed("const constant int*", f"{name}_shape")
            made.passed("const constant int64_t*", f"{name}_strides")
    for slot in extremes:
        made.passed(f"const device {extremes_type(arrays[slot].element)}*", f"extremes{slot}")
    for slot, number in enumerate(numbers):
        made.fields.append(f"  {number.dtype} number{slot};  // {ascii_text(number.name)}")
        made.assignments.append(f"  mods.number{slot} = {_READ_NUMBER[number.dtype].format(slot)};")
    return made


def msl_type(element: str) -> str:
    """How MSL writes an array's element type. float64 arrays arrive as float32: Metal has no doubles."""
    return MSL.get(element, element if element == "bool" else f"{element}_t")


def ascii_text(text: str) -> str:
    """MLX takes ASCII text only; a backslash would go on to the next line."""
    return text.encode("ascii", "replace").decode().replace("\\", "/").replace("\n", " ")
