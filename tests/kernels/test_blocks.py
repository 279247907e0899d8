"""Runs of blocks turned round, inverted, counted and listed: as their dense states are."""

from __future__ import annotations

import numpy as np
import pytest

from flextrace.kernels import blocks as blocks_module
from flextrace.kernels.blocks import Blocks


@pytest.mark.parametrize("mixture", [(0.4, 0.3, 0.3), (1, 0, 0), (0, 1, 0), (0.1, 0.1, 0.8)])
def test_transposed_blocks_are_the_same_blocks_by_columns(mixture: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        shape = tuple(int(n) for n in rng.integers(1, (3, 3, 9, 9)))
        states = rng.choice(3, shape, p=mixture).astype(np.int8)
        blocks = Blocks.from_states(states, 4, 8)
        assert blocks.transposed.same_as(Blocks.from_states(np.swapaxes(states, 2, 3), 8, 4))
        assert blocks.transposed is blocks.transposed, "kept"


def test_what_runs_say_is_what_dense_states_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inverted, counted and listed, in one go and in many."""
    rng = np.random.default_rng(1)
    for at in range(60):
        monkeypatch.setattr(blocks_module, "ENTRIES_AT_ONCE", 7 if at % 2 else 2**20)
        shape = tuple(int(n) for n in rng.integers((1, 1, 0, 0), (3, 3, 9, 9)))
        states = rng.choice(3, shape, p=(0.3, 0.3, 0.4)).astype(np.int8)
        blocks = Blocks.from_states(states, 4, 8)
        assert blocks.inverted.same_as(Blocks.from_states(2 - states, 4, 8))
        for state in (1, 2):
            counts, indices = blocks.counts(state), blocks.indices(state)
            assert counts.shape == shape[:3] and indices.shape == shape and counts.dtype == indices.dtype == np.int32
            for row in np.ndindex(shape[:3]):
                listed = np.flatnonzero(states[row] == state).tolist()
                assert counts[row] == len(listed)
                assert indices[row].tolist() == listed + [0] * (shape[3] - len(listed))


def test_transposing_long_runs_needs_no_square_of_blocks() -> None:
    blocks = 2**17  # a square of them would need 16 GB
    rows = np.arange(blocks)
    causal = Blocks.from_runs((1, 1, blocks, blocks), rows, 0 * rows, rows + 1, 0 * rows + 2, 128, 128)
    turned = causal.transposed
    assert np.array_equal(turned.first, rows) and set(turned.end) == {blocks} and set(turned.state) == {2}
