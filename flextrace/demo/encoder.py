"""Packed tokens -> embeddings: all-MiniLM-L6-v2, a BERT encoder of 6 layers, in a page of `mlx.nn`.

Architecture: Devlin et al., "BERT", 2018; mean pooling and normalisation: Reimers and Gurevych, "Sentence-BERT",
2019. Attention is an argument, so that the same encoder runs with flextrace and with MLX's own.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from .packing import Pack

LAYERS, HEADS, HEAD_DIM, WIDTH, INNER = 6, 12, 32, 384, 1536
VOCABULARY, POSITIONS = 30522, 512
LAYER_NORM_EPS = 1e-12

Attention = Callable[[mx.array, mx.array, mx.array], mx.array]
"""(q, k, v) -> out, all [1, HEADS, length, HEAD_DIM] float32; scale 1/sqrt(HEAD_DIM); keeps documents apart."""


class Layer(nn.Module):
    """One encoder layer, in two halves around attention; both work row by row on [length, WIDTH]."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.qkv: nn.Linear = nn.Linear(WIDTH, 3 * WIDTH)
        self.attention_out: nn.Linear = nn.Linear(WIDTH, WIDTH)
        self.attention_norm: nn.LayerNorm = nn.LayerNorm(WIDTH, eps=LAYER_NORM_EPS)
        self.inner: nn.Linear = nn.Linear(WIDTH, INNER)
        self.inner_out: nn.Linear = nn.Linear(INNER, WIDTH)
        self.norm: nn.LayerNorm = nn.LayerNorm(WIDTH, eps=LAYER_NORM_EPS)

    def __call__(self, x: mx.array, attention: Attention) -> mx.array:
        """x: [length, WIDTH] -> [length, WIDTH]."""
        heads = on_all_cores(self.qkv, x).reshape(1, len(x), 3, HEADS, HEAD_DIM)
        q, k, v = (heads[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
        mixed = attention(q, k, v).transpose(0, 2, 1, 3).reshape(len(x), WIDTH)
        return on_all_cores(self.after_attention, x, mixed)

    def after_attention(self, x: mx.array, mixed: mx.array) -> mx.array:
        x = self.attention_norm(x + self.attention_out(mixed))
        x = self.norm(x + self.inner_out(gelu(self.inner(x))))
        return x


class Encoder(nn.Module):
    """Embeddings of words and positions, LAYERS layers, mean over each document's tokens, length 1."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.words: nn.Embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.positions: nn.Embedding = nn.Embedding(POSITIONS, WIDTH)
        self.token_type: mx.array = mx.zeros((2, WIDTH))
        self.norm: nn.LayerNorm = nn.LayerNorm(WIDTH, eps=LAYER_NORM_EPS)
        self.layers: list[Layer] = [Layer() for _ in range(LAYERS)]

    def __call__(self, pack: Pack, attention: Attention) -> mx.array:
        """Tokens of several documents, one after the other -> [documents, WIDTH] of length 1."""
        x = self.norm(self.words(pack.tokens) + self.positions(pack.positions) + self.token_type[0])
        for layer in self.layers:
            x = layer(x, attention)
        sums = mx.zeros((pack.documents, WIDTH)).at[pack.document].add(x)
        return sums / mx.linalg.norm(sums, axis=-1, keepdims=True)  # the mean's length cancels: no division by counts


def gelu(x: mx.array) -> mx.array:
    """The exact form; `nn.gelu` is the same behind `mx.compile`, whose first use would blur the timings."""
    return 0.5 * x * (1 + mx.erf(x * 0.5**0.5))


def on_all_cores(row_function: Callable[..., mx.array], *arrays: mx.array) -> mx.array:
    """row_function over rows: MLX's CPU works a stream in one thread, so each core gets rows and a stream.

    On a GPU it is row_function itself. arrays: [length, ...] each.
    """
    streams = core_streams() if mx.default_device() == mx.Device(mx.cpu) else []
    if len(streams) < 2:
        return row_function(*arrays)
    length = len(arrays[0])
    bounds = [length * i // len(streams) for i in range(len(streams) + 1)]
    rows = []
    for stream, start, stop in zip(streams, bounds, bounds[1:], strict=False):
        if start < stop:
            with mx.stream(stream):
                rows.append(row_function(*(array[start:stop] for array in arrays)))
    return mx.concatenate(rows)


@functools.cache
def core_streams() -> list[mx.Stream]:
    """One stream per core this process may use, at most 8; each has a thread of its own from now on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [mx.new_stream(mx.Device(mx.cpu)) for _ in range(min(cores, 8))]
