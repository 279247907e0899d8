"""Stage kernels as they are launched: a stand-in for metal_kernel that keeps what it is given and runs nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from flextrace.kernels.call import Mods
from flextrace.kernels.metal import MetalBackend
from flextrace.kernels.simulator.translate.signature import template_text, write_function
from flextrace.kernels.stages.protocol import BlockLists
from flextrace.tracer import Bound, Trace

DTYPES = (mx.float32, mx.float16, mx.bfloat16)


@dataclass
class Launched:
    """What metal_kernel was given, and what its result was called with."""

    definition: dict[str, Any]
    call: dict[str, Any]

    def instance(self) -> str:
        """The text with the signature that MLX writes and the template arguments written in, for clang_check."""
        names = self.definition["input_names"]
        inputs = [(n, a.dtype, a.ndim, a.size) for n, a in zip(names, self.call["inputs"], strict=True)]
        outputs = list(zip(self.definition["output_names"], self.call["output_dtypes"], strict=True))
        source = self.definition["source"]
        function = write_function("stage", "stage.metal", source, inputs, outputs, (), False)
        values = ["typedef half float16_t;"]
        for name, value in self.call["template"]:
            kind = "typedef {1} {0};" if isinstance(value, mx.Dtype) else "constexpr int {0} = {1};"
            values.append(kind.format(name, template_text(value)))
        function = function.replace("[[kernel]]", "__kernel").replace("\n  uint3 ", "\n  metal::uint3 ")
        text = "\n".join([self.definition["header"], *values, re.sub(r" \[\[\w+(\(\d+\))?\]\]", "", function)])
        text = text.replace("static constexpr constant ", "static constexpr ")  # a member lies nowhere
        return re.sub(r"#include <[^>]*>", "", text)


class Recorder:
    """A metal_kernel whose kernels give zeros, lazily, and keep their launches."""

    def __init__(self) -> None:
        self.launches: list[Launched] = []

    def __call__(self, **definition: Any) -> Any:
        def launch(**call: Any) -> list[mx.array]:
            self.launches.append(Launched(definition, call))
            return [mx.zeros(s, d) for s, d in zip(call["output_shapes"], call["output_dtypes"], strict=True)]

        return launch


def bound(mod: Trace | None) -> Bound | None:
    """A trace with captures of its kinds, all of size 30."""
    if mod is None:
        return None
    arrays = [mx.zeros([30] * a.ndim).astype(getattr(mx, a.element.rstrip("_"), mx.float32)) for a in mod.arrays]
    return Bound(mod, arrays, [1 for _ in mod.numbers])


def lists(mask_batch: int, mask_heads: int, q_blocks: int, kv_blocks: int, block: tuple[int, int]) -> BlockLists:
    rows = (mask_batch, mask_heads, q_blocks)
    return BlockLists(*(mx.zeros(s, mx.int32) for s in [rows, (*rows, kv_blocks)] * 2), *block)


def every_launch(score_mod: Trace | None = None, mask_mod: Trace | None = None) -> Iterator[Launched]:
    """One launch of each stage and variant; those with mods for these."""
    recorder = Recorder()
    stages = MetalBackend(recorder).stages()
    x, blocks = mx.zeros((1, 2, 20, 30)), lists(1, 1, 2, 3, (16, 11))
    for a, b in [(d, d) for d in DTYPES] + [(mx.float32, mx.bfloat16), (mx.float16, mx.float32)]:
        for ta, tb, tiles in (
            (False, False, None),
            (True, False, (16, 8)),
            (False, True, (8, 8, 8)),
            (True, True, None),
        ):
            p = mx.zeros((1, 2, 30, 20) if ta else (1, 2, 20, 30), a)
            q = mx.zeros((1, 1, 40, 30) if tb else (1, 1, 30, 40), b)
            stages.matmul(p, q, transpose_a=ta, transpose_b=tb, tiles=tiles, dtype=a)
        for tb in (False, True):
            p, q = mx.zeros((1, 2, 20, 30), a), mx.zeros((1, 1, 30, 30), b)
            stages.block_sparse_matmul(p, q, blocks, transpose_b=tb, dtype=mx.float32)
    for dtype in DTYPES:
        stages.scale(x.astype(dtype), 2.0)
        stages.softmax(x, normalise=True, dtype=dtype)
        stages.softmax(mx.zeros((1, 1, 3, 2000)), normalise=False, dtype=dtype)
        stages.attention_output(x, x[..., 0], x[..., 0], dtype)
    score, mask = bound(score_mod), bound(mask_mod)
    for given in (None, blocks):
        stages.score_mod(x, Mods(score, mask), given)
    if mask is not None:
        stages.block_mask(mask, 1, 2, 20, 30, (16, 11))
    yield from recorder.launches
