"""ASYNC_COPY "intrinsic": the kernel that copies tiles by simdgroup_async_copy, in the simulator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest
from apparatus import clang_check
from apparatus.mods import traces
from apparatus.simulated import DTYPES, ORDERS, SHAPES, backend, check, inputs
from calls import attention_call, formulas, run_on

import flextrace as flex
from flextrace.kernels import AttentionCall
from flextrace.kernels.gpu.tile_lists import CUT_TILES, NO_BLOCKS
from flextrace.kernels.metal.async_copy.probe import why_no_async_copy
from flextrace.kernels.metal.attention.plan import plan_for
from flextrace.kernels.metal.generate import kernel_text
from flextrace.kernels.simulator import SimulationError, SimulatorBackend, metal_kernel

# ---- numbers ------------------------------------------------------------------------------------------------------

CASES = [
    ((), "ragged"),
    (("softcap", "document_ids"), "gqa"),
    (("relative_bias", "empty_rows"), "odd_dims"),
    (("alibi", "causal"), "kv_batch_one"),
    ((), "one"),
    (("causal",), "tile_edges"),
    ((), "dim_80"),
    ((), "dim_192"),
    (("causal",), "dim_256"),
    ((), "dim_520"),
]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("names", "shape"), CASES, ids=lambda x: "-".join(x) if isinstance(x, tuple) else x)
def test_numbers(names: tuple[str, ...], shape: str) -> None:
    """Each case in one dtype and lane order, turning."""
    turn = CASES.index((names, shape))
    check(SHAPES[shape], DTYPES[turn % 3], names, ORDERS[(turn // 3) % len(ORDERS)], async_copy=True)


@pytest.mark.long
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("order", ORDERS)
def test_numbers_of_every_shape(shape: str, dtype: str, order: str) -> None:
    for names in ((), ("alibi", "causal")):
        check(SHAPES[shape], dtype, names, order, async_copy=True)


@pytest.mark.parametrize("order", ORDERS)
def test_lane_orders_with_a_block_mask(order: str) -> None:
    check((1, 2, 100, 24, 1, 1, 140, 24), "float32", ("alibi", "document_ids"), order, (5, 11), async_copy=True)


def test_a_tile_beyond_the_last_value_column_reads_what_exists() -> None:
    plan = plan_for(8, 641, "float32")
    assert plan.bv * plan.value_tiles * plan.value_slices - plan.value_dim >= plan.bv, "a tile has no column"
    check((1, 1, 9, 8, 1, 1, 33, 641), "float32", async_copy=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_to_the_pipelined_kernel_bit_for_bit(dtype: str) -> None:
    q, k, v = inputs(SHAPES["ragged"], dtype)
    calls = [attention_call(q, k, v, 0.3, want_lse=True, async_copy=way) for way in (False, True)]
    one, other = (run_on(backend(), call) for call in calls)
    assert one.lse is not None and other.lse is not None
    assert mx.array_equal(one.out, other.out) and mx.array_equal(one.lse, other.lse)


# ---- the checks watch ---------------------------------------------------------------------------------------------


def broken(right: str, wrong: str, which: int = 1) -> SimulatorBackend:
    """The kernel with the `which`-th occurrence of `right` replaced; the probe stays as it is."""

    def factory(**definition: Any) -> Any:
        if definition["name"].startswith("flextrace_attention"):
            parts = definition["header"].split(right)
            assert len(parts) > which, right
            definition["header"] = right.join(parts[:which]) + wrong + right.join(parts[which:])
            definition["name"] += "_broken"
        return metal_kernel(**definition)

    return SimulatorBackend(factory)


WAIT = "if (index < LANES) wait_for_simdgroup_copies(1, &event);"
BARRIER = "metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);"


def call_of(view: Callable[[mx.array], mx.array] = lambda x: x) -> AttentionCall:
    q, k, v = inputs((1, 1, 70, 64, 1, 1, 1100, 64), "float32")  # more than one survey of 32 tiles
    mask = flex.mask_mod(lambda b, h, q_idx, kv_idx: kv_idx > 1060).bind()  # the first survey finds nothing
    return attention_call(q, view(k), view(v), 1.0, None, mask, async_copy=True)


def test_a_missing_wait_is_caught() -> None:
    with pytest.raises(SimulationError, match="an asynchronous copy that nobody waited for"):
        run_on(broken(WAIT, ""), call_of())


NOT_READ = "an asynchronous copy whose tile nobody reads"
ONE_MORE = [
    ("        if (following.exists) tiles.read_keys(", "        tiles.read_keys("),
]


def ahead_of_the_end(backend: SimulatorBackend) -> SimulatorBackend:
    """With a copy of the tile that would follow the last one, as a prefetch that does not look writes it."""
    factory = backend.metal_kernel

    def changed(**definition: Any) -> Any:
        if definition["name"].startswith("flextrace_attention"):
            for right, wrong in ONE_MORE:
                assert definition["header"].count(right) == 1, right
                definition["header"] = definition["header"].replace(right, wrong)
            definition["name"] += "_ahead"
        return factory(**definition)

    return SimulatorBackend(changed)


@pytest.mark.parametrize("order", ORDERS)
def test_a_copy_ahead_of_the_end_is_caught(order: str) -> None:
    q, k, v = inputs((1, 1, 20, 16, 1, 1, 70, 16), "float32")
    for mod in (None, flex.mask_mod(lambda b, h, q_idx, kv_idx: kv_idx < 40).bind()):  # the loop ends early
        call = attention_call(q, k, v, 1.0, None, mod, async_copy=True)
        run_on(backend(order), call)
        with pytest.raises(SimulationError, match=NOT_READ):
            run_on(ahead_of_the_end(backend(order)), call)


def test_a_tile_that_nobody_multiplies_is_caught() -> None:
    header = kernel_text().header
    used = "if (tile.live && !special) "
    read = header[header.index("const bool special = ") : header.index(used + "multiply_values<V, P>(") + len(used)]
    unused = read.replace(read[: read.index(";")], "const bool special = false").replace(used, "if (false) ")
    with pytest.raises(SimulationError, match=NOT_READ):
        run_on(broken(read, unused), call_of())


def test_the_probe_holds_to_the_rules() -> None:
    """One simdgroup needs no barrier for its numbers, but the copy does."""

    def without(right: str, wrong: str) -> str | None:
        def factory(**definition: Any) -> Any:
            head, tail = definition["header"].rsplit(right, 1)
            return metal_kernel(**definition | {"header": head + wrong + tail, "name": "probe_broken"})

        return why_no_async_copy(factory)

    assert why_no_async_copy(metal_kernel) is None
    assert "no threadgroup_barrier between" in (without(BARRIER, "") or "")
    read = "staged[i / FRAGMENT * Leading<float, FRAGMENT>::value + i % FRAGMENT]"
    assert "nobody reads" in (without(read, "float(i)") or "")


@pytest.mark.parametrize("which", [1, 2])
def test_every_barrier_is_needed(which: int) -> None:
    assert kernel_text(async_copy=True).header.count(BARRIER) == 2
    with pytest.raises(SimulationError, match="race|uninitialised"):
        run_on(broken(BARRIER, ";", which), call_of())


MISTAKES = [
    ("rows.end - rows.first);", "ROWS);"),
    ("columns.end - column,", "COLUMNS,"),
    ("P::HEAD_DIM), tile_at<K>(halves.ahead()),", "P::HEAD_DIM), tile_at<K>(halves.now()),"),
]


@pytest.mark.parametrize(("right", "wrong"), MISTAKES, ids=["rows", "columns", "the wrong half"])
def test_every_bound_is_needed(right: str, wrong: str) -> None:
    q, k, v = inputs((1, 1, 20, 129, 1, 1, 41, 129), "float32")
    with pytest.raises(SimulationError, match="out of bounds|race"):
        run_on(broken(right, wrong), attention_call(q, k, v, 1.0, async_copy=True))


# ---- which inputs it copies ---------------------------------------------------------------------------------------


def spread(x: mx.array) -> mx.array:
    """Columns two apart in memory."""
    return mx.contiguous(mx.stack([x, x], axis=-1).reshape(*x.shape[:3], -1))[..., ::2]


def backwards(x: mx.array) -> mx.array:
    return mx.contiguous(x[:, :, ::-1])[:, :, ::-1]


def one_row(x: mx.array) -> mx.array:
    """The first row for all: a row stride of 0."""
    return mx.broadcast_to(mx.contiguous(x[:, :, :1]), x.shape)


def heads_last(x: mx.array) -> mx.array:
    return mx.contiguous(x.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)


@pytest.mark.parametrize("view", [spread, backwards, one_row], ids=lambda view: view.__name__)
def test_other_strides_pass_through_registers(view: Callable[[mx.array], mx.array]) -> None:
    """With the wait removed nothing is found, so nothing was copied; and the numbers are those of plain inputs."""
    call, kernel = call_of(view), broken(WAIT, "")
    got = run_on(kernel, call).out
    plain = attention_call(call.q, mx.contiguous(call.k), mx.contiguous(call.v), 1.0, None, call.mods.mask)
    assert mx.array_equal(got, run_on(backend(), plain).out)
    only_keys = attention_call(call.q, call.k, mx.contiguous(call.v), 1.0, None, call.mods.mask, async_copy=True)
    assert mx.array_equal(run_on(kernel, only_keys).out, got)


def test_rows_apart_in_memory_are_copied() -> None:
    with pytest.raises(SimulationError, match="nobody waited for"):
        run_on(broken(WAIT, ""), call_of(heads_last))
    q, k, v = inputs(SHAPES["ragged"], "float16")
    call = attention_call(q, heads_last(k), heads_last(v), 0.3, async_copy=True)
    assert mx.array_equal(run_on(backend(), call).out, run_on(backend(), attention_call(q, k, v, 0.3)).out)


# ---- clang --------------------------------------------------------------------------------------------------------


@pytest.mark.sampled(2)
@clang_check.needs_clang
@pytest.mark.parametrize("dtype", DTYPES)
def test_address_spaces(dtype: str, tmp_path: Any) -> None:
    text = kernel_text(formulas(*traces("alibi", "causal")), async_copy=True)
    for dims, blocks in (((64, 64), NO_BLOCKS), ((17, 9), CUT_TILES), ((256, 256), NO_BLOCKS)):
        source = clang_check.instance(text, plan_for(*dims, dtype), blocks)
        assert clang_check.complaints(source, tmp_path) == ""
    assert clang_check.unqualified_pointers(source, tmp_path) == []
    assert clang_check.narrow_offsets(source, tmp_path) == []
    wrong = source.replace("P::HEAD_DIM), tile_at<K>(halves.ahead()),", "P::HEAD_DIM), k.data,")
    assert "error:" in clang_check.complaints(wrong, tmp_path)
