"""What is timed: one mod per row, for flextrace, for MLX's own attention and for torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

import flextrace as flex
from flextrace import MaskMod, ScoreMod

WINDOW = 256
CAP = 30.0
DOCUMENTS = 8
Run = Callable[[], Any]
Attention = Callable[[mx.array, mx.array, mx.array], mx.array]


@dataclass(frozen=True)
class Problem:
    """q, k, v: float32 numpy arrays [batch, heads, length, head_dim]; `dtype` is what they are run in."""

    q: np.ndarray[Any, Any]
    k: np.ndarray[Any, Any]
    v: np.ndarray[Any, Any]
    dtype: str

    @property
    def length(self) -> int:
        return int(self.q.shape[2])

    @property
    def dense_flops(self) -> float:
        b, h, n, d = self.q.shape
        return float(4 * b * h * n * n * d)

    def tensors(self) -> tuple[mx.array, mx.array, mx.array]:
        """q, k, v in MLX, evaluated."""
        q, k, v = (mx.array(x).astype(getattr(mx, self.dtype)) for x in (self.q, self.k, self.v))
        mx.eval(q, k, v)
        return q, k, v

    def slopes(self) -> np.ndarray[Any, Any]:
        heads = self.q.shape[1]
        return np.asarray(2.0 ** (-8.0 * np.arange(1, heads + 1) / heads), np.float32)

    def documents(self) -> np.ndarray[Any, Any]:
        """int32 [length]: the document of each token, of ragged lengths."""
        cuts = np.random.default_rng(1).choice(np.arange(1, self.length), DOCUMENTS - 1, replace=False)
        return np.asarray(np.searchsorted(np.sort(cuts), np.arange(self.length), side="right"), np.int32)


def problem(batch: int, heads: int, length: int, head_dim: int, dtype: str, seed: int = 0) -> Problem:
    rng = np.random.default_rng(seed)
    q, k, v = (rng.standard_normal((batch, heads, length, head_dim), dtype=np.float32) for _ in range(3))
    return Problem(q, k, v, dtype)


NAMES = ("none", "causal", "window", "document", "alibi", "softcap")


def flextrace_mods(p: Problem) -> tuple[dict[str, ScoreMod], dict[str, MaskMod]]:
    """(score_mods, mask_mods) by name, as a user writes them."""
    slopes, document, window, cap = mx.array(p.slopes()), mx.array(p.documents()), WINDOW, CAP
    mx.eval(slopes, document)

    @flex.mask_mod
    def causal(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return q_idx >= kv_idx

    @flex.mask_mod
    def banded(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return q_idx >= kv_idx and q_idx - kv_idx < window

    @flex.mask_mod
    def same_document(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return document[q_idx] == document[kv_idx]

    @flex.score_mod
    def alibi(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score + slopes[h] * (kv_idx - q_idx)

    @flex.score_mod
    def softcap(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return cap * mx.tanh(score / cap)

    masks = {"causal": causal, "window": banded, "document": same_document}
    return {"alibi": alibi, "softcap": softcap}, masks


def flextrace_run(p: Problem, name: str) -> Run:
    """A call of flex_attention as a user writes it, with the mask given as a mask_mod."""
    q, k, v = p.tensors()
    attend = flextrace_attention(p, name)
    return lambda: _evaluated(attend(q, k, v))


def flextrace_attention(p: Problem, name: str) -> Attention:
    """The same, of any q, k and v of these sizes."""
    mods, masks = flextrace_mods(p)
    return lambda q, k, v: flex.flex_attention(q, k, v, mods.get(name), masks.get(name))


def _evaluated(out: mx.array) -> mx.array:
    mx.eval(out)
    return out


def kept_pairs(p: Problem, name: str) -> np.ndarray[Any, Any] | None:
    """bool [length, length]: which pairs this mask keeps; None where it keeps all."""
    at = np.arange(p.length)
    distance = at[:, None] - at[None]
    if name == "causal":
        return distance >= 0
    if name == "window":
        return (distance >= 0) & (distance < WINDOW)
    if name == "document":
        document = p.documents()
        return np.asarray(document[:, None] == document[None])
    return None


def mlx_run(p: Problem, name: str) -> Run | None:
    """mx.fast.scaled_dot_product_attention with the equivalent mask; None where it has none."""
    q, k, v = p.tensors()
    attend = mlx_attention(p, name)
    return None if attend is None else lambda: _evaluated(attend(q, k, v))


def mlx_attention(p: Problem, name: str) -> Attention | None:
    """The same, of any q, k and v of these sizes."""
    if name == "softcap":
        return None
    mask: Any = None
    if name == "causal":
        mask = "causal"
    elif name == "alibi":
        at = mx.arange(p.length)
        mask = (mx.array(p.slopes())[:, None, None] * (at[None] - at[:, None])).astype(getattr(mx, p.dtype))
    elif (kept := kept_pairs(p, name)) is not None:
        mask = mx.array(kept)
    mx.eval([mask] if isinstance(mask, mx.array) else [])
    scale = p.q.shape[-1] ** -0.5
    return lambda q, k, v: mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)


def torch_run(p: Problem, name: str) -> Run:
    """torch.compile(flex_attention) with the same mod; masks as a prepared BlockMask."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch._dynamo.config.recompile_limit = 1000  # else it runs unfused after 8 shapes or mods, silently
    q, k, v = (torch.from_numpy(x).to(getattr(torch, p.dtype)) for x in (p.q, p.k, p.v))
    slopes, document, window = torch.from_numpy(p.slopes()), torch.from_numpy(p.documents()), WINDOW

    def causal(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return q_idx >= kv_idx

    def banded(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return (q_idx >= kv_idx) & (q_idx - kv_idx < window)

    def same_document(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return document[q_idx] == document[kv_idx]

    def alibi(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score + slopes[h] * (kv_idx - q_idx)

    def softcap(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return 30.0 * torch.tanh(score / 30.0)  # CAP, written out: torch 2.13 fails to compile a captured float

    masks = {"causal": causal, "window": banded, "document": same_document}
    mods = {"alibi": alibi, "softcap": softcap}
    block_mask = None
    if name in masks:
        block_mask = create_block_mask(masks[name], None, None, p.length, p.length, device="cpu")
    torch._dynamo.reset()
    # With dynamic shapes, as after a change of length, torch 2.13 emits C++ that does not compile for some mods.
    compiled = torch.compile(flex_attention, dynamic=False)

    def run() -> Any:
        with torch.no_grad():
            return compiled(q, k, v, score_mod=mods.get(name), block_mask=block_mask)

    return run
