"""Clocks: medians in this process, and what only a new process can show."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

SECONDS = 2.0  # spent on one figure; a run that takes longer is timed once
ROUNDS = 5  # contenders take turns, so that a disturbance of the machine meets all of them
PAUSE = 0.1  # before each turn: the threads of the contender before may still spin
Run = Callable[[], Any]


class BenchError(RuntimeError):
    """The benchmark cannot run as asked."""


def medians_ms(runs: Mapping[str, Run | None]) -> dict[str, float | None]:
    """The median time of one run of each contender, after a first, untimed one; None where there is none."""
    times: dict[str, list[float]] = {name: [] for name, run in runs.items() if run is not None}
    for turn in range(ROUNDS + 1):
        for name, run in runs.items():
            if run is None or (times[name] and times[name][0] > SECONDS):
                continue
            time.sleep(PAUSE)
            if turn == 0:
                run()  # compiles
                continue
            end = time.perf_counter() + SECONDS / ROUNDS
            while True:
                start = time.perf_counter()
                run()
                now = time.perf_counter()
                times[name].append(now - start)
                if now > end:
                    break
    return {name: statistics.median(times[name]) * 1e3 if name in times else None for name in runs}


def library(name: str) -> ctypes.CDLL:
    """A file of kernels/cpu/tile that measures the machine, compiled and loaded.

    Raises:
        RuntimeError: there is no compiler, or it fails.
    """
    from flextrace.kernels.toolchain import find_compiler, no_compiler

    compiler = find_compiler(os.environ.get("CXX"))
    if compiler is None:
        raise RuntimeError(no_compiler(os.environ.get("CXX")))
    import flextrace.kernels.cpu as cpu

    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder) / f"{name}.so"
        compiler.build(Path(cpu.__file__).parent / "tile" / f"{name}.cpp", compiled)
        return ctypes.CDLL(str(compiled))


def peak_gflops(threads: int) -> float:
    """float32 multiply-adds per second that this machine reaches on registers, on all threads at once (best of 5)."""
    entry = library("peak").flextrace_peak
    entry.argtypes, entry.restype = [ctypes.c_int64], ctypes.c_double
    rounds = 4_000_000
    flops = entry(1)
    best = 0.0
    for _ in range(5):
        workers = [threading.Thread(target=entry, args=(rounds,)) for _ in range(threads)]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = max(best, threads * rounds * flops / (time.perf_counter() - start) / 1e9)
    return best


_FIRST_CALL = """
import json, time
import mlx.core as mx
import flextrace as flex
slopes = mx.array([0.5, 0.25, 0.125, 0.0625])
@flex.score_mod
def alibi(score, b, h, q_idx, kv_idx):
    return score + slopes[h] * (kv_idx - q_idx)
@flex.mask_mod
def causal(b, h, q_idx, kv_idx):
    return q_idx >= kv_idx
q = k = v = mx.ones((1, 4, 64, 64))
mx.eval(q, slopes)
start = time.perf_counter()
mx.eval(flex.flex_attention(q, k, v, alibi, causal))
print(json.dumps(time.perf_counter() - start))
"""

_LONG_CALL = """
import json, time
import mlx.core as mx
import numpy as np
import flextrace as flex
from flextrace.bench.measure import PeakMemory
masks = {
    "none": None,
    "causal": flex.mask_mod(lambda b, h, q_idx, kv_idx: q_idx >= kv_idx),
    "window": flex.mask_mod(lambda b, h, q_idx, kv_idx: (q_idx >= kv_idx) & (q_idx - kv_idx < 1024)),
}
mask = masks["MASK"]
small = mx.ones((1, 1, 8, 64))
mx.eval(flex.flex_attention(small, small, small, block_mask=mask))
q, k, v = (mx.random.normal((1, 1, 131072, 64)) for _ in range(3))
mx.eval(q, k, v)
peak = PeakMemory()
start = time.perf_counter()
out = flex.flex_attention(q, k, v, block_mask=mask)
mx.eval(out)
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "bytes": peak.bytes() - out.nbytes}))
"""

_LONG_STEP = """
import json, time
import mlx.core as mx
import flextrace as flex
from flextrace.bench.measure import PeakMemory
causal = flex.mask_mod(lambda b, h, q_idx, kv_idx: q_idx >= kv_idx)
def step(*tensors):
    out, gradients = mx.vjp(lambda q, k, v: flex.flex_attention(q, k, v, block_mask=causal), tensors[:3], tensors[3:])
    mx.eval(out, gradients)
step(*[mx.ones((1, 1, 8, 64))] * 4)
tensors = [mx.random.normal((1, 1, TOKENS, 64)) for _ in range(4)]
mx.eval(tensors)
peak = PeakMemory()
start = time.perf_counter()
step(*tensors)
print(json.dumps({"seconds": time.perf_counter() - start, "bytes": peak.bytes()}))
"""


class PeakMemory:
    """The most memory that this process holds at once from now on, above what it holds now.

    Linux resets the high-water mark; elsewhere the mark of the whole process is all there is, a lower bound.
    """

    def __init__(self) -> None:
        if sys.platform == "linux":
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self._before = self._field("VmRSS")

    def bytes(self) -> int:
        return self._field("VmHWM") - self._before

    @staticmethod
    def _field(name: str) -> int:
        if sys.platform != "linux":
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def _in_new_process(program: str, cache: str) -> Any:
    environment = {**os.environ, "FLEXTRACE_CACHE_DIR": cache}
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "program.py"
        script.write_text(program, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=True
        )
    return json.loads(done.stdout)


def start_ms(repeats: int = 3) -> tuple[float, float]:
    """(cold, warm): the first call in a new process with an empty cache, and with the kernel on disk; medians."""
    cold, warm = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            cold.append(_in_new_process(_FIRST_CALL, cache) * 1e3)
            warm += [_in_new_process(_FIRST_CALL, cache) * 1e3 for _ in range(2)]
    return statistics.median(cold), statistics.median(warm)


def long_call(mask: str) -> dict[str, float]:
    """Attention over 1x1x131072x64 in a new process: seconds, and peak bytes above inputs and output.

    mask: "none", "causal" or "window" (1024), given as a mask_mod.
    """
    with tempfile.TemporaryDirectory() as cache:
        result: dict[str, float] = _in_new_process(_LONG_CALL.replace("MASK", mask), cache)
        return result


def long_step(tokens: int = 32768) -> dict[str, float]:
    """Causal attention over 1x1x`tokens`x64 and its gradients in a new process: seconds, and peak bytes above q, k, v
    and the gradient of the result."""
    with tempfile.TemporaryDirectory() as cache:
        result: dict[str, float] = _in_new_process(_LONG_STEP.replace("TOKENS", str(tokens)), cache)
        return result


def overhead_us() -> tuple[float, float]:
    """(whole call, kernel alone) in microseconds of this thread's time, of one step that generates: 1 row of 4 heads
    over 32 keys of 2, which a cache of 256 begins with; a score_mod and a mask with captured numbers."""
    import mlx.core as mx

    import flextrace as flex
    from flextrace.decorators import bound
    from flextrace.kernels import AttentionCall, backend_for

    slope, offset, window = 0.5, 31, 1024

    @flex.score_mod
    def slanted(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score - slope * (q_idx + offset - kv_idx)

    @flex.mask_mod
    def recent(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return q_idx + offset - kv_idx < window

    q, cache = mx.ones((1, 4, 1, 64)), mx.ones((1, 2, 256, 64))
    kv = cache[:, :, :32]
    mx.eval(q, kv)

    def step() -> None:
        flex.flex_attention(q, kv, kv, slanted, recent, enable_gqa=True)

    whole = _per_call(step)
    backend = backend_for("cpu")
    kernel: Any = backend.load(backend.spec(AttentionCall.of(q, kv, kv, 1.0, bound(slanted, recent))))
    entry, inside = kernel.entry, []

    def timed(*args: Any) -> int:
        start = time.thread_time()
        status: int = entry(*args)
        inside.append(time.thread_time() - start)
        return status

    kernel.entry = timed
    try:
        for _ in range(2000):
            step()
    finally:
        kernel.entry = entry
    return whole * 1e6, statistics.median(inside) * 1e6


def _per_call(run: Callable[[], Any], calls: int = 1000, rounds: int = 9) -> float:
    times = []
    for _ in range(rounds):
        start = time.thread_time()
        for _ in range(calls):
            run()
        times.append((time.thread_time() - start) / calls)
    return statistics.median(times)
