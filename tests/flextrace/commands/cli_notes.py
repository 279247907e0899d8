"""What the tests of the commands share: a module of mods in a folder of its own, and how the command is run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

NOTES = """\
import mlx.core as mx
import numpy as np
import flextrace as flex

slopes = mx.array([0.5, 0.25])
window = 48
table = np.zeros((3, 5), np.float16)

@flex.score_mod
def alibi(score, b, h, q_idx, kv_idx):
    return score + slopes[h] * (kv_idx - q_idx)

@flex.mask_mod
def banded(b, h, q_idx, kv_idx):
    return (q_idx >= kv_idx) & (q_idx - kv_idx < window)

@flex.score_mod
def looked_up(score, b, h, q_idx, kv_idx):
    return score + table[q_idx, kv_idx]

def plain_mask(b, h, q_idx, kv_idx):
    return q_idx >= kv_idx

def plain_score(score, b, h, q_idx, kv_idx):
    return score * 0.5

def make_window(size):
    return flex.mask_mod(lambda b, h, q_idx, kv_idx: q_idx - kv_idx < size)

def make_band(left, right, up, down) -> flex.MaskMod:
    return make_window(left)

def any_number(*args):
    return 0

@flex.mask_mod
def loops(b, h, q_idx, kv_idx):
    while kv_idx > 0:
        kv_idx -= 1
    return kv_idx == 0

class Band:
    def __init__(self, size):
        self.mod = make_window(size)
        self.size = size

    def near(self, b, h, q_idx, kv_idx):
        return q_idx - kv_idx < self.size

band = Band(8)
blocks = flex.create_block_mask(banded, None, None, 64, 64)
"""


def flextrace(*arguments: str, folder: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """`python -m flextrace` in a new process, in that folder."""
    environment = {**os.environ, "FLEXTRACE_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", "flextrace", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
