"""Learned position biases: T5's buckets as the paper counts them, values and gradients, and one trace for ever."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
import reference
from backends import EVERY

import flextrace as flex
from flextrace.kernels import backend_for
from flextrace.nn.positions import relative_position_buckets

MODULES = {
    "t5": lambda: flex.nn.RelativePositionBias(4, num_buckets=8, max_distance=16),
    "t5 causal": lambda: flex.nn.RelativePositionBias(4, num_buckets=8, max_distance=16, bidirectional=False),
    "alibi": lambda: flex.nn.AlibiSlopes(4),
    "alibi symmetric": lambda: flex.nn.AlibiSlopes(4, symmetric=True),
}
each_module = pytest.mark.parametrize("name", MODULES)


def normal(*shape: int, seed: int = 0) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


def parameter(module: Any) -> str:
    (name,) = module.parameters()
    return name


def paper(relative: int, num_buckets: int, max_distance: int, bidirectional: bool) -> int:
    """T5's bucket of a distance kv_idx - q_idx, as its authors write it (arXiv 1910.10683), in float64; a hair is
    added so that a quotient which is a whole number on paper is not less than it."""
    bucket = 0
    n = -relative
    if bidirectional:
        num_buckets //= 2
        bucket += num_buckets if n < 0 else 0
        n = abs(n)
    else:
        n = max(n, 0)
    max_exact = num_buckets // 2
    if n < max_exact:
        return bucket + n
    large = math.log(n / max_exact) / math.log(max_distance / max_exact) * (num_buckets - max_exact)
    return bucket + min(max_exact + int(large + 1e-9), num_buckets - 1)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(
    ("num_buckets", "max_distance"), [(32, 128), (4, 3), (8, 16), (32, 20), (64, 1000), (6, 7), (10, 81)]
)
def test_buckets_are_those_of_the_paper(num_buckets: int, max_distance: int, bidirectional: bool) -> None:
    got = relative_position_buckets(num_buckets, max_distance, bidirectional)
    distances = range(-max_distance, max_distance + 1)
    assert got == [paper(n, num_buckets, max_distance, bidirectional) for n in distances]
    assert {*got} <= {*range(num_buckets)} and got[0] == (num_buckets // 2 if bidirectional else num_buckets) - 1


def test_buckets_are_those_of_the_published_code_in_float32() -> None:
    """With the sizes that T5 has, where its float32 logarithms round as they should."""
    n = np.arange(1, 129, dtype=np.float32)
    for bidirectional, one_way in ((True, 16), (False, 32)):
        exact = one_way // 2
        quotient = np.log(n / np.float32(exact)) / np.float32(math.log(128 / exact))
        large = exact + (quotient * np.float32(one_way - exact)).astype(np.int32)
        expected = np.where(n < exact, n.astype(np.int32), np.minimum(large, one_way - 1))
        assert relative_position_buckets(32, 128, bidirectional)[:128][::-1] == expected.tolist()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("backend", EVERY)
@each_module
def test_scores_are_what_plain_python_says(name: str, backend: str) -> None:
    module = MODULES[name]()
    q, k, v = (normal(1, 4, n, 8, seed=n) for n in (21, 40, 40))
    table = np.array(module.parameters()[parameter(module)], np.float64)

    def plain(score: float, b: int, h: int, q_idx: int, kv_idx: int) -> float:
        if name.startswith("t5"):
            return score + table[paper(kv_idx - q_idx, 8, 16, name == "t5"), h]
        return score + table[h] * (kv_idx - q_idx if name == "alibi" else -abs(kv_idx - q_idx))

    got = flex.flex_attention(q, k, v, module.score_mod, kernel_options={"BACKEND": backend})
    expected = reference.attention(*(np.array(x) for x in (q, k, v)), plain)
    reference.assert_close(got, expected.out, 2e-5, 2e-5, name)


@each_module
def test_dense_is_what_the_mod_adds(name: str) -> None:
    module = MODULES[name]()
    expected = [[[module.score_mod(0.0, 0, h, i, j) for j in range(23)] for i in range(40)] for h in range(4)]
    np.testing.assert_allclose(np.array(module.dense(40, 23)), np.array(expected), rtol=1e-6)


@pytest.mark.parametrize("backend", ["cpu", "ops"])
@each_module
def test_the_table_gets_its_gradient(name: str, backend: str) -> None:
    """Against MLX's own attention over a dense bias."""
    module = MODULES[name]()
    q, k, v, weights = (normal(2, 4, n, 8, seed=i) for i, n in enumerate((21, 40, 40, 21)))
    distance = mx.arange(40)[None, :] - mx.arange(21)[:, None]

    def dense(table: mx.array) -> mx.array:
        if name.startswith("t5"):
            rows = [[paper(n, 8, 16, name == "t5") for n in row] for row in distance.tolist()]
            return table[mx.array(rows)].transpose(2, 0, 1)
        return table[:, None, None] * (distance if name == "alibi" else -mx.abs(distance))

    def loss_of_dense(table: mx.array) -> mx.array:
        return (mx.fast.scaled_dot_product_attention(q, k, v, scale=8**-0.5, mask=dense(table)) * weights).sum()

    def loss(module: Any) -> mx.array:
        options = {"BACKEND": backend}
        return (flex.flex_attention(q, k, v, module.score_mod, kernel_options=options) * weights).sum()

    table = module.parameters()[parameter(module)]
    value, gradients = nn.value_and_grad(module, loss)(module)
    expected_value, expected = mx.value_and_grad(loss_of_dense)(table)
    np.testing.assert_allclose(value, expected_value, rtol=1e-4)
    got = np.array(gradients[parameter(module)])
    np.testing.assert_allclose(got, np.array(expected), atol=1e-4, rtol=1e-4)
    assert np.abs(got).max() > 0.01


@each_module
def test_steps_of_an_optimiser_are_read_and_trace_nothing_anew(name: str) -> None:
    module = MODULES[name]()
    q = normal(1, 4, 16, 8)
    trace = module.score_mod.trace()
    optimiser = optim.Adam(learning_rate=0.1)
    step = nn.value_and_grad(module, lambda m: flex.flex_attention(q, q, q, m.score_mod).sum())
    backend: Any = backend_for("cpu")
    seen, built = [], []
    for _ in range(3):
        _, gradients = step(module)
        assert module.score_mod.trace() is trace
        optimiser.update(module, gradients)
        compiled, slow = (
            flex.flex_attention(q, q, q, module.score_mod, kernel_options={"BACKEND": name}) for name in ("cpu", "ops")
        )
        np.testing.assert_allclose(np.array(compiled), np.array(slow), atol=2e-5)
        seen.append(np.array(compiled))
        built.append(backend.built)
    assert len({*built}) == 1, "later steps compile nothing"
    assert not np.allclose(seen[0], seen[2], atol=1e-3)
    assert MODULES[name]().score_mod.trace() is trace, "modules of one kind share it"


@each_module
def test_a_copy_reads_its_own_table(name: str) -> None:
    module = MODULES[name]()
    q = normal(1, 4, 16, 8)
    before = flex.flex_attention(q, q, q, module.score_mod)
    other = copy.deepcopy(module)
    other.update({parameter(module): -3 * module.parameters()[parameter(module)]})
    assert mx.array_equal(flex.flex_attention(q, q, q, module.score_mod), before)
    assert not mx.allclose(flex.flex_attention(q, q, q, other.score_mod), before, atol=1e-3)


@each_module
def test_tables_are_saved_and_loaded(name: str, tmp_path: Path) -> None:
    module, other = MODULES[name](), MODULES[name]()
    module.update({parameter(module): normal(*module.parameters()[parameter(module)].shape, seed=3)})
    module.save_weights(str(tmp_path / "module.safetensors"))
    other.load_weights(str(tmp_path / "module.safetensors"))
    assert mx.array_equal(other.parameters()[parameter(module)], module.parameters()[parameter(module)])
    assert list(mx.load(str(tmp_path / "module.safetensors"))) == ["weight" if name.startswith("t5") else "slopes"]


def test_tables_of_half_precision() -> None:
    module = flex.nn.RelativePositionBias(4)
    q = normal(1, 4, 16, 8)
    expected = flex.flex_attention(q, q, q, module.score_mod)
    module.set_dtype(mx.bfloat16)
    assert module.weight.dtype == mx.bfloat16
    got = flex.flex_attention(q, q, q, module.score_mod)
    np.testing.assert_allclose(np.array(got), np.array(expected), atol=2e-2)


def test_modules_say_what_they_are() -> None:
    assert str(flex.nn.AlibiSlopes(4)) == "AlibiSlopes(num_heads=4, symmetric=False)"
    shown = "RelativePositionBias(num_heads=4, num_buckets=32, max_distance=128, bidirectional=True)"
    assert str(flex.nn.RelativePositionBias(4)) == shown


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: flex.nn.RelativePositionBias(0), "num_heads is 0; expected a whole number of at least 1"),
        (lambda: flex.nn.RelativePositionBias(4, 1), "num_buckets is 1; expected a whole number of at least 2"),
        (lambda: flex.nn.RelativePositionBias(4, 2), "num_buckets is 2; expected an even number of at least 4"),
        (lambda: flex.nn.RelativePositionBias(4, 7), "num_buckets is 7; expected an even number of at least 4"),
        (lambda: flex.nn.RelativePositionBias(4, 32, 8), "max_distance is 8; expected more than 8, the distances"),
        (lambda: flex.nn.RelativePositionBias(4, 32, 128.5), "max_distance is 128.5; expected a whole number"),  # type: ignore[arg-type]
        (lambda: flex.nn.AlibiSlopes("4"), "heads is '4'; expected a whole number"),  # type: ignore[arg-type]
    ],
)
def test_sizes_that_make_no_table(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
