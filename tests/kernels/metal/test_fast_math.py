"""kernel_options={"MATH": "fast"}: which functions it exchanges, and how far these are from the exact ones where each
is as wrong as Metal's specification lets it be."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from calls import attention_call

import flextrace as flex
from flextrace.kernels import backend_for
from flextrace.kernels.metal.backward.text import QUERY, gradient_text
from flextrace.kernels.metal.generate import kernel_text
from flextrace.kernels.metal.kernel import Variant
from flextrace.kernels.spec import Formulas
from flextrace.tracer import METAL, METAL_FAST

Array = np.ndarray
rng = np.random.default_rng(0)
values = np.concatenate(
    [np.linspace(-120, 120, 801), np.linspace(-1, 1, 401), [0.0, -0.0, 1e-30, -1e-30, 1e30, -1e30]]
).astype(np.float32)
table = mx.array(values)
FUNCTIONS: dict[str, Any] = {
    "tanh": np.tanh,
    "sigmoid": lambda x: 0.5 * (1 + np.tanh(x / 2)),
    "exp": lambda x: np.exp(np.minimum(x, 80.0)),
    "log": lambda x: np.log(np.abs(x) + 0.25),
    "sqrt": lambda x: np.sqrt(np.abs(x)),
}


def by_head(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    """FUNCTIONS of the values, one a head."""
    x = table[q_idx]
    if h == 0:
        return math.tanh(x)
    if h == 1:
        return mx.sigmoid(x)
    if h == 2:
        return mx.exp(min(x, 80.0))
    return mx.log(abs(x) + 0.25) if h == 3 else mx.sqrt(abs(x))


def scores(how: str) -> Array:
    """[functions, values], by the simulator."""
    q = mx.zeros((1, len(FUNCTIONS), len(values), 8))
    _, aux = flex.flex_attention(
        q,
        q[:, :, :1],
        q[:, :, :1],
        flex.score_mod(by_head),
        return_aux=flex.AuxRequest(max_scores=True),
        kernel_options={"BACKEND": "simulator", "MATH": how},
    )
    return np.array(aux.max_scores)[0]


def bound(name: str, x: Array, exact: Array) -> Array:
    ulp = 2.0**-23 * np.abs(exact)
    if name == "exp":
        return (4 + 2 * np.abs(np.minimum(x, 80))) * ulp + 1e-37  # what is subnormal
    if name == "log":
        return 4 * ulp + 2.0**-20
    return 5 * ulp if name == "sqrt" else np.full(exact.shape, 1e-6)


def test_fast_functions_are_right_to_within_what_is_said() -> None:
    for name, precise, fast in zip(FUNCTIONS, scores("precise"), scores("fast"), strict=True):
        exact = FUNCTIONS[name](values.astype(np.float64))
        far, farther = abs(precise - exact), abs(fast - exact)
        assert (far <= 2.0**-22 * np.maximum(np.abs(exact), 0.5)).all(), name
        assert (farther <= bound(name, values, exact)).all(), (name, farther.max())
        assert farther.max() > far.max(), f"{name} is as wrong in the simulator as Metal's may be"


def squashed(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return 5 * math.tanh(score / 5) + math.sin(score)


def softly_masked(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return math.exp(-0.1 * (q_idx - kv_idx)) < 2.0


def test_a_score_mod_asks_for_fast_functions_and_a_mask_keeps_its_own() -> None:
    mods = Formulas(flex.score_mod(squashed).trace().formula, flex.mask_mod(softly_masked).trace().formula)
    precise, fast = (kernel_text(mods, fast_math=how).header for how in (False, True))
    assert precise == kernel_text(mods).header and "metal::precise::tanh" in precise
    assert "metal::fast::exp(" not in precise and "metal::precise::tanh" not in fast
    assert "metal::fast::divide(2.0f, 1.0f + metal::fast::exp(" in fast and "metal::precise::sin(score)" in fast
    mask = fast[fast.index("// mask_mod") :]
    assert "metal::precise::exp" in mask and "metal::fast::exp(" not in mask
    slopes = [gradient_text(QUERY, mods, Variant(fast_math=how)).header for how in (False, True)]
    assert "metal::precise::tanh" in slopes[0] and "metal::precise::tanh" not in slopes[1]
    assert METAL.ops.keys() == METAL_FAST.ops.keys()


def test_only_a_score_mod_makes_another_kernel() -> None:
    q, backend = mx.zeros((1, 1, 8, 8)), backend_for("simulator")
    score, mask = flex.score_mod(squashed).bind(), flex.mask_mod(softly_masked).bind()
    for mods, differ in (((None, None), False), ((None, mask), False), ((score, None), True), ((score, mask), True)):
        specs = [backend.spec(attention_call(q, q, q, 1.0, *mods, fast_math=how)) for how in (False, True)]
        assert (specs[0] != specs[1]) == differ


@pytest.mark.parametrize("backend", ["cpu", "ops"])
def test_other_backends_take_it_and_compute_the_same(backend: str) -> None:
    q = mx.array(rng.normal(size=(1, 2, 20, 8)).astype(np.float32))
    plain, fast = (
        flex.flex_attention(q, q, q, squashed, kernel_options={"BACKEND": backend, **more})
        for more in ({}, {"MATH": "fast"})
    )
    assert mx.array_equal(plain, fast)


def test_gradients_follow_the_scores_of_the_forward_kernel() -> None:
    """Whose largest ones they know again: d_max_scores reaches q. Their kernels take the same functions."""
    inputs = [mx.array(rng.normal(size=(1, 1, 20, 8)).astype(np.float32) * 3) for _ in range(3)]

    def gradients(**options: str) -> list[Array]:
        def loss(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
            asked = flex.AuxRequest(max_scores=True)
            out, aux = flex.flex_attention(q, k, v, squashed, return_aux=asked, kernel_options=options)
            return (out * out).sum() + (aux.max_scores * mx.arange(20)).sum()

        return [np.array(x) for x in mx.grad(loss, (0, 1, 2))(*inputs)]

    kernels = backend_for("simulator").kernels
    before = set(kernels)
    found = gradients(BACKEND="simulator", MATH="fast")
    made = [spec for spec in set(kernels) - before if spec.mods.score is not None]
    assert len(made) > 2 and all(spec.variant.fast_math for spec in made)
    for fast, exact in zip(found, gradients(BACKEND="ops"), strict=True):
        np.testing.assert_allclose(fast, exact, rtol=2e-4, atol=2e-4)
