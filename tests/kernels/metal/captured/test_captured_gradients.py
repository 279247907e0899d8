"""Gradients of captured arrays by the Metal kernels in the simulator, by every pattern of reading them."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
import zoo
from apparatus.captured_cases import CASES, SHAPE, WIDE
from apparatus.gradients import backward_call, broken, check
from apparatus.simulated import BARRIER, ORDERS, backend
from calls import attention_call

import flextrace as flex
from flextrace.kernels.call import BackwardCall
from flextrace.kernels.gpu import captured
from flextrace.kernels.metal import launch
from flextrace.kernels.metal.backward.text import PAIRS
from flextrace.kernels.simulator import SimulationError, recording


@pytest.mark.sampled(36)
@pytest.mark.parametrize("mask", [(), ("causal",)], ids=["none", "causal"])
@pytest.mark.parametrize("name", CASES)
def test_every_pattern(name: str, mask: tuple[str, ...]) -> None:
    check(SHAPE, names=mask, score_of=CASES[name], wanted=True)


@pytest.mark.sampled(9)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["head, distance", "row, key", "ids of both"])
def test_pairs_in_every_lane_order(name: str, order: str) -> None:
    check((1, 1, 70, 8, 1, 1, 75, 8), names=("sliding_window",), score_of=WIDE[name], wanted=True, order=order)


@pytest.mark.sampled(150)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", [entry.name for entry in zoo.ZOO.values() if entry.kind == "score"])
def test_every_array_of_the_zoo(name: str, dtype: str) -> None:
    check(SHAPE, dtype, (name, "causal"), wanted=True)


def call_of(name: str, shape: Any = (1, 2, 130, 8, 1, 1, 140, 8), mask: Any = None) -> BackwardCall:
    """A call with arrays that fit its shape; the forward pass's results do not matter."""
    sizes = {"head, distance": (shape[1], 300), "row, key": (shape[2], shape[6]), "ids of both": (5, 6)}
    table = mx.random.normal(sizes[name], key=mx.random.key(0))
    x, y = (mx.arange(n) % m for n, m in ((shape[2], 5), (shape[6], 6)))
    formulas = {
        "head, distance": lambda s, b, h, q, k: s + table[h, q - k + 140],
        "row, key": lambda s, b, h, q, k: s + table[q, k],
        "ids of both": lambda s, b, h, q, k: s + table[x[q], y[k]],
    }
    rows, keys = (1, shape[1], shape[2], 8), (1, 1, shape[6], 8)
    q, k, v, d_out = (mx.random.normal(size, key=mx.random.key(i)) for i, size in enumerate((rows, keys, keys, rows)))
    mods = [flex.score_mod(formulas[name]).bind(), None if mask is None else flex.mask_mod(mask).bind()]
    made = attention_call(q, k, v, 0.3, *mods)
    return BackwardCall(made, d_out, mx.full(q.shape[:3], 5.0), d_out, wanted=made.mods.formulas.differentiable)


@pytest.mark.long
@pytest.mark.parametrize("name", WIDE)
def test_launches_of_pairs_add_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = call_of(name)
    whole = backend().backward(call).arrays[0]
    monkeypatch.setattr(launch, "MOST_MULTIPLIES", 1)
    with recording() as reports:
        parts = backend().backward(call).arrays[0]
    assert sum("pairs" in report.kernel for report in reports) == 3
    assert float(mx.abs(whole - parts).max()) < 1e-5 * float(mx.abs(whole).max())


@pytest.mark.sampled(7)
@pytest.mark.parametrize(
    ("name", "which"),
    [*((name, which) for name in ("head, distance", "ids of both") for which in (1, 2, 6)), ("row, key", 5)],
)
def test_every_barrier_of_pairs_is_needed(which: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of turning to the next tile; of the walk; before the next query rows, where none comes before; before the last
    pairs are summed. The third one in the text is of kernels that use a tile twice, the fourth of simdgroups that share
    rows."""

    def far(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return kv_idx > 1060  # the first survey of 32 tiles finds nothing

    monkeypatch.setattr(captured, "GROUPS", 1)
    call = call_of(name) if which != 2 else call_of(name, (1, 1, 70, 8, 1, 1, 1100, 8), far)
    with pytest.raises(SimulationError, match="race|uninitialised"):
        broken(BARRIER, ";", which, (PAIRS,)).backward(call)


@pytest.mark.long
def test_sums_of_pairs_have_one_owner() -> None:
    with pytest.raises(SimulationError, match="race|overlapping"):
        broken("elements[at] % P::THREADS == int(index)", "i % P::THREADS == int(index)", only=(PAIRS,)).backward(
            call_of("ids of both", (1, 1, 70, 8, 1, 1, 40, 8))
        )


@pytest.mark.parametrize("name", ["head, distance", "ids of both"])
def test_memory_is_bounded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = call_of(name)
    monkeypatch.setattr(captured, "MOST_BYTES", 100)
    with pytest.raises(ValueError, match=r"the gradient of table needs 0 MB of sums, .* Index it by one side"):
        backend().backward(call)


def test_empty_calls_give_zeros() -> None:
    table = mx.ones(4, mx.float16)
    score = flex.score_mod(lambda s, b, h, q, k: s + table[k])
    call = backward_call((1, 1, 0, 8, 1, 1, 4, 8), "float32", score, wanted=True)
    (found,) = backend().backward(call).arrays
    assert found.dtype == mx.float16 and found.tolist() == [0, 0, 0, 0]


def test_gradients_reach_mlx() -> None:
    """mx.grad of a table that is read twice, and of a bias that all share, beside MLX's own operations."""
    q = mx.random.normal((2, 2, 9, 8), key=mx.random.key(1))

    def loss(table: mx.array, bias: mx.array, backend: str) -> mx.array:
        mod = flex.score_mod(lambda s, b, h, q, k: s * table[h, 0] + table[h, q - k + 8] + bias[q, k])
        return (flex.flex_attention(q, q, q, mod, kernel_options={"BACKEND": backend}) ** 2).sum()

    given = mx.random.normal((2, 17), key=mx.random.key(2)), mx.random.normal((9, 9), key=mx.random.key(3))
    for mine, own in zip(*(mx.grad(loss, (0, 1))(*given, name) for name in ("simulator", "ops")), strict=True):
        assert float(mx.abs(mine - own).max()) < 1e-4
