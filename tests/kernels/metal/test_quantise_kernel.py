"""quantise.metal in the simulator, with all checks on: bit for bit as numpy rounds; what it moves, what watches it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest
import quant_reference
import reference
from apparatus import clang_check
from apparatus.quantised import smoothing
from apparatus.simulated import DTYPES, ORDERS
from apparatus.stage_launches import Launched, Recorder
from calls import attention_call

from flextrace.kernels import AttentionCall, QKQuant, Smoothing
from flextrace.kernels.metal import MetalBackend
from flextrace.kernels.metal.device import registers_of
from flextrace.kernels.metal.int8.quantise import Operands, operands
from flextrace.kernels.metal.int8.rounding import HELD, SHARED, Rounding, Runs, row_plan
from flextrace.kernels.metal.text import FOLDER
from flextrace.kernels.simulator import SimulationError, metal_kernel, recording
from flextrace.kernels.template.assemble import assemble

Array = np.ndarray[Any, Any]
SCALE = 0.3
IDS = np.stack([np.repeat([0, 1, 0], [20, 30, 50]), np.repeat([2, 1], [1, 99])])  # the documents of 100 rows


@functools.lru_cache(maxsize=8)
def rounding(order: str = "forward") -> Rounding:
    return Rounding(MetalBackend(functools.partial(metal_kernel, lane_order=order)).load)


def tensor(*shape: int, dtype: str = "float32", seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng([seed, *shape]).normal(size=shape)).astype(getattr(mx, dtype))


def floats(x: mx.array) -> Array:
    return np.array(x.astype(mx.float32))


def special(dtype: str, columns: int = 17) -> mx.array:
    """[2, 3, 100, columns] with large rows, rows of zeros, tiny ones, infinities and a nan."""
    x = floats(tensor(2, 3, 100, columns))
    x[:, :, 10:20] *= 30
    x[0, 1, 40], x[1, 1, 8:12], x[0, 2] = np.inf, 0, 1e-40
    x[1, 2, 7, columns // 2], x[1, 0, 9, 0] = np.nan, -np.inf
    return mx.array(x).astype(getattr(mx, dtype))


def groups_of(ids: Array | None) -> mx.array | None:
    return None if ids is None else mx.array(ids.astype(np.int32))


def means_of(ids: Array | None, columns: int, heads: int = 3) -> Smoothing:
    """Any means will do; those of keys and rows of the same documents."""
    groups = groups_of(ids)
    return Smoothing(tensor(2, heads, 3, columns, seed=5), groups, groups)


# ---- numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.sampled(2)
@pytest.mark.parametrize("ids", [None, IDS[:1], IDS], ids=["one", "shared", "per batch"])
@pytest.mark.parametrize("block", [None, 4, 33, 1000])
def test_whole_numbers_and_scales_are_numpy_s(block: int | None, ids: Array | None) -> None:
    """Bit for bit, whatever a row holds; a run ends where the document changes."""
    turn = [None, 4, 33, 1000].index(block) + (0 if ids is None else len(ids))
    smooth, x = means_of(ids, 17), special(DTYPES[turn % 3])
    whole, scales = rounding(ORDERS[turn % 3]).keys(x, block, smooth)
    assert whole.dtype == mx.int8 and scales.dtype == mx.float32
    documents = np.zeros((1, 100), int) if ids is None else ids
    for b, h in np.ndindex(2, 3):
        of_batch = documents[b % len(documents)]
        row = floats(x)[b, h] - np.array(smooth.means)[b, h, of_batch]
        want = quant_reference.quantise(row, block or 1, of_batch)
        np.testing.assert_array_equal(np.array(scales)[b, h], want.scale.astype(np.float32))
        np.testing.assert_array_equal(np.array(whole)[b, h], want.integers)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("ids", [None, IDS], ids=["one", "per batch"])
@pytest.mark.parametrize("columns", [17, 300])
@pytest.mark.parametrize("block", [None, 33, 1000])
def test_queries_with_means_of_their_own(block: int | None, columns: int, ids: Array | None) -> None:
    """block: of both; None: each row has a scale. Wide rows do not stay in registers."""
    turn = [None, 33, 1000].index(block)
    smooth, x = means_of(ids, columns, heads=1), special(DTYPES[turn], columns)
    own = Runs.of(100, block or 9, groups_of(ids))
    assert row_plan(100, columns, own.block).once == (columns == 17)
    got = rounding(ORDERS[turn]).queries(x, block, smooth, SCALE, own)
    assert got.out.dtype == x.dtype
    documents = np.zeros((1, 100), int) if ids is None else ids
    runs, own_means = np.array(own.of_row), np.array(got.own_means)
    for b, h in np.ndindex(2, 3):
        of_batch, row = documents[b % len(documents)], floats(x)[b, h]
        means = own_means[b, h, runs[b % len(runs)]]
        np.testing.assert_allclose(means, quant_reference.query_means(row, of_batch, own.block), 1e-5, 1e-5)
        with np.errstate(invalid="ignore"):
            want = quant_reference.quantise(row - means, block or 1, of_batch)
            terms = SCALE * (row.astype(np.float64) * np.array(smooth.means)[b, 0, of_batch]).sum(axis=-1)
        np.testing.assert_array_equal(np.array(got.scales)[b, h], want.scale.astype(np.float32))
        np.testing.assert_array_equal(floats(got.out)[b, h], want.integers)
        np.testing.assert_allclose(np.array(got.terms)[b, h], np.where(np.isfinite(terms), terms, 0), 1e-5, 1e-4)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", DTYPES)
def test_smoothing_alone(dtype: str) -> None:
    """Keys keep their dtype, and what is not finite; a mean that is not finite counts as zero."""
    smooth, x = means_of(IDS, 17), special(dtype)
    infinite = np.array(smooth.means)
    infinite[1, 0, 2, 3], infinite[1, 0, 1, 4] = np.inf, np.nan
    smooth = Smoothing(mx.array(infinite), smooth.key_groups, smooth.row_groups)
    order = ORDERS[DTYPES.index(dtype)]
    got, terms = rounding(order).smoothed_keys(x, smooth), rounding(order).row_terms(x, smooth, SCALE)
    means = np.where(np.isfinite(infinite), infinite, 0)
    of_row = np.stack([means[b][:, IDS[b]] for b in range(2)])
    assert got.dtype == x.dtype
    np.testing.assert_array_equal(floats(got), floats(mx.array(floats(x) - of_row).astype(x.dtype)))
    with np.errstate(invalid="ignore"):
        want = SCALE * (floats(x).astype(np.float64) * of_row).sum(axis=-1)
    np.testing.assert_allclose(np.array(terms), np.where(np.isfinite(want), want, 0), 1e-5, 1e-4)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 1, 3, 2), (1, 2, 5, 64), (2, 1, 9, 130)], ids=str)
def test_any_size_strides_and_broadcast(shape: tuple[int, ...]) -> None:
    """Few elements, any layout, and one batch of keys for two of groups and means."""
    batch, heads, rows, columns = shape
    x = tensor(rows, columns, heads, batch, dtype="float16").transpose(3, 2, 0, 1)
    ids = np.random.default_rng(0).integers(0, 3, (2 // batch, rows)).cumsum(axis=1) % 3
    means = tensor(columns, 3, 2, heads).transpose(2, 3, 1, 0)
    smooth = Smoothing(means, groups_of(ids), groups_of(ids))
    plain = Smoothing(mx.contiguous(means), smooth.key_groups, smooth.row_groups)
    both = mx.contiguous(mx.broadcast_to(x, (2, *shape[1:])))
    for block in (None, 3):
        whole, scales = rounding().keys(x, block, smooth)
        other, other_scales = rounding("reverse").keys(both, block, plain)
        assert mx.array_equal(whole, other) and mx.array_equal(scales, other_scales)
    whole, _ = rounding().keys(x, 1, None)
    assert abs(np.array(whole)).max() == 127 and whole.shape == shape


# ---- all of a call ------------------------------------------------------------------------------------------------


def made(call: AttentionCall, kernel: Callable[..., Any] = metal_kernel) -> Operands:
    return operands(call, Rounding(MetalBackend(kernel).load), MetalBackend(kernel).stages())


@pytest.mark.sampled(3)
@pytest.mark.parametrize("quant", [QKQuant("row"), QKQuant("block", smooth_q=True, q_block=33, k_block=10)], ids=str)
@pytest.mark.parametrize("documents", [False, True])
def test_the_scores_of_operands_are_numpy_s(documents: bool, quant: QKQuant) -> None:
    """(q . k * row_scales * key_scales + mean_scores[mean_rows]) * scale, and row_terms; keys of two query heads."""
    q, k = tensor(2, 4, 100, 17), tensor(2, 2, 100, 17, seed=1) + 5 * tensor(1, 2, 1, 17, seed=2)
    ids = IDS if documents else None
    call = attention_call(q, k, k, SCALE, quant=quant, smoothing=smoothing(k, ids, ids))
    got = made(call)
    want = quant_reference.scores(np.array(q), np.array(k), quant, SCALE, ids, ids)
    whole, key_scales = (np.repeat(floats(x), 2, axis=1) for x in (got.k, got.key_scales))
    scores = floats(got.q) @ whole.swapaxes(-1, -2) * np.array(got.row_scales)[..., None] * key_scales[:, :, None]
    if quant.smooth_q:
        assert got.mean_scores.shape[-1] == 100
        scores = scores + np.array(got.mean_scores).reshape(-1, 100)[np.array(got.mean_rows)]
    kept = np.ones((2, 1, 100, 100), bool) if ids is None else (ids[:, :, None] == ids[:, None])[:, None]
    np.testing.assert_allclose(*(np.where(kept, x, 0) for x in (scores * SCALE, want.scores)), 1e-4, 5e-3)
    reference.assert_close(got.row_terms, want.term, 1e-4, 1e-5, "terms")


def test_ready_made_keys_stay_as_they_are() -> None:
    """Only q is launched, by rows, with the term of the means that its keys lack."""
    q, whole, scales = tensor(2, 4, 30, 17), mx.zeros((1, 2, 50, 17), mx.int8), mx.ones((1, 2, 60))[..., :50]
    means = tensor(1, 2, 1, 17, seed=3)
    for smooth in (None, Smoothing(means)):
        call = attention_call(q, whole, whole, SCALE, quant=QKQuant("row", smooth_k=False), smoothing=smooth)
        call = call._replace(k_scales=scales)
        with recording() as reports:
            got = made(call)
        assert got.k is whole and got.key_scales is scales and len(reports) == 1
        want = SCALE * (np.array(q) * np.repeat(np.array(means), 2, axis=1)).sum(axis=-1)
        assert (got.row_terms is None) == (smooth is None)
        if got.row_terms is not None:
            reference.assert_close(got.row_terms, want, 1e-5, 1e-5, "terms")
        for b, h in np.ndindex(2, 4):
            rows = quant_reference.quantise(np.array(q)[b, h], 1, np.zeros(30))
            np.testing.assert_array_equal(floats(got.q)[b, h], rows.integers)


# ---- what it moves ------------------------------------------------------------------------------------------------


class Moved(NamedTuple):
    read: dict[str, int]
    written: dict[str, int]


def moved(run: Callable[[Rounding], Any]) -> Moved:
    """Bytes of buffers in device memory, without zeros and the launch's words."""
    with recording() as reports:
        run(rounding())
    assert len(reports) == 1
    device = {name: b for name, b in reports[0].buffers.items() if b.space == "device" and name != "params"}
    read, written = ({n: getattr(b, w) for n, b in device.items() if getattr(b, w)} for w in ("read", "written"))
    return Moved(read, written)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("block", [None, 64])
def test_a_key_is_read_once_and_written_once(block: int | None) -> None:
    k = tensor(1, 2, 128, 64, dtype="float16")
    smooth = smoothing(k)
    assert moved(lambda r: r.keys(k, block, None)) == ({"x": k.nbytes}, {"out": k.nbytes // 2, "scales": 2 * 128 * 4})
    read, written = moved(lambda r: r.keys(k, block, smooth))
    assert written == {"out": k.nbytes // 2, "scales": 2 * 128 * 4}
    # 4 rows of a simdgroup share one read of the mean.
    assert read == {"x": k.nbytes, "means": 2 * 128 // 4 * 64 * 4}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("block", [None, 128])
def test_a_query_is_read_once_and_written_once(block: int | None) -> None:
    q = tensor(1, 2, 128, 64, dtype="float16")
    own, numbers = Runs.of(128, 128, None), 2 * 128 * 4
    read, written = moved(lambda r: r.queries(q, block, smoothing(q), SCALE, own))
    assert read["x"] == q.nbytes and set(read) == {"x", "means"}
    assert written == {"out": q.nbytes, "scales": numbers, "terms": numbers, "own_means": 2 * 64 * 4}
    assert set(moved(lambda r: r.row_terms(q, smoothing(q), SCALE)).written) == {"terms"}
    assert moved(lambda r: r.smoothed_keys(q, smoothing(q))).written == {"out": q.nbytes}


OTHER_REGISTERS = 20  # addresses and extremes: there are neither products nor a walk


@pytest.mark.parametrize("columns", [1, 40, 64, 128, 256, 520, 3000])
@pytest.mark.parametrize("block", [None, 1, 20, 64, 128, 100000])
def test_a_plan_fits_registers_and_threadgroup_memory(columns: int, block: int | None) -> None:
    plan = row_plan(1000, columns, block)
    assert plan.width * 32 >= columns and plan.held * plan.width <= max(HELD, plan.width)
    assert plan.team == 1 or plan.team * plan.width <= SHARED
    assert plan.once == (plan.team * plan.held >= plan.block) and plan.threads <= 512
    assert plan.held * plan.width + OTHER_REGISTERS <= registers_of(plan.threads), "as the pipelines of M1 have them"
    assert 8 * plan.team * (plan.width * 32 + 1) <= 17 * 1024 or plan.team == 1
    if columns <= 128 and block in (None, 64, 128):
        assert plan.once, "the usual sizes are read once"


# ---- the checks watch ---------------------------------------------------------------------------------------------

BARRIER = "metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);"


def broken(right: str, wrong: str, which: int = 1) -> Rounding:
    def factory(**definition: Any) -> Any:
        parts = definition["header"].split(right)
        assert len(parts) > which, right
        definition["header"] = right.join(parts[:which]) + wrong + right.join(parts[which:])
        return metal_kernel(**definition | {"name": definition["name"] + "_broken"})

    return Rounding(MetalBackend(factory).load)


def by_blocks(kernel: Rounding) -> Any:
    return kernel.keys(tensor(1, 1, 100, 17), 40, means_of(IDS[:1], 17, heads=1))


def by_means(kernel: Rounding) -> Any:
    return kernel.queries(tensor(1, 1, 100, 17), None, None, SCALE, Runs.of(100, 40, groups_of(IDS[:1])))


def by_means_of_documents(kernel: Rounding) -> Any:
    smooth = means_of(IDS[:1], 17, heads=1)
    return kernel.queries(tensor(1, 1, 100, 17), None, smooth, SCALE, Runs.of(100, 40, smooth.row_groups))


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("run", "which"), [(by_blocks, 1), (by_means, 2)])
def test_every_barrier_is_needed(run: Callable[[Rounding], Any], which: int) -> None:
    assert assemble(FOLDER, "int8/quantise.metal", {}).count(BARRIER) == 2
    run(rounding())
    with pytest.raises(SimulationError, match="race|uninitialised"):
        run(broken(BARRIER, ";", which))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("run", [by_blocks, by_means_of_documents])
def test_both_halves_of_threadgroup_memory_are_needed(run: Callable[[Rounding], Any]) -> None:
    with pytest.raises(SimulationError, match="race"):
        run(broken("turn ^= 1;", ""))


BOUNDS = [
    ("column < columns ? float(*from.at(row, column)) : 0.0f", "float(*from.at(row, column))"),
    ("if (column < columns) to[", "to["),
    ("return row(r) < end;", "return row(r) < end + 4;"),
    ("own < end && *numbers", "*numbers"),
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("right", "wrong"), BOUNDS)
def test_every_bound_is_needed(right: str, wrong: str) -> None:
    with pytest.raises(SimulationError, match="out of bounds|overlapping"):
        broken(right, wrong).keys(tensor(1, 1, 100, 17), None, means_of(IDS[:1], 17, heads=1))


# ---- address spaces -----------------------------------------------------------------------------------------------


def every_launch() -> list[Launched]:
    recorder = Recorder()
    kernel = Rounding(MetalBackend(recorder).load)
    for dtype, columns, block in (("float16", 64, None), ("bfloat16", 300, 33), ("float32", 17, 33)):
        x, smooth = tensor(2, 3, 100, columns, dtype=dtype), means_of(IDS, columns)
        kernel.keys(x, block, smooth)
        kernel.queries(x, block, smooth, SCALE, Runs.of(100, 33, smooth.row_groups))
        kernel.queries(x, block, None, SCALE, None)
    kernel.smoothed_keys(x, smooth)
    kernel.row_terms(x, smooth, SCALE)
    return recorder.launches


@clang_check.needs_clang
def test_address_spaces(tmp_path: Path) -> None:
    for launched in every_launch():
        assert clang_check.complaints(launched.instance(), tmp_path) == ""
    for launched in every_launch()[:2]:
        assert clang_check.unqualified_pointers(launched.instance(), tmp_path) == []
        assert clang_check.narrow_offsets(launched.instance(), tmp_path) == []


MISTAKES = [
    ("threadgroup float* shared, int half_size", "device float* shared, int half_size"),
    ("device O* to, int columns", "threadgroup O* to, int columns"),
    ("const constant int64_t* x_strides", "const device int64_t* x_strides"),
    ("device float* terms) const thread", "thread float* terms) const thread"),
]


@clang_check.needs_clang
@pytest.mark.parametrize(("right", "wrong"), MISTAKES)
def test_clang_finds_planted_mistakes(right: str, wrong: str, tmp_path: Path) -> None:
    source = every_launch()[0].instance()
    assert right in source
    assert "error:" in clang_check.complaints(source.replace(right, wrong, 1), tmp_path)
