"""flex_attention: its arguments, its by-products, its errors, and what it reads anew at every call."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import reference
from backends import COMPILED_OR_OPS, EVERY

import flextrace as flex
from flextrace.kernels import backend_for

each_backend = pytest.mark.parametrize("backend", COMPILED_OR_OPS)


def normal(*shape: int, dtype: Any = mx.float32, seed: int = 0) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed + sum(shape))).astype(dtype)


def tensors(b: int = 2, h: int = 3, n: int = 21, d: int = 16, s: int | None = None) -> tuple[mx.array, ...]:
    s = n if s is None else s
    return normal(b, h, n, d, seed=1), normal(b, h, s, d, seed=2), normal(b, h, s, d, seed=3)


def causal(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx >= kv_idx


def close(a: mx.array, b: Any, tolerance: float = 2e-5) -> None:
    np.testing.assert_allclose(np.array(a.astype(mx.float32)), np.array(b), atol=tolerance, rtol=tolerance)


def options(backend: str) -> dict[str, Any]:
    return {"BACKEND": backend}


# ---- results ---------------------------------------------------------------------------------------------------


@each_backend
def test_aux_outputs(backend: str) -> None:
    q, k, v = tensors()
    expected, lse, maxima = reference.attention(q, k, v, mask_mod=causal)
    out, got = flex.flex_attention(q, k, v, block_mask=causal, return_lse=True, kernel_options=options(backend))
    close(out, expected)
    close(got, lse)
    request = flex.AuxRequest(max_scores=True)
    _, aux = flex.flex_attention(q, k, v, block_mask=causal, return_aux=request, kernel_options=options(backend))
    assert aux.lse is None
    close(aux.max_scores, maxima)
    assert got.dtype == mx.float32
    assert got.shape == (2, 3, 21)


@each_backend
def test_half_precision_keeps_dtype_and_float32_lse(backend: str) -> None:
    q, k, v = (x.astype(mx.bfloat16) for x in tensors())
    out, lse = flex.flex_attention(q, k, v, return_lse=True, kernel_options=options(backend))
    assert (out.dtype, lse.dtype) == (mx.bfloat16, mx.float32)


@each_backend
@pytest.mark.parametrize("how", ["mask_mod", "score_mod", "both", "block_mask"])
def test_rows_that_attend_to_nothing(backend: str, how: str) -> None:
    q, k, v = tensors(n=150)

    def late(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return q_idx >= 140 and kv_idx > 100  # the first visited tiles are empty too

    def late_score(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score if q_idx >= 140 and kv_idx > 100 else -mx.inf

    mask: Any = late if how in ("mask_mod", "both") else None
    if how == "block_mask":
        mask = flex.create_block_mask(late, None, None, 150, 150, BLOCK_SIZE=32)
    score = late_score if how in ("score_mod", "both") else None
    request = flex.AuxRequest(lse=True, max_scores=True)
    out, aux = flex.flex_attention(q, k, v, score, mask, return_aux=request, kernel_options=options(backend))
    assert mx.all(out[:, :, :140] == 0)
    assert mx.all(aux.lse[:, :, :140] == -mx.inf)
    assert mx.all(aux.max_scores[:, :, :140] == -mx.inf)
    expected, lse, _ = reference.attention(q, k, v, mask_mod=late)
    close(out, expected)
    close(aux.lse, lse)


@each_backend
def test_scale(backend: str) -> None:
    q, k, v = tensors()
    close(
        flex.flex_attention(q, k, v, scale=0.7, kernel_options=options(backend)),
        reference.attention(q, k, v, scale=0.7)[0],
    )


@each_backend
@pytest.mark.parametrize("empty", ["batch", "heads", "q_len", "kv_len", "head_dim", "value_dim"])
def test_empty_axes(backend: str, empty: str) -> None:
    n = {name: 0 if name == empty else 3 for name in ("batch", "heads", "q_len", "kv_len", "head_dim", "value_dim")}
    q = mx.ones((n["batch"], n["heads"], n["q_len"], n["head_dim"]))
    k = mx.ones((n["batch"], n["heads"], n["kv_len"], n["head_dim"]))
    v = mx.ones((n["batch"], n["heads"], n["kv_len"], n["value_dim"]))
    out, lse = flex.flex_attention(q, k, v, block_mask=causal, return_lse=True, kernel_options=options(backend))
    assert out.shape == (n["batch"], n["heads"], n["q_len"], n["value_dim"])
    if empty == "kv_len":
        assert mx.all(out == 0)
        assert mx.all(lse == -mx.inf)


@each_backend
def test_strided_inputs(backend: str) -> None:
    b, n, h, d = 2, 19, 3, 16
    q, k, v = (normal(b, n, h * d, seed=i).reshape(b, n, h, d).transpose(0, 2, 1, 3) for i in range(3))
    dense = [mx.contiguous(x) for x in (q, k, v)]
    kernel_options = options(backend)
    close(
        flex.flex_attention(q, k, v, kernel_options=kernel_options),
        flex.flex_attention(*dense, kernel_options=kernel_options),
        1e-6,
    )


def test_cpu_reads_strided_inputs_in_place() -> None:
    from flextrace.kernels.buffers import locate

    whole = normal(2, 19, 3 * 16)
    view = whole.reshape(2, 19, 3, 16).transpose(0, 2, 1, 3)
    mx.eval(whole, view)
    assert locate(view) == (locate(whole)[0], (19 * 48, 16, 48, 1))


@each_backend
def test_nan_and_infinity_stay_in_their_rows(backend: str) -> None:
    q, k, v = (np.array(x) for x in tensors(b=1, h=1, n=40))
    q[0, 0, 3] = np.nan
    q[0, 0, 5] = np.inf
    out = np.array(flex.flex_attention(*map(mx.array, (q, k, v)), kernel_options=options(backend)))
    bad = np.isnan(out).any(axis=-1)[0, 0]
    assert list(np.flatnonzero(bad)) == [3, 5]


# ---- captured values are those of the call ---------------------------------------------------------------------


def test_numbers_may_change_without_compiling(fresh_cache: Path) -> None:
    backend: Any = backend_for("cpu")
    state = {"window": 3, "cap": 5.0, "flip": False}
    q, k, v = tensors()

    @flex.mask_mod
    def window(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return (abs(q_idx - kv_idx) < state["window"]) != state["flip"]

    @flex.score_mod
    def softcap(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return state["cap"] * mx.tanh(score / state["cap"]) + kv_idx // state["window"]

    for new in ({"window": 3}, {"window": 8, "cap": 0.5}, {"flip": True}):
        state.update(new)
        got = flex.flex_attention(q, k, v, softcap, window, kernel_options=options("cpu"))
        close(got, reference.attention(q, k, v, softcap, window)[0])
    assert backend.built == 1
    state["window"] = 0
    with pytest.raises(ZeroDivisionError, match=r"softcap: integer division or modulo by .*window.* = 0"):
        flex.flex_attention(q, k, v, softcap, kernel_options=options("cpu"))


@each_backend
def test_integer_out_of_range(backend: str) -> None:
    q, k, v = tensors()
    big = 1
    ids = mx.array(np.array([0, 2**31], np.int64))

    @flex.score_mod
    def shifted(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score + (kv_idx - big)

    @flex.mask_mod
    def same(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return ids[q_idx % 2] == ids[kv_idx % 2]

    flex.flex_attention(q, k, v, shifted, kernel_options=options(backend))
    big = 2**31
    with pytest.raises(OverflowError, match="big = 2147483648 does not fit int32; make it a float"):
        flex.flex_attention(q, k, v, shifted, kernel_options=options(backend))
    with pytest.raises(OverflowError, match="holds a value outside int32.*renumber"):
        mx.eval(flex.flex_attention(q, k, v, block_mask=same, kernel_options=options(backend)))


@pytest.mark.parametrize("backend", EVERY)
def test_shifts_are_pythons_at_32_bits(backend: str) -> None:
    """A key is kept where a shift is right, by counts that differ per key and per row; a negative one is large."""
    values, counts = [5, -5, 1, -(2**31), 2**31 - 1, 3], [-3, -1, 0, 1, 2, 30, 31, 32, 33, 36]
    reach = [count if count >= 0 else 99 for count in counts]
    lefts = mx.array([[(v << c) % 2**32 for c in reach] for v in values], mx.uint32).view(mx.int32)
    rights = mx.array([[v >> c for c in reach] for v in values])
    v, c = mx.array(values), mx.array(counts)

    def by_key(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        if h == 0:
            return v[q_idx] << c[kv_idx] == lefts[q_idx, kv_idx]
        return v[q_idx] >> c[kv_idx] == rights[q_idx, kv_idx]

    def by_row(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return by_key(b, h, kv_idx, q_idx)

    for mask, rows, keys in ((by_key, len(values), len(counts)), (by_row, len(counts), len(values))):
        q, k, eye = mx.zeros((1, 2, rows, 8)), mx.zeros((1, 2, keys, 8)), mx.eye(keys)[None, None]
        out = flex.flex_attention(q, k, mx.repeat(eye, 2, axis=1), block_mask=mask, kernel_options=options(backend))
        assert np.array(out > 0).all()
        assert np.array(flex.create_mask(mask, 1, 2, rows, keys)).all()


def test_shifts_decide_blocks_as_they_decide_keys() -> None:
    mask = flex.mask_mod(lambda b, h, q_idx, kv_idx: (1 << kv_idx) != 0)
    assert flex.create_block_mask(mask, None, None, 16, 96, BLOCK_SIZE=16).to_string() == "##...."
    low = flex.mask_mod(lambda b, h, q_idx, kv_idx: (-5 >> kv_idx - 16) == -1)
    assert flex.create_block_mask(low, None, None, 16, 96, BLOCK_SIZE=16).to_string() == "#+####"


def test_captured_arrays_are_read_anew(fresh_cache: Path) -> None:
    backend: Any = backend_for("cpu")
    bias = mx.array([0.0, 0.0, 0.0])
    q, k, v = tensors()

    @flex.score_mod
    def biased(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score + bias[h] * kv_idx

    for values in ([0.0, 0.0, 0.0], [1.0, -1.0, 0.5]):
        bias = mx.array(values)
        got = flex.flex_attention(q, k, v, biased, kernel_options=options("cpu"))
        close(got, reference.attention(q, k, v, biased)[0])
    assert backend.built == 1


# ---- arguments -------------------------------------------------------------------------------------------------


def ones(*shape: int, dtype: Any = mx.float32) -> mx.array:
    return mx.ones(shape, dtype=dtype)


Q = ones(2, 4, 8, 16)
mx.eval(Q)
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "not an array": ({"query": np.ones((2, 4, 8, 16))}, TypeError, "query is an ndarray; convert it with mx.array"),
    "three axes": ({"key": ones(4, 8, 16)}, ValueError, r"key has shape \(4, 8, 16\); expected 4 axes"),
    "mixed dtypes": ({"value": ones(2, 4, 8, 16, dtype=mx.float16)}, TypeError, "float32 and float16; make all three"),
    "integers": (
        {n: Q.astype(mx.int32) for n in ("query", "key", "value")},
        TypeError,
        "int32.*make all three float32",
    ),
    "head_dim": ({"key": ones(2, 4, 8, 8)}, ValueError, "head_dim of query is 16, of key 8"),
    "kv lengths": ({"value": ones(2, 4, 9, 16)}, ValueError, "key has 4 heads of length 8, value 4 of length 9"),
    "batch": ({n: ones(3, 4, 8, 16) for n in ("key", "value")}, ValueError, "key and value need 2, or 1 for all"),
    "gqa not enabled": (
        {n: ones(2, 2, 8, 16) for n in ("key", "value")},
        ValueError,
        "query has 4 heads, key and value have 2; pass enable_gqa=True",
    ),
    "gqa ratio": (
        {**{n: ones(2, 3, 8, 16) for n in ("key", "value")}, "enable_gqa": True},
        ValueError,
        "4 query heads must be a multiple of the 3",
    ),
    "scale": ({"scale": float("nan")}, ValueError, "scale is nan; expected a finite number"),
    "scale beyond float32": ({"scale": -1e39}, ValueError, r"scale is -1e\+39; expected a finite number of float32"),
    "unknown option": (
        {"kernel_options": {"BACKENDS": "cpu"}},
        ValueError,
        "unknown kernel option 'BACKENDS'; known: BACKEND, NUM_THREADS, .*; did you mean 'BACKEND'",
    ),
    "option type": ({"kernel_options": {"NUM_THREADS": "2"}}, ValueError, "NUM_THREADS takes an int, not '2'"),
    "option value": ({"kernel_options": {"NUM_THREADS": 0}}, ValueError, "NUM_THREADS is 0; expected at least 1"),
    "unknown backend": (
        {"kernel_options": {"BACKEND": "tpu"}},
        ValueError,
        "unknown backend 'tpu'; known: metal, cuda, simulator, cpu, ops",
    ),
    "lse and aux": ({"return_lse": True, "return_aux": flex.AuxRequest()}, ValueError, "exclude each other"),
    "aux type": ({"return_aux": {"lse": True}}, TypeError, "return_aux takes an AuxRequest, not a dict"),
    "score_mod type": ({"score_mod": 3}, TypeError, "score_mod takes a score_mod function, not an int"),
    "mask as score": (
        {"score_mod": flex.mask_mod(causal)},
        TypeError,
        "score_mod takes a score_mod, <mask_mod causal>",
    ),
    "block_mask type": ({"block_mask": 3}, TypeError, "block_mask takes a mask_mod function, not an int"),
    "block_mask lengths": (
        {"block_mask": flex.create_block_mask(causal, None, None, 9, 9)},
        ValueError,
        r"block_mask is for lengths \(9, 9\), query and key have \(8, 8\); make one with create_block_mask",
    ),
    "block_mask heads": (
        {"block_mask": flex.create_block_mask(causal, 2, 3, 8, 8)},
        ValueError,
        "block_mask is for B=2, H=3; query has 2 batches and 4 heads",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case: str) -> None:
    change, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        flex.flex_attention(**{"query": Q, "key": Q, "value": Q, **change})


# ---- MLX's transformations --------------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", ["compile", "vmap"])
def test_inside_transformations_ops_runs_and_says_so_once(transform: str, fresh_notices: None) -> None:
    q, k, v = tensors()
    expected = flex.flex_attention(q, k, v, block_mask=causal)

    def call(q: mx.array) -> mx.array:
        return flex.flex_attention(q, k, v, block_mask=causal)

    def run() -> mx.array:
        return mx.compile(call)(q) if transform == "compile" else mx.vmap(call)(mx.stack([q, q]))[1]

    with pytest.warns(flex.FlextraceWarning, match='call flex_attention outside them.*"BACKEND": "ops"') as caught:
        close(run(), expected)
        close(run(), expected)
    assert len(caught) == 1


def test_an_explicit_cpu_backend_refuses_transformations() -> None:
    q, k, v = tensors()
    with pytest.raises(flex.BackendUnavailable, match="needs values, which mx.compile and mx.vmap hide"):
        mx.compile(lambda q: flex.flex_attention(q, k, v, kernel_options=options("cpu")))(q)


@each_backend
def test_gradients_match_finite_differences(backend: str) -> None:
    q, k, v = tensors(b=1, h=1, n=5, d=4)
    slope = mx.array(0.3)

    def loss(q: mx.array, k: mx.array, v: mx.array, slope: mx.array) -> mx.array:
        def sloped(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            return score + slope * (kv_idx - q_idx)

        out = flex.flex_attention(q, k, v, sloped, causal, kernel_options=options(backend))
        return (out * mx.cos(mx.arange(out.size).reshape(out.shape))).sum()

    inputs = [q, k, v, slope]
    gradients = mx.grad(loss, argnums=(0, 1, 2, 3))(*inputs)
    for position, gradient in enumerate(gradients):
        direction = normal(*inputs[position].shape, seed=9) if inputs[position].ndim else mx.array(1.0)
        step = 1e-2
        moved = [[*inputs[:position], inputs[position] + s * direction, *inputs[position + 1 :]] for s in (step, -step)]
        slope_found = (loss(*moved[0]) - loss(*moved[1])).item() / (2 * step)
        assert (gradient * direction).sum().item() == pytest.approx(slope_found, rel=2e-2, abs=2e-3)


# ---- machines and processes --------------------------------------------------------------------------------------


def test_without_a_compiler_ops_runs_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, fresh_cache: Path, fresh_notices: None
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    q, k, v = tensors()
    with pytest.warns(
        flex.FlextraceWarning, match=r"found no C\+\+ compiler: CXX='no-such-compiler' names no"
    ) as caught:
        close(flex.flex_attention(q, k, v), reference.attention(q, k, v)[0])
        flex.flex_attention(q, k, v)
    assert len(caught) == 1
    assert caught[0].filename == __file__, "the warning names the line that called flextrace"
    with pytest.raises(flex.BackendUnavailable, match="xcode-select --install"):
        flex.flex_attention(q, k, v, kernel_options=options("cpu"))


JUNK = {"\u00b2": "is not a positive number", "\u0663": "is not a positive", " ": "is not a positive", "-1": "is not a"}
JUNK |= {str(2**70): "is more than 2147483647", "9" * 5000: "is more than 2147483647", "\udcff": "is not a positive"}


@pytest.mark.parametrize("junk", JUNK, ids=lambda text: ascii(text)[:12])
def test_no_number_of_threads_ends_in_another_error(monkeypatch: pytest.MonkeyPatch, junk: str) -> None:
    monkeypatch.setenv("FLEXTRACE_NUM_THREADS", junk)
    with pytest.raises(ValueError, match="^FLEXTRACE_NUM_THREADS='.*" + JUNK[junk]):
        flex.flex_attention(Q, Q, Q, kernel_options={"BACKEND": "cpu"})


@pytest.mark.parametrize("count", [2**31, 2**63, 2**70])
def test_more_threads_than_a_kernel_counts_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"NUM_THREADS is {count}; expected at least 1, and less than 2..31"):
        flex.flex_attention(Q, Q, Q, kernel_options={"NUM_THREADS": count})


def test_backend_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXTRACE_BACKEND", "nonsense")
    with pytest.raises(
        ValueError, match="FLEXTRACE_BACKEND is 'nonsense'; unset it, or choose one of metal, cuda, simulator, cpu, ops"
    ):
        flex.flex_attention(Q, Q, Q)
    monkeypatch.setenv("FLEXTRACE_BACKEND", "ops")
    mx.compile(lambda x: flex.flex_attention(x, x, x))(Q)  # no notice: ops was asked for


def test_same_bits_on_any_number_of_threads() -> None:
    q, k, v = tensors(b=1, h=3, n=700, d=64)
    results = [
        np.array(flex.flex_attention(q, k, v, block_mask=causal, kernel_options={"NUM_THREADS": n}))
        for n in (1, 2, 3, 8, 1)
    ]
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


def test_from_several_python_threads() -> None:
    inputs = [[normal(1, 2, 300, 32, seed=10 * t + i) for i in range(3)] for t in range(4)]
    mx.eval(inputs)
    expected = [np.array(flex.flex_attention(*x, block_mask=causal)) for x in inputs]
    wrong: list[int] = []

    def work(t: int) -> None:
        for _ in range(20):
            if not np.array_equal(np.array(flex.flex_attention(*inputs[t], block_mask=causal)), expected[t]):
                wrong.append(t)

    threads = [threading.Thread(target=work, args=(t,)) for t in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


FORKING = """
import os, sys
import mlx.core as mx, numpy as np
import flextrace as flex
q = mx.array(np.random.default_rng(0).standard_normal((1, 2, 600, 32), dtype=np.float32))
mask = flex.mask_mod(lambda b, h, q_idx, kv_idx: q_idx >= kv_idx)
first = np.array(flex.flex_attention(q, q, q, block_mask=mask))   # threads have run in the parent
children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        again = np.array(flex.flex_attention(q, q, q, block_mask=mask))
        os._exit(0 if np.array_equal(first, again) else 1)
    children.append(child)
sys.exit(max(os.waitpid(child, 0)[1] for child in children))
"""


def test_after_fork(tmp_path: Path) -> None:
    script = tmp_path / "forking.py"  # a file: the mod's source is found
    script.write_text(FORKING)
    subprocess.run([sys.executable, str(script)], check=True, timeout=120)


def test_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    from flextrace.kernels.cpu.launch import thread_count

    monkeypatch.delenv("FLEXTRACE_NUM_THREADS", raising=False)
    if sys.platform == "linux":
        allowed = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, {min(allowed)})
            assert thread_count() == 1
        finally:
            os.sched_setaffinity(0, allowed)
    monkeypatch.setenv("FLEXTRACE_NUM_THREADS", "3")
    assert thread_count() == 3
    for wrong in ("0", "-1", "two"):
        monkeypatch.setenv("FLEXTRACE_NUM_THREADS", wrong)
        with pytest.raises(ValueError, match=f"FLEXTRACE_NUM_THREADS='{wrong}' is not a positive number"):
            thread_count()
