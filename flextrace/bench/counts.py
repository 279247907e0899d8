"""Masks, shapes -> counts: flextrace's Metal kernel and MLX's own, run in the same simulator.

A count says how much a kernel moves and multiplies, not how fast an Apple GPU does it: bytes are those that lanes ask
for, before any cache. `kv_read` is what is read of K and V, `mask_read` what is read to know the mask: MLX's array of
it, or captured arrays and lists of tiles. STATED are the targets of a dense run beside MLX's, and of a masked run
beside our own dense run at the same length. "backward" stands for the gradient kernels of a dense run, all together,
beside that run; "decode" for one row of four query heads a head of keys, beside the bytes of K and V, and MLX's kernels
of two passes.
"""

from __future__ import annotations

import functools
import importlib.metadata
import multiprocessing
import re
import signal
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np

import flextrace as flex
from flextrace.kernels.metal.attention.plan import plan_for
from flextrace.kernels.metal.decode.plan import decode_plan, splits_for
from flextrace.kernels.metal.device import LANES
from flextrace.kernels.simulator import CompileError, Report, SimulationError, SimulatorUnavailable, recording
from flextrace.kernels.simulator.build import compiler
from flextrace.kernels.simulator.mlx_attention import sdpa_vector_2pass, steel_attention
from flextrace.kernels.simulator.translate.mlx_text import include_folder

from .cases import flextrace_mods, kept_pairs, problem
from .measure import BenchError

BACKWARD, DECODE = "backward", "decode"
MASKS = ("none", "causal", "window", "document", BACKWARD, DECODE)
# Where the targets are stated.
LENGTHS = {"none": 512, BACKWARD: 512, "causal": 2048, "window": 4096, "document": 2048, DECODE: 4096}
GROUP, MLX_BLOCKS = 4, 32  # of decode: query heads for a head of keys; the fewest splits that MLX's host code takes
DTYPES = ("float32", "float16", "bfloat16")
HEAD_DIMS = (64, 80, 128)  # those of MLX's kernel
SHOWN = (
    *("device_read", "kv_read", "mask_read", "device_written", "threadgroup_read", "threadgroup_written"),
    *("threadgroup_allocated", "matrix_multiplies", "threadgroup_barriers"),
)
Counts = Mapping[str, int]


@dataclass(frozen=True)
class Run:
    """One run of one kernel on tensors of [1, heads, length, head_dim].

    kernel: "mask_mod" and "BlockMask" are flextrace's, by what it is given; "steel" is MLX's, given causal=True, or a
    bool array for other masks, as `mx.fast.scaled_dot_product_attention` does. "backward" and "decode" go with the
    masks so called; of decode `heads` are those of keys, and "once" is no kernel: it reads K and V once, and no more.
    """

    kernel: str
    mask: str
    length: int
    heads: int
    head_dim: int
    dtype: str

    @property
    def dense(self) -> Run:
        """Ours on the same tensors without a mask."""
        return replace(self, kernel="mask_mod", mask="none")

    @property
    def steel(self) -> Run:
        return replace(self, kernel="steel")

    @property
    def once(self) -> Run:
        return replace(self, kernel="once")

    def tiles_left(self) -> float:
        """The share of our kernel's tiles that the mask leaves: those with a pair that it keeps."""
        if self.mask in (BACKWARD, DECODE):
            return 1.0
        plan = plan_for(self.head_dim, self.head_dim, self.dtype)
        return _tiles_left(self.mask, self.length, plan.bq, plan.bk)

    def work(self) -> float:
        """About how long it takes, for the progress bar: MLX's kernel computes all tiles under a mask array."""
        ours = self.kernel != "steel"
        if self.kernel == BACKWARD:
            return 4.5 * self.dense.work()
        if self.mask == DECODE:
            return 16.0 * self.heads * self.length * self.head_dim
        share = self.tiles_left() if ours or self.mask == "causal" else 1.0
        return float(self.heads) * self.length**2 * self.head_dim * (share + 0.1 if ours else 1.5 * share)


@functools.cache
def _tiles_left(mask: str, length: int, bq: int, bk: int) -> float:
    kept = kept_pairs(problem(1, 1, length, 1, "float32"), mask)
    if kept is None:
        return 1.0
    rows, columns = np.arange(0, length, bq), np.arange(0, length, bk)
    alive = np.logical_or.reduceat(np.logical_or.reduceat(kept, rows, axis=0), columns, axis=1)
    return float(alive.mean())


def plan_runs(
    masks: Sequence[str], lengths: Sequence[int] | None, heads: int, head_dims: Sequence[int], dtypes: Sequence[str]
) -> list[Run]:
    """The runs to compare, without our dense runs at the lengths of masks; `lengths` None is LENGTHS.

    Raises:
        BenchError: an unknown mask or dtype, or a head dim that MLX's kernel does not have.
    """
    checked: tuple[tuple[str, Sequence[Any], Sequence[Any]], ...] = (
        ("mod", masks, MASKS),
        ("dtype", dtypes, DTYPES),
        ("head dim", head_dims, HEAD_DIMS),
    )
    for what, given, known in checked:
        for value in given:
            if value not in known:
                raise BenchError(f"--counts has no {what} {value!r}; known: {', '.join(map(str, known))}")
    return [
        Run(kernel, mask, length, heads, head_dim, dtype)
        for head_dim in head_dims
        for dtype in dtypes
        for mask in masks
        for length in (lengths or [LENGTHS[mask]])
        for kernel in _kernels(mask, head_dim)
    ]


def _kernels(mask: str, head_dim: int) -> tuple[str, ...]:
    if mask == BACKWARD:
        return (BACKWARD,)
    if mask == DECODE:
        return (DECODE, "steel") if head_dim % LANES == 0 else (DECODE,)  # MLX's lanes have whole columns
    return ("mask_mod", *(("BlockMask",) if mask != "none" else ()), "steel")


def simulate(run: Run) -> dict[str, int]:
    """The counts of one run, by name.

    Raises:
        BenchError: a kernel does not compile in the simulator, or its checks found something wrong.
    """
    p = problem(1, run.heads, run.length, run.head_dim, run.dtype)
    q, k, v = p.tensors()
    try:
        if run.mask == DECODE:
            return _of_one_row(run, k, v)
        if run.kernel == "steel":
            kept = None if run.mask == "causal" else kept_pairs(p, run.mask)
            shape = (1, run.heads, run.length, run.length)
            mask = None if kept is None else mx.broadcast_to(mx.array(kept), shape)
            scale = float(run.head_dim) ** -0.5
            _, report = steel_attention(q, k, v, scale, causal=run.mask == "causal", mask=mask)
        elif run.kernel == BACKWARD:
            return _of_gradients(q, k, v)
        else:
            mask_mod: Any = flextrace_mods(p)[1].get(run.mask)
            if run.kernel == "BlockMask":
                mask_mod = flex.create_block_mask(mask_mod, None, None, run.length, run.length)
            with recording() as reports:
                mx.eval(flex.flex_attention(q, k, v, block_mask=mask_mod, kernel_options={"BACKEND": "simulator"}))
            (report,) = reports
    except (CompileError, SimulationError) as error:
        whose = (
            f"MLX's kernel (mlx {importlib.metadata.version('mlx')})" if run.kernel == "steel" else "flextrace's kernel"
        )
        raise BenchError(f"{whose} does not run in the simulator, {run}: {error}") from None
    return _counts(report)


def _of_one_row(run: Run, k: mx.array, v: mx.array) -> dict[str, int]:
    """The counts of both kernels together, and the `steps` of the first: exchanges between its lanes, and barriers,
    that a simdgroup waits for one after the other."""
    if run.kernel == "once":
        bytes_of = {"device_read": k.nbytes + v.nbytes, "kv_read": k.nbytes + v.nbytes}
        return {**dict.fromkeys((*SHOWN, "steps"), 0), **bytes_of}
    q = problem(1, GROUP * run.heads, 1, run.head_dim, run.dtype).tensors()[0]
    if run.kernel == "steel":
        _, reports = sdpa_vector_2pass(q, k, v, float(run.head_dim) ** -0.5, blocks=MLX_BLOCKS)
        groups, simdgroups = MLX_BLOCKS * run.heads, GROUP
    else:
        with recording() as made:
            mx.eval(flex.flex_attention(q, k, v, enable_gqa=True, kernel_options={"BACKEND": "simulator"}))
        reports = (made[0], made[1])
        plan = decode_plan(run.head_dim, run.head_dim, run.dtype, GROUP)
        if plan is None:
            raise BenchError(f"flextrace has no kernel for few rows of head dim {run.head_dim}")
        groups, simdgroups = splits_for(run.heads, run.length) * run.heads, plan.simdgroups
    first, counts = reports[0], [_counts(report) for report in reports]
    total = {name: sum(of_kernel[name] for of_kernel in counts) for name in counts[0]}
    largest = max(of_kernel["threadgroup_allocated"] for of_kernel in counts)
    exchanges = (first.shuffles + first.reductions) // (groups * simdgroups)
    return total | {"threadgroup_allocated": largest, "steps": exchanges + first.threadgroup_barriers // groups}


def _of_gradients(q: mx.array, k: mx.array, v: mx.array) -> dict[str, int]:
    """The counts of all gradient kernels of a dense run; memory of a threadgroup is that of the largest."""

    def attention(q: mx.array, k: mx.array, v: mx.array) -> list[mx.array]:
        return [flex.flex_attention(q, k, v, kernel_options={"BACKEND": "simulator"})]

    with recording() as reports:
        mx.eval(mx.vjp(attention, [q, k, v], [q])[1])
    found = [_counts(report) for report in reports if "backward" in report.kernel]
    total = {name: sum(counts[name] for counts in found) for name in found[0]}
    return total | {"threadgroup_allocated": max(counts["threadgroup_allocated"] for counts in found)}


def _counts(report: Report) -> dict[str, int]:
    parts = {"kv_read": r"[kvKV]|keys|values", "mask_read": r"mask|tile_lists|array\d+|extremes\d+"}
    device = {name: buffer.read for name, buffer in report.buffers.items() if buffer.space == "device"}
    shares = {
        part: sum(read for name, read in device.items() if re.fullmatch(names, name)) for part, names in parts.items()
    }
    return {**report.as_dict(), **shares}


def ratio(found: Mapping[Run, Counts], run: Run, beside: Run, count: str) -> float | None:
    """None beside nothing."""
    return found[run][count] / found[beside][count] if found[beside][count] else None


def measure(runs: Sequence[Run], jobs: int, done: Callable[[Run], None]) -> dict[Run, Counts]:
    """The counts of all runs and of our dense run beside each; `jobs` processes, the longest runs first.

    Raises:
        BenchError: as `simulate`, and where this machine has no simulator.
    """
    check_simulator()
    beside = (run.once if run.mask == DECODE else run.dense for run in runs)
    wanted = sorted({*runs, *beside}, key=Run.work, reverse=True)
    found: dict[Run, Counts] = {}
    for run, counts in _in_order(wanted) if min(jobs, len(wanted)) == 1 else _in_processes(wanted, jobs):
        found[run] = counts
        done(run)
    return found


def check_simulator() -> None:
    """Raises BenchError where this machine cannot run the simulator, or has none of MLX's headers."""
    try:
        compiler()
        include_folder()
    except (SimulatorUnavailable, FileNotFoundError) as error:
        raise BenchError(str(error)) from None


def _in_order(runs: Sequence[Run]) -> Iterator[tuple[Run, Counts]]:
    for run in runs:
        yield run, simulate(run)


def _in_processes(runs: Sequence[Run], jobs: int) -> Generator[tuple[Run, Counts], None, None]:
    """A process of its own per job, because a simulated run owns its process's fault handler."""
    context, others = multiprocessing.get_context("spawn"), set(multiprocessing.active_children())
    interruptible = (signal.SIGINT, signal.SIG_DFL)
    with ProcessPoolExecutor(min(jobs, len(runs)), context, signal.signal, interruptible) as pool:
        futures = {pool.submit(simulate, run): run for run in runs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            if not all(future.done() for future in futures):  # an interrupt, or a run that failed
                for worker in set(multiprocessing.active_children()) - others:
                    worker.terminate()  # a simulated run hears nothing until it ends
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class Target:
    """What is stated of one count of one run: its ratio to `beside` is at most `limit`."""

    run: Run
    count: str
    beside: str
    """"steel", "dense": our own run without the mask, or "once": K and V once"""
    limit: float
    measured: float
    exact: bool = False

    @property
    def met(self) -> bool:
        return self.measured == self.limit if self.exact else self.measured <= self.limit

    def __str__(self) -> str:
        run, whose = self.run, {"steel": "MLX's", "dense": "our dense run's", "once": "K's and V's own"}[self.beside]
        given = "" if run.mask == "none" else f" as {run.kernel}"
        where = f"{run.mask}{given}, L {run.length}, D {run.head_dim}, {run.dtype}"
        limit = f"{'exactly' if self.exact else 'at most'} {self.limit:.3f}x"
        return f"{where}: {self.count} {self.measured:.3f}x {whose}, target {limit}"


ONE_FRAGMENT = 0.8  # threadgroup_read where registers leave a simdgroup one fragment of rows, as MLX's has
Stated = tuple[int, str, str, float, bool]  # length or 0 for all, count, beside, limit, exact
STATED: dict[str, tuple[Stated, ...]] = {  # by mask
    "none": (
        (0, "device_read", "steel", 0.6, False),
        (0, "threadgroup_read", "steel", 0.6, False),
        (0, "matrix_multiplies", "steel", 1.0, True),
    ),
    "causal": ((2048, "device_read", "dense", 0.56, False),),
    "window": ((4096, "device_read", "dense", 0.12, False),),
    DECODE: (
        (0, "kv_read", "once", 1.0, True),
        (0, "device_read", "once", 1.05, False),
        (0, "device_read", "steel", 0.3, False),
        (4096, "steps", "steel", 1.0, False),
    ),
    BACKWARD: (
        (0, "device_read", "dense", 4.0, False),
        (0, "device_written", "dense", 4.0, False),
        (0, "matrix_multiplies", "dense", 3.5, True),  # seven products against two
    ),
}


def targets(found: Mapping[Run, Counts], runs: Sequence[Run]) -> list[Target]:
    """The stated targets of these runs, and of every masked run that K and V are read only for the tiles left."""
    made = []
    for run in runs:
        if run.kernel == "steel":
            continue
        others = {"steel": run.steel, "dense": run.dense, "once": run.once}
        stated = [target[1:] for target in STATED.get(run.mask, ()) if target[0] in (0, run.length)]
        if run.mask not in ("none", BACKWARD, DECODE):
            stated.append(("kv_read", "dense", run.tiles_left(), False))
        for count, whose, limit, exact in stated:
            measured = ratio(found, run, others[whose], count) if others[whose] in found else None
            if count == "threadgroup_read" and plan_for(run.head_dim, run.head_dim, run.dtype).row_fragments == 1:
                limit = ONE_FRAGMENT
            if measured is not None:
                made.append(Target(run, count, whose, limit, measured, exact))
    return made


def rows(found: Mapping[Run, Counts], runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The runs as JSON has them: exact counts, and ratios to MLX's run and to our dense one."""
    made = []
    for run in runs:
        row: dict[str, Any] = {**asdict(run), "tiles_left": run.tiles_left(), "counts": dict(found[run])}
        for name, beside in (("ratio_to_steel", run.steel), ("ratio_to_dense", run.dense)):
            if run.kernel != "steel" and beside in found:
                row[name] = {count: ratio(found, run, beside, count) for count in SHOWN}
        made.append(row)
    return made
