"""The fused kernel decides tiles of a mask_mod from bounds: it visits what the BlockMask lists, and asks little."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import reference
import zoo
from apparatus.simulated import ORDERS, backend, broken, inputs
from calls import attention_call, formulas, run_on

import flextrace as flex
from flextrace.kernels.gpu.extremes import BLOCK, extremes_of_blocks
from flextrace.kernels.metal import MetalBackend
from flextrace.kernels.metal.attention.plan import plan_for
from flextrace.kernels.metal.device import MAX_BUFFERS
from flextrace.kernels.metal.generate import buffers, kernel_text
from flextrace.kernels.metal.kernel import capture_kinds
from flextrace.kernels.simulator import SimulationError, recording

DIM = 8


def report_of(mask: Any, q_len: int, kv_len: int, heads: int = 1, batch: int = 1, on: Any = None, blocks: Any = None):
    """(result, report) of a run with all checks on."""
    q, k, v = inputs((batch, heads, q_len, DIM, batch, heads, kv_len, DIM), "float32")
    with recording() as reports:
        result = run_on((on or backend()), attention_call(q, k, v, 1.0, None, flex.mask_mod(mask).bind(), blocks))
    return result, reports[-1]


def check(mask: Any, plain: Any, q_len: int, kv_len: int, on: Any = None) -> Any:
    """The report of a run whose numbers are right."""
    result, report = report_of(mask, q_len, kv_len, on=on)
    arrays = inputs((1, 1, q_len, DIM, 1, 1, kv_len, DIM), "float32")
    want = reference.attention(*(np.array(x).astype(np.float64) for x in arrays), None, plain, 1.0)
    reference.assert_close(result.out, want.out, 2e-5, 2e-5, "out")
    return report


def alive(dense: np.ndarray, rows: int, keys: int) -> np.ndarray:
    """bool [.., row tiles, key tiles]: has the tile anything to attend to?"""
    *_, q_len, kv_len = dense.shape
    over_rows = np.logical_or.reduceat(dense, np.arange(0, q_len, rows), axis=-2)
    return np.logical_or.reduceat(over_rows, np.arange(0, kv_len, keys), axis=-1)


# ---- what is visited ----------------------------------------------------------------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize("block_mask", [False, True], ids=["mask_mod", "BlockMask"])
@pytest.mark.parametrize("entry", zoo.MASK_MODS, ids=str)
def test_tiles_visited_are_those_of_the_dense_mask(entry: zoo.Entry, block_mask: bool) -> None:
    """K is read tile by tile of a threadgroup, products are made tile by tile of a simdgroup; neither more nor less."""
    batch, heads, q_len, kv_len = 2, 2, 150, 210
    mask = entry.make(batch, heads, q_len, kv_len, np.random.default_rng(0))
    dense = np.array(flex.create_mask(flex.mask_mod(mask), batch, heads, q_len, kv_len))
    blocks = flex.create_block_mask(flex.mask_mod(mask), batch, heads, q_len, kv_len).blocks if block_mask else None
    _, report = report_of(mask, q_len, kv_len, heads, batch, blocks=blocks)
    plan = plan_for(DIM, DIM, "float32")
    rows, fragments = plan.row_fragments * 8, plan.row_fragments * plan.bk // 8
    keys = np.minimum(plan.bk, kv_len - np.arange(0, kv_len, plan.bk))
    assert report.buffers["k"].read == (alive(dense, plan.bq, plan.bk) * keys).sum() * DIM * 4
    assert report.matrix_multiplies == alive(dense, rows, plan.bk).sum() * fragments * 2 * DIM // 8


@pytest.mark.sampled(2)
@pytest.mark.parametrize("order", ORDERS)
def test_a_band_of_a_long_sequence_is_found_at_once(order: str) -> None:
    """32,768 keys are decided per step of 32 stretches; the band lies in the third."""
    q_len, kv_len, before = 40, 70_000, 69_000

    def band(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return (kv_idx - q_idx >= before) & (kv_idx - q_idx < before + 50)

    plan = plan_for(DIM, DIM, "float32")
    assert 2 * 32 * 32 * plan.bk < before < kv_len < 3 * 32 * 32 * plan.bk
    report = check(band, band, q_len, kv_len, backend(order))
    tiles = alive(band(0, 0, np.arange(q_len)[:, None], np.arange(kv_len)), plan.bq, plan.bk).sum()
    assert report.buffers["k"].read == tiles * plan.bk * DIM * 4
    # K and V of each tile, the first load, and the votes on its one or two stretches with open tiles
    assert 2 * tiles < report.threadgroup_barriers <= 2 * tiles + 3


def test_a_stretch_that_is_whole_is_not_asked_about() -> None:
    table = mx.array(np.arange(4096, dtype=np.int32))

    def early(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return table[kv_idx] < 2048

    report = check(early, lambda b, h, q_idx, kv_idx: kv_idx < 2048, 32, 4096)
    assert report.buffers["array0"].read == 0
    pairs = 4 * 32 * 4096 // 32 // BLOCK  # each of four simdgroups reads the pairs of 4 stretches, one lane each
    assert report.buffers["extremes0"].read == 8 * pairs


# ---- what is asked ------------------------------------------------------------------------------------------------


def documents(ids: np.ndarray) -> tuple[Any, Any]:
    document = mx.array(ids)
    return (
        lambda b, h, q_idx, kv_idx: document[q_idx] == document[kv_idx],
        lambda b, h, q_idx, kv_idx: ids[q_idx] == ids[kv_idx],
    )


def test_documents_of_whole_tiles_are_never_looked_at() -> None:
    """Bounds decide all of it: no element is read, only the extremes of blocks."""
    length, plan = 512, plan_for(DIM, DIM, "float32")
    report = check(*documents(np.arange(length, dtype=np.int32) // 64), length, length)
    assert report.buffers["array0"].read == 0
    stretch = (plan.bq + length) // BLOCK  # pairs: of the rows, and of all keys in one lane
    tiles = length // plan.bk * (plan.bq + plan.bk) // BLOCK  # then of the rows and a tile of keys in each lane
    assert report.buffers["extremes0"].read == length // plan.bq * plan.simdgroups * (stretch + tiles) * 8


def test_only_open_tiles_are_surveyed() -> None:
    """Those in which a simdgroup has two documents, once to decide them, and once more as they are masked."""
    length, plan = 1024, plan_for(DIM, DIM, "float32")
    ids = np.searchsorted([100, 333, 700, 930], np.arange(length), side="right").astype(np.int32)
    report = check(*documents(ids), length, length)
    low, high = (f.reduceat(ids, np.arange(0, length, plan.row_fragments * 8)) for f in (np.minimum, np.maximum))
    key_low, key_high = (f.reduceat(ids, np.arange(0, length, plan.bk)) for f in (np.minimum, np.maximum))
    touching = (low[:, None] <= key_high) & (key_low <= high[:, None])
    open_tiles = int((touching & ((low != high)[:, None] | (key_low != key_high))).sum())
    of_lane = plan.row_fragments * (1 + plan.bk // 4)  # each row once, and its keys
    survey = open_tiles * 32 * of_lane * 4
    assert open_tiles < 0.2 * touching.size
    # The rows of a simdgroup are fewer than a block has: for their bounds they are read as they are.
    rows = 4 * open_tiles * plan.row_fragments * 8 * 4
    assert survey <= report.buffers["array0"].read <= 2 * survey + rows


def test_a_mask_that_bounds_do_not_decide_is_asked_about_once() -> None:
    """The survey's answer is kept for the tile that it surveyed last."""
    rng = np.random.default_rng(0)
    table = rng.integers(0, 2, size=(64, 32)).astype(np.int32)
    given = mx.array(table)
    report = check(
        lambda b, h, q_idx, kv_idx: given[q_idx, kv_idx] > 0,
        lambda b, h, q_idx, kv_idx: table[q_idx, kv_idx] > 0,
        64,
        32,
    )
    assert report.buffers["array0"].read == table.nbytes


def test_only_the_last_tile_masks_what_lies_beyond_the_keys() -> None:
    """A mask that keeps everything is asked nothing, a ragged last tile included."""
    limit = mx.full(200, 1000)
    for keys in (192, 186):
        q, k, v = inputs((1, 1, 64, 16, 1, 1, keys, 16), "float32")
        mask = flex.mask_mod(lambda b, h, q_idx, kv_idx: limit[kv_idx] > q_idx).bind()
        with recording() as reports:
            got = run_on(backend(), attention_call(q, k, v, 1.0, None, mask)).out
            want = run_on(backend(), attention_call(q, k, v, 1.0)).out
        scanned = 4 * (keys % 32) * 4 * 2  # the ragged tile, for its bounds
        assert reports[0].buffers["array0"].read <= scanned
        assert mx.array_equal(got, want)


def test_captures_in_the_constant_address_space_are_scanned() -> None:
    ids = np.array([0, 0, 1, 1, 2], np.int32)
    small = mx.array(ids)
    report = check(
        lambda b, h, q_idx, kv_idx: small[q_idx // 40] == small[kv_idx // 40],
        lambda b, h, q_idx, kv_idx: ids[np.minimum(q_idx // 40, 4)] == ids[np.minimum(kv_idx // 40, 4)],
        200,
        200,
    )
    assert "extremes0" not in report.buffers


# ---- the checks watch ---------------------------------------------------------------------------------------------


def open_everywhere(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    """Bounds decide nothing, and nothing is kept before the last keys: surveys follow on each other."""
    return (mx.sin(q_idx * 1.0) > 2.0) | (kv_idx > 4000)


def test_votes_alternate_between_two_places() -> None:
    report_of(open_everywhere, 70, 4090)
    with pytest.raises(SimulationError, match="race"):
        report_of(open_everywhere, 70, 4090, on=broken("turn ^= 1;", ";"))


def test_a_place_outside_the_array_is_caught() -> None:
    """An index of the mask may lie beyond the captured array, and its bounds with it."""
    ids = np.arange(100, dtype=np.int32) // 10
    mask, _ = documents(ids)
    right, wrong = "  Range place = inside(index, shape[0]);\n  Data of_line", "  Range place = index;\n  Data of_line"
    report_of(mask, 32, 500)
    with pytest.raises(SimulationError, match="out of bounds"):
        report_of(mask, 32, 500, on=broken(right, wrong))


# ---- extremes of blocks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["bool_", "int8", "uint16", "int32", "uint32", "int64", "float16", "bfloat16", "float32"]
)
@pytest.mark.parametrize("shape", [(5,), (32,), (100,), (3, 70), (2, 3, 33)], ids=str)
def test_extremes_of_blocks(shape: tuple[int, ...], kind: str) -> None:
    values = np.random.default_rng(0).integers(0, 2 if kind == "bool_" else 100, size=shape)
    got = extremes_of_blocks(mx.array(values).astype(getattr(mx, kind)))
    blocks = -(-shape[-1] // BLOCK)
    padded = np.pad(values, [(0, 0)] * (len(shape) - 1) + [(0, blocks * BLOCK - shape[-1])], mode="edge")
    padded = padded.reshape(*shape[:-1], blocks, BLOCK)
    want = np.stack([padded.min(axis=-1), padded.max(axis=-1)], axis=-1)
    assert got.dtype == (mx.float32 if "float" in kind else mx.int32)
    np.testing.assert_array_equal(np.array(got)[: want.size], want.reshape(-1))
    assert got.size >= 8, "or MLX passes it in the constant address space"


def test_a_block_with_a_nan_says_nothing() -> None:
    values = np.arange(96, dtype=np.float32)
    values[40], values[80] = np.nan, np.inf
    got = np.array(extremes_of_blocks(mx.array(values)))[:6].reshape(3, 2)
    assert got[0].tolist() == [0, 31] and np.isinf(got[1:]).all()
    values[70] = -5
    level = mx.array(values)
    check(lambda b, h, q_idx, kv_idx: level[kv_idx] <= 1e9, lambda b, h, q_idx, kv_idx: values[kv_idx] <= 1e9, 40, 96)
    check(lambda b, h, q_idx, kv_idx: level[kv_idx] >= 0, lambda b, h, q_idx, kv_idx: values[kv_idx] >= 0, 40, 96)


def test_views_and_negative_indices() -> None:
    """A strided table with batch and head in front, read backwards."""
    rng = np.random.default_rng(0)
    table = np.cumsum(rng.integers(0, 2, size=(400, 2)), axis=0).astype(np.int32)
    view, exact = mx.array(table).T[:, ::2], table.T[:, ::2]
    check(
        lambda b, h, q_idx, kv_idx: view[1, q_idx] >= view[h, -1 - kv_idx],
        lambda b, h, q_idx, kv_idx: exact[1, q_idx] >= exact[h, -1 - kv_idx],
        150,
        190,
    )


def test_arrays_without_a_buffer_for_their_extremes_are_scanned() -> None:
    ids = [np.arange(200, dtype=np.int32) // n for n in (20, 30, 40, 50, 60, 70)]
    tables = [mx.array(x) for x in ids]

    def same(arrays: Any) -> Any:
        def mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            keep = arrays[0][q_idx] == arrays[0][kv_idx]
            for array in arrays[1:]:
                keep = keep | (array[q_idx] == array[kv_idx])
            return keep

        return mask

    text = kernel_text(formulas(None, flex.mask_mod(same(tables)).trace()))
    assert len(buffers(text)) == MAX_BUFFERS and text.extremes == (0,) and not text.packed
    report = check(same(tables), same(ids), 200, 200)
    assert report.buffers["extremes0"].read > 0 and report.buffers["array1"].read > 0


def test_a_table_much_larger_than_the_scores_is_not_gone_through() -> None:
    ids = np.arange(100_000, dtype=np.int32) // 10
    report = check(*documents(ids), 20, 30)
    assert "extremes0" not in report.buffers


def test_extremes_are_lazy_inside_compile() -> None:
    launches: list[dict[str, Any]] = []

    def factory(**definition: Any) -> Any:
        def launch(**arguments: Any) -> list[mx.array]:
            launches.append(definition | arguments)
            total = sum(x.astype(mx.float32).sum() for x in arguments["inputs"][-2:])
            shapes = zip(arguments["output_shapes"], arguments["output_dtypes"], strict=True)
            return [mx.full(shape, total).astype(dtype) for shape, dtype in shapes]

        return launch

    lazy = MetalBackend(factory)

    @mx.compile
    def compiled(q: mx.array, document: mx.array) -> mx.array:
        mask = flex.mask_mod(lambda b, h, q_idx, kv_idx: document[q_idx] == document[kv_idx]).bind()
        return run_on(lazy, attention_call(q, q, q, 1.0, None, mask)).out

    q = mx.ones((1, 1, 70, 16))
    first, second = (compiled(q, mx.arange(100) // n) for n in (20, 5))
    (launch,) = launches
    assert launch["input_names"][-2:] == ["array0", "extremes0"]
    assert launch["inputs"][-1].shape == (8,)
    assert not mx.array_equal(first, second), "computed at every call"


# ---- names --------------------------------------------------------------------------------------------------------


def test_a_kernel_s_name_tells_the_types_of_its_captures() -> None:
    """They are in the signature that MLX writes, and not in the text."""
    names: list[str] = []

    def factory(**definition: Any) -> Any:
        names.append(definition["name"])
        return lambda **arguments: [mx.zeros(shape) for shape in arguments["output_shapes"]]

    lazy, q = MetalBackend(factory), mx.ones((1, 1, 32, 8))
    for kind in (mx.int32, mx.int16, mx.int32, mx.uint8):
        table = mx.zeros(100, kind)
        mask = flex.mask_mod(lambda b, h, q_idx, kv_idx, table=table: table[kv_idx] == 0).bind()
        run_on(lazy, attention_call(q, q, q, 1.0, None, mask))
    stem, *rest = (name.rpartition("_d_") for name in names)
    assert [stem[2], *(x[2] for x in rest)] == ["int32", "int16", "uint8"]
    assert {x[0] for x in rest} == {stem[0]}
    assert capture_kinds([mx.zeros(3), np.zeros(9, np.int8)]) == "_c_float32_d_int8"
