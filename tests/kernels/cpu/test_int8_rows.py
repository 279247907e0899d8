"""Keys and values that are in int8 already, on the CPU: against numpy on the rows that they stand for."""

from __future__ import annotations

import ctypes
import math
import mmap
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest
import quant_reference
import reference
import zoo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import Array

import flextrace as flex
from flextrace.kernels import Int8Rows, toolchain
from flextrace.kernels.cpu import launch

CPU = {"BACKEND": "cpu"}
DTYPES = [mx.float32, mx.float16, mx.bfloat16]


class Shape(NamedTuple):
    B: int
    H: int
    Lq: int
    D: int
    Bkv: int
    Hkv: int
    Lkv: int
    Dv: int


SHAPES = {
    "gqa": Shape(2, 4, 45, 40, 2, 2, 150, 24),
    "ragged": Shape(1, 2, 131, 17, 1, 2, 263, 33),
    "kv_batch_one": Shape(3, 2, 70, 64, 1, 1, 90, 80),
    "decode": Shape(2, 8, 1, 128, 2, 2, 300, 128),
    "head_dim_80": Shape(1, 2, 20, 80, 1, 1, 257, 64),
    "tiny": Shape(1, 1, 3, 1, 1, 1, 5, 1),
    "odd_decode": Shape(2, 14, 2, 40, 2, 2, 650, 24),
}
MANY_OR_FEW = pytest.mark.parametrize("rows", [45, 6])  # which have kernels of their own


class Inputs(NamedTuple):
    """q: [B, H, Lq, D]; k: [Bkv, Hkv, Lkv, D], in int8; v: [Bkv, Hkv, Lkv, Dv], in int8 or the dtype of q."""

    q: mx.array
    k: Int8Rows
    v: Int8Rows | mx.array

    @staticmethod
    def random(
        shape: Shape, dtype: mx.Dtype = mx.float32, int8_value: bool = True, means: bool = True, seed: int = 0
    ) -> Inputs:
        """Rows of very different size, some of zeros, beside means that are not those of any rows."""
        rng = np.random.default_rng(seed)
        q = mx.array(rng.normal(size=(shape.B, shape.H, shape.Lq, shape.D)).astype(np.float32)).astype(dtype)
        heads = (shape.Bkv, shape.Hkv)
        v: Int8Rows | mx.array = random_rows(rng, (*heads, shape.Lkv, shape.Dv), means)
        if not int8_value:
            v = v.float32().astype(dtype)
        return Inputs(q, random_rows(rng, (*heads, shape.Lkv, shape.D), means), v)


def random_rows(rng: np.random.Generator, shape: tuple[int, ...], means: bool) -> Int8Rows:
    scales = rng.uniform(0.002, 0.02, shape[:-1]) * rng.choice([0, 1], shape[:-1], p=[0.1, 0.9])
    mean = mx.array(rng.normal(size=(*shape[:2], 1, shape[3])).astype(np.float32)) if means else None
    return Int8Rows(mx.array(rng.integers(-128, 128, shape).astype(np.int8)), mx.array(scales.astype(np.float32)), mean)


def dequantised(rows: Int8Rows | mx.array) -> Array:
    if isinstance(rows, Int8Rows):
        whole = np.array(rows.values).astype(np.float64) * np.array(rows.scales)[..., None]
        return whole if rows.means is None else whole + np.array(rows.means)
    return np.array(rows.astype(mx.float32)).astype(np.float64)


def expected(inputs: Inputs, score_mod: Any = None, mask_mod: Any = None) -> reference.Attention:
    """Every query is rounded where it meets the integers of a key, and as it is where it meets the means."""
    q = np.array(inputs.q.astype(mx.float32))
    rounded = quant_reference.quantise(q.reshape(-1, q.shape[-1]), 1, np.zeros(q[..., 0].size))
    query = (rounded.integers * rounded.scale[:, None]).reshape(q.shape)
    means = np.zeros(1) if inputs.k.means is None else np.array(inputs.k.means).astype(np.float64)
    # One product for both: [rounded q, q] . [key less means, means].
    key = dequantised(inputs.k) - means
    both = np.concatenate([query, q], axis=-1), np.concatenate([key, np.broadcast_to(means, key.shape)], axis=-1)
    return reference.attention(*both, dequantised(inputs.v), score_mod, mask_mod, 1 / math.sqrt(q.shape[-1]))


class Got(NamedTuple):
    out: Array
    lse: Array
    max_scores: Array


def run(inputs: Inputs, score_mod: Any = None, block_mask: Any = None, **options: Any) -> Got:
    aux = flex.AuxRequest(lse=True, max_scores=True)
    out, by = flex.flex_attention(
        *inputs, score_mod, block_mask, enable_gqa=True, return_aux=aux, kernel_options=CPU | options
    )
    assert out.dtype == inputs.q.dtype and by.lse is not None and by.max_scores is not None
    return Got(*(np.array(x.astype(mx.float32)) for x in (out, by.lse, by.max_scores)))


def assert_attention(got: Got, wanted: reference.Attention, dtype: mx.Dtype = mx.float32) -> None:
    """An element of q in the middle of two integers may be rounded the other way, which one row shows a little."""
    assert abs(got.out - wanted.out).sum() <= {mx.float32: 2e-4, mx.float16: 5e-4, mx.bfloat16: 3e-3}[dtype] * (
        abs(wanted.out).sum() + 1e-3
    )
    for name in ("out", "lse", "max_scores"):
        reference.assert_close(getattr(got, name), getattr(wanted, name), 2e-2, 1e-2, name)
    for one, two in ((got.lse, wanted.lse), (got.max_scores, wanted.max_scores)):
        finite = np.isfinite(two)
        # bfloat16 queries are exactly in the middle more often
        assert abs(one[finite] - two[finite]).sum() <= (1e-3 if dtype == mx.bfloat16 else 2e-4) * finite.size


def assert_same(one: Got, two: Got) -> None:
    for name in Got._fields:
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)


# ---- numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("int8_value", [False, True])
@pytest.mark.parametrize("means", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_attention_as_numpy(shape: str, means: bool, int8_value: bool, dtype: mx.Dtype) -> None:
    inputs = Inputs.random(SHAPES[shape], dtype, int8_value, means)
    assert_attention(run(inputs), expected(inputs), dtype)


NAMES = (
    *("alibi", "softcap", "causal_as_score_mod"),
    *("causal", "checkerboard_heads", "empty_rows", "padding_lengths"),
)


@pytest.mark.sampled(2)
@MANY_OR_FEW
@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_mod_sees_the_whole_score(name: str, rows: int) -> None:
    shape = SHAPES["gqa"]._replace(Lq=rows)
    inputs, sizes = Inputs.random(shape), (shape.B, shape.H, shape.Lq, shape.Lkv)
    mod, plain = (
        zoo.ZOO[name].make(*sizes, np.random.default_rng(3), array) for array in (zoo.mx_array, reference.array)
    )
    if zoo.ZOO[name].kind == "score":
        return assert_attention(run(inputs, mod), expected(inputs, plain))
    for mask in (mod, flex.create_block_mask(mod, *sizes, BLOCK_SIZE=32)):
        assert_attention(run(inputs, None, mask), expected(inputs, None, plain))


FEW = {
    "one_row": Shape(2, 4, 1, 64, 2, 2, 333, 64),
    "sevens": Shape(1, 14, 5, 40, 1, 2, 270, 24),
    "eight_rows": Shape(1, 4, 8, 128, 1, 1, 160, 16),
}


@pytest.mark.sampled(110)
@pytest.mark.parametrize("shape", FEW)
@pytest.mark.parametrize("entry", zoo.ZOO.values(), ids=str)
def test_the_zoo_at_few_rows(entry: zoo.Entry, shape: str) -> None:
    sizes = FEW[shape]
    mod, plain = (
        entry.make(sizes.B, sizes.H, sizes.Lq, sizes.Lkv, np.random.default_rng(3), array)
        for array in (zoo.mx_array, reference.array)
    )
    for int8_value in (False, True):
        inputs = Inputs.random(sizes, int8_value=int8_value)
        if entry.kind == "score":
            assert_attention(run(inputs, mod), expected(inputs, plain))
        else:
            assert_attention(run(inputs, None, mod), expected(inputs, None, plain))


@pytest.mark.parametrize("bias", [0.0, 3.0])
@pytest.mark.parametrize("int8_value", [False, True])
def test_accuracy_of_a_cache(int8_value: bool, bias: float) -> None:
    """Beside attention on the tokens themselves; without the means a biased K is visibly worse."""
    rng = np.random.default_rng(1)
    q, k, v = (mx.array(rng.normal(size=(1, 2, length, 128)).astype(np.float32)) for length in (64, 1024, 1024))
    k = k + mx.array(bias * rng.normal(size=128).astype(np.float32))
    exact = reference.attention(*(np.array(x) for x in (q, k, v))).out
    errors = []
    for smooth in (True, False):
        cache = flex.Int8KV(quantise_value=int8_value, smooth_k=smooth)
        cache.update(k[:, :, :700], v[:, :, :700])
        cache.update(k[:, :, 700:], v[:, :, 700:])
        found = quant_reference.figures(run(Inputs(q, cache.key, cache.value)).out, exact)
        errors.append(found.relative_l1)
        if smooth:
            assert found.cosine >= 0.9998 and found.relative_l1 <= (0.0165 if int8_value else 0.0135), found
    assert not bias or errors[1] > 1.5 * errors[0]


# ---- rows that are special -----------------------------------------------------------------------------------------


def with_scale(rows: Int8Rows, row: int, scale: float) -> Int8Rows:
    """The rows with another scale for one row of the first head of the first batch."""
    scales = np.array(rows.scales)
    scales[0, 0, row] = scale
    return rows._replace(scales=mx.array(scales))


@pytest.mark.sampled(2)
@MANY_OR_FEW
@pytest.mark.parametrize("softcap", [False, True])
def test_a_key_without_a_number_is_nan_for_those_who_see_it(softcap: bool, rows: int) -> None:
    """For the others it is as if it were any other key, bit for bit."""
    inputs, half = Inputs.random(SHAPES["gqa"]._replace(Lq=rows)), rows // 2
    mod = (lambda score, b, h, q_idx, kv_idx: 3 * mx.tanh(score / 3)) if softcap else None

    def hidden(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return (q_idx < half) | (kv_idx != 130)

    got = run(inputs._replace(k=with_scale(inputs.k, 130, math.nan)), mod, hidden)
    clean = run(inputs, mod, hidden)
    spoiled = np.zeros(clean.lse.shape, bool)
    spoiled[0, :2, :half] = True
    assert np.isnan(got.out[spoiled]).all() and np.isnan(got.lse[spoiled]).all()
    for name in Got._fields:
        np.testing.assert_array_equal(getattr(got, name)[~spoiled], getattr(clean, name)[~spoiled])


@MANY_OR_FEW
def test_a_value_without_a_number_is_nan(rows: int) -> None:
    inputs = Inputs.random(SHAPES["gqa"]._replace(Lq=rows, Dv=80))
    assert isinstance(inputs.v, Int8Rows)
    got, clean = run(inputs._replace(v=with_scale(inputs.v, 130, math.nan))), run(inputs)
    assert np.isnan(got.out[0, :2]).all()
    np.testing.assert_array_equal(got.out[0, 2:], clean.out[0, 2:])
    np.testing.assert_array_equal(got.out[1], clean.out[1])
    np.testing.assert_array_equal(got.lse, clean.lse)


def test_a_value_without_a_number_that_is_left_out() -> None:
    inputs = Inputs.random(SHAPES["gqa"]._replace(Lq=6))
    assert isinstance(inputs.v, Int8Rows)
    mask = lambda b, h, q_idx, kv_idx: kv_idx != 130  # noqa: E731
    assert_same(run(inputs._replace(v=with_scale(inputs.v, 130, math.nan)), None, mask), run(inputs, None, mask))


@pytest.mark.parametrize("size", [1e-31, 1e30])
def test_values_of_any_size(size: float) -> None:
    inputs = Inputs.random(SHAPES["decode"], means=False)
    assert isinstance(inputs.v, Int8Rows)
    got = run(inputs._replace(v=inputs.v._replace(scales=inputs.v.scales * size)))
    reference.assert_close(got.out / np.float64(size), run(inputs).out, 1e-4, 1e-4, "out")


@pytest.mark.parametrize("rows", [40, 8])
@pytest.mark.parametrize("means", [False, True])
@pytest.mark.parametrize("kv_batch", [1, 2])
def test_a_query_that_is_not_finite_gives_what_plain_attention_gives(kv_batch: int, means: bool, rows: int) -> None:
    inputs = Inputs.random(Shape(2, 2, rows, 17, kv_batch, 1, 200, 16), means=means)
    q = np.array(inputs.q)
    q[:, :, 3, 2], q[:, :, 7, 0], q[:, :, 2, 16] = np.inf, np.nan, -np.inf
    spoiled, clean = inputs._replace(q=mx.array(q)), run(inputs)
    got = run(spoiled)
    plain = run(Inputs(spoiled.q, inputs.k.float32(), mx.array(dequantised(inputs.v).astype(np.float32))))
    assert np.isnan(plain.out[:, :, 7]).all() and not np.isnan(plain.max_scores[:, :, 3]).any()
    for name in Got._fields:
        one, two = getattr(got, name), getattr(plain, name)
        np.testing.assert_array_equal(one[:, :, [3, 7, 2]], two[:, :, [3, 7, 2]], err_msg=name)
        others = np.delete(np.arange(rows), [3, 7, 2])
        np.testing.assert_array_equal(one[:, :, others], getattr(clean, name)[:, :, others], err_msg=name)


@MANY_OR_FEW
def test_a_term_that_overflows_is_not_used(rows: int) -> None:
    """q . means is no float32 number: scores are those of the whole key."""
    inputs = Inputs.random(SHAPES["gqa"]._replace(Lq=rows))
    means = np.zeros((2, 2, 1, 40), np.float32)
    means[..., :2] = [[[3e38, -3e38]]]
    q = np.array(inputs.q)
    q[0, :, 5, :2] = 100
    big = Inputs(mx.array(q), inputs.k._replace(means=mx.array(means)), inputs.v)
    got, clean = run(big), run(big._replace(q=inputs.q))
    plain = run(Inputs(big.q, big.k.float32(), mx.array(dequantised(inputs.v).astype(np.float32))))
    np.testing.assert_array_equal(np.isnan(got.out[0, :, 5]), np.isnan(plain.out[0, :, 5]))
    for name in Got._fields:
        np.testing.assert_array_equal(getattr(got, name)[1], getattr(clean, name)[1])


@MANY_OR_FEW
def test_scales_whose_product_overflows_leave_a_score_of_nothing_as_it_is(rows: int) -> None:
    """Sums of products are 0, and every key counts as much as the others."""
    q = mx.full((1, 2, rows, 64), 1e21)
    signs = mx.array([127, -127] * 32).astype(mx.int8)
    k = Int8Rows(mx.broadcast_to(signs, (1, 2, 40, 64)), mx.full((1, 2, 40), 1e21))
    v = mx.random.normal((1, 2, 40, 8), key=mx.random.key(0))
    got = run(Inputs(q, k, v))
    wanted = np.broadcast_to(np.array(v).mean(axis=2, keepdims=True), got.out.shape)
    np.testing.assert_allclose(got.out, wanted, atol=1e-6)
    np.testing.assert_array_equal(got.max_scores, 0)


@MANY_OR_FEW
@pytest.mark.parametrize("zeros", ["q", "k", "both"])
def test_zeros_give_the_mean_of_v(zeros: str, rows: int) -> None:
    inputs = Inputs.random(SHAPES["gqa"]._replace(Lq=rows), means=False)
    q = inputs.q if zeros == "k" else mx.zeros_like(inputs.q)
    k = inputs.k if zeros == "q" else inputs.k._replace(scales=mx.zeros_like(inputs.k.scales))
    got = run(Inputs(q, k, inputs.v))
    mean = np.repeat(dequantised(inputs.v).mean(axis=2, keepdims=True), 2, axis=1)
    reference.assert_close(got.out, np.broadcast_to(mean, got.out.shape), 1e-5, 1e-5, "out")
    np.testing.assert_allclose(got.lse, math.log(150), rtol=1e-6)
    assert (got.max_scores == 0).all()


@pytest.mark.sampled(2)
@MANY_OR_FEW
@pytest.mark.parametrize("int8_value", [False, True])
def test_rows_that_attend_to_nothing_give_0(int8_value: bool, rows: int) -> None:
    """Also where the values have means; also without any key."""
    for length, mask in ((0, None), (90, lambda b, h, q_idx, kv_idx: q_idx < 0)):
        shape = SHAPES["kv_batch_one"]._replace(Lq=rows, Lkv=length)
        got = run(Inputs.random(shape, int8_value=int8_value), None, mask)
        assert (got.out == 0).all() and np.isneginf(got.lse).all() and np.isneginf(got.max_scores).all()


# ---- where the rows lie --------------------------------------------------------------------------------------------


def strided(array: mx.array, layout: tuple[int, ...], first: int, step: int) -> mx.array:
    """The same numbers, in a larger memory and another order of axes."""
    values = np.array(array)
    room = [size if axis != 2 else first + step * size + 3 for axis, size in enumerate(values.shape)]
    larger = np.full(room, 99, values.dtype)
    larger[:, :, first : first + step * values.shape[2] : step] = values
    moved = mx.array(np.ascontiguousarray(larger.transpose(layout))).transpose([int(i) for i in np.argsort(layout)])
    return moved[:, :, first : first + step * values.shape[2] : step]


def relaid(rows: Int8Rows, layout: tuple[int, ...], first: int, step: int) -> Int8Rows:
    means = (
        None
        if rows.means is None
        else mx.contiguous(rows.means.transpose(layout)).transpose([int(i) for i in np.argsort(layout)])
    )
    order = tuple(axis for axis in layout if axis < 3)
    return Int8Rows(strided(rows.values, layout, first, step), strided(rows.scales, order, first, step), means)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Shape, tuple[int, ...], int, int, dict[str, Any], bool]:
    batch, kv_heads, ratio = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    sizes = draw(st.sampled_from([1, 2, 5, 8, 12, 13, 97, 130])), draw(st.sampled_from([1, 3, 16, 17, 36, 64, 80, 128]))
    kv_len, value_dim = draw(st.sampled_from([1, 15, 128, 129, 300])), draw(st.sampled_from([1, 17, 32, 48, 100]))
    shape = Shape(batch, kv_heads * ratio, *sizes, draw(st.sampled_from([1, batch])), kv_heads, kv_len, value_dim)
    layout = draw(st.permutations([0, 1, 2, 3]))
    made = {"int8_value": draw(st.booleans()), "means": draw(st.booleans()), "seed": draw(st.integers(0, 9))}
    return shape, tuple(layout), draw(st.integers(0, 5)), draw(st.integers(1, 2)), made, draw(st.booleans())


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_any_shape_and_layout(case: tuple[Shape, tuple[int, ...], int, int, dict[str, Any], bool]) -> None:
    """As numpy, and bit for bit the same wherever the rows lie."""
    shape, layout, first, step, made, masked = case
    inputs = Inputs.random(shape, **made)
    v = inputs.v
    moved = Inputs(
        inputs.q,
        relaid(inputs.k, layout, first, step),
        relaid(v, layout, first, step) if isinstance(v, Int8Rows) else strided(v, layout, first, step),
    )
    mask = flex.mask_mod(lambda b, h, q_idx, kv_idx: (q_idx * 3 + h) % 40 >= kv_idx - 60) if masked else None
    plain = (lambda b, h, q_idx, kv_idx: (q_idx * 3 + h) % 40 >= kv_idx - 60) if masked else None
    got = run(moved, None, mask)
    assert_same(got, run(inputs, None, mask))
    assert_attention(got, expected(inputs, None, plain))


def before_the_end(array: mx.array) -> np.ndarray[Any, Any]:
    """A copy whose last byte is the last one before memory that nobody may read."""
    values, page = np.array(array), mmap.PAGESIZE
    data = values.tobytes()
    room = -(-len(data) // page) * page
    memory = mmap.mmap(-1, room + page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + room), ctypes.c_size_t(page), 0) == 0
    memory[room - len(data) : room] = data
    return np.frombuffer(memory, values.dtype, values.size, room - len(data)).reshape(values.shape)


@pytest.mark.parametrize("shape", ["ragged", "head_dim_80", "decode", "tiny", "kv_batch_one"])
def test_nothing_behind_the_last_row_is_read(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else this process ends. One query is not finite, for which keys are read as float32."""
    inputs = Inputs.random(SHAPES[shape])
    q = np.array(inputs.q)
    q[-1, -1, -1, 0] = np.inf
    inputs = inputs._replace(q=mx.array(q))
    wanted = run(inputs)
    arrays_of, moved = launch.arrays_of, []

    def at_the_end(*args: Any) -> tuple[Any, ...]:
        arrays = arrays_of(*args)
        moved[:] = [before_the_end(array) for array in (*arrays[1:3], *arrays[6:8])]  # keys, values and their scales
        return (arrays[0], *moved[:2], *arrays[3:6], *moved[2:], *arrays[8:])

    monkeypatch.setattr(launch, "arrays_of", at_the_end)
    assert_same(run(inputs), wanted)
    assert [array.dtype for array in moved] == [np.int8, np.int8, np.float32, np.float32]


def test_bits_do_not_depend_on_threads() -> None:
    inputs = Inputs.random(Shape(1, 4, 700, 64, 1, 2, 900, 64))
    assert_same(run(inputs, NUM_THREADS=1), run(inputs, NUM_THREADS=5))


MEMORY = """
import resource, sys
import mlx.core as mx
import flextrace as flex
from flextrace.kernels import Int8Rows

def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

rows = Int8Rows(mx.ones((1, 1, 1 << 17, 128), mx.int8), mx.full((1, 1, 1 << 17), 0.01))
mx.eval(rows.values, rows.scales)
for q_len, kv_len in ((1, 100), (1, 1 << 17), (200, 1 << 17)):
    q, part = mx.ones((1, 4, q_len, 128)), Int8Rows(rows.values[:, :, :kv_len], rows.scales[:, :, :kv_len])
    before = most()
    out = flex.flex_attention(q, part, part, enable_gqa=True, kernel_options={"BACKEND": "cpu"})
    mx.eval(out)
    print(most() - before)
"""


def test_no_float_array_of_all_keys_or_values() -> None:
    """16 MiB of int8 would be 64 MiB of floats each; memory grows by a few tiles."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    _, *grown = (int(line) for line in done.stdout.split())
    assert max(grown) < 8 << 20, grown


# ---- other processors ----------------------------------------------------------------------------------------------


X86 = toolchain.platform.machine() in ("x86_64", "AMD64")
OTHERS = {"without_avx512": ("-march=native", "-mno-avx512f"), "sse2": ("-march=x86-64",)} if X86 else {}


@pytest.fixture(scope="module")
def native() -> list[tuple[Inputs, Got]]:
    """For few rows and for many, beside what this processor's own instructions give."""
    inputs = [Inputs.random(SHAPES[shape], int8_value=int8) for shape in SHAPES for int8 in (True, False)]
    inputs += [one._replace(k=with_scale(one.k, 3, math.nan)) for one in (inputs[0], inputs[6])]
    return [(one, run(one)) for one in inputs]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["portable", *OTHERS])
def test_other_instructions_give_the_same_numbers(
    name: str, native: list[tuple[Inputs, Got]], fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = OTHERS.get(name, (*toolchain.native_flags(), "-DFLEXTRACE_PORTABLE_INT8"))
    monkeypatch.setattr(toolchain, "native_flags", lambda: flags)
    monkeypatch.setattr("flextrace.kernels.registry.made", {})
    toolchain.find_compiler.cache_clear()
    others = [run(inputs) for inputs, _ in native]
    toolchain.find_compiler.cache_clear()
    assert len(list(fresh_cache.glob("kernels/*/*"))) == 2
    for (inputs, one), two in zip(native, others, strict=True):
        if name == "portable" and inputs.q.shape[2] > launch.FEW_ROWS:
            assert_same(one, two)
        # Of few rows, AVX512-VNNI rounds the weights of int8 values to 2**-16 of the largest.
        few = inputs.q.shape[2] <= launch.FEW_ROWS and isinstance(inputs.v, Int8Rows)
        for field in Got._fields:
            tolerance = 1e-4 if few and field == "out" else 2e-5
            np.testing.assert_allclose(
                getattr(two, field), getattr(one, field), rtol=tolerance, atol=tolerance, err_msg=field
            )
