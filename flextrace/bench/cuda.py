"""On an NVIDIA GPU: beside MLX's own attention, torch's compiled flex_attention and cuDNN, in one process, in turns.

Times are differences of two chains of calls, as one call and its synchronisation is mostly the host's time.
"""

from __future__ import annotations

import importlib.util
import math
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from rich import box
from rich.table import Table

import flextrace as flex
from flextrace.kernels import backend_for

from .measure import BenchError

ROUNDS, SHORT, LONG = 3, 5, 25  # calls of a chain
WINDOW, DOCUMENTS, CAP = 1024, 8, 30.0
CACHE, CACHE_HEADS, CACHE_KV_HEADS = 131072, 32, 8
MODS = ("none", "causal", "window", "document", "alibi", "softcap")
SHAPES = ((2, 16, 4096, 128), (2, 16, 4096, 64))
LONGER = (1, 16, 16384, 128)
Call = Callable[[], Any]


@dataclass
class CudaRow:
    """Milliseconds of one call, bfloat16; None where a contender is not there, or has no such attention.

    what: "forward", "step" (forward and the gradients of q, k and v), or "decode" (one row over a long cache).
    mlx: MLX's own attention. torch: compiled flex_attention. cudnn: torch's attention by cuDNN. copy: a copy on the
        device of as many bytes as keys and values have.
    """

    what: str
    mod: str
    shape: tuple[int, int, int, int]
    flextrace: float
    mlx: float | None = None
    torch: float | None = None
    cudnn: float | None = None
    copy: float | None = None


@dataclass
class Contender:
    """How a chain is launched, and how it is waited for."""

    call: Call
    wait: Callable[[list[Any]], None]

    def chain(self, calls: int) -> float:
        """Seconds."""
        begin = time.perf_counter()
        self.wait([self.call() for _ in range(calls)])
        return time.perf_counter() - begin


def measure(peers: bool = True, say: Callable[[str], None] = lambda what: None) -> Iterator[CudaRow]:
    """All rows, one after the other. Raises BenchError without an NVIDIA GPU that MLX can use."""
    reason = backend_for("cuda", to_run=False).unavailable()
    if reason is not None:
        raise BenchError(f"the cuda section needs an NVIDIA GPU: {reason}")
    torch = peers and importlib.util.find_spec("torch") is not None
    cases = [("forward", mod, shape) for shape in SHAPES for mod in MODS]
    cases += [("forward", mod, LONGER) for mod in ("none", "causal")]
    cases += [("step", mod, SHAPES[0]) for mod in ("none", "causal", "window", "softcap")]
    for what, mod, shape in cases:
        say(f"{what} {mod} {'x'.join(map(str, shape))}")
        found = medians_ms(contenders(what, mod, shape, peers, torch))
        yield CudaRow(what, mod, shape, *(found.get(name) for name in ("flextrace", "mlx", "torch", "cudnn")))  # type: ignore[arg-type]
    say("decode")
    yield from decode_rows(peers)


def medians_ms(runs: dict[str, Contender]) -> dict[str, float]:
    """Of one call of each, in turns, after a first chain that compiles."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run.chain(SHORT)
    for _ in range(ROUNDS):
        for name, run in runs.items():
            short, long = run.chain(SHORT), run.chain(LONG)
            times[name].append((long - short) / (LONG - SHORT) * 1e3)
    return {name: statistics.median(found) for name, found in times.items()}


def mods(name: str, batch: int, heads: int, length: int) -> tuple[Any, Any]:
    """score_mod and mask_mod."""
    if name == "window":
        return None, flex.mask_mod(lambda b, h, q_idx, kv_idx: (kv_idx <= q_idx) & (q_idx - kv_idx < WINDOW))
    if name == "document":
        ids = np.arange(length) // (length // DOCUMENTS)
        return None, flex.mods.document(mx.array(np.tile(ids, (batch, 1)), mx.int32))
    scoring = {"alibi": lambda: flex.mods.alibi(heads), "softcap": lambda: flex.mods.softcap(CAP)}
    return scoring[name]() if name in scoring else None, flex.mods.causal if name == "causal" else None


def contenders(what: str, mod: str, shape: tuple[int, int, int, int], peers: bool, torch: bool) -> dict[str, Contender]:
    """Those that have this attention."""
    batch, heads, length, head_dim = shape
    q, k, v, cotangent = (mx.random.normal(shape).astype(mx.bfloat16) for _ in range(4))
    mx.eval(q, k, v, cotangent)
    score_mod, mask_mod = mods(mod, batch, heads, length)
    options = {"BACKEND": "cuda"}

    def ours(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return flex.flex_attention(q, k, v, score_mod, mask_mod, kernel_options=options)

    def theirs(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        mask = "causal" if mod == "causal" else None
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=1 / math.sqrt(head_dim), mask=mask)

    def of(function: Callable[..., mx.array]) -> Contender:
        if what == "forward":
            return Contender(lambda: function(q, k, v), _wait_for_mlx)
        return Contender(lambda: mx.vjp(function, [q, k, v], [cotangent])[1], _wait_for_mlx)

    runs = {"flextrace": of(ours)}
    if peers and mod in ("none", "causal") and what == "forward":
        runs["mlx"] = of(theirs)
    if torch:
        runs |= torch_contenders(what, mod, shape)
    return runs


def torch_contenders(what: str, mod: str, shape: tuple[int, int, int, int]) -> dict[str, Contender]:
    """torch's flex_attention, compiled, and cuDNN's attention."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch._dynamo.config.recompile_limit = 1000  # beyond it, it runs unfused, and says nothing
    _, heads, length, _ = shape
    made = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(4)]
    cotangent = made.pop()
    q, k, v = (x.requires_grad_(what == "step") for x in made)
    slopes = torch.exp2(-8 * torch.arange(1, heads + 1, device="cuda") / heads)
    ids = torch.arange(length, device="cuda") // (length // DOCUMENTS)
    masks = {
        "causal": lambda b, h, q_idx, kv_idx: q_idx >= kv_idx,
        "window": lambda b, h, q_idx, kv_idx: (q_idx >= kv_idx) & (q_idx - kv_idx < WINDOW),
        "document": lambda b, h, q_idx, kv_idx: ids[q_idx] == ids[kv_idx],
    }
    scores = {
        "alibi": lambda score, b, h, q_idx, kv_idx: score + slopes[h] * (kv_idx - q_idx),
        "softcap": lambda score, b, h, q_idx, kv_idx: CAP * torch.tanh(score / CAP),
    }
    blocks = create_block_mask(masks[mod], None, None, length, length, device="cuda") if mod in masks else None
    compiled = torch.compile(flex_attention, dynamic=False)

    def flexible() -> Any:
        return compiled(q, k, v, score_mod=scores.get(mod), block_mask=blocks)

    def cudnn() -> Any:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=mod == "causal")

    def of(function: Call) -> Contender:
        def step() -> Any:
            return torch.autograd.grad(function(), (q, k, v), cotangent)

        return Contender(function if what == "forward" else step, lambda _: torch.cuda.synchronize())

    return {"torch": of(flexible)} | ({"cudnn": of(cudnn)} if mod in ("none", "causal") else {})


def decode_rows(peers: bool) -> Iterator[CudaRow]:
    """One row of each head over a long cache: in bfloat16, in int8, and what a window leaves of it."""
    head_dim = SHAPES[0][3]
    k, v = (mx.random.normal((1, CACHE_KV_HEADS, CACHE, head_dim)).astype(mx.bfloat16) for _ in range(2))
    q = mx.random.normal((1, CACHE_HEADS, 1, head_dim)).astype(mx.bfloat16)
    cache = flex.Int8KV(quantise_value=True, step=CACHE)
    cache.update(k, v)
    key, value = cache.key, cache.value
    both = mx.concatenate([k, v])
    mx.eval(q, k, v, both)
    offset = CACHE - 1
    recent = flex.mask_mod(lambda b, h, q_idx, kv_idx: q_idx + offset - kv_idx < WINDOW)

    def attend(key: Any, value: Any, mask: Any = None) -> Contender:
        options = {"BACKEND": "cuda"}
        return Contender(
            lambda: flex.flex_attention(q, key, value, None, mask, enable_gqa=True, kernel_options=options),
            _wait_for_mlx,
        )

    runs = {"none": attend(k, v), "Int8KV": attend(key, value), "window": attend(k, v, recent)}
    runs["copy"] = Contender(lambda: both + mx.zeros(1, mx.bfloat16), _wait_for_mlx)
    if peers:
        scale = 1 / math.sqrt(head_dim)
        runs["mlx"] = Contender(lambda: mx.fast.scaled_dot_product_attention(q, k, v, scale=scale), _wait_for_mlx)
    found = medians_ms(runs)
    shape = (1, CACHE_HEADS, CACHE, head_dim)
    yield CudaRow("decode", "none", shape, found["none"], found.get("mlx"), copy=found["copy"])
    yield CudaRow("decode", "Int8KV", shape, found["Int8KV"])
    yield CudaRow("decode", "window", shape, found["window"])


def _wait_for_mlx(results: list[Any]) -> None:
    mx.eval(results)
    mx.synchronize()


def power_and_clock() -> str:
    """What nvidia-smi says now; empty without it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    asked = "--query-gpu=name,driver_version,clocks.sm,power.draw,power.limit"
    done = subprocess.run([program, asked, "--format=csv,noheader"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def cuda_table(rows: Sequence[CudaRow]) -> Table:
    """The rows as a table; a ratio is the peer's time over ours. "of copy": bytes a second beside those that a copy on
    the device reads and writes."""
    table = Table(title="on the GPU, bfloat16", box=box.SIMPLE_HEAD, padding=0, title_justify="left")
    for name in ("what", "mod", "B x H x\nL x D", "flextrace\nms", "MLX", "torch\nflex", "cuDNN", "of\ncopy"):
        table.add_column(name, justify="left" if name in ("what", "mod") else "right", no_wrap=True)
    for row in rows:
        ratios = ["-" if peer is None else f"{peer / row.flextrace:.2f}x" for peer in (row.mlx, row.torch, row.cudnn)]
        share = "-" if row.copy is None else f"{row.copy / 2 / row.flextrace:.0%}"
        table.add_row(row.what, row.mod, "x".join(map(str, row.shape)), f"{row.flextrace:.3f}", *ratios, share)
    return table
