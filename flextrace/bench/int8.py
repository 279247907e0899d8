"""int8 beside what it replaces, on the cpu backend: a forward pass that rounds its keys, and decode from an Int8KV."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from rich.table import Table

import flextrace as flex

from .measure import medians_ms

PASS = (1, 8, 4096, 128)  # batch, heads, length, head_dim
DECODE = (1, 8, 32768, 128)  # one query row
Run = Callable[[], Any]


@dataclass
class Int8Row:
    """Median milliseconds of one contender, and bytes of keys and values that it keeps between calls."""

    what: str
    contender: str
    milliseconds: float
    kv_bytes: int
    ratio: float  # how much longer the first contender takes


def measure() -> list[Int8Row]:
    """All figures; contenders of one kind take turns. Rounding q and k, and the mean of k, is inside the times."""
    return [*forward_rows(PASS), *decode_rows(DECODE)]


def forward_rows(shape: Sequence[int]) -> list[Int8Row]:
    """Attention without a mod over bfloat16 tensors of that shape, plain and with QK_QUANT."""
    q, k, v = (mx.random.normal(shape).astype(mx.bfloat16) for _ in range(3))
    mx.eval(q, k, v)

    def run(**options: Any) -> Run:
        return lambda: mx.eval(flex.flex_attention(q, k, v, kernel_options={"BACKEND": "cpu", **options}))

    runs = {"bfloat16": run(), "int8, K smoothed": run(QK_QUANT="int8")}
    return _rows(f"forward {_by(shape)}", runs, dict.fromkeys(runs, k.nbytes + v.nbytes))


def decode_rows(shape: Sequence[int]) -> list[Int8Row]:
    """One query row per head against float16 keys and values of that shape, kept as they are and in int8."""
    k, v = (mx.random.normal(shape).astype(mx.float16) for _ in range(2))
    q = mx.random.normal((*shape[:2], 1, shape[3])).astype(mx.float16)
    mx.eval(q, k, v)
    caches = {
        "K in int8": flex.Int8KV(step=shape[2]),
        "K and V in int8": flex.Int8KV(quantise_value=True, step=shape[2]),
    }
    kept: dict[str, tuple[Any, Any]] = {"float16": (k, v)}
    size = {"float16": k.nbytes + v.nbytes}
    for name, cache in caches.items():
        cache.update(k, v)
        kept[name], size[name] = (cache.key, cache.value), cache.nbytes

    def run(key: Any, value: Any) -> Run:
        return lambda: mx.eval(flex.flex_attention(q, key, value, kernel_options={"BACKEND": "cpu"}))

    return _rows(f"decode {_by(shape)}", {name: run(*rows) for name, rows in kept.items()}, size)


def _rows(what: str, runs: Mapping[str, Run], size: Mapping[str, int]) -> list[Int8Row]:
    times = medians_ms(runs)
    first = next(iter(times.values())) or 0.0
    return [
        Int8Row(what, name, milliseconds, size[name], first / milliseconds)
        for name, milliseconds in times.items()
        if milliseconds is not None
    ]


def int8_table(rows: Sequence[Int8Row]) -> Table:
    """The rows as a table."""
    table = Table(title="int8 (cpu backend, no mod)")
    for name in ("what, B x H x kv L x D", "kept as", "ms", "speed", "MB of K and V"):
        table.add_column(name, justify="left" if name[0] in "wk" else "right", no_wrap=True)
    before = ""
    for row in rows:
        what = "" if row.what == before else row.what
        table.add_row(what, row.contender, f"{row.milliseconds:.2f}", f"{row.ratio:.2f}x", f"{row.kv_bytes / 1e6:.1f}")
        before = row.what
    return table


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
