"""Bound -> KeptValues: what a mask captured when its blocks were made, and whether it captures the same now.

Numbers are compared to the bit. Arrays of up to SMALL bytes, and numpy arrays of any size, are compared with a private
copy. A larger mx.array is kept by a second handle: MLX writes into memory only while no other handle holds it, so an
array that still lies at the same place holds the same. (Only numpy can write there, through a view of that memory; in
an array of more than SMALL bytes that is not noticed.)
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import mlx.core as mx
import numpy as np

from flextrace.kernels.backend import needs_values
from flextrace.kernels.blocks import Array
from flextrace.kernels.buffers import locate
from flextrace.tracer import Bound
from flextrace.tracer.captures.guards import ArrayCapture

SMALL = 2**16  # bytes; to compare them takes 3 us
_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


class ValuesHidden(ValueError):
    """Nobody sees which pairs a mask keeps: mx.compile or mx.vmap has something without values in an array's place."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"a BlockMask or dense mask needs the values of {name}, which mx.compile and mx.vmap hide; make it outside "
            "them, or pass the mask_mod itself to flex_attention inside"
        )


class _KeptArray(NamedTuple):
    """array: nobody writes to it.
    content: the bytes of a small array.
    place: address and strides of a large mx.array.
    """

    array: mx.array | Array
    shape: tuple[int, ...]
    content: bytes | None
    place: tuple[int, tuple[int, ...]] | None


@dataclass(frozen=True, slots=True)
class KeptValues:
    """What a mask captured at one moment.

    bound: the mask with these values; nobody writes to its arrays.

    Example:
        >>> import mlx.core as mx, flextrace as flex
        >>> starts = mx.array([0, 4])
        >>> mask = flex.mask_mod(lambda b, h, q_idx, kv_idx: kv_idx >= starts[b])
        >>> kept = KeptValues.of(mask.bind())
        >>> starts[0] = 1
        >>> kept.as_in(mask.bind()) is None
        True
    """

    bound: Bound
    numbers: str
    arrays: tuple[_KeptArray, ...]

    @classmethod
    def of(cls, bound: Bound) -> KeptValues:
        """Raises ValuesHidden."""
        kept = []
        for capture, array in zip(bound.trace.arrays, bound.arrays, strict=True):
            try:
                kept.append(_kept(array))
            except (ValueError, RuntimeError) as error:
                raise hidden(error, capture) from None
        held = Bound(bound.trace, [one.array for one in kept], bound.numbers)
        return cls(held, repr(bound.numbers), tuple(kept))

    def as_in(self, bound: Bound) -> KeptValues | None:
        """These values where `bound` has them, kept anew where it has them in other memory; else None.

        Raises:
            ValuesHidden: as `of`.
        """
        trace, arrays, numbers = bound
        if trace.expr is not self.bound.trace.expr or (numbers and repr(numbers) != self.numbers):
            return None
        moved = False
        for capture, kept, array in zip(trace.arrays, self.arrays, arrays, strict=True):
            try:
                if kept.content is None:
                    same = _same(kept, array)
                    moved = moved or same == "moved"
                else:
                    now = memoryview(array)
                    same = now.shape == kept.shape and now.tobytes() == kept.content
            except (ValueError, RuntimeError) as error:
                raise hidden(error, capture) from None
            if not same:
                return None
        return KeptValues.of(bound) if moved else self


def hidden(error: Exception, capture: ArrayCapture) -> Exception:
    """What to raise for an error of reading a captured array."""
    return ValuesHidden(capture.name) if needs_values(error) else error


def _kept(array: Any) -> _KeptArray:
    shape = tuple(array.shape)
    if isinstance(array, np.ndarray):
        copy = np.array(array, order="C")
        return _KeptArray(copy, shape, copy.tobytes() if copy.nbytes <= SMALL else None, None)
    held = array[...]  # another handle of the same memory
    if array.nbytes <= SMALL:
        return _KeptArray(held, shape, memoryview(array).tobytes(), None)
    return _KeptArray(held, shape, None, locate(held))


def _same(kept: _KeptArray, now: mx.array | Array) -> bool | Literal["moved"]:
    """Whether a large array of the same element type has the values that were kept; "moved": in other memory of MLX."""
    on_mlx = isinstance(now, mx.array)
    if now.shape != kept.shape:
        return False
    if on_mlx and locate(now) == kept.place:
        return True
    first, second = _contiguous(kept.array), _contiguous(now)
    if _memcmp(locate(first)[0], locate(second)[0], second.nbytes):
        return False
    return "moved" if on_mlx else True


def _contiguous(array: mx.array | Array) -> Any:
    return mx.contiguous(array) if isinstance(array, mx.array) else np.ascontiguousarray(array)
