"""A mod -> tests/golden: what a reader sees of it as Metal text. `python tests/apparatus/golden.py` writes it anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx

import flextrace as flex

FILE = Path(__file__).parent.parent / "golden" / "alibi.metal"
COMMAND = "python tests/apparatus/golden.py"

slopes = mx.array([2.0 ** (-8 * (h + 1) / 8) for h in range(8)])


@flex.score_mod
def alibi(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    """Keys count for less the further away they are (Press et al., arXiv 2108.12409)."""
    return score - slopes[h] * abs(q_idx - kv_idx)


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(alibi.source("metal"), encoding="ascii")
    print(f"wrote {FILE.name}")
