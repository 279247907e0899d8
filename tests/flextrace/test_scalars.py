"""Numbers of numpy and MLX where an argument takes a number: as Python's own of the same value, or refused like it."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import flextrace as flex
from flextrace import mods, visualize
from flextrace.kernels import GradientError
from flextrace.kernels.scalars import as_bool, as_float, as_int
from flextrace.stages import block_mask, matmul, scale

Convert = Callable[[Any], Any]
INTS: dict[str, Convert] = {
    "np.int64": np.int64,
    "np.uint8": np.uint8,
    "np.array": np.array,
    "mx.array": lambda n: mx.array(n, mx.int32),
}
FLOATS: dict[str, Convert] = {
    "np.float32": np.float32,
    "np.float64": np.float64,
    "np.array": lambda x: np.array(x, np.float16),
    "mx.array": mx.array,
    "Decimal": lambda x: Decimal(repr(x)),
    "Fraction": Fraction,
}


def causal(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx >= kv_idx


def by_head(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return (q_idx >= kv_idx) & (kv_idx >= h)


def attention(**options: Any) -> Any:
    q = mx.random.normal((1, 2, 12, 8), key=mx.random.key(0))
    return flex.flex_attention(q, q, q, **options).tolist()


def cache_after(step: Any, trimmed: Any) -> Any:
    cache = flex.Int8KV(step=step)
    cache.update(mx.ones((1, 1, 10, 8)), mx.ones((1, 1, 10, 8)))
    cache.trim(trimmed)
    return len(cache), cache.nbytes


def blocks(**sizes: Any) -> flex.BlockMask:
    given: dict[str, Any] = {"B": None, "H": None, "Q_LEN": 40, "KV_LEN": 40, "BLOCK_SIZE": 8, **sizes}
    return flex.create_block_mask(by_head if given["H"] is not None else causal, **given)


def dense(mask: Callable[..., Any], length: int = 16) -> Any:
    return flex.create_mask(mask, 1, 2, length, length).tolist()


def lists(n: Convert) -> flex.BlockMask:
    zeros = np.zeros((1, 1, 2, 2), np.int32)
    given: Any = (n(16), n(12))
    return flex.BlockMask.from_kv_blocks(zeros[..., 0] + 1, zeros, BLOCK_SIZE=n(8), seq_lengths=given)


def from_runs(n: Convert) -> flex.BlockMask:
    given: Any = (n(40), n(40))
    return flex.BlockMask.from_ranges(blocks().to_ranges(), given, n(1), n(1), n(8))


WHOLE: dict[str, Callable[[Convert], Any]] = {  # what is passed -> what comes of it, for a conversion of ints
    "create_block_mask lengths": lambda n: blocks(Q_LEN=n(24), KV_LEN=n(33)),
    "create_block_mask heads": lambda n: blocks(B=n(1), H=n(2)),
    "BLOCK_SIZE": lambda n: blocks(BLOCK_SIZE=n(16)),
    "BLOCK_SIZE pair": lambda n: blocks(BLOCK_SIZE=(n(16), n(8))),
    "BLOCK_SIZE list": lambda n: blocks(BLOCK_SIZE=[n(16), n(8)]),
    "offset": lambda n: blocks(offset=n(3)),
    "at_offset": lambda n: blocks().at_offset(n(5), n(2)),
    "_adjust": lambda n: blocks()._adjust(n(32), n(16)),
    "index": lambda n: blocks()[n(0), :, n(3)],
    "to_string": lambda n: blocks().to_string(n(0), n(0), n(4), n(4)),
    "from_kv_blocks": lists,
    "from_ranges": from_runs,
    "create_mask": lambda n: flex.create_mask(by_head, n(1), n(2), n(5), n(7)).tolist(),
    "NUM_THREADS": lambda n: attention(kernel_options={"NUM_THREADS": n(1)}),
    "QKQuant": lambda n: repr(flex.QKQuant("block", q_block=n(16), k_block=n(32))),
    "Int8KV": lambda n: cache_after(n(16), n(3)),
    "text": lambda n: visualize.text(by_head, n(9), n(7), b=n(0), h=n(1), width=n(16)),
    "text of scores": lambda n: visualize.text(mods.alibi(2), n(9), n(7), h=n(1)),
    "text of blocks": lambda n: visualize.text(blocks(H=2), h=n(1)),
    "matmul tiles": lambda n: matmul(mx.ones((8, 8)), mx.ones((8, 8)), tiles=(n(8), n(4)), backend="cpu").tolist(),
    "stage block_mask": lambda n: [
        part.tolist() for part in block_mask(by_head, n(1), n(2), n(9), n(7), n(4), backend="cpu")[:4]
    ],
    "scale of a whole number": lambda n: attention(scale=n(2)),
    "sliding_window": lambda n: dense(mods.sliding_window(n(3))),
    "prefix_lm": lambda n: dense(mods.prefix_lm(n(3))),
    "natten": lambda n: dense(mods.natten((n(4), n(4)), [n(3), n(3)])),
    "batchify": lambda n: dense(mods.batchify(causal, n(4))),
    "tree_ancestor": lambda n: dense(mods.tree_ancestor([-1, 0, 1], n(2)), 3),
    "alibi": lambda n: mods.alibi(n(8))(0.0, 0, 7, 5, 3).item(),
    "softcap of a whole number": lambda n: mods.softcap(n(50))(3.0, 0, 0, 0, 0),
}


@pytest.mark.parametrize("convert", INTS.values(), ids=INTS)
@pytest.mark.parametrize("call", WHOLE.values(), ids=WHOLE)
def test_whole_numbers_of_numpy_and_mlx_are_taken(call: Callable[[Convert], Any], convert: Convert) -> None:
    assert call(convert) == call(int)


def test_sizes_are_taken_from_arrays_of_one_axis() -> None:
    assert blocks(BLOCK_SIZE=np.array([16, 8])) == blocks(BLOCK_SIZE=(16, 8))
    assert dense(mods.natten(np.array([4, 4]), mx.array([3, 3]))) == dense(mods.natten((4, 4), (3, 3)))


REAL: dict[str, Callable[[Convert], Any]] = {  # 0.25 and 1.5 are exact in every type
    "scale": lambda x: attention(scale=x(0.25)),
    "stage scale": lambda x: scale(mx.ones((3,)), x(0.25), backend="cpu").tolist(),
    "visualize scale": lambda x: (
        visualize.score_mod(lambda s, b, h, q, k: s, query=mx.ones((4, 8)), key=mx.ones((4, 8)), scale=x(0.25))
        .axes[0]
        .get_title()
    ),
    "softcap": lambda x: float(mods.softcap(x(1.5))(0.75, 0, 0, 0, 0)),
    "activation": lambda x: float(mods.activation("gelu", x(1.5))(0.75, 0, 0, 0, 0)),
    "mla_rope": lambda x: mods.mla_rope(mx.ones((1, 1, 2, 2)), mx.ones((1, 2, 2)), x(1.5))(0.0, 0, 0, 0, 0).item(),
    "undo_softmax": lambda x: mods.undo_softmax(
        mx.ones((1, 1, 1, 1)), mx.zeros((1, 1, 1)), x(0.25), mx.ones((1, 1, 1, 1))
    ).tolist(),
}


@pytest.mark.parametrize("convert", FLOATS.values(), ids=FLOATS)
@pytest.mark.parametrize("call", REAL.values(), ids=REAL)
def test_numbers_of_numpy_and_mlx_are_taken(call: Callable[[Convert], Any], convert: Convert) -> None:
    got, expected = call(convert), call(float)
    assert got == expected if isinstance(expected, str) else np.allclose(got, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("flag", [np.bool_(True), np.array(True), mx.array(True)], ids=["np.bool_", "np", "mx"])
def test_flags_of_numpy_and_mlx_are_taken(flag: Any) -> None:
    assert repr(flex.QKQuant(smooth_q=flag)) == repr(flex.QKQuant(smooth_q=True))
    options = {"QK_QUANT": "int8", "SMOOTH_Q": flag, "SMOOTH_K": flag}
    plain = {"QK_QUANT": "int8", "SMOOTH_Q": True, "SMOOTH_K": True}
    assert attention(kernel_options=options) == attention(kernel_options=plain)


NO_INT = [True, np.bool_(True), np.array(True), mx.array(True), 2.0, np.float64(2), mx.array(2.0), "2", None, [2]]


@pytest.mark.parametrize("value", NO_INT, ids=repr)
def test_what_is_no_whole_number_is_refused_as_one(value: Any) -> None:
    assert as_int(value, "n") is None
    refused: list[tuple[Callable[[], Any], str]] = [
        (lambda: blocks(Q_LEN=value), "Q_LEN is "),
        (lambda: blocks(BLOCK_SIZE=value), "BLOCK_SIZE is "),
        (lambda: blocks(BLOCK_SIZE=(8, value)), "BLOCK_SIZE is "),
        (lambda: blocks(offset=value), "offset is "),
        (lambda: flex.Int8KV(step=value), "step is "),
        (lambda: attention(kernel_options={"NUM_THREADS": value}), "NUM_THREADS takes an int, not "),
        (lambda: mods.sliding_window(value), "window is "),
        (lambda: flex.QKQuant(q_block=value), "q_block is "),
    ]
    for call, words in refused:
        with pytest.raises(ValueError, match=words):
            call()


NO_FLOAT = [True, np.bool_(True), mx.array(True), "0.5", np.str_("0.5"), b"1", 1j, [0.5], mx.array([0.5]), 10**400]


@pytest.mark.parametrize("value", NO_FLOAT, ids=lambda value: repr(value)[:20])
def test_what_is_no_number_is_refused_as_one(value: Any) -> None:
    assert as_float(value, "x") is None
    with pytest.raises(ValueError, match="scale is "):
        attention(scale=value)
    with pytest.raises(ValueError, match="cap is "):
        mods.softcap(value)


def test_only_bools_are_flags() -> None:
    assert [as_bool(value, "f") for value in (1, 0.0, "yes", None, np.int64(1), mx.array([True]))] == [None] * 6


@pytest.mark.parametrize("transform", [mx.compile, lambda f: lambda x: mx.vmap(f)(x[None])], ids=["compile", "vmap"])
def test_a_number_that_mlx_hides_is_named(transform: Callable[..., Any]) -> None:
    def call(x: mx.array) -> mx.array:
        return flex.flex_attention(mx.ones((1, 1, 4, 8)), mx.ones((1, 1, 4, 8)), mx.ones((1, 1, 4, 8)), scale=x)  # type: ignore[call-overload,no-any-return]

    with pytest.raises(ValueError, match="scale is an array that mx.compile or mx.vmap replaces, so it has no value"):
        transform(call)(mx.array(0.5))
    with pytest.raises(ValueError, match="Q_LEN is an array that mx.compile or mx.vmap replaces"):
        transform(lambda n: mx.array(blocks(Q_LEN=n).sparsity()))(mx.array(5))


def test_a_number_that_is_differentiated_is_never_a_silent_zero() -> None:
    def loss(x: mx.array, q: mx.array) -> mx.array:
        return flex.flex_attention(q, q, q, scale=x, kernel_options={"BACKEND": "ops"}).sum()  # type: ignore[call-overload,no-any-return]

    q = mx.random.normal((1, 1, 4, 8), key=mx.random.key(0))
    with pytest.raises(GradientError, match=r"scale is differentiated, .*: pass scale.item\(\)"):
        mx.grad(loss)(mx.array(0.5), q)
    assert mx.grad(lambda q: loss(mx.array(0.5), q))(q).shape == q.shape  # q's own gradient is as ever


def test_a_learnable_cap_stays_an_array() -> None:
    q = mx.random.normal((1, 1, 4, 8), key=mx.random.key(0))

    def loss(cap: mx.array) -> mx.array:
        capped: Any = mods.softcap(cap)
        return (flex.flex_attention(q, q, q, capped, kernel_options={"BACKEND": "ops"}) * q).sum()

    assert abs(mx.grad(loss)(mx.array(0.5)).item()) > 1e-4
