"""Rows of q or k -> one launch of quantise.metal: less their means, rounded to whole numbers, and their row terms.

A launch is a node of MLX's lazy graph. It reads the rows once, where they lie, and nothing of them is evaluated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from ...gpu.arguments import SMALLEST, in_device_memory
from ...int8_types import Smoothing
from ...spec import KernelSpec
from ..device import LANES
from ..kernel import Launchable
from ..params import QuantiseParams, words
from ..text import KernelText, texts_of

KERNEL = "quantise"
INPUTS = ("x", "means", "groups", "runs", "params")
OUTPUTS = ("out", "scales", "terms", "own_means")
NOTHING, EACH_ROW, EACH_RUN = 0, 1, 2  # SCALES of quantise.metal
NO_MEAN, SUBTRACTED, AS_TERM = 0, 1, 2  # GROUP_MEAN
HELD = 32  # floats of a lane's rows in registers
SHARED = 64  # team * width: 16 KB of threadgroup memory for the sums of two turns
TEAM = 16  # simdgroups, at most
ROWS, SIMDGROUPS = 4, 4  # where no rows share anything: of a simdgroup, and of a threadgroup


class RowPlan(NamedTuple):
    """width: columns of a lane; block: rows of one. `team` simdgroups share a block, and each has `held` rows of it in
    registers at a time; once: these are all, so that they are read once."""

    width: int
    block: int
    held: int
    team: int
    once: bool

    @property
    def threads(self) -> int:
        return LANES * (SIMDGROUPS if self.team == 1 else self.team)

    def groups(self, rows: int) -> int:
        """Threadgroups for a head."""
        return -(-rows // (self.block * (SIMDGROUPS if self.team == 1 else 1)))


def row_plan(rows: int, columns: int, block: int | None) -> RowPlan:
    """block: rows that share a scale or a mean, as far as they are of one group; None: none do."""
    width = -(-columns // LANES)
    most = 1 << (max(1, HELD // width).bit_length() - 1)
    if block is None:
        held = min(ROWS, most)
        return RowPlan(width, held, held, 1, True)
    block = min(block, rows)
    team = 1
    while team < TEAM and team * ROWS < block and 2 * team * width <= SHARED:
        team *= 2
    held = 1
    while held < most and held * team < block:
        held *= 2
    return RowPlan(width, block, held, team, held * team >= block)


class Runs(NamedTuple):
    """Neighbouring rows of one group in blocks of `block` rows. of_row: int32 [1 or batch, rows], their number in their
    batch; most: how many a batch has at most."""

    of_row: mx.array
    most: int
    block: int

    @staticmethod
    def of(rows: int, block: int, groups: mx.array | None) -> Runs:
        """Looks at the groups."""
        ids = np.zeros((1, rows), np.int32) if groups is None else np.asarray(groups)
        first = np.arange(rows) % block == 0
        first = first | np.concatenate([np.zeros((len(ids), 1), bool), ids[:, 1:] != ids[:, :-1]], axis=1)
        numbers = np.cumsum(first, axis=1, dtype=np.int32) - 1
        return Runs(mx.array(numbers), int(numbers.max()) + 1, block)


class Rounded(NamedTuple):
    """out: [batch, heads, rows, columns]; float32: scales, terms: [batch, heads, rows]; own_means: [batch, heads, runs,
    columns]. What was not asked for is of no use."""

    out: mx.array
    scales: mx.array
    terms: mx.array
    own_means: mx.array


class Rounding:
    """quantise.metal through `mx.fast.metal_kernel`, or what takes the same arguments. `load` gives the kernel."""

    def __init__(self, load: Callable[[KernelSpec], Launchable]) -> None:
        self._load = load

    def smoothed_keys(self, k: mx.array, smoothing: Smoothing) -> mx.array:
        """Each key less the mean of its group, in its dtype."""
        return self._run(k, k.dtype, None, NOTHING, SUBTRACTED, smoothing, smoothing.key_groups).out

    def keys(self, k: mx.array, block: int | None, smoothing: Smoothing | None) -> tuple[mx.array, mx.array]:
        """(int8, scales): less the mean of its group; nan is the scale of a key that is not finite.

        block: rows that share a scale, as far as they are neighbours of one group; None: each has its own.
        """
        scales = EACH_ROW if block is None else EACH_RUN
        mean, groups = (NO_MEAN, None) if smoothing is None else (SUBTRACTED, smoothing.key_groups)
        return self._run(k, mx.int8, block, scales, mean, smoothing, groups)[:2]

    def row_terms(self, q: mx.array, smoothing: Smoothing, scale: float) -> mx.array:
        """scale * row . mean of its group, 0 where that is not finite."""
        return self._run(q, q.dtype, None, NOTHING, AS_TERM, smoothing, smoothing.row_groups, scale).terms

    def queries(
        self, q: mx.array, block: int | None, smoothing: Smoothing | None, scale: float, own: Runs | None
    ) -> Rounded:
        """Whole numbers in q's dtype, their scales as those of keys, and row terms where there is smoothing.

        own: subtract from each row the mean of its run, too; rows that are not finite do not count in it.
        """
        scales = EACH_ROW if block is None else EACH_RUN
        mean, groups = (NO_MEAN, None) if smoothing is None else (AS_TERM, smoothing.row_groups)
        shared = block if own is None else own.block
        return self._run(q, q.dtype, shared, scales, mean, smoothing, groups, scale, own)

    def _run(
        self,
        x: mx.array,
        out: mx.Dtype,
        block: int | None,
        scales: int,
        group_mean: int,
        smoothing: Smoothing | None,
        groups: mx.array | None,
        scale: float = 0.0,
        own: Runs | None = None,
    ) -> Rounded:
        _, heads, rows, columns = x.shape
        plan = row_plan(rows, columns, block)
        means = mx.zeros((1, 1, 1, SMALLEST)) if smoothing is None else smoothing.means
        grouped = groups is not None
        of_row = mx.zeros((1, SMALLEST), mx.int32) if groups is None else groups
        runs = own.of_row if own is not None else of_row
        batch = max(x.shape[0], means.shape[0], of_row.shape[0])
        params = QuantiseParams(
            heads=heads,
            rows=rows,
            columns=columns,
            block=plan.block,
            mean_heads=heads if smoothing is None else means.shape[1],
            batches=x.shape[0],
            mean_batches=means.shape[0],
            group_batches=of_row.shape[0],
            most_runs=0 if own is None else own.most,
            scale=scale,
        )
        writes = scales != NOTHING or group_mean == SUBTRACTED
        asked = (writes, scales != NOTHING, group_mean == AS_TERM, own is not None)
        shapes = [
            (batch, heads, rows, columns),
            (batch, heads, rows),
            (batch, heads, rows),
            (batch, heads, params.most_runs, columns),
        ]
        result = self._load(KernelSpec(KERNEL)).launch(
            inputs=[
                in_device_memory(x),
                in_device_memory(means),
                *(in_device_memory(of[:, None, :, None]) for of in (of_row, runs)),
                mx.array(np.array(words(params), np.int32)),
            ],
            template=[
                *(("T", x.dtype), ("O", out), ("WIDTH", plan.width), ("COUNT", plan.held), ("TEAM", plan.team)),
                *(("ONCE", plan.once), ("SCALES", scales), ("GROUP_MEAN", group_mean)),
                *(("OWN_MEAN", own is not None), ("GROUPED", grouped)),
            ],
            grid=(plan.groups(rows) * plan.threads, heads, batch),
            threadgroup=(plan.threads, 1, 1),
            output_shapes=[shape if wanted else (1,) for shape, wanted in zip(shapes, asked, strict=True)],
            output_dtypes=[out, mx.float32, mx.float32, mx.float32],
        )
        return Rounded(*result)


def quantise_text() -> KernelText:
    """The text of quantise.metal."""
    return KernelText(KERNEL, *texts_of("int8/quantise.metal"), INPUTS, OUTPUTS)
