"""Mods of the zoo by name -> nothing: calls of the cpu backend in a process whose kernels look at every access.

    sanitised.py [--plant MISTAKE] NAME ...

test_sanitizers.py runs it, with a compiler that adds -fsanitize=address,undefined and its library loaded first. What
the sanitizers find ends the process. --plant takes a mistake of PLANTS, which must be found.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import zoo

import flextrace as flex
from flextrace.kernels import backend_for
from flextrace.kernels.cpu import backend

PLANTS = {
    # text of a kernel, and what it becomes
    "out of bounds": ("  i = i < size ? i : size - 1;\n", "\n"),
    "misaligned": ("    if (!aligned) status = UNALIGNED;\n", "\n"),
}


class Shape(NamedTuple):
    B: int
    H: int
    Hkv: int
    Lq: int
    Lkv: int
    D: int
    Dv: int
    dtype: mx.Dtype
    threads: int


SHAPES = (
    Shape(2, 4, 2, 45, 150, 40, 24, mx.float32, 1),
    Shape(1, 2, 2, 1, 300, 64, 64, mx.float16, 1),
    Shape(1, 1, 1, 131, 263, 17, 33, mx.bfloat16, 3),
    Shape(1, 2, 1, 3, 5, 1, 1, mx.float32, 2),
    Shape(2, 2, 2, 64, 1030, 16, 16, mx.float32, 4),
)
OPTIONS: tuple[dict[str, Any], ...] = (
    {"QK_QUANT": flex.QKQuant("block", smooth_q=True, q_block=20, k_block=30)},
    {"SMOOTH_K": True},
    {"PIPELINE": "staged"},
)


def own_memory(values: Any, dtype: str = "float32") -> Any:
    """A captured array whose neighbours are the sanitizer's: numpy's where it has the type, turned round in memory."""
    array = zoo.mx_array(values, dtype)
    if dtype == "bfloat16" or array.ndim == 0:
        return array
    return np.array(array)[::-1].copy()[::-1]


def packed(values: Any, dtype: str = "float32") -> Any:
    """The same as a field of packed records."""
    array = zoo.mx_array(values, dtype)
    if dtype == "bfloat16" or array.ndim == 0:
        return array
    array = np.array(array)
    record = np.zeros(array.shape, np.dtype([("first", "u1"), ("value", array.dtype)]))
    record["value"] = array
    return record["value"]


def tensors(shape: Shape) -> tuple[mx.array, mx.array, mx.array]:
    """q, k, v; k with its last axes swapped in memory."""
    rng = np.random.default_rng(0)
    sizes = ((shape.B, shape.H, shape.Lq, shape.D), (shape.B, shape.Hkv, shape.D, shape.Lkv))
    sizes += ((shape.B, shape.Hkv, shape.Lkv, shape.Dv),)  # type: ignore[assignment]
    q, k, v = (mx.array(rng.standard_normal(size, np.float32)).astype(shape.dtype) for size in sizes)
    return q, k.swapaxes(2, 3), v


def call(entry: zoo.Entry, shape: Shape, array: Any, options: dict[str, Any]) -> None:
    mod = entry.make(shape.B, shape.H, shape.Lq, shape.Lkv, np.random.default_rng(1), array)
    chosen = {"BACKEND": "cpu", "NUM_THREADS": shape.threads, **options}
    request = flex.AuxRequest(lse=True, max_scores=True)
    masks: list[Any] = [None]
    if entry.kind == "mask":
        sizes = (shape.B, shape.H, shape.Lq, shape.Lkv)
        masks = [mod, flex.create_block_mask(mod, *sizes, BLOCK_SIZE=(16, 32))]
    for mask in masks:
        score = mod if entry.kind == "score" else None
        given = {"enable_gqa": True, "return_aux": request, "kernel_options": chosen}
        flex.flex_attention(*tensors(shape), score, mask, **given)


def bytes_as_numbers() -> None:
    """q, k, v and a captured array that start in the middle of a number."""
    numbers = mx.arange(4 * 16 * 16 + 1).astype(mx.uint8)[1:].view(mx.float32)
    q, table = (numbers / numbers.max()).reshape(1, 1, 16, 16), numbers[:16]
    flex.flex_attention(numbers.reshape(1, 1, 16, 16), q, q, lambda s, b, h, q_idx, kv_idx: table[kv_idx])


def plant(mistake: str) -> None:
    old, new = PLANTS[mistake]
    text_of = backend.CpuBackend.text

    def mistaken(*args: Any) -> str:
        text = text_of(*args)
        assert text.count(old) == 1
        return text.replace(old, new)

    backend.CpuBackend.text = staticmethod(mistaken)
    table = np.arange(10, dtype=np.float32)
    q = mx.zeros((1, 1, 16, 4))
    flex.flex_attention(q, q, q, lambda s, b, h, q_idx, kv_idx: s + table[q_idx + 1], kernel_options={"BACKEND": "cpu"})


def main(names: list[str]) -> None:
    if names[0] == "--plant":
        plant(names[1])
        names = names[2:]
    for place, name in enumerate(names):
        entry = zoo.ZOO[name]
        for shape in SHAPES:
            call(entry, shape, own_memory, {})
        call(entry, SHAPES[0], packed, {})
        call(entry, SHAPES[0], own_memory, OPTIONS[place % len(OPTIONS)])
    bytes_as_numbers()
    compiled: Any = backend_for("cpu")
    print(compiled.built, "kernels compiled")


if __name__ == "__main__":
    main(sys.argv[1:])
