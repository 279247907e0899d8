"""`make test-gpu`, on a machine with an NVIDIA GPU: what needs one, and a record of it.

The tests that are marked `cuda`, some calls under each tool of compute-sanitizer, random calls among MLX's own
operations, a window over a million keys, the same bits from run to run, and `flextrace bench --sections cuda`. All goes
to one JSON file, with versions, commit and command. Parts can be chosen by name.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

import flextrace as flex
from flextrace.bench.cuda import power_and_clock
from flextrace.kernels import backend_for

HERE = Path(__file__).parent
TOOLS = ("memcheck", "racecheck", "synccheck")


def tests(arguments: argparse.Namespace) -> dict[str, Any]:
    """How many tests passed, failed and were skipped."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", str(arguments.jobs), "-m", "cuda and not long", str(HERE)]
    done = subprocess.run([*command, "-p", "no:cacheprovider"], capture_output=True, text=True, check=False)
    tail = done.stdout.strip().splitlines()
    counts = {what: int(number) for number, what in re.findall(r"(\d+) (passed|failed|skipped|error)", tail[-1])}
    failed = [line for line in tail if line.startswith(("FAILED", "ERROR"))]
    return {**counts, "names": failed[:40]}


def sanitizer(arguments: argparse.Namespace) -> dict[str, Any]:
    """Errors that each tool of compute-sanitizer found in kernels of flextrace."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).exists():
        return {"skipped": "compute-sanitizer is not here"}
    found: dict[str, Any] = {}
    for tool in TOOLS:
        command = [program, "--tool", tool, "--kernel-name", "kernel_substring=flextrace", sys.executable, __file__]
        done = subprocess.run(
            [*command, "small"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "MLX_USE_CUDA_GRAPHS": "0"},
        )
        summary = [line for line in done.stdout.splitlines() if "SUMMARY" in line]
        found[tool] = summary[-1].strip("= ") if summary else f"no summary, exit code {done.returncode}"
    return found


def masks() -> dict[str, tuple[Any, Any]]:
    """A few score_mods and masks that differ in what the kernels do with them."""
    return {
        "none": (None, None),
        "causal": (None, flex.mods.causal),
        "softcap": (flex.mods.softcap(20.0), flex.mods.causal),
        "window": (None, flex.mods.causal & flex.mods.sliding_window(100)),
    }


def dense(q: mx.array, k: mx.array, v: mx.array, name: str) -> mx.array:
    """Attention by MLX's operations, in float32."""
    q, k, v = (x.astype(mx.float32) for x in (q, k, v))
    scores = q @ k.swapaxes(2, 3) / q.shape[-1] ** 0.5
    rows, keys = mx.arange(q.shape[2])[:, None], mx.arange(k.shape[2])[None]
    if name == "softcap":
        scores = 20.0 * mx.tanh(scores / 20.0)
    if name != "none":
        scores = mx.where(keys <= rows, scores, -mx.inf)
    if name == "window":
        scores = mx.where(rows - keys < 100, scores, -mx.inf)
    return mx.softmax(scores, axis=-1) @ v


def calls(count: int, seed: int) -> dict[str, Any]:
    """Random calls, forward and gradients, among MLX's own operations: stale or corrupted results would show."""
    rng = np.random.default_rng(seed)
    named = list(masks().items())
    worst, wrong = 0.0, 0
    waiting: list[mx.array] = []
    for number in range(count):
        name, (score_mod, mask_mod) = named[rng.integers(len(named))]
        batch, heads, rows = int(rng.integers(1, 3)), 2 * int(rng.integers(1, 4)), int(rng.integers(1, 40)) * 9
        width, dtype = (64, 128)[rng.integers(2)], (mx.float16, mx.bfloat16)[rng.integers(2)]
        q = mx.random.normal((batch, heads, rows, width)).astype(dtype)
        k, v = (mx.random.normal((batch, heads // 2, rows, width)).astype(dtype) for _ in range(2))
        whole = [mx.repeat(x, 2, axis=1) for x in (k, v)]

        def ours(
            q: mx.array, k: mx.array, v: mx.array, score_mod: Any = score_mod, mask_mod: Any = mask_mod
        ) -> mx.array:
            return flex.flex_attention(
                q, k, v, score_mod, mask_mod, enable_gqa=True, kernel_options={"BACKEND": "cuda"}
            )

        want = dense(q, *whole, name)
        waiting.append(mx.abs(ours(q, k, v).astype(mx.float32) - want).max())
        other = mx.fast.scaled_dot_product_attention(q, k, v, scale=width**-0.5)
        waiting.append(mx.abs(other.astype(mx.float32) - dense(q, *whole, "none")).max())
        if number % 8 == 0:
            got = mx.grad(lambda v, q=q, k=k, ours=ours: ours(q, k, v).astype(mx.float32).sum())(v)
            keys = whole[0]
            exact = mx.grad(lambda v, q=q, keys=keys, name=name: dense(q, keys, mx.repeat(v, 2, axis=1), name).sum())(v)
            waiting.append(mx.abs(got.astype(mx.float32) - exact).max() / (1 + mx.abs(exact).max()))
        if len(waiting) > 60:
            errors = np.array(mx.stack(waiting))
            wrong += int((~(errors < 0.05)).sum())
            worst, waiting = max(worst, float(np.nan_to_num(errors, nan=np.inf).max())), []
    return {"calls": count, "wrong": wrong, "largest_error": worst}


def mixed(arguments: argparse.Namespace) -> dict[str, Any]:
    return calls(arguments.calls, 0)


def small(arguments: argparse.Namespace) -> dict[str, Any]:
    """What runs under the sanitizer."""
    return calls(24, 1)


def million(arguments: argparse.Namespace) -> dict[str, Any]:
    """1 x 1 x 1,048,576 with a window: its last rows beside those of the same rows alone."""
    length, tail, window = 1 << 20, 2048, 1024
    mask = flex.mods.causal & flex.mods.sliding_window(window)
    q, k, v = (mx.random.normal((1, 1, length, 64)).astype(mx.bfloat16) for _ in range(3))
    options = {"BACKEND": "cuda"}
    out = flex.flex_attention(q, k, v, None, mask, kernel_options=options)[:, :, -window:]
    last = [x[:, :, -tail:] for x in (q, k, v)]
    alone = flex.flex_attention(*last, None, mask, kernel_options={"BACKEND": "ops"})[:, :, -window:]
    error = float(mx.abs(out.astype(mx.float32) - alone.astype(mx.float32)).max())
    return {"largest_error": error, "wrong": int(not error < 0.05)}


def bits(arguments: argparse.Namespace) -> dict[str, Any]:
    """Ten runs of forward and gradients, beside other work: how many differ from the first in any bit."""
    differ = 0
    for score_mod, mask_mod in masks().values():
        q, k, v = (mx.random.normal((2, 4, 777, 128)).astype(mx.bfloat16) for _ in range(3))

        def loss(
            q: mx.array, k: mx.array, v: mx.array, score_mod: Any = score_mod, mask_mod: Any = mask_mod
        ) -> mx.array:
            out = flex.flex_attention(q, k, v, score_mod, mask_mod, kernel_options={"BACKEND": "cuda"})
            return (out.astype(mx.float32) ** 2).sum()

        step = mx.value_and_grad(loss, (0, 1, 2))
        first: list[bytes] | None = None
        for _ in range(10):
            noise = mx.random.normal((2048, 2048)) @ mx.random.normal((2048, 2048))
            value, gradients = step(q, k, v)
            mx.eval(noise, value, gradients)
            now = [bytes(memoryview(x.view(mx.uint8))) for x in (value.reshape(1), *gradients)]
            first = first or now
            differ += now != first
    return {"runs": 40, "differ": differ}


def bench(arguments: argparse.Namespace) -> dict[str, Any]:
    """The section of the benchmark."""
    command = [sys.executable, "-m", "flextrace.cli", "bench", "--sections", "cuda", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": done.stderr[-2000:]}
    report = json.loads(done.stdout)
    return {"machine": report["machine"], "rows": report["cuda"]}


PARTS = {part.__name__: part for part in (tests, sanitizer, mixed, million, bits, bench)}


def main() -> int:
    """1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all without")
    parser.add_argument("--calls", type=int, default=10_000, help="random calls")
    parser.add_argument("--jobs", type=int, default=8, help="processes of pytest")
    parser.add_argument("--to", type=Path, help="the JSON file")
    arguments = parser.parse_args()
    reason = backend_for("cuda", to_run=False).unavailable()
    if reason is not None:
        print(f"nothing was run: {reason}", file=sys.stderr)
        return 2
    if arguments.parts == ["small"]:
        return int(small(arguments)["wrong"] > 0)
    commit = (
        os.environ.get("FLEXTRACE_COMMIT")
        or subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=HERE
        ).stdout.strip()
    )
    record: dict[str, Any] = {
        "gpu": power_and_clock(),
        "python": sys.version.split()[0],
        **{name: importlib.metadata.version(name) for name in ("mlx", "flextrace")},
        "commit": commit,
        "command": " ".join(["python", "tests/gpu.py", *sys.argv[1:]]),
    }
    for name in arguments.parts or PARTS:
        record[name] = PARTS[name](arguments)
        print(name, json.dumps(record[name])[:3000], flush=True)
        if arguments.to is not None:
            arguments.to.write_text(json.dumps(record, indent=1) + "\n")
    wrong = [
        record[name].get(key)
        for name in record
        if isinstance(record[name], dict)
        for key in ("wrong", "differ", "failed")
    ]
    return int(any(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
