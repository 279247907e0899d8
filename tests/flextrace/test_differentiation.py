"""flex_attention inside MLX's transformations: what differentiates it, and what is refused with a remedy."""

from __future__ import annotations

import warnings
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest

import flextrace as flex

RNG = np.random.default_rng(0)
Q, K, V = (mx.array(RNG.normal(size=(1, 2, 20, 8)).astype(np.float32)) for _ in range(3))
SLOPES = mx.array([0.3, -0.2])


def attend(q: mx.array, k: mx.array = K, v: mx.array = V, slopes: mx.array = SLOPES, **options: Any) -> mx.array:
    def biased(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score + slopes[h] * (kv_idx - q_idx)

    return flex.flex_attention(q, k, v, biased, flex.mods.causal, kernel_options=options)


def loss(*inputs: mx.array, **options: Any) -> mx.array:
    return (attend(*inputs, **options) * mx.cos(mx.arange(320.0)).reshape(Q.shape)).sum()


def assert_equal(got: Any, want: Any) -> None:
    for mine, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(np.array(mine), np.array(theirs), rtol=1e-4, atol=1e-5)


ALL = (0, 1, 2, 3)
INPUTS = [Q, K, V, SLOPES]
WANT = mx.grad(lambda *inputs: loss(*inputs, BACKEND="ops"), argnums=ALL)(*INPUTS)
mx.eval(WANT)


def test_grad_and_value_and_grad() -> None:
    assert_equal(mx.grad(loss, argnums=ALL)(*INPUTS), WANT)
    value, gradients = mx.value_and_grad(loss, argnums=ALL)(*INPUTS)
    assert_equal(gradients, WANT)
    assert float(value) == pytest.approx(float(loss(Q)), rel=1e-6)


def test_vjp_with_its_own_cotangents() -> None:
    cotangent = mx.cos(mx.arange(320.0)).reshape(Q.shape)
    outputs, gradients = mx.vjp(attend, INPUTS, [cotangent])
    assert_equal(gradients, WANT)
    np.testing.assert_array_equal(np.array(outputs[0]), np.array(attend(Q)))


def test_checkpoint_runs_the_forward_again_and_differentiates() -> None:
    assert_equal(mx.grad(mx.checkpoint(loss), argnums=ALL)(*INPUTS), WANT)


def test_inside_a_larger_graph() -> None:
    def deep(q: mx.array, backend: str) -> mx.array:
        x = mx.tanh(q) * 2
        for _ in range(3):
            x = x + attend(x, x[..., ::-1], mx.exp(-x * x), BACKEND=backend)
        return (x * x).mean()

    np.testing.assert_allclose(*(np.array(mx.grad(deep)(Q, b)) for b in ("cpu", "ops")), rtol=1e-4, atol=1e-6)


def test_an_array_captured_at_two_places_gets_the_sum() -> None:
    def twice(slopes: mx.array, backend: str) -> mx.array:
        return loss(Q, K, V, slopes, BACKEND=backend) + loss(K, Q, V, slopes, BACKEND=backend) + slopes.sum()

    assert_equal(*([mx.grad(twice)(SLOPES, b)] for b in ("cpu", "ops")))


def test_lse_is_not_returned_unless_it_is_asked_for() -> None:
    kinds = []

    def of(q: mx.array) -> mx.array:
        out = flex.flex_attention(q, K, V)
        kinds.append(type(out))
        return out.sum()

    mx.grad(of)(Q)
    assert kinds == [mx.array]


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 8)
        self.slopes = SLOPES

    def __call__(self, x: mx.array, **options: Any) -> mx.array:
        return attend(self.project(x), x, x, self.slopes, **options)


def test_twenty_steps_of_training_are_those_of_ops() -> None:
    def trained(backend: str) -> list[float]:
        mx.random.seed(3)
        layer, optimiser = Layer(), optim.Adam(1e-2)

        def error(layer: Layer) -> mx.array:
            return ((layer(Q, BACKEND=backend) - V) ** 2).mean()

        step, losses = nn.value_and_grad(layer, error), []
        for _ in range(20):
            value, gradients = step(layer)
            optimiser.update(layer, gradients)
            losses.append(float(value))
        return [*losses, *np.array(layer.slopes).tolist()]

    mine, theirs = trained("cpu"), trained("ops")
    assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    assert mine[19] < 0.97 * mine[0]


def test_compile_around_a_step_runs_on_ops_and_says_so_once() -> None:
    step = mx.compile(mx.grad(loss, argnums=ALL))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert_equal(step(*INPUTS), WANT)
        assert_equal(step(*INPUTS), WANT)
    assert len(caught) <= 1  # another test may have seen it
    assert all("inside mx.compile" in str(each.message) for each in caught)


# -- what is refused ---------------------------------------------------------------------------------------------


def test_a_second_derivative_is_refused_and_that_of_ops_is_right() -> None:
    def squared(q: mx.array, backend: str) -> mx.array:
        return (mx.grad(lambda x: loss(x, BACKEND=backend))(q) ** 2).sum()

    with pytest.raises(flex.GradientError, match="cannot be differentiated again; use kernel_options"):
        mx.grad(squared)(Q, "cpu")
    second = mx.grad(squared)(Q, "ops")
    step = 1e-2 * mx.array(RNG.normal(size=Q.shape).astype(np.float32))
    difference = float(squared(Q + step, "ops") - squared(Q - step, "ops")) / 2
    assert float((second * step).sum()) == pytest.approx(difference, rel=2e-2)


def test_a_second_derivative_by_what_only_the_first_one_sees_is_refused() -> None:
    def of_slopes(slopes: mx.array) -> mx.array:
        return mx.grad(lambda q: loss(q, K, V, slopes))(Q).sum()

    with pytest.raises(flex.GradientError, match="cannot be differentiated again"):
        mx.grad(of_slopes)(SLOPES)


def test_forward_mode_is_refused() -> None:
    with pytest.raises(flex.GradientError, match=r"no forward-mode derivative \(mx.jvp\); use kernel_options"):
        mx.jvp(lambda q: attend(q), [Q], [Q])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "QK_QUANT": ({"QK_QUANT": "int8"}, "QK_QUANT has no backward pass, .*; leave it out in training"),
    "PIPELINE": ({"PIPELINE": "staged"}, 'the stages have no backward pass; leave "PIPELINE": "staged" out'),
}


@pytest.mark.parametrize("options, message", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("by", [0, 3], ids=["q", "captured"])
def test_options_without_a_gradient(options: dict[str, Any], message: str, by: int) -> None:
    with pytest.raises(flex.GradientError, match=message):
        mx.grad(lambda *inputs: loss(*inputs, **options), argnums=by)(*INPUTS)
    assert loss(*INPUTS, **options).shape == ()  # outside of differentiation they run


def test_int8_keys_are_refused() -> None:
    cache = flex.Int8KV()
    cache.update(K, V)
    with pytest.raises(flex.GradientError, match=r"int8 have no gradient; differentiate with \*cache.dequantised\(\)"):
        mx.grad(lambda q: flex.flex_attention(q, cache.key, cache.value).sum())(Q)


def smoothed(q: mx.array, k: mx.array) -> mx.array:
    return (flex.flex_attention(q, k + 50, V, kernel_options={"SMOOTH_K": True}) * Q).sum()


def test_smoothing_alone_differentiates_exactly() -> None:
    want = mx.grad(
        lambda q, k: (flex.flex_attention(q, k + 50, V, kernel_options={"BACKEND": "ops"}) * Q).sum(), (0, 1)
    )
    np.testing.assert_allclose(
        *(np.array(function(Q, K)[1]) for function in (mx.grad(smoothed, (0, 1)), want)), rtol=1e-3, atol=2e-4
    )


def test_integers_and_masks_have_no_gradient() -> None:
    documents, limits = mx.array([0] * 10 + [1] * 10), mx.array([0.5, 0.7])

    def of(limits: mx.array) -> mx.array:
        def mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            return (documents[q_idx] == documents[kv_idx]) & (limits[h] * 20 > kv_idx)

        return flex.flex_attention(Q, K, V, block_mask=mask).sum()

    np.testing.assert_array_equal(np.array(mx.grad(of)(limits)), [0, 0])


def test_nothing_new_is_compiled_by_another_step() -> None:
    from flextrace.kernels.registry import backend_for

    cpu: Any = backend_for("cpu")
    mx.eval(mx.grad(loss, argnums=ALL)(*INPUTS))
    kernels = len(cpu.kernels)
    for step in range(3):
        mx.eval(mx.grad(loss, argnums=ALL)(Q * step, K, V, SLOPES + step))
    assert len(cpu.kernels) == kernels
