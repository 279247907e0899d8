"""A lock that a thread holds while the process forks is free in the child, which has no such thread."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FORKING = """
import os, signal, sys, threading
from flextrace.tracer.expr import node
from flextrace.tracer import Traces

def causal(b, h, q_idx, kv_idx):
    return q_idx >= kv_idx

traces, holds, ends = Traces(), threading.Event(), threading.Event()
def hold():
    with node._lock, traces._lock:
        holds.set()
        ends.wait()
threading.Thread(target=hold, daemon=True).start()
holds.wait()
child = os.fork()
if child == 0:
    signal.alarm(20)  # instead of waiting for ever
    traces.get(causal, "mask_mod")
    os._exit(0)
ends.set()
sys.exit(os.waitpid(child, 0)[1] != 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_traces(tmp_path: Path) -> None:
    script = tmp_path / "forking.py"  # a file: the mod's source is found
    script.write_text(FORKING)
    subprocess.run([sys.executable, "-W", "ignore", str(script)], check=True, timeout=60)
