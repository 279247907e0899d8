"""Generating: one query row over a long cache, beside MLX's own attention and what the machine reads at most."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from rich import box
from rich.table import Table

import flextrace as flex
from flextrace.kernels.buffers import locate
from flextrace.kernels.cpu.launch import thread_count

from .measure import library, medians_ms

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
LENGTHS = (8192, 32768)
LONG, WINDOW = 131072, 1024
DTYPES = ("float32", "float16", "bfloat16")
INT8 = "Int8KV"  # keys and values
SHARE, BESIDE_MLX, BESIDE_FLOAT16, BESIDE_FULL = 0.75, 4.0, 1.7, 20.0  # targets, at least
Run = Callable[[], Any]


@dataclass
class DecodeRow:
    """Median milliseconds of one step and of MLX's own (None: not asked for, or it has none), and how many GB/s the
    machine reads at the same time; kv_bytes: of the keys and values that are attended to, with their scales."""

    keys: int
    kept: str  # as which dtype, or as what
    window: int | None
    milliseconds: float
    mlx: float | None
    bandwidth: float | None
    kv_bytes: int

    @property
    def speed(self) -> float:
        """GB/s."""
        return self.kv_bytes / self.milliseconds / 1e6

    @property
    def share(self) -> float | None:
        """Of the bandwidth."""
        return None if self.bandwidth is None else self.speed / self.bandwidth

    @property
    def beside_mlx(self) -> float | None:
        """How much longer MLX takes."""
        return None if self.mlx is None else self.mlx / self.milliseconds


@dataclass
class Target:
    """What is to be reached at least, and the least that was."""

    what: str
    least: float
    found: float

    @property
    def met(self) -> bool:
        return self.found >= self.least


def measure(peers: bool = True) -> list[DecodeRow]:
    """All rows; those of one length take turns."""
    rows = [row for keys in LENGTHS for row in whole_rows(keys, peers)]
    return rows + [row for kept in (*DTYPES, INT8) for row in window_rows(LONG, kept)]


def whole_rows(keys: int, peers: bool) -> list[DecodeRow]:
    """Steps over the whole cache, kept in every way."""
    caches = {kept: Cache(keys, kept) for kept in (*DTYPES, INT8)}
    largest = caches["float32"]
    runs: dict[str, Run | None] = {"read": largest.reading()}
    for kept, cache in caches.items():
        runs[kept] = cache.step()
        runs[f"{kept}, MLX"] = cache.mlx_step() if peers and kept != INT8 else None
    found = medians_ms(runs)
    read = found["read"]
    assert read is not None
    return [
        DecodeRow(keys, kept, None, _known(found[kept]), found[f"{kept}, MLX"], largest.bytes / read / 1e6, cache.bytes)
        for kept, cache in caches.items()
    ]


def window_rows(keys: int, kept: str) -> list[DecodeRow]:
    """A step over the whole cache, and one over its last keys, which a mask chooses."""
    cache, offset, window = Cache(keys, kept), keys - 1, WINDOW

    @flex.mask_mod
    def recent(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return q_idx + offset - kv_idx < window

    found = medians_ms({"whole": cache.step(), "window": cache.step(recent)})
    return [
        DecodeRow(keys, kept, None, _known(found["whole"]), None, None, cache.bytes),
        DecodeRow(keys, kept, WINDOW, _known(found["window"]), None, None, cache.bytes * window // keys),
    ]


def _known(milliseconds: float | None) -> float:
    assert milliseconds is not None
    return milliseconds


class Cache:
    """Keys and values [1, KV_HEADS, keys, HEAD_DIM], and a query row for each of HEADS."""

    def __init__(self, keys: int, kept: str) -> None:
        dtype = getattr(mx, "float16" if kept == INT8 else kept)
        k, v = (mx.random.normal((1, KV_HEADS, keys, HEAD_DIM)).astype(dtype) for _ in range(2))
        self.q: mx.array = mx.random.normal((1, HEADS, 1, HEAD_DIM)).astype(dtype)
        mx.eval(self.q, k, v)
        self.key: Any = k
        self.value: Any = v
        self.arrays: list[mx.array] = [k, v]
        if kept == INT8:
            cache = flex.Int8KV(quantise_value=True, step=keys)
            cache.update(k, v)
            self.key, self.value = cache.key, cache.value
            self.arrays = [part for rows in (self.key, self.value) for part in (rows.values, rows.scales)]
            mx.eval(self.arrays)

    @property
    def bytes(self) -> int:
        """Of keys and values, with their scales."""
        return sum(array.nbytes for array in self.arrays)

    def step(self, mask: flex.MaskMod | None = None) -> Run:
        def run() -> None:
            options = {"BACKEND": "cpu"}
            mx.eval(
                flex.flex_attention(
                    self.q, self.key, self.value, block_mask=mask, enable_gqa=True, kernel_options=options
                )
            )

        return run

    def mlx_step(self) -> Run:
        scale = HEAD_DIM**-0.5
        return lambda: mx.eval(mx.fast.scaled_dot_product_attention(self.q, self.key, self.value, scale=scale))

    def reading(self) -> Run:
        """A plain read of the same bytes, on as many threads. Raises RuntimeError without a compiler."""
        entry = library("bandwidth").flextrace_read
        entry.restype = ctypes.c_int64
        count = len(self.arrays)
        pieces = (ctypes.c_void_p * count)(*(locate(array)[0] for array in self.arrays))
        sizes = (ctypes.c_int64 * count)(*(array.nbytes for array in self.arrays))

        def run() -> None:
            if entry(pieces, sizes, ctypes.c_int64(count), ctypes.c_int64(thread_count())) < 0:
                raise MemoryError("no memory for the threads that read")

        return run


def targets(rows: Sequence[DecodeRow]) -> list[Target]:
    """What these rows, of one length or more, reach of the targets."""
    whole = {(row.keys, row.kept): row for row in rows if row.window is None}
    shares = [row.share for row in rows if row.share is not None and row.kept in DTYPES]
    beside_mlx = [row.beside_mlx for row in rows if row.beside_mlx is not None]
    int8 = [
        whole[keys, "float16"].milliseconds / row.milliseconds
        for (keys, kept), row in whole.items()
        if kept == INT8 and keys == max(LENGTHS)
    ]
    windows = [whole[row.keys, row.kept].milliseconds / row.milliseconds for row in rows if row.window is not None]
    asked = (
        ("share of the read bandwidth", SHARE, shares),
        ("times MLX's speed", BESIDE_MLX, beside_mlx),
        ("Int8KV, times float16's speed", BESIDE_FLOAT16, int8),
        ("the window, times the full cache's speed", BESIDE_FULL, windows),
    )
    return [Target(what, least, min(found)) for what, least, found in asked if found]


def decode_table(rows: Sequence[DecodeRow]) -> Table:
    """The rows as a table; a share is that of what the machine reads at most, a ratio that of MLX to ours."""
    title = f"decode: 1 row, {HEADS}:{KV_HEADS} heads, D {HEAD_DIM} (cpu backend)"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=0, title_justify="left")
    for name in ("keys", "window", "kept as", "ms", "GB/s", "\nof", "\nshare", "MLX\nms", "\nratio"):
        table.add_column(name, justify="left" if name == "kept as" else "right", no_wrap=True)
    for row in rows:
        read = ("-", "-") if row.bandwidth is None else (f"{row.bandwidth:.1f}", f"{row.share:.0%}")
        mlx = ("-", "-") if row.mlx is None else (f"{row.mlx:.1f}", f"{row.beside_mlx:.1f}x")
        window = "" if row.window is None else f"{row.window:,}"
        texts = (f"{row.milliseconds:.2f}", f"{row.speed:.1f}", *read, *mlx)
        table.add_row(f"{row.keys:,}", window, f" {row.kept}", *texts)
    return table


def said_of(target: Target) -> str:
    """One line for a reader."""
    form = "{:.0%}" if target.least < 1 else "{:.1f}x"
    found, least = (form.format(number) for number in (target.found, target.least))
    return f"{target.what}: {found} at least, {'met' if target.met else 'missed'} (target {least})"
