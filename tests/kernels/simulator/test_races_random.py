"""Random programs of reads, writes and barriers: the race detector agrees with a search over all pairs of accesses."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from flextrace.simulator import SimulationError, metal_kernel

LANES, CELLS, STEPS = 96, 3, 8
# Row s of `ops`: the step's kind, then what each lane does: 0 nothing, +c reads cell c - 1, -c writes it.
SOURCE = """
    threadgroup CELL tile[CELLS];
    uint lane = thread_index_in_threadgroup;
    if (lane == 0) {
        for (int c = 0; c < CELLS; c++) { tile[c] = 0; }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    CELL seen = 0;
    for (int s = 0; s < STEPS; s++) {
        const device int* row = ops + s * (LANES + 1);
        if (row[0] == 1) {
            threadgroup_barrier(mem_flags::mem_threadgroup);
        } else if (row[0] == 2) {
            simdgroup_barrier(mem_flags::mem_threadgroup);
        } else {
            int op = row[1 + lane];
            if (op > 0) { seen += tile[op - 1]; }
            if (op < 0) { tile[-op - 1] = s; }
        }
    }
    out[lane] = float(seen);
"""


def program(seed: int) -> np.ndarray[Any, Any]:
    random = np.random.default_rng(seed)
    ops = np.zeros((STEPS, LANES + 1), np.int32)
    busy = random.choice(LANES, 4, replace=False)
    if seed % 2:
        busy[1] = busy[0] ^ 1  # neighbours, whom a barrier of their simdgroup orders
    for step in ops:
        step[0] = random.choice([0, 1, 2], p=[0.5, 0.2, 0.3])
        for lane in busy:
            if random.random() < 0.35:
                step[1 + lane] = random.choice([-1, 1]) * random.integers(1, CELLS + 1)
    return ops


def races(ops: np.ndarray[Any, Any]) -> bool:
    """Whether two lanes touch one cell, one of them writing, with no barrier that orders them between."""
    accesses = [
        (step, lane, abs(int(op)), op < 0)
        for step, row in enumerate(ops)
        if row[0] == 0
        for lane, op in enumerate(row[1:])
        if op
    ]
    for (s, lane, cell, write), (t, other, same, writes) in combinations(accesses, 2):
        if lane == other or cell != same or not (write or writes):
            continue
        kinds = set(ops[s:t, 0].tolist())
        if not (1 in kinds or (2 in kinds and lane // 32 == other // 32)):
            return True
    return False


@pytest.mark.parametrize("cell", [mx.float32, mx.float16, mx.uint8])
@pytest.mark.parametrize("order", ["forward", "reverse", "shuffled"])
def test_the_detector_agrees_with_a_search(order: str, cell: mx.Dtype) -> None:
    kernel = metal_kernel("program", ["ops"], ["out"], SOURCE, lane_order=order)
    sizes = [("LANES", LANES), ("CELLS", CELLS), ("STEPS", STEPS), ("CELL", cell)]
    launch: dict[str, Any] = {"grid": (LANES, 1, 1), "threadgroup": (LANES, 1, 1), "output_dtypes": [mx.float32]}
    seen = {True: 0, False: 0}
    for seed in range(120):
        ops = program(seed)
        expected = races(ops)
        seen[expected] += 1
        try:
            kernel(inputs=[mx.array(ops)], template=sizes, output_shapes=[(LANES,)], **launch)
            found: set[str] = set()
        except SimulationError as error:
            found = {finding.kind for finding in error.report.findings}
        assert found == ({"race"} if expected else set()), f"seed {seed}"
    assert min(seen.values()) > 20, seen
