"""create_block_mask by refinement: always the dense definition, whatever bounds can decide."""

from __future__ import annotations

import pickle
import sys
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import expressions
import mlx.core as mx
import numpy as np
import pytest
import zoo
from dense_masks import states
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import flextrace as flex
from flextrace.bench.measure import PeakMemory
from flextrace.block_mask import refine
from flextrace.kernels import Blocks

COUNTS = ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks")


def dense_states(mask: Any, b: int, h: int, q_len: int, kv_len: int, block: tuple[int, int]) -> np.ndarray:
    """By the dense mask, which create_mask evaluates without bounds."""
    kept = np.array(flex.create_mask(mask, b, h, q_len, kv_len))
    rows, columns = block
    padded = [(0, 0), (0, 0), (0, -q_len % rows), (0, -kv_len % columns)]
    shape = (b, h, -(-q_len // rows), rows, -(-kv_len // columns), columns)
    some = np.pad(kept, padded).reshape(shape).any((3, 5))
    every = np.pad(kept, padded, constant_values=True).reshape(shape).all((3, 5))
    return some.astype(int) + (some & every)


def check(mask: Any, b: int, h: int, q_len: int, kv_len: int, block: tuple[int, int]) -> None:
    made = flex.create_block_mask(mask, b, h, q_len, kv_len, BLOCK_SIZE=block)
    np.testing.assert_array_equal(made.blocks.states(), dense_states(mask, b, h, q_len, kv_len, block))


@pytest.mark.parametrize("entry", zoo.MASK_MODS, ids=str)
@pytest.mark.parametrize("block", [(128, 128), (16, 16), (7, 40), (1, 3)], ids=str)
def test_the_zoo_over_many_blocks(entry: zoo.Entry, block: tuple[int, int]) -> None:
    b, h, q_len, kv_len = 2, 2, 301, 405
    mask = flex.mask_mod(entry.make(b, h, q_len, kv_len, np.random.default_rng(0), zoo.mx_array))
    check(mask, b, h, q_len, kv_len, block)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    program=expressions.programs("mask", kind="mask"),
    lengths=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    block=st.tuples(st.sampled_from([1, 2, 5, 16, 64]), st.sampled_from([1, 3, 8, 32, 100])),
)
def test_masks_made_by_hypothesis(
    program: expressions.Program, lengths: tuple[int, int], block: tuple[int, int]
) -> None:
    with np.errstate(all="ignore"), expressions.rejecting_known_errors():
        check(flex.mask_mod(program.function(mx.array)), 2, 3, *lengths, block)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), kept=st.sampled_from([0.0, 0.001, 0.5, 0.999, 1.0]), by=st.sampled_from([1, 8, 64]))
def test_tables_that_no_bounds_decide(seed: int, kept: float, by: int) -> None:
    """Dense tables, and tables of blocks; single exceptions in a block are found."""
    values = np.random.default_rng(seed).random((200 // by + 1, 300 // by + 1)) < kept
    table = mx.array(values)
    check(flex.mask_mod(lambda b, h, q_idx, kv_idx: table[q_idx // by, kv_idx // by]), 1, 1, 200, 300, (64, 32))


def test_one_exception_in_a_block_makes_it_partial() -> None:
    for at in ((0, 0), (127, 127), (63, 64), (13, 101)):
        mask = flex.mask_mod(lambda b, h, q, kv, at=at: not (q * 1.5 == at[0] * 1.5 and kv * 1.5 == at[1] * 1.5))
        assert flex.create_block_mask(mask, None, None, 256, 256).to_string() == "+#\n##"
        assert flex.create_block_mask(~mask, None, None, 256, 256).to_string() == "+.\n.."


def test_a_ragged_tail_that_is_kept_whole_is_full() -> None:
    assert flex.create_block_mask(flex.noop_mask, None, None, 130, 257).to_string() == "###\n###"


def test_the_last_blocks_need_no_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds end where the rows and the keys do."""
    monkeypatch.setattr(refine, "evaluate", None)
    made = flex.create_block_mask(lambda b, h, q, kv: (q < 40) & (kv < 24), None, None, 40, 24, BLOCK_SIZE=16)
    assert made.to_string() == "##\n##\n##"


@pytest.mark.parametrize(
    ("mask", "batch", "heads", "distinct"),
    [
        (lambda b, h, q, kv: q >= kv, 4, 8, 1),
        (lambda b, h, q, kv: q >= kv + h, 4, 8, 8),
        (lambda b, h, q, kv: q >= kv + b, 4, 8, 4),
        (lambda b, h, q, kv: q >= kv + b + h, 2, 3, 6),
    ],
    ids=["neither", "head", "batch", "both"],
)
def test_masks_that_ignore_batch_and_head_are_made_once_for_all(
    mask: Any, batch: int, heads: int, distinct: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at = []
    looks = refine._Refinement.blocks

    def counted(self: Any) -> Any:
        looked_at.append(self.shape[0] * self.shape[1])
        return looks(self)

    refine.forget()
    monkeypatch.setattr(refine._Refinement, "blocks", counted)
    made = flex.create_block_mask(mask, batch, heads, 300, 310)
    assert looked_at == [distinct]
    assert made.shape == (batch, heads, 300, 310)
    np.testing.assert_array_equal(made.blocks.states(), dense_states(mask, batch, heads, 300, 310, (128, 128)))


# ---- remembered ----------------------------------------------------------------------------------------------------


def test_remembered_by_mod_captured_values_and_lengths() -> None:
    refine.forget()
    ids = mx.array([0] * 100 + [1] * 100)
    limit = 30

    def make(q_len: int = 200) -> flex.BlockMask:
        mask = flex.mask_mod(lambda b, h, q, kv: ids[q] == ids[kv] and q - kv < limit)
        return flex.create_block_mask(mask, None, None, q_len, 200, BLOCK_SIZE=32)

    first = make().blocks
    assert make().blocks is first
    assert make(190).blocks is not first
    ids[50] = 1  # in place: the same array object holds other values
    changed = make().blocks
    assert changed is not first and not changed.same_as(first)
    limit = 31
    assert make().blocks is not changed
    limit, ids[50] = 30, 0
    assert make().blocks is first


def test_threads_make_masks_at_once() -> None:
    """Each gets the blocks of its own lengths and captured values, whatever the others make and remember meanwhile."""
    refine.forget()
    sizes, shifts = range(60, 80), (0, 7, 20, 33)
    made: dict[tuple[int, int], list[Any]] = {(size, shift): [] for size in sizes for shift in shifts}
    start = threading.Barrier(len(shifts))

    def shifted(shift: int) -> Any:
        return lambda b, h, q, kv: q + shift >= kv

    def work(turn: int) -> None:
        start.wait()
        for size in sizes:
            for shift in (*shifts[turn:], *shifts[:turn]):
                blocks = flex.create_block_mask(shifted(shift), None, None, size, size, 16).blocks
                made[size, shift].append(blocks.states())

    threads = [threading.Thread(target=work, args=(turn,)) for turn in range(len(shifts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (size, shift), found in made.items():
        assert len(found) == len(threads)
        kept = np.arange(size)[:, None] + shift >= np.arange(size)
        for got in found:
            np.testing.assert_array_equal(got, states(kept[None, None], 16, 16))


# ---- memory: what is never built ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [2**17, 2**22])
def test_one_row_looks_at_what_its_bounds_leave_open(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As each step of a loop that generates: squares and positions, not all the keys before it."""
    squares, positions = [], []
    undecided, evaluated = refine._Refinement._undecided, refine.evaluate

    def counted(self: Any, head: Any, *rest: Any) -> Any:
        squares.append(len(head))
        return undecided(self, head, *rest)

    def looked(expr: Any, values: Any, **captured: Any) -> Any:
        positions.append(np.broadcast(*values.values()).size)
        return evaluated(expr, values, **captured)

    monkeypatch.setattr(refine._Refinement, "_undecided", counted)
    monkeypatch.setattr(refine, "evaluate", looked)
    monkeypatch.setattr(Blocks, "indices", lambda *_: pytest.fail("a list of indices was made"))
    monkeypatch.setattr(Blocks, "states", lambda *_: pytest.fail("dense states were made"))
    for position in range(tokens - 100, tokens - 90):

        def window(b: Any, h: Any, q_idx: Any, kv_idx: Any, position: int = position) -> Any:
            return (kv_idx <= q_idx + position) & (q_idx + position - kv_idx < 1024)

        made = flex.create_block_mask(window, None, None, 1, tokens)
        assert 8 <= (made.blocks.end - made.blocks.first).sum() <= 9
    assert len(squares) >= 10 and sum(squares) < 10 * 2500 and sum(positions) < 10 * 2500


def test_what_needs_no_lists_of_a_million_tokens_allocates_no_plane(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts, sparsity, pictures, parts and combinations are made of rows and runs; a list of indices takes 268 MB."""
    tokens, rows = 2**20, 2**20 // 128
    monkeypatch.setattr(Blocks, "indices", lambda *_: pytest.fail("a list of indices was made"))
    monkeypatch.setattr(Blocks, "states", lambda *_: pytest.fail("dense states were made"))
    tracemalloc.start()
    try:
        made = flex.create_block_mask(flex.mods.sliding_window(1024), None, None, tokens, tokens)
        kept = {name: getattr(made, name).tolist() for name in COUNTS}
        looks = made.sparsity(), repr(made), str(made), made._repr_html_(), made.to_string(), made.nbytes, hash(made)
        parts = made[..., 5:9], made.at_offset(tokens - 1, 1), ~made, made & flex.mods.causal, pickle.dumps(made)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50e6, f"{peak / 1e6:.0f} MB"
    assert 99.8 < looks[0] < 100 and len(parts[2].blocks.first) < 6 * rows
    # Row r of blocks ends in its own block; what is 1024 behind its first row and its last one lies in two others.
    assert kept["kv_num_blocks"] == [[[1] * 8 + [2] * (rows - 8)]]
    assert kept["full_kv_num_blocks"] == [[[*range(8), *[7] * (rows - 8)]]]
    assert kept["q_num_blocks"] == [[[2] * (rows - 8) + [1] * 8]]
    assert kept["full_q_num_blocks"] == [[[7] * (rows - 8) + [*range(7, -1, -1)]]]


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
@pytest.mark.parametrize(
    ("mask", "megabytes"),
    [
        (lambda b, h, q, kv: (q >= kv) & (q - kv < 1024), 200),
        (lambda b, h, q, kv: q >= kv, 1000),
    ],
    ids=["window", "causal"],
)
def test_a_million_tokens(mask: Callable[..., Any], megabytes: int) -> None:
    """A dense mask would take a terabyte, torch's lists 268 MB each."""
    tokens = 2**20
    peak = PeakMemory()
    made = flex.create_block_mask(mask, None, None, tokens, tokens)
    assert peak.bytes() < megabytes * 1e6
    assert made.nbytes < 1e6 and made.blocks.shape == (1, 1, 8192, 8192)
    rows = np.array([0, 5, 4096, 8191])
    part = made.blocks.select(np.zeros(1, int), np.zeros(1, int), rows)
    q_first, kv_first = rows[:, None] * 128, np.arange(8192) * 128
    causal_full, live = q_first >= kv_first + 127, q_first + 127 >= kv_first
    if megabytes == 200:
        causal_full &= q_first + 127 - kv_first < 1024
        live &= q_first - (kv_first + 127) < 1024
    np.testing.assert_array_equal(part.states()[0, 0], live.astype(int) + (live & causal_full))
