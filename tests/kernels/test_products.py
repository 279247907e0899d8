"""Products of float32 on a GPU, whose matrix units keep 11 bits of each factor."""

from __future__ import annotations

from unittest import mock

import mlx.core as mx
import numpy as np

from flextrace.kernels.products import factors, product

GPU = mx.Device(mx.DeviceType.gpu, 0)


def tf32(x: mx.array) -> np.ndarray:
    """What a matrix unit takes of a number that it rounds; in float64."""
    kept = (np.array(x).view(np.int32) + (1 << 12)) & -(1 << 13)
    return kept.view(np.float32).astype(np.float64)


def test_what_a_matrix_unit_takes_adds_up() -> None:
    x = mx.random.normal((40, 30), key=mx.random.key(0))
    with mock.patch.object(mx, "default_device", lambda: GPU):
        high, low = factors(x)
    assert (tf32(high) == np.array(high)).all()
    np.testing.assert_allclose(tf32(high) + tf32(low), np.array(x, np.float64), rtol=2.0**-22, atol=0)


def test_a_product_keeps_what_float32_keeps() -> None:
    a, b = (mx.random.normal((40, 40), key=mx.random.key(seed)) for seed in (1, 2))
    with mock.patch.object(mx, "default_device", lambda: GPU):
        got = product(a, b)
    np.testing.assert_allclose(np.array(got), np.array(a, np.float64) @ np.array(b, np.float64), rtol=0, atol=2e-5)


def test_what_is_not_finite_stays() -> None:
    x = mx.array([[mx.inf, 1.0], [1.0, -mx.inf], [mx.nan, 0.5]])
    with mock.patch.object(mx, "default_device", lambda: GPU):
        got = np.array(product(x, mx.ones((2, 1))))[:, 0]
    np.testing.assert_array_equal(got, [np.inf, -np.inf, np.nan])


def test_the_host_multiplies_at_once() -> None:
    x = mx.ones((2, 2))
    assert factors(x) == [x]
