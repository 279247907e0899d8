"""Tokens -> a key/value cache in int8, which grows from call to call: half the bytes of float16 for long contexts."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from flextrace.kernels.int8_types import LEVELS, SMALLEST, Int8Rows
from flextrace.kernels.scalars import as_int, name_of, shown
from flextrace.tracer.errors import with_article

from .smoothing import mean_of_rows

DTYPES = ("float32", "float16", "bfloat16")
ENOUGH = 64  # tokens for a mean


class Int8KV:
    """Keys, and if asked values, kept in int8 between calls.

    Every token has its own scale, as with `QKQuant("row")`: it is rounded once, when it comes, and no block has to be
    rounded again as it fills. Keys, and values in int8, are smoothed by their mean over the first update (the prompt),
    which stays: any mean is exact as long as all rows share it (arXiv 2410.02367; the weights of a row add up to 1, so
    what the values lack is added to the output). A mean of few tokens would serve the rest badly: up to 64 tokens are
    also kept as they came, and rounded anew with each update. `flex_attention(q, cache.key, cache.value)` reads the
    int8 as it lies. `copy.copy` forks a cache; both go on by themselves.

    Args:
        quantise_value: keep values in int8 too; else in the dtype they come in.
        smooth_k, smooth_v: subtract a mean from keys, from values in int8, before rounding.
        step: tokens by which the memory grows.

    Raises:
        ValueError: step is not positive.

    Example:
        >>> import mlx.core as mx, flextrace as flex
        >>> cache = flex.Int8KV()
        >>> cache.update(mx.ones((1, 2, 10, 64), mx.float16), mx.ones((1, 2, 10, 64), mx.float16))
        >>> cache.update(mx.ones((1, 2, 1, 64), mx.float16), mx.ones((1, 2, 1, 64), mx.float16))
        >>> len(cache)
        11
        >>> q = mx.ones((1, 2, 1, 64), mx.float16)
        >>> flex.flex_attention(q, cache.key, cache.value).shape
        (1, 2, 1, 64)
    """

    def __init__(
        self, *, quantise_value: bool = False, smooth_k: bool = True, smooth_v: bool = True, step: int = 256
    ) -> None:
        tokens = as_int(step, "step")
        if tokens is None or tokens < 1:
            raise ValueError(f"step is {shown(step)}; expected a positive whole number of tokens")
        self.quantise_value: bool = quantise_value
        self.smooth_k: bool = smooth_k
        self.smooth_v: bool = smooth_v
        self.step: int = tokens
        self._length = 0
        self._dtype = "float32"
        self._shape: tuple[int, ...] = ()  # batch, kv_heads, head_dim, value_dim
        self._means: dict[str, mx.array | None] = {"key": None, "value": None}
        self._parts: dict[str, mx.array] = {}  # by name, [batch, kv_heads, capacity, ..]
        self._early: dict[str, mx.array] = {}  # keys and values as they came, while there are not enough for a mean

    def __len__(self) -> int:
        """How many tokens there are."""
        return self._length

    def __repr__(self) -> str:
        if not self._length:
            return "<Int8KV, empty>"
        batch, heads, head_dim, value_dim = self._shape
        value = "int8" if self.quantise_value else self._dtype
        sizes = (
            f"{self._length:,} tokens, batch {batch}, {heads} heads, key int8 x {head_dim}, value {value} x {value_dim}"
        )
        return f"<Int8KV: {sizes}, {self.nbytes:,} bytes>"

    def __bool__(self) -> bool:
        """An empty cache is one too."""
        return True

    def __copy__(self) -> Int8KV:
        """Memory is shared until one of both is updated."""
        other = object.__new__(type(self))
        other.__dict__ |= self.__dict__
        other._parts = {name: part[...] for name, part in self._parts.items()}
        _begin(*other._parts.values())
        return other

    @property
    def nbytes(self) -> int:
        """Bytes held, also for tokens to come."""
        held = [*self._parts.values(), *self._means.values(), *self._early.values()]
        return sum(array.nbytes for array in held if array is not None)

    def update(self, key: mx.array, value: mx.array) -> None:
        """Append tokens, and begin to compute what is kept of them.

        Args:
            key: [batch, kv_heads, new, head_dim], float32, float16 or bfloat16.
            value: [batch, kv_heads, new, value_dim], dtype of key.

        Raises:
            TypeError, ValueError: they do not fit each other, or what the cache holds; or mx.compile, mx.vmap or
                mx.grad has something without a value in their place. The cache is as before.
        """
        self._check(key, value)
        if not key.shape[2]:
            return
        length = self._length + key.shape[2]
        rows, means, first = {"key": key[...], "value": value[...]}, self._means, self._length
        if self._early or not first:
            rows = {name: mx.concatenate([self._early[name], x], axis=2) if first else x for name, x in rows.items()}
            smooth = {"key": self.smooth_k, "value": self.smooth_v and self.quantise_value}
            means, first = {name: mean_of_rows(x) if smooth[name] else None for name, x in rows.items()}, 0
        new = _rounded("key", rows["key"], means["key"])
        new |= _rounded("value", rows["value"], means["value"]) if self.quantise_value else {"value": rows["value"]}
        _begin(*new.values(), *rows.values(), *(mean for mean in means.values() if mean is not None))
        self._dtype, self._shape = name_of(key.dtype), (*key.shape[:2], key.shape[3], value.shape[3])
        self._means, self._early = means, rows if not first and length < ENOUGH else {}
        self._grow(new, length)
        for name, array in new.items():
            self._parts[name][:, :, first:length] = array
        self._length = length
        _begin(*self._parts.values())

    def trim(self, tokens: int) -> None:
        """Forget the last tokens, as rejected drafts of speculative decoding. Their memory stays for those to come;
        where none are left, the cache is as new.

        Raises:
            ValueError: there are not so many.

        Example:
            >>> import mlx.core as mx, flextrace as flex
            >>> cache = flex.Int8KV()
            >>> cache.update(mx.ones((1, 2, 10, 64)), mx.ones((1, 2, 10, 64)))
            >>> cache.trim(3)
            >>> len(cache)
            7
        """
        last = as_int(tokens, "tokens")
        if last is None or not 0 <= last <= self._length:
            raise ValueError(
                f"cannot trim {shown(tokens)} tokens of {self._length}; expected a whole number from 0 to that"
            )
        self._length -= last
        self._early = {name: rows[:, :, : self._length] for name, rows in self._early.items()}
        if not self._length:
            self._parts, self._means, self._early = {}, {"key": None, "value": None}, {}
        _begin(*self._early.values())

    def _check(self, key: mx.array, value: mx.array) -> None:
        for name, rows in (("key", key), ("value", value)):
            if not isinstance(rows, mx.array):
                raise TypeError(f"{name} is {with_article(type(rows).__name__)}; convert it with mx.array(...)")
        if key.ndim != 4 or value.ndim != 4 or key.shape[:3] != value.shape[:3] or 0 in (key.shape[3], value.shape[3]):
            raise ValueError(
                f"key has shape {key.shape}, value {value.shape}; expected [batch, kv_heads, new, head_dim] and "
                "[batch, kv_heads, new, value_dim]"
            )
        dtypes = name_of(key.dtype), name_of(value.dtype)
        held = self._dtype if self._length else dtypes[0]
        if held not in DTYPES or set(dtypes) != {held}:
            cache = f", the cache {held}" if self._length else ""
            raise TypeError(
                f"key is {dtypes[0]}, value {dtypes[1]}{cache}; make them one of float32, float16 and bfloat16"
            )
        shape = (*key.shape[:2], key.shape[3], value.shape[3])
        if self._length and shape != self._shape:
            raise ValueError(
                f"(batch, kv_heads, head_dim, value_dim) are {shape}, those of the cache {self._shape}; start another"
            )

    def _grow(self, new: dict[str, mx.array], length: int) -> None:
        """Room for `length` tokens."""
        capacity = self._parts["key"].shape[2] if self._parts else 0
        if length <= capacity:
            return
        more = -(-length // self.step) * self.step - capacity
        for name, array in new.items():
            room = mx.zeros((*array.shape[:2], more, *array.shape[3:]), array.dtype)
            self._parts[name] = mx.concatenate([self._parts[name], room], axis=2) if capacity else room

    @property
    def key(self) -> Int8Rows:
        """The keys.

        Raises:
            ValueError: there are none.
        """
        return self._rows("key")

    @property
    def value(self) -> Int8Rows | mx.array:
        """The values, as they are kept.

        Raises:
            ValueError: there are none.
        """
        return self._rows("value") if self.quantise_value else self._part("value")

    def dequantised(self) -> tuple[mx.array, mx.array]:
        """Keys and values as arrays for `flex_attention`, in the dtype they came in; temporary, of full size.

        Raises:
            ValueError: the cache is empty.
        """
        value, dtype = self.value, getattr(mx, self._dtype)
        if isinstance(value, Int8Rows):
            value = value.float32().astype(dtype)
        return self.key.float32().astype(dtype), value

    def _rows(self, name: str) -> Int8Rows:
        return Int8Rows(self._part(name), self._part(f"{name} scales"), self._means[name])

    def _part(self, name: str) -> mx.array:
        if not self._length:
            raise ValueError("the cache is empty; update() it with the keys and values of the prompt first")
        return self._parts[name][:, :, : self._length]


def _begin(*arrays: mx.array) -> None:
    """Begin to compute them: for other threads too, and so that what MLX's transformations give is refused."""
    async_eval: Callable[..., None] = mx.async_eval
    try:
        async_eval(*arrays)
    except ValueError as error:
        if "graph transformation" not in str(error):
            raise
        raise ValueError(
            "Int8KV.update has no values to keep inside mx.compile, mx.vmap or mx.grad; call it outside, and give "
            "cache.key and cache.value to what is inside"
        ) from None


def _rounded(name: str, rows: mx.array, mean: mx.array | None) -> dict[str, mx.array]:
    values, scales = quantised(rows.astype(mx.float32) if mean is None else rows.astype(mx.float32) - mean)
    return {name: values, f"{name} scales": scales}


def quantised(rows: mx.array) -> tuple[mx.array, mx.array]:
    """float32 [.., columns] -> int8 of that shape, and float32 [..]: the scale of each row, largest magnitude / 127.

    A row of zeros has scale 0; one that holds an infinity or a nan has scale nan.
    """
    magnitude = mx.abs(rows)
    finite = magnitude < mx.inf
    largest = mx.where(finite, magnitude, 0.0).max(axis=-1)
    scale = mx.where(largest < SMALLEST, 0.0, largest / LEVELS)
    inverse = mx.where(scale > 0, 1 / scale, 0.0)
    whole = mx.round(mx.where(finite, rows, 0.0) * inverse[..., None]).astype(mx.int8)
    return whole, mx.where(finite.all(axis=-1), scale, mx.nan)
