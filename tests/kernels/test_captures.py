"""Captured arrays in kernels: every number type of MLX and numpy, any strides, indices out of range."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import reference
from backends import COMPILED_OR_OPS

import flextrace as flex

INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
FLOATS = ["float16", "bfloat16", "float32", "float64"]
TYPES = [(library, name) for library in ("mlx", "numpy") for name in (*INTEGERS, *FLOATS, "bool")]
TYPES.remove(("numpy", "bfloat16"))  # numpy has none
each_backend = pytest.mark.parametrize("backend", COMPILED_OR_OPS)
N = 24


def largest_scores(score_mod: Any, backend: str, n: int = N) -> np.ndarray:
    """What a score_mod gives for key 0 of each row: the only key, so that it is the row's largest score."""
    q, k = mx.zeros((1, 1, n, 4)), mx.zeros((1, 1, 1, 4))
    request = flex.AuxRequest(max_scores=True)
    _, aux = flex.flex_attention(q, k, k, score_mod, return_aux=request, kernel_options={"BACKEND": backend})
    return np.array(aux.max_scores)[0, 0]


@pytest.mark.sampled(6)
@each_backend
@pytest.mark.parametrize(("library", "element"), TYPES)
def test_every_number_type_is_read_exactly(backend: str, library: str, element: str) -> None:
    if element in INTEGERS:
        info = np.iinfo(element)
        low, high = max(info.min, -(2**31)), min(info.max, 2**31 - 1)
        values = np.array([low, low + 1, 0, 1, high - 1, high] * 4, element)
    elif element == "bool":
        values = np.arange(N) % 3 == 0
    else:
        values = np.linspace(-3, 3, N).astype("float32" if element == "bfloat16" else element)
    with mx.stream(mx.cpu):  # float64 exists there only
        table = values if library == "numpy" else mx.array(values).astype(getattr(mx, element.replace("bool", "bool_")))
        mx.eval(table if library == "mlx" else [])

    if element in INTEGERS:
        # Two halves, because one float32 does not hold an int32.
        def upper(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            return table[q_idx] >> 16

        def lower(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            return table[q_idx] & 0xFFFF

        found = largest_scores(upper, backend).astype(np.int64) * 65536 + largest_scores(lower, backend).astype(int)
        np.testing.assert_array_equal(found, values.astype(np.int64))
    else:

        def plain(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            return float(table[q_idx])

        expected = reference.array(values, element) if element != "float64" else values.astype(np.float32)
        np.testing.assert_array_equal(largest_scores(plain, backend), np.asarray(expected).astype(np.float32))


@pytest.mark.sampled(2)
@each_backend
@pytest.mark.parametrize("element", ["float32", "int64", "bool"])
def test_strides_are_read_in_place(backend: str, element: str) -> None:
    values = (np.arange(3 * 5 * N).reshape(N, 5, 3) % 7).astype(element)
    for table in (values[::-1, 1:, ::2], mx.array(values)[:, 1:, ::2].transpose(0, 2, 1).swapaxes(1, 2)):

        def picked(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any, table: Any = table) -> Any:
            return float(table[q_idx, 2, kv_idx + 1])

        expected = np.array(table)[:, 2, 1].astype(np.float32)
        np.testing.assert_array_equal(largest_scores(picked, backend), expected)


def packed_record() -> np.ndarray:
    """13 bytes per row: no stride of a field is a multiple of its element."""
    record = np.zeros(2 * N, np.dtype([("flag", "?"), ("id", "<i4"), ("weight", "<f8")]))
    record["flag"] = np.arange(2 * N) % 3 == 0
    record["id"] = 3 * np.arange(2 * N) - 20
    record["weight"] = np.linspace(-3, 3, 2 * N)
    return record


@pytest.mark.sampled(2)
@each_backend
@pytest.mark.parametrize("step", [1, -1, 2])
@pytest.mark.parametrize("field", ["flag", "id", "weight"])
def test_fields_of_packed_records_are_read_at_their_places(backend: str, field: str, step: int) -> None:
    table = packed_record()[::step][:N][field]

    def by_row(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return float(table[q_idx])

    def positive(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return table[kv_idx] > 0

    np.testing.assert_array_equal(largest_scores(by_row, backend), table.astype(np.float32))
    q, k, v = mx.zeros((1, 1, N, 4)), mx.zeros((1, 1, N, 4)), mx.eye(N)[None, None]
    for mask in (positive, flex.create_block_mask(positive, None, None, N, N, BLOCK_SIZE=8)):
        out = flex.flex_attention(q, k, v, block_mask=mask, kernel_options={"BACKEND": backend})
        np.testing.assert_array_equal(np.array(out)[0, 0, 0] > 0, table > 0)


def test_an_axis_that_an_index_cannot_say_is_refused() -> None:
    table = np.broadcast_to(np.uint8(3), (2, 2**31))

    def reads(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score + table[0, q_idx - kv_idx]

    with pytest.raises(
        flex.TraceError, match=r"table has an axis of 2147483648 elements.*int32: 2147483647 is the most"
    ):
        largest_scores(reads, "cpu")
    table = table[:, 1:]
    assert (largest_scores(reads, "cpu") == 3).all()
    table = np.broadcast_to(np.uint8(3), (2**31, 2))
    with pytest.raises(flex.TraceError, match="table has an axis of 2147483648 elements"):
        largest_scores(reads, "cpu")


@each_backend
def test_indices_wrap_once_and_stay_inside(backend: str) -> None:
    table = mx.arange(5) * 10

    def shifted(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return table[q_idx - 12]

    at = np.arange(N) - 12
    expected = np.clip(np.where(at < 0, at + 5, at), 0, 4) * 10.0
    np.testing.assert_array_equal(largest_scores(shifted, backend), expected)


@each_backend
def test_keys_read_neighbours_past_the_end(backend: str) -> None:
    bias = mx.random.normal((150,), key=mx.random.key(1))
    q = mx.random.normal((1, 2, 9, 8), key=mx.random.key(2))
    k = mx.random.normal((1, 2, 150, 8), key=mx.random.key(3))

    def biased(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score + bias[kv_idx] - bias[kv_idx + (q_idx - 4) if 0 <= kv_idx + q_idx - 4 < 150 else 0]

    out = flex.flex_attention(q, k, k, biased, kernel_options={"BACKEND": backend})
    np.testing.assert_allclose(np.array(out), reference.attention(q, k, k, biased)[0], atol=2e-5)


@each_backend
@pytest.mark.parametrize("shift", [-16, 5])
def test_neighbours_are_read_inside_their_array(backend: str, shift: int) -> None:
    """Neighbours in memory, but for the first or the last of them: around the array lie nans."""
    memory = np.full(260, np.nan, np.float32)
    table = memory[50:210]
    table[:] = np.linspace(-2, 2, 160)

    def biased(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score + table[kv_idx + shift - q_idx]

    q, k = mx.zeros((1, 1, 3, 8)), mx.random.normal((1, 1, 160, 8), key=mx.random.key(1))
    out = flex.flex_attention(q, k, k, biased, kernel_options={"BACKEND": backend})
    weights = np.exp(table[np.minimum(np.arange(160) + shift - np.arange(3)[:, None], 159)])
    expected = weights / weights.sum(axis=-1, keepdims=True) @ np.array(k)[0, 0]
    np.testing.assert_allclose(np.array(out)[0, 0], expected, atol=2e-5)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("element", "value", "axis"),
    [
        ("uint32", 2**31, "q_idx"),
        ("uint32", 2**32 - 1, "kv_idx"),
        ("uint32", 2**31, "unit"),
        ("int64", 2**31, "unit"),
        ("int64", -(2**31) - 1, "unit"),
        ("uint64", 2**63, "unit"),
    ],
)
def test_an_integer_outside_int32_is_an_error(element: str, value: int, axis: str) -> None:
    table = np.full(40, 7, element)
    table[20] = value
    mods: dict[str, Any] = {
        "q_idx": lambda score, b, h, q_idx, kv_idx: score + table[q_idx],
        "kv_idx": lambda score, b, h, q_idx, kv_idx: score + table[39 - kv_idx],
        "unit": lambda score, b, h, q_idx, kv_idx: score + table[kv_idx],
    }
    q = mx.zeros((1, 1, 40, 4))
    with pytest.raises(OverflowError, match=r"\(table\) holds a value outside int32"):
        flex.flex_attention(q, q, q, mods[axis], kernel_options={"BACKEND": "cpu"})
    table[20] = 8
    flex.flex_attention(q, q, q, mods[axis], kernel_options={"BACKEND": "cpu"})


@each_backend
def test_an_empty_array_is_refused(backend: str) -> None:
    nothing = mx.zeros((0,))

    def reads(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score + nothing[kv_idx]

    with pytest.raises(flex.TraceError, match="nothing is an empty array"):
        largest_scores(reads, backend)


def test_too_many_dimensions() -> None:
    deep = mx.zeros((1,) * 9)

    def reads(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score + deep[0, 0, 0, 0, 0, 0, 0, 0, kv_idx]

    with pytest.raises(ValueError, match="deep has 9 dimensions; the cpu backend reads 8"):
        largest_scores(reads, "cpu")
