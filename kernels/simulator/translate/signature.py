"""Names, dtypes, source -> the kernel function's text, with the signature that MLX writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

TYPES = {
    mx.bool_: "bool",
    mx.uint8: "uint8_t",
    mx.uint16: "uint16_t",
    mx.uint32: "uint32_t",
    mx.uint64: "uint64_t",
    mx.int8: "int8_t",
    mx.int16: "int16_t",
    mx.int32: "int32_t",
    mx.int64: "int64_t",
    mx.float16: "float16_t",
    mx.float32: "float",
    mx.bfloat16: "bfloat16_t",
}
CONSTANT_SIZE = 8  # MLX puts inputs of fewer elements into the constant address space
# Attribute -> (its declared type, the field of sim_lane_position that gives it).
ATTRIBUTES = {
    "dispatch_simdgroups_per_threadgroup": ("uint", "simdgroups"),
    "dispatch_threads_per_threadgroup": ("uint3", "uniform_size"),
    "simdgroup_index_in_threadgroup": ("uint", "simdgroup"),
    "simdgroups_per_threadgroup": ("uint", "simdgroups"),
    "thread_execution_width": ("uint", "32u"),
    "thread_index_in_simdgroup": ("uint", "simd_lane"),
    "thread_index_in_threadgroup": ("uint", "index"),
    "thread_position_in_grid": ("uint3", "thread_in_grid"),
    "thread_position_in_threadgroup": ("uint3", "thread_in_group"),
    "threadgroup_position_in_grid": ("uint3", "group"),
    "threadgroups_per_grid": ("uint3", "groups"),
    "threads_per_grid": ("uint3", "grid"),
    "threads_per_simdgroup": ("uint", "32u"),
    "threads_per_threadgroup": ("uint3", "group_size"),
}
INFOS = (("shape", "int*"), ("strides", "int64_t*"), ("ndim", "int&"))


def type_name(dtype: mx.Dtype) -> str:
    """The Metal type of a dtype. Raises TypeError for one that the simulator lacks."""
    if dtype not in TYPES:
        raise TypeError(f"the simulator has no Metal type for {dtype}; cast it to one of {', '.join(map(str, TYPES))}")
    return TYPES[dtype]


def infos_of(name: str, ndim: int, source: str) -> list[str]:
    """Which of shape, strides and ndim the source mentions of an input."""
    return [info for info, _ in INFOS if ndim > 0 and f"{name}_{info}" in source]


def template_text(value: Any) -> str:
    """A template argument as Metal writes it: a dtype, a bool or an int. Raises TypeError for anything else."""
    if isinstance(value, mx.Dtype):
        return type_name(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    raise TypeError(f"a template argument is a dtype, a bool or an int, as in MLX; got {type(value).__name__}")


def write_function(
    name: str,
    place: str,
    source: str,
    inputs: Sequence[tuple[str, mx.Dtype, int, int]],
    outputs: Sequence[tuple[str, mx.Dtype]],
    template: Sequence[tuple[str, Any]],
    atomic_outputs: bool,
) -> str:
    """The kernel function. `place`: the source's file for messages; `inputs`: name, dtype, ndim, number of elements."""
    parameters: list[str] = []
    for label, dtype, ndim, size in inputs:
        space = "constant" if size < CONSTANT_SIZE else "device"
        parameters.append(
            f"const {space} {type_name(dtype)}{'*' if ndim else '&'} {label} [[buffer({len(parameters)})]]"
        )
        for info, kind in INFOS:
            if info in infos_of(label, ndim, source):
                parameters.append(f"const constant {kind} {label}_{info} [[buffer({len(parameters)})]]")
    for label, dtype in outputs:
        kind = f"atomic<{type_name(dtype)}>" if atomic_outputs else type_name(dtype)
        parameters.append(f"device {kind}* {label} [[buffer({len(parameters)})]]")
    for label, (kind, _) in ATTRIBUTES.items():
        if label in source:
            parameters.append(f"{kind} {label} [[{label}]]")
    words = ", ".join(
        f"{'typename' if isinstance(value, mx.Dtype) else 'bool' if isinstance(value, bool) else 'int'} {label}"
        for label, value in template
    )
    before = f"template <{words}>\n" if template else ""
    listed = ",\n  ".join(parameters)
    return f'{before}[[kernel]] void {name}(\n  {listed}) {{\n#line 1 "{place}"\n{source}\n}}\n'
