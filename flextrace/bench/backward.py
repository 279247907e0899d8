"""Gradients beside the forward pass, MLX's own attention and torch's, and the memory that a long step takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from rich import box
from rich.table import Table

from .cases import Problem, flextrace_attention, kept_pairs, mlx_attention, problem
from .measure import Run, medians_ms

CASES = (  # mod, shape, whether MLX's own attention is timed: at 4096 tokens a step of it takes a minute
    ("none", (1, 8, 2048, 64), True),
    ("causal", (1, 8, 2048, 64), True),
    ("window", (1, 8, 4096, 64), False),
)
PRODUCTS = 7  # two of the forward pass, five of the backward one


@dataclass
class StepRow:
    """Median milliseconds, float32: of a forward pass, and of steps, each a forward pass and the gradients of q, k, v.

    None where a peer was not asked for or is not installed.
    """

    mod: str
    shape: tuple[int, ...]
    forward: float
    step: float
    mlx: float | None
    torch: float | None

    @property
    def backward(self) -> float:
        """What a step takes besides the forward pass."""
        return self.step - self.forward


def measure(mod: str, shape: tuple[int, int, int, int], mlx: bool, torch: bool) -> StepRow:
    """One row, all contenders in turns on the same inputs."""
    p = problem(*shape, "float32")
    attend, cotangent = flextrace_attention(p, mod), mx.array(problem(*shape, "float32", seed=1).q)
    tensors = p.tensors()
    found = medians_ms(
        {
            "forward": lambda: mx.eval(attend(*tensors)),
            "step": mlx_step(attend, tensors, cotangent),
            "mlx": mlx_step(mlx_attention(p, mod), tensors, cotangent) if mlx else None,
            "torch": torch_step(p, mod, np.array(cotangent)) if torch else None,
        }
    )
    forward, step = found["forward"], found["step"]
    assert forward is not None and step is not None
    return StepRow(mod, shape, forward, step, found["mlx"], found["torch"])


def mlx_step(attend: Callable[..., mx.array] | None, tensors: Sequence[mx.array], cotangent: mx.array) -> Run:
    """Attention and its gradients by q, k and v, as a training step asks MLX for them."""
    assert attend is not None

    def run() -> list[mx.array]:
        out, gradients = mx.vjp(attend, list(tensors), [cotangent])
        mx.eval(out, gradients)
        return [*out, *gradients]

    return run


def torch_step(p: Problem, mod: str, cotangent: np.ndarray[Any, Any]) -> Run:
    """The same with torch's own attention, which takes the mask as an array: its flex_attention has no gradient on a
    CPU."""
    import torch

    q, k, v = (torch.from_numpy(x).requires_grad_() for x in (p.q, p.k, p.v))
    kept = kept_pairs(p, mod)
    mask = None if kept is None else torch.from_numpy(kept)
    weights = torch.from_numpy(cotangent)

    def run() -> list[Any]:
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return [out, *torch.autograd.grad(out, (q, k, v), weights)]

    return run


def backward_table(rows: Sequence[StepRow]) -> Table:
    """The rows as a table; a ratio is that of backward to forward, or of a peer's step to ours."""
    table = Table(title="gradients of q, k, v (float32)", box=box.SIMPLE_HEAD, padding=0, title_justify="left")
    heads = ("forward\nms", "backward\nms", "\nratio", "step\nms", "MLX\nms", "\nratio", "torch\nms", "\nratio")
    for name in ("mod", "B x H x\nL x D", *heads):
        table.add_column(name, justify="left" if name == "mod" else "right", no_wrap=True)
    for row in rows:
        ours = (f"{row.forward:.2f}", f"{row.backward:.2f}", f"{row.backward / row.forward:.2f}x", f"{row.step:.2f}")
        peers = (text for ms in (row.mlx, row.torch) for text in _beside(ms, row.step))
        table.add_row(row.mod, "x".join(map(str, row.shape)), *ours, *peers)
    return table


def beside_peak(row: StepRow, peak_gflops: float) -> str:
    """A dense step beside one that multiplies all the time: no kernel of this machine can be faster than that."""
    b, h, length, d = row.shape
    least = PRODUCTS * 2 * b * h * length * length * d / peak_gflops / 1e6
    text = (
        f"{row.mod}: {least:.1f} ms at this machine's multiply-add peak, {100 * least / row.step:.0f} % of it reached"
    )
    return text if row.mlx is None else f"{text}; MLX's step takes {row.mlx / least:.1f}x of the peak's time"


def _beside(milliseconds: float | None, ours: float) -> tuple[str, str]:
    return ("-", "-") if milliseconds is None else (f"{milliseconds:.1f}", f"{milliseconds / ours:.1f}x")
