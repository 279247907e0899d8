"""Arrays -> the tensor maps by which TMA finds them: their shapes as the driver encodes them (cuTensorMapEncodeTiled),
and the kernel that puts in where they lie."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from ..device import driver
from ..launch import Launch
from .plan import SLAB

MAP_BYTES, MOST_MAPS, ALIGNED = 128, 4, 64  # of slabs.h
LANES = 32
_FLOAT16, _BFLOAT16, _SWIZZLE_128B, _L2_256B = 6, 9, 3, 3  # of the enums of cuda.h


def tensor_maps(launch: Launch, arrays: Sequence[mx.array], rows: Sequence[int], dtype: str) -> mx.array:
    """What the kernels read of three or four arrays that lie row after row, uint8: their maps, and which TMA can take.

    Args:
        launch: of maps.cu. rows: of a box of each.
    """
    shaped = shaped_maps(tuple((x.shape, count) for x, count in zip(arrays, rows, strict=True)), dtype)
    threads = (LANES * len(arrays), 1, 1)
    (maps,) = launch(
        inputs=[shaped, *arrays, *arrays[: MOST_MAPS - len(arrays)]],
        output_shapes=[((MOST_MAPS + 1) * MAP_BYTES,)],
        output_dtypes=[mx.uint8],
        scalars=[],
        grid=threads,
        threadgroup=threads,
    )
    return maps


@functools.lru_cache(maxsize=1024)
def shaped_maps(boxes: tuple[tuple[tuple[int, ...], int], ...], dtype: str) -> mx.array:
    """uint8 [arrays * 128]: the maps of arrays that lie row after row.

    Args:
        boxes: of each its shape, [batch, heads, rows, columns], and how many rows a box has.

    Raises:
        RuntimeError: there is no driver, or it refuses a shape.
    """
    maps = [_encoded(shape, rows, dtype) for shape, rows in boxes]
    return mx.array(np.frombuffer(b"".join(maps), np.uint8))


def _encoded(shape: tuple[int, ...], rows: int, dtype: str) -> bytes:
    batch, heads, length, columns = shape
    row = 2 * columns
    room = (ctypes.c_uint8 * (MAP_BYTES + ALIGNED))()
    address = -(-ctypes.addressof(room) // ALIGNED) * ALIGNED
    sizes = (ctypes.c_uint64 * 4)(columns, length, heads, batch)
    strides = (ctypes.c_uint64 * 3)(row, row * length, row * length * heads)
    library = driver()
    if library is None:
        raise RuntimeError("tensor maps are encoded by the NVIDIA driver, and none answers")
    refused = library.cuTensorMapEncodeTiled(
        ctypes.c_void_p(address),
        _BFLOAT16 if dtype == "bfloat16" else _FLOAT16,
        4,
        ctypes.c_void_p(MAP_BYTES),  # any address: a kernel replaces it
        sizes,
        strides,
        (ctypes.c_uint32 * 4)(SLAB, rows, 1, 1),
        (ctypes.c_uint32 * 4)(1, 1, 1, 1),
        0,
        _SWIZZLE_128B,
        _L2_256B,
        0,
    )
    if refused:
        raise RuntimeError(f"the driver refuses a tensor map of {shape} (CUDA error {refused})")
    return bytes((ctypes.c_uint8 * MAP_BYTES).from_address(address))
