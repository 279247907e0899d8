"""flextrace.nn.MultiHeadAttention: that of mlx.nn, and what is more, against the same in dense MLX operations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

import flextrace as flex

DIMS, HEADS, LENGTH = 32, 4, 24


def normal(*shape: int, seed: int = 0) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


class Model(nn.Module):
    """One layer with all that there is; `dense` is the same in MLX's operations, with L x L arrays."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = flex.nn.MultiHeadAttention(DIMS, HEADS, num_kv_heads=2, bias=True, sinks=True)
        self.position = flex.nn.RelativePositionBias(HEADS, num_buckets=8, max_distance=12, bidirectional=False)

    def __call__(self, x: mx.array, backend: str = "cpu") -> mx.array:
        options = {"BACKEND": backend}
        return self.layer(x, score_mod=self.position.score_mod, block_mask=flex.mods.causal, kernel_options=options)

    def dense(self, x: mx.array) -> mx.array:
        layer, batch = self.layer, x.shape[0]
        q = layer.query_proj(x).reshape(batch, LENGTH, HEADS, -1).swapaxes(1, 2)
        k, v = (proj(x).reshape(batch, LENGTH, 2, -1).swapaxes(1, 2) for proj in (layer.key_proj, layer.value_proj))
        k, v = (mx.repeat(part, 2, axis=1) for part in (k, v))
        distance = mx.arange(LENGTH)[None, :] - mx.arange(LENGTH)[:, None]
        buckets = self.position._buckets[mx.clip(distance + 12, 0, 24)]
        scores = q @ k.swapaxes(-1, -2) / (DIMS // HEADS) ** 0.5 + self.position.weight[buckets].transpose(2, 0, 1)
        scores = mx.where(distance <= 0, scores, -mx.inf)
        sink = mx.broadcast_to(layer.sinks[:, None, None], (batch, HEADS, LENGTH, 1))
        weights = mx.softmax(mx.concatenate([scores, sink], axis=-1), axis=-1)[..., :-1]
        return layer.out_proj((weights @ v).swapaxes(1, 2).reshape(x.shape))


def loss_of(model: Model, x: mx.array, way: str) -> mx.array:
    out = model.dense(x) if way == "dense" else model(x, way)
    return (out * normal(*out.shape, seed=7)).mean() + (out**2).mean()


def test_weights_of_mlx_load_and_give_the_same() -> None:
    theirs = nn.MultiHeadAttention(DIMS, HEADS)
    ours = flex.nn.MultiHeadAttention(DIMS, HEADS)
    ours.update(theirs.parameters())
    x, y = normal(2, LENGTH, DIMS, seed=1), normal(2, 17, DIMS, seed=2)
    for keys, values in ((x, x), (y, y), (y, 2 * y)):
        np.testing.assert_allclose(np.array(ours(x, keys, values)), np.array(theirs(x, keys, values)), atol=2e-5)
    np.testing.assert_allclose(np.array(ours(x)), np.array(theirs(x, x, x)), atol=2e-5)
    np.testing.assert_allclose(np.array(ours(x, y)), np.array(theirs(x, y, y)), atol=2e-5)
    mask = theirs.create_additive_causal_mask(LENGTH)
    causal = ours(x, block_mask=flex.mods.causal)
    np.testing.assert_allclose(np.array(causal), np.array(theirs(x, x, x, mask)), atol=2e-5)


@pytest.mark.parametrize("backend", ["cpu", "ops"])
def test_gradients_of_every_parameter_are_those_of_dense_attention(backend: str) -> None:
    model, x = Model(), normal(2, LENGTH, DIMS)
    model.layer.sinks = normal(HEADS, seed=5)
    found = {}
    for way in (backend, "dense"):
        value, gradients = nn.value_and_grad(model, lambda m, x, way=way: loss_of(m, x, way))(model, x)
        found[way] = {"loss": value, **dict(tree_flatten(gradients))}
    assert len(found[backend]) == 1 + 8 + 1 + 1
    for name, expected in found["dense"].items():
        np.testing.assert_allclose(np.array(found[backend][name]), np.array(expected), atol=2e-6, rtol=1e-4)
        assert mx.abs(expected).max() > 1e-4, name


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.long)], ids=["plain", "compiled"])
def test_training_is_that_of_dense_attention(compiled: bool) -> None:
    """Twenty steps of Adam; also as one compiled step, where parameters are the step's state."""
    x, losses, backend = normal(2, LENGTH, DIMS), {}, "ops" if compiled else "cpu"
    for way in (backend, "dense"):
        mx.random.seed(3)
        model, optimiser = Model(), optim.Adam(learning_rate=1e-2)
        gradient = nn.value_and_grad(model, lambda m, x, way=way: loss_of(m, x, way))
        state = [model.state, optimiser.state]

        def step(x: mx.array, gradient: Any = gradient, optimiser: Any = optimiser, model: Any = model) -> mx.array:
            loss, gradients = gradient(model, x)
            optimiser.update(model, gradients)
            return loss

        run = mx.compile(step, inputs=state, outputs=state) if compiled else step
        losses[way] = []
        for _ in range(20):
            losses[way].append(run(x).item())
            mx.eval(state)
    np.testing.assert_allclose(losses[backend], losses["dense"], rtol=1e-4, atol=1e-5)
    assert losses[backend][-1] < losses[backend][0] - 0.01


def test_gradients_of_a_checkpointed_layer_are_the_same() -> None:
    model, x = Model(), normal(2, LENGTH, DIMS)

    def checkpointed(model: Model, x: mx.array) -> mx.array:
        def inside(parameters: Any, x: mx.array) -> mx.array:
            model.update(parameters)
            return loss_of(model, x, "cpu")

        return mx.checkpoint(inside)(model.trainable_parameters(), x)

    found = [
        tree_flatten(nn.value_and_grad(model, loss)(model, x)[1])
        for loss in (lambda m, x: loss_of(m, x, "cpu"), checkpointed)
    ]
    assert len(found[0]) == len(found[1]) == 10
    for (name, plain), (_, again) in zip(*found, strict=True):
        np.testing.assert_allclose(np.array(again), np.array(plain), atol=1e-7, err_msg=name)


@pytest.mark.parametrize("frozen", ["position", "layer"])
def test_what_is_frozen_has_no_gradient_and_changes_no_other(frozen: str) -> None:
    model, x = Model(), normal(2, LENGTH, DIMS)
    gradient = nn.value_and_grad(model, lambda m, x: loss_of(m, x, "cpu"))
    every = dict(tree_flatten(gradient(model, x)[1]))
    model[frozen].freeze()
    some = dict(tree_flatten(gradient(model, x)[1]))
    assert {*some} == {name for name in every if not name.startswith(frozen)}
    for name, got in some.items():
        np.testing.assert_allclose(np.array(got), np.array(every[name]), atol=1e-7, err_msg=name)


def test_it_says_what_it_is() -> None:
    assert "num_heads=4, num_kv_heads=2, sinks=True" in str(flex.nn.MultiHeadAttention(DIMS, HEADS, 2, sinks=True))


def test_weights_are_saved_and_loaded(tmp_path: Path) -> None:
    model, other, x = Model(), Model(), normal(1, LENGTH, DIMS)
    model.layer.sinks = normal(HEADS, seed=5)
    model.save_weights(str(tmp_path / "model.safetensors"))
    other.load_weights(str(tmp_path / "model.safetensors"))
    assert mx.array_equal(model(x), other(x))
    names = {name for name, _ in tree_flatten(model.parameters())}
    assert {"layer.sinks", "position.weight", "layer.query_proj.weight", "layer.out_proj.bias"} < names


def test_half_precision_stays_half() -> None:
    model, x = Model(), normal(1, LENGTH, DIMS)
    expected = np.array(model(x))
    model.set_dtype(mx.bfloat16)
    out = model(x.astype(mx.bfloat16))
    assert out.dtype == mx.bfloat16
    np.testing.assert_allclose(np.array(out.astype(mx.float32)), expected, atol=5e-2)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((30, 4), "dims is 30; expected a multiple of the 4 heads"),
        ((32, 4, 3), "num_heads is 4; expected a multiple of the 3 key heads"),
        ((32, 4, 0), "num_kv_heads is 0; expected a whole number of at least 1"),
        ((32.5, 4), "dims is 32.5; expected a whole number"),
    ],
)
def test_sizes_that_do_not_go_together(sizes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flex.nn.MultiHeadAttention(*sizes)


def test_arguments_of_mlx_name_what_to_write() -> None:
    layer, x = flex.nn.MultiHeadAttention(DIMS, HEADS), normal(1, LENGTH, DIMS)
    with pytest.raises(TypeError, match="has no argument 'mask'; pass a mask_mod, or what create_block_mask gives"):
        layer(x, mask=mx.zeros((LENGTH, LENGTH)))
    with pytest.raises(TypeError, match=r"not a RelativePositionBias; pass its mod, score_mod=... .score_mod"):
        layer(x, score_mod=flex.nn.RelativePositionBias(HEADS))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="score_mod"):
        layer(x, x, x, mx.zeros((LENGTH, LENGTH)))
