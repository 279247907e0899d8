"""BlockMasks and the captured values of their masks: blocks of now, whatever was captured when they were made."""

from __future__ import annotations

import copy
import functools
import pickle
import threading
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from dense_masks import assert_stands_for, attended, dense, states

import flextrace as flex
from flextrace.block_mask import refine
from flextrace.block_mask.kept_values import SMALL, KeptValues

N = 40  # positions, in blocks of 8
OPS = "ops"  # compiles no kernel for each mask
Mask = Callable[..., Any]
Change = Callable[[], None]


class Window(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.starts = mx.array(np.arange(N) // 4 * 4)
        self.width = 9
        self.sizes = [9, 3]

    def by_number(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return abs(q_idx - kv_idx) < self.width

    def by_list(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return abs(q_idx - kv_idx) < self.sizes[0]

    def by_parameter(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return kv_idx >= self.starts[q_idx]


def a_number() -> tuple[Mask, Change]:
    width = 9

    def change() -> None:
        nonlocal width
        width = 25

    return lambda b, h, q_idx, kv_idx: abs(q_idx - kv_idx) < width, change


def a_number_that_chooses() -> tuple[Mask, Change]:
    causal = True

    def mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return q_idx >= kv_idx if causal else q_idx < kv_idx

    def change() -> None:
        nonlocal causal
        causal = False

    return mask, change


def the_sign_of_zero() -> tuple[Mask, Change]:
    step = 0.0

    def change() -> None:
        nonlocal step
        step = -0.0

    return lambda b, h, q_idx, kv_idx: mx.arctan2(step, kv_idx - 50.0) > 0, change


def an_attribute() -> tuple[Mask, Change]:
    window = Window()
    return window.by_number, lambda: setattr(window, "width", 25)


def a_list() -> tuple[Mask, Change]:
    window = Window()
    return window.by_list, lambda: window.sizes.__setitem__(0, 25)


def a_parameter_of_a_module() -> tuple[Mask, Change]:
    window = Window()
    return window.by_parameter, lambda: window.update({"starts": mx.array(np.arange(N) // 20 * 20)})


def an_array_rebound() -> tuple[Mask, Change]:
    ids = mx.array(np.arange(N) // 16)

    def change() -> None:
        nonlocal ids
        ids = mx.array(np.arange(N) // 30)

    return lambda b, h, q_idx, kv_idx: ids[q_idx] == ids[kv_idx], change


def an_array_written_in_place() -> tuple[Mask, Change]:
    ids = mx.array(np.arange(N) // 16)

    def change() -> None:
        ids[10:30] = 7

    return lambda b, h, q_idx, kv_idx: ids[q_idx] == ids[kv_idx], change


def a_view_of_an_array_written() -> tuple[Mask, Change]:
    ids = mx.array(np.arange(N) // 16)
    return lambda b, h, q_idx, kv_idx: ids[q_idx] == ids[kv_idx], lambda: np.asarray(ids)[10:30].fill(7)


def a_numpy_array_written() -> tuple[Mask, Change]:
    ids = np.arange(2 * N)[::2] // 32
    return lambda b, h, q_idx, kv_idx: ids[q_idx] == ids[kv_idx], lambda: ids[10:30].fill(7)


def a_large_table_rebound() -> tuple[Mask, Change]:
    table = mx.array(np.random.default_rng(0).random((N, 4 * SMALL // N)) < 0.02)

    def change() -> None:
        nonlocal table
        table = ~table

    return lambda b, h, q_idx, kv_idx: table[q_idx, kv_idx], change


def a_large_table_written() -> tuple[Mask, Change]:
    table = mx.array(np.random.default_rng(0).random((N, 4 * SMALL // N)) < 0.02)

    def change() -> None:
        table[8:16, 8:16] = True

    return lambda b, h, q_idx, kv_idx: table[q_idx, kv_idx], change


def a_large_numpy_table_written() -> tuple[Mask, Change]:
    table = np.random.default_rng(0).random((4 * SMALL // N, N)).T < 0.02
    return lambda b, h, q_idx, kv_idx: table[q_idx, kv_idx], lambda: table[8:16, 8:16].fill(True)


def the_shape_of_an_array() -> tuple[Mask, Change]:
    table = mx.arange(40).reshape(5, 8)

    def change() -> None:
        nonlocal table
        table = mx.arange(40).reshape(8, 5)  # the same bytes

    return lambda b, h, q_idx, kv_idx: table[q_idx // 8, kv_idx // 8] < 20, change


def a_partial() -> tuple[Mask, Change]:
    widths = {"width": 9}

    def within(table: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return abs(q_idx - kv_idx) < table["width"]

    return functools.partial(within, widths), lambda: widths.update(width=25)


KINDS = [
    a_number,
    a_number_that_chooses,
    the_sign_of_zero,
    an_attribute,
    a_list,
    a_parameter_of_a_module,
    an_array_rebound,
    an_array_written_in_place,
    a_view_of_an_array_written,
    a_numpy_array_written,
    a_large_table_rebound,
    a_large_table_written,
    a_large_numpy_table_written,
    the_shape_of_an_array,
    a_partial,
]


def made(mask: Mask) -> flex.BlockMask:
    return flex.create_block_mask(mask, None, None, N, N, BLOCK_SIZE=8)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_blocks_follow_captured_values(kind: Callable[[], tuple[Mask, Change]]) -> None:
    mask, change = kind()
    blocks = made(mask)
    before = dense(mask, 1, 1, N, N)
    assert_stands_for(blocks, before, backend=OPS)
    change()
    now = dense(mask, 1, 1, N, N)
    assert (states(now, 8, 8) != states(before, 8, 8)).any()
    q = mx.random.normal((2, 1, N, 8), key=mx.random.key(0))
    backend = None if kind in (a_number, an_array_written_in_place) else OPS
    out = flex.flex_attention(q, q, q, block_mask=blocks, kernel_options={"BACKEND": backend} if backend else None)
    np.testing.assert_allclose(np.array(out), attended(q, q, now), atol=2e-5)  # the first use after the change
    assert_stands_for(blocks, now, backend=OPS)
    assert blocks == made(mask)


# What is made of a BlockMask, and of the dense mask beside it.
DERIVED: dict[str, tuple[Callable[[flex.BlockMask], flex.BlockMask], Callable[[np.ndarray], np.ndarray]]] = {
    "itself": (lambda m: m, lambda kept: kept),
    "inverse": (lambda m: ~m, lambda kept: ~kept),
    "inverse of the inverse": (lambda m: ~~m, lambda kept: kept),
    "and": (lambda m: m & flex.mods.causal, lambda kept: kept & np.tri(N, dtype=bool)),
    "or": (lambda m: flex.mods.causal | m, lambda kept: kept | np.tri(N, dtype=bool)),
    "and itself": (lambda m: m & m, lambda kept: kept),
    "rows": (lambda m: m[:, :, 1:3], lambda kept: kept[:, :, 8:24]),
    "chosen rows": (lambda m: m[:, :, [3, 0]], lambda kept: kept[:, :, [*range(24, 32), *range(8)]]),
    "rows of rows": (lambda m: m[:, :, 1:][:, :, 1], lambda kept: kept[:, :, 16:24]),
    "adjusted": (lambda m: m._adjust(30, 35), lambda kept: kept[:, :, :30, :35]),
    "at an offset": (lambda m: m.at_offset(13, 9), lambda kept: kept[:, :, 13:22]),
    "a copy": (copy.copy, lambda kept: kept),
}


@pytest.mark.parametrize("name", DERIVED)
def test_what_is_made_of_a_block_mask_follows_too(name: str) -> None:
    mask, change = an_array_written_in_place()
    derive, expected = DERIVED[name]
    derived = derive(made(mask))
    assert_stands_for(derived, expected(dense(mask, 1, 1, N, N)), backend=OPS)
    change()
    assert_stands_for(derived, expected(dense(mask, 1, 1, N, N)), backend=OPS)


USES: dict[str, Callable[[flex.BlockMask], Any]] = {
    "sparsity": lambda m: m.sparsity(),
    "to_dense": lambda m: np.array(m.to_dense()).tolist(),
    "to_string": lambda m: m.to_string(),
    "repr": repr,
    "html": lambda m: m._repr_html_(),
    "nbytes": lambda m: m.nbytes,
    "numel": lambda m: m.numel(),
    "shape": lambda m: m.shape,
    "to_ranges": lambda m: [part.tolist() for part in m.to_ranges()],
    "as_tuple": lambda m: [part.tolist() for part in m.as_tuple()[2:10]],
    "text": lambda m: flex.visualize.text(m),
    "hash": hash,
    **{
        name: lambda m, name=name: getattr(m, name).tolist()
        for side in ("kv", "full_kv", "q", "full_q")
        for name in (f"{side}_num_blocks", f"{side}_indices")
    },
}


@pytest.mark.parametrize("use", USES)
def test_every_use_is_of_the_values_of_now(use: str) -> None:
    mask, change = an_array_written_in_place()
    blocks, look = made(mask), USES[use]
    before = look(blocks)
    change()
    now = look(blocks)
    assert now == look(made(mask))
    assert (now == before) == (use in ("numel", "shape", "hash"))


class Cut:
    def __init__(self, at: int) -> None:
        self.at = at


cut = Cut(10)


@flex.mask_mod
def below_the_cut(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return kv_idx < cut.at


def test_pickles_hold_no_blocks_of_other_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mod of a module is pickled by its name: what it captures may differ where the pickle is read."""
    data = pickle.dumps(made(below_the_cut))
    monkeypatch.setattr(cut, "at", 30)
    again = pickle.loads(data)
    assert again.mask_mod is below_the_cut
    assert_stands_for(again, dense(below_the_cut, 1, 1, N, N), backend=OPS)


def test_pickles_of_other_mods_hold_the_values_of_their_moment() -> None:
    mask, change = an_array_written_in_place()
    blocks = made(mask)
    change()
    now = dense(mask, 1, 1, N, N)
    again = pickle.loads(pickle.dumps(blocks))
    assert again == blocks
    assert_stands_for(again, now, backend=OPS)


def test_lists_and_runs_are_their_makers_own() -> None:
    width = 9

    def mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return abs(q_idx - kv_idx) < width

    blocks = made(mask)
    lists = flex.BlockMask.from_kv_blocks(*blocks.as_tuple()[2:6], BLOCK_SIZE=8, mask_mod=mask)
    runs = flex.BlockMask.from_ranges(blocks.to_ranges(), (N, N), BLOCK_SIZE=8, mask_mod=mask)
    first, part = blocks.blocks.states(), lists[:, :, 1]
    width = 25
    for own in (lists, runs, pickle.loads(pickle.dumps(lists))):
        np.testing.assert_array_equal(own.blocks.states(), first)
    np.testing.assert_array_equal(part.blocks.states(), first[:, :, 1:2])
    assert (blocks.blocks.states() != first).any()


def test_unchanged_values_make_nothing_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither do equal ones in other objects; a large mx.array that stays where it is is not even read."""
    table = mx.array(np.random.default_rng(0).random((N, 4 * SMALL // N)) < 0.1)
    ids, width = np.arange(N) // 16, float("nan")
    blocks = made(lambda b, h, q, kv: table[q, kv] & (ids[q] == ids[kv]) & ((q - kv) * 1.0 != width))
    first = blocks.blocks
    monkeypatch.setattr("flextrace.block_mask.block_mask.refine", None)
    assert blocks.blocks is first
    width, ids = float("nan"), ids.copy()
    assert blocks.blocks is first
    table = table + False
    assert blocks.blocks is first  # by its contents, and from now on by its new place
    monkeypatch.setattr("flextrace.block_mask.kept_values._memcmp", None)
    assert blocks.blocks is first


def test_values_that_come_back_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = mx.array(np.arange(N) // 16)
    blocks = made(lambda b, h, q_idx, kv_idx: ids[q_idx] == ids[kv_idx])
    first = blocks.blocks
    ids[10:30] = 7
    second = blocks.blocks
    monkeypatch.setattr(refine._Refinement, "blocks", None)
    ids[10:16], ids[16:30] = 0, 1
    assert blocks.blocks is first
    ids[10:30] = 7
    assert blocks.blocks is second


def test_threads_that_change_and_use_one_mask() -> None:
    """Whoever looks while another changes a value sees the blocks of one of its values."""
    box = Cut(3)
    blocks = made(lambda b, h, q_idx, kv_idx: kv_idx < box.at)
    allowed = {states(np.broadcast_to(np.arange(N) < at, (1, 1, N, N)), 8, 8).tobytes() for at in (3, 21)}
    seen: list[bytes] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            seen.append(blocks.blocks.states().astype(int).tobytes())

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(60):
        box.at = (3, 21)[turn % 2]
        assert blocks.to_string(rows=5) == "\n".join([("+....", "##+..")[turn % 2]] * 5)
    done.set()
    for thread in threads:
        thread.join()
    assert seen and set(seen) <= allowed


# ---- where nobody sees the values ------------------------------------------------------------------------------------


def test_a_mask_whose_values_are_hidden_decides_without_blocks() -> None:
    state = {"ids": mx.array(np.arange(N) // 16)}
    mask = flex.mask_mod(lambda b, h, q_idx, kv_idx: state["ids"][q_idx] == state["ids"][kv_idx])
    blocks = made(mask)
    q = mx.random.normal((1, 1, N, 8), key=mx.random.key(0))
    options = {"BACKEND": OPS}
    compiled = mx.compile(
        lambda q: flex.flex_attention(q, q, q, block_mask=blocks, kernel_options=options), inputs=[state]
    )
    for ids in (np.arange(N) // 16, np.arange(N) // 30):
        state["ids"] = mx.array(ids)
        np.testing.assert_allclose(np.array(compiled(q)), attended(q, q, dense(mask, 1, 1, N, N)), atol=2e-5)

    def look(ids: mx.array) -> mx.array:
        state["ids"] = ids
        return mx.array(blocks.sparsity())

    def make(ids: mx.array) -> mx.array:
        return mx.array(made(lambda b, h, q_idx, kv_idx: ids[q_idx] == ids[kv_idx]).sparsity())

    ids = state["ids"]
    for function in (look, make):
        with pytest.raises(ValueError, match="needs the values of .*ids.*, which mx.compile and mx.vmap hide"):
            mx.compile(function)(ids)
        state["ids"] = ids


def test_kept_values_are_nobody_elses() -> None:
    for array in (mx.arange(8), mx.arange(SMALL), np.arange(8), np.arange(SMALL)):
        mask = flex.mask_mod(lambda b, h, q_idx, kv_idx, array=array: kv_idx >= array[b])
        kept = KeptValues.of(mask.bind())
        assert kept.as_in(mask.bind()) is kept
        array[3] = 77
        assert np.array(kept.bound.arrays[0])[3] == 3
        assert kept.as_in(mask.bind()) is None
        array[3] = 3
        assert kept.as_in(mask.bind()) is not None
