"""Run by `make lint` on the package as `pip install .` lays it out: every file is inside, and it works from there."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx

import flextrace as flex


def causal(b: int, h: int, q_idx: int, kv_idx: int) -> bool:
    return q_idx >= kv_idx


folder = Path(flex.__file__).parent
assert folder.parent.name == "installed", f"not the installed package: {folder}"
assert (folder / "py.typed").exists()
q = mx.ones((1, 1, 8, 8))
out = flex.flex_attention(q, q, q, block_mask=causal, kernel_options={"BACKEND": "cpu"})
assert mx.all(out == 1)
print(f"the installed package works: flextrace {flex.__version__}")
