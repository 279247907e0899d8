"""create_block_mask: time and memory at every length, beside torch's where it is installed."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from rich import box
from rich.table import Table

import flextrace as flex
from flextrace.block_mask import refine

from .measure import PeakMemory

SIDE, REACH = 256, 6  # the NATTEN canvas's side, and how far its window reaches
TORCH_TOKENS = 16384  # beyond, its dense mask takes gigabytes


def causal(tokens: int) -> Callable[..., Any]:
    return lambda b, h, q_idx, kv_idx: q_idx >= kv_idx


def window(tokens: int) -> Callable[..., Any]:
    return lambda b, h, q_idx, kv_idx: (q_idx >= kv_idx) & (q_idx - kv_idx < 1024)


def documents(tokens: int) -> Callable[..., Any]:
    """1,000 documents of ragged lengths (fewer where there are fewer tokens)."""
    count = min(1000, tokens // 8)
    cuts = np.sort(np.random.default_rng(0).choice(np.arange(1, tokens), count - 1, replace=False))
    ids = np.searchsorted(cuts, np.arange(tokens), side="right").astype(np.int32)
    document = mx.array(ids)
    return lambda b, h, q_idx, kv_idx: document[q_idx] == document[kv_idx]


def natten(tokens: int) -> Callable[..., Any]:
    """Neighbourhoods of 13 x 13 on a 256 x 256 canvas."""

    def near(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        row = min(max(q_idx // SIDE, REACH), SIDE - 1 - REACH)
        column = min(max(q_idx % SIDE, REACH), SIDE - 1 - REACH)
        return abs(row - kv_idx // SIDE) <= REACH and abs(column - kv_idx % SIDE) <= REACH

    return near


def random_table(tokens: int) -> Callable[..., Any]:
    """A captured table that no bounds decide, and too sparse for a few looks at each block."""
    table = mx.array(np.random.default_rng(0).integers(0, 5000, (tokens, tokens)).astype(np.int16))
    mx.eval(table)
    return lambda b, h, q_idx, kv_idx: table[q_idx, kv_idx] == 0


MASKS = {"causal": causal, "window": window, "documents": documents, "natten": natten, "table": random_table}
CASES = [
    ("window", 4096),
    ("window", 131072),
    ("window", 1048576),
    ("causal", 1048576),
    ("documents", 262144),
    ("natten", SIDE * SIDE),
    ("table", 4096),
]


@dataclass
class MaskRow:
    """One create_block_mask: median milliseconds, peak bytes above before, bytes of the result, sparsity in percent.

    peer_ms: torch's create_block_mask, or for the table its dense evaluation; None where it is not run.
    """

    mask: str
    tokens: int
    milliseconds: float
    peak_bytes: int
    mask_bytes: int
    sparsity: float
    peer: str
    peer_ms: float | None


def measure(name: str, tokens: int, torch: bool) -> MaskRow:
    """One case, in a new process, so that the memory is its own."""
    program = f"from flextrace.bench.masks import in_process; in_process({name!r}, {tokens}, {torch})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return MaskRow(**json.loads(done.stdout))


def in_process(name: str, tokens: int, torch: bool) -> None:
    """Measure one case and print its row as JSON."""
    mask = flex.mask_mod(MASKS[name](tokens))
    mask.trace()
    flex.create_block_mask(mask, None, None, 256, 256)  # imports and first-use tables are not part of it
    peak = PeakMemory()
    made = flex.create_block_mask(mask, None, None, tokens, tokens)
    used = peak.bytes()
    milliseconds = _median_ms(lambda: flex.create_block_mask(mask, None, None, tokens, tokens))
    peer, peer_ms = "", None
    if name == "table":
        peer, peer_ms = "dense", _median_ms(lambda: mx.eval(flex.create_mask(mask, None, None, tokens, tokens)))
    elif torch and tokens <= TORCH_TOKENS and name != "documents":
        peer, peer_ms = "torch", _torch_ms(MASKS[name](tokens), tokens)
    row = MaskRow(name, tokens, milliseconds, max(0, used), made.nbytes, made.sparsity(), peer, peer_ms)
    print(json.dumps(row.__dict__))


def mask_calls() -> dict[str, Callable[[], Any] | None]:
    """Causal attention with a mask_mod, whose tiles the kernel decides itself, and with its prepared BlockMask."""
    q, k, v = (mx.random.normal((1, 8, 4096, 64)) for _ in range(3))
    mx.eval(q, k, v)
    mask = flex.mask_mod(causal(4096))
    made = flex.create_block_mask(mask, None, None, 4096, 4096)

    def run(given: Any) -> Callable[[], Any]:
        return lambda: mx.eval(flex.flex_attention(q, k, v, block_mask=given))

    return {"mask_mod": run(mask), "BlockMask": run(made)}


def mask_table(rows: Sequence[MaskRow]) -> Table:
    """The rows as a table; torch's and the dense evaluation's times are beside those that have one."""
    table = Table(title="create_block_mask, blocks of 128", box=box.SIMPLE_HEAD, padding=0, title_justify="left")
    table.add_column("mask", no_wrap=True)
    for name in ("tokens", "ms", "peak MB", "mask MB", "sparsity %", "beside it"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        peer = "-" if row.peer_ms is None else f"{row.peer} {row.peer_ms:.1f} ms"
        size = (f"{row.peak_bytes / 1e6:.1f}", f"{row.mask_bytes / 1e6:.3f}", f"{row.sparsity:.2f}")
        table.add_row(row.mask, f"{row.tokens:,}", f"{row.milliseconds:.2f}", *size, peer)
    return table


def _median_ms(run: Callable[[], Any], seconds: float = 1.0) -> float:
    times: list[float] = []
    while not times or sum(times) < seconds:
        refine.forget()
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def _torch_ms(mask: Callable[..., Any], tokens: int) -> float:
    from torch.nn.attention.flex_attention import create_block_mask

    return _median_ms(lambda: create_block_mask(mask, None, None, tokens, tokens, device="cpu"))
