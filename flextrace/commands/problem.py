"""Options -> the tensors of a call: what `simulate` and `warm` understand by --shape and --dtype."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from .exits import CommandError

LARGEST = 2**31 - 1


class DType(str, Enum):
    """The dtypes of query, key and value."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


@dataclass(frozen=True)
class Problem:
    """query: [batch, heads, q_len, head_dim]; key, value: [batch, kv_heads, kv_len, head_dim]."""

    batch: int
    heads: int
    kv_heads: int
    q_len: int
    kv_len: int
    head_dim: int
    dtype: str

    @property
    def shapes(self) -> list[tuple[int, int, int, int]]:
        """The shapes of query, key and value."""
        keys = (self.batch, self.kv_heads, self.kv_len, self.head_dim)
        return [(self.batch, self.heads, self.q_len, self.head_dim), keys, keys]

    def __str__(self) -> str:
        query, key, _ = ("x".join(map(str, shape)) for shape in self.shapes)
        return f"{query} {self.dtype}" + ("" if key == query else f" beside keys {key}")


def problem_of(
    shape: str, dtype: DType, kv_heads: int | None = None, kv_len: int | None = None, head_dim: int | None = None
) -> Problem:
    """`shape` is "B,H,L,D". Raises CommandError."""
    batch, heads, length, width = _sizes(shape)
    kv_heads = kv_heads or heads
    if heads % kv_heads:
        raise CommandError(f"--kv-heads {kv_heads} does not divide the {heads} heads of --shape; name one that does")
    return Problem(batch, heads, kv_heads, length, kv_len or length, head_dim or width, dtype.value)


def _sizes(shape: str) -> Sequence[int]:
    try:
        sizes = [int(part) for part in shape.replace("x", ",").split(",")]
    except ValueError:
        sizes = []
    if len(sizes) != 4 or min(sizes) < 1:
        raise CommandError(
            f"--shape takes four positive numbers, batch,heads,length,head_dim, such as 1,8,1024,64; got {shape!r}"
        )
    if max(sizes) > LARGEST:
        raise CommandError(f"--shape takes numbers up to {LARGEST}, as MLX does; got {shape!r}")
    return sizes
