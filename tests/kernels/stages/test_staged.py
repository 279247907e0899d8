"""The staged pipeline: equal to the fused kernel and to float64 numpy, with every intermediate as documented."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest
import reference
import zoo
from backends import CUDA, STAGED

import flextrace as flex


class Shape(NamedTuple):
    """q: [B, Hq, Lq, D], k: [Bkv, Hkv, Lkv, D], v: [Bkv, Hkv, Lkv, Dv]."""

    B: int
    Hq: int
    Lq: int
    D: int
    Bkv: int
    Hkv: int
    Lkv: int
    Dv: int


SHAPES = {
    "ragged": Shape(2, 2, 19, 16, 2, 2, 29, 16),
    "odd_dims": Shape(1, 3, 13, 17, 1, 3, 21, 9),
    "gqa": Shape(2, 4, 10, 8, 2, 2, 15, 8),
    "kv_batch_one": Shape(2, 2, 9, 8, 1, 2, 24, 12),
    "long_q": Shape(1, 2, 33, 20, 1, 2, 7, 24),
    "two_blocks": Shape(1, 2, 140, 8, 1, 1, 150, 8),
}
ROTATION = ("ragged", "odd_dims", "gqa", "kv_batch_one", "long_q")
ON_SIMULATOR = (
    *("alibi", "softcap", "relative_bias", "half_precision_captures", "integer_captures", "infinite_pairs_and_rows"),
    *("causal", "document_ids", "natten_2d", "checkerboard_heads", "empty_rows", "padding_lengths"),
)
LISTS = ["kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices"]
STAGES = ["scores", "scaled", "modified", "weights", "max_scores", "sums", "product", "out", "lse"]


CASES = [
    pytest.param(
        *(backend, name, ROTATION[i % len(ROTATION)]),
        id=f"{backend}-{name}-{ROTATION[i % len(ROTATION)]}",
    )
    for backend, names in (("cpu", zoo.ZOO), ("simulator", ON_SIMULATOR), *((name, ON_SIMULATOR) for name in CUDA))
    for i, name in enumerate(names)
]
EVERY = pytest.mark.parametrize("backend", STAGED)


def inputs(shape: Shape, dtype: str = "float32") -> tuple[mx.array, ...]:
    rng = np.random.default_rng(sum(shape))
    sizes = (shape[:4], shape[4:7] + shape[3:4], shape[4:])
    return tuple(mx.array(rng.normal(size=size)).astype(getattr(mx, dtype)) for size in sizes)


def exact(x: mx.array) -> np.ndarray:
    return np.array(x.astype(mx.float32)).astype(np.float64)


def mods(names: tuple[str, ...], shape: Shape, array: Callable[..., Any] = zoo.mx_array) -> dict[str, Any]:
    entries = [zoo.ZOO[name] for name in names]
    sizes = (shape.B, shape.Hq, shape.Lq, shape.Lkv)
    return {e.kind: e.make(*sizes, np.random.default_rng(len(e.name)), array) for e in entries}


def attend(
    given: tuple[mx.array, ...], ours: dict[str, Any], backend: str, pipeline: str, block_mask: Any = None
) -> tuple[mx.array, flex.AuxOutput]:
    q, k, _ = given
    return flex.flex_attention(
        *given,
        score_mod=ours.get("score"),
        block_mask=ours.get("mask") if block_mask is None else block_mask,
        scale=0.3,
        enable_gqa=q.shape[1] != k.shape[1],
        kernel_options={"BACKEND": backend, "PIPELINE": pipeline},
        return_aux=flex.AuxRequest(lse=True, max_scores=True, intermediates=pipeline == "staged"),
    )


def compare(got: tuple[mx.array, flex.AuxOutput], want: reference.Attention, dtype: str, what: str) -> None:
    out, aux = got
    tolerance = reference.tolerance(dtype)
    statistic = (tolerance.statistic_absolute, tolerance.statistic_relative)
    assert out.dtype == getattr(mx, dtype) and aux.lse is not None and aux.lse.dtype == mx.float32
    reference.assert_close(aux.max_scores, want.max_scores, *statistic, f"max_scores of {what}")
    reference.assert_close(aux.lse, want.lse, *statistic, f"lse of {what}")
    reference.assert_close(out, want.out, tolerance.absolute, tolerance.relative, f"out of {what}")


def check(backend: str, names: tuple[str, ...], name: str, dtype: str = "float32", block_size: Any = None) -> Any:
    """Staged against the reference and the fused kernel; the intermediates."""
    shape = SHAPES[name]
    given, ours = inputs(shape, dtype), mods(names, shape)
    plain = mods(names, shape, reference.array)
    want = reference.attention(*(exact(x) for x in given), plain.get("score"), plain.get("mask"), 0.3)
    blocks = None
    if block_size is not None:
        sizes = (shape.B, shape.Hq, shape.Lq, shape.Lkv)
        blocks = flex.create_block_mask(ours["mask"], *sizes, BLOCK_SIZE=block_size)
    what = f"{names}, {name}, {dtype}, {backend}, blocks {block_size}"
    staged = attend(given, ours, backend, "staged", blocks)
    compare(staged, want, dtype, f"staged {what}")
    fused = attend(given, ours, backend, "fused", blocks)
    both = reference.Attention(*(exact(x) for x in (fused[0], fused[1].lse, fused[1].max_scores)))
    compare(staged, both, dtype, f"staged against fused {what}")
    return staged[1].intermediates


# ---- equal to the fused kernel and the reference -------------------------------------------------------------------


@pytest.mark.sampled(10)
@pytest.mark.parametrize(("backend", "entry", "name"), CASES)
def test_zoo(backend: str, entry: str, name: str) -> None:
    check(backend, (entry,), name)


@pytest.mark.sampled(6)
@EVERY
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["ragged", "gqa", "kv_batch_one", "two_blocks"])
def test_dtypes(backend: str, name: str, dtype: str) -> None:
    check(backend, (), name, dtype)
    check(backend, ("alibi", "causal"), name, dtype)


@pytest.mark.sampled(6)
@EVERY
@pytest.mark.parametrize("block_size", [128, 16, (5, 11), (1, 29)], ids=str)
@pytest.mark.parametrize("mask", ["causal", "checkerboard_heads", "empty_rows", "empty", "noop"])
def test_block_mask(backend: str, mask: str, block_size: Any) -> None:
    check(backend, ("softcap", mask), "ragged", block_size=block_size)


@EVERY
@pytest.mark.parametrize("empty", ["batch", "q_len", "kv_len", "value_dim", "head_dim"])
def test_empty_axes(backend: str, empty: str) -> None:
    sizes = {"batch": 2, "q_len": 5, "kv_len": 6, "head_dim": 4, "value_dim": 3, empty: 0}
    b, n, s, d, e = (sizes[name] for name in ("batch", "q_len", "kv_len", "head_dim", "value_dim"))
    given = (mx.ones((b, 2, n, d)), mx.ones((b, 2, s, d)), mx.ones((b, 2, s, e)))
    for ours in ({}, mods(("causal",), SHAPES["ragged"])):
        out, aux = attend(given, ours, backend, "staged")
        assert aux.intermediates is not None and out.shape == (b, 2, n, e)
        assert aux.intermediates["scores"].shape == (b, 2, n, s)
        want = np.zeros(out.shape) if s == 0 else np.ones(out.shape)
        np.testing.assert_allclose(np.array(out), want, atol=1e-6)


# ---- intermediates -------------------------------------------------------------------------------------------------


@pytest.mark.sampled(4)
@EVERY
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("mask", [None, "mask_mod", "BlockMask"])
def test_every_intermediate(backend: str, mask: str | None, dtype: str) -> None:
    """Each is what its stage makes of the ones before it, in float64."""
    shape = SHAPES["gqa"]
    names = ("softcap",) if mask is None else ("softcap", "empty_rows")
    block_size = (4, 5) if mask == "BlockMask" else None
    found = check(backend, names, "gqa", dtype, block_size)
    assert list(found) == (LISTS if mask else []) + STAGES
    plain = mods(names, shape, reference.array)
    q, k, v = (exact(x) for x in inputs(shape, dtype))
    k, v = (x.repeat(2, axis=1) for x in (k, v))
    sizes = (shape.B, shape.Hq, shape.Lq, shape.Lkv)
    live = np.ones(sizes, bool)
    if mask:
        dense = reference.apply_mask_mod(plain["mask"], sizes)
        rows, columns = block_size or (128, 128)
        states = dense_states(dense, rows, columns)
        listed = found["kv_num_blocks"].shape  # a mask that does not read b or h has lists for one
        for state, (counts, indices) in ((1, LISTS[:2]), (2, LISTS[2:])):
            want_states = states[: listed[0], : listed[1]] == state
            np.testing.assert_array_equal(np.array(found[counts]), want_states.sum(-1))
            assert found[indices].shape == want_states.shape and found[indices].dtype == mx.int32
        live = (states > 0).repeat(rows, 2)[:, :, : shape.Lq].repeat(columns, 3)[..., : shape.Lkv]

    def near(name: str, want: np.ndarray, tolerance: float = 3e-5) -> None:
        assert found[name].shape == want.shape, name
        np.testing.assert_allclose(exact(found[name]), want, atol=tolerance, rtol=tolerance, err_msg=name)

    half = dtype == "float16"
    near("scores", np.where(live, q @ k.swapaxes(-1, -2), -np.inf), 4e-3 if half else 3e-5)
    near("scaled", exact(found["scores"]) * 0.3)
    scaled = exact(found["scaled"])
    modified = reference.apply_score_mod(np.where(live, scaled, 0), plain["score"])
    kept = reference.apply_mask_mod(plain["mask"], sizes) if mask else live
    near("modified", np.where(kept, modified, -np.inf))
    modified = exact(found["modified"])
    highest = modified.max(-1)
    weights = np.exp(modified - np.where(highest == -np.inf, 0, highest)[..., None])
    near("weights", weights, 1e-3 if half else 3e-6)
    near("max_scores", highest, 0)
    near("sums", weights.sum(-1), 3e-6)
    near("product", exact(found["weights"]) @ v, 4e-3 if half else 3e-5)
    sums = exact(found["sums"])
    seen = np.where(sums > 0, sums, 1)
    near("out", exact(found["product"]) / seen[..., None], {"float32": 3e-6, "float16": 1e-3, "bfloat16": 8e-3}[dtype])
    near("lse", np.where(sums > 0, highest + np.log(seen), -np.inf), 3e-6)
    dtypes = {"weights": mx.float16 if half else mx.float32, "out": getattr(mx, dtype)}
    assert all(found[name].dtype == dtypes.get(name, mx.float32) for name in STAGES)


def dense_states(dense: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """0 empty, 1 partial, 2 full of each block."""
    q_blocks, kv_blocks = -(-dense.shape[2] // rows), -(-dense.shape[3] // columns)
    states = np.zeros((*dense.shape[:2], q_blocks, kv_blocks), int)
    for i, j in np.ndindex(q_blocks, kv_blocks):
        block = dense[:, :, i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
        states[:, :, i, j] = block.any(axis=(2, 3)).astype(int) + block.all(axis=(2, 3))
    return states


@EVERY
def test_rows_that_attend_to_nothing(backend: str) -> None:
    given = inputs(SHAPES["ragged"])
    ours = {"mask": lambda b, h, q_idx, kv_idx: q_idx >= 4}
    out, aux = attend(given, ours, backend, "staged")
    assert aux.lse is not None and aux.max_scores is not None and aux.intermediates is not None
    assert mx.all(out[:, :, :4] == 0) and mx.all(aux.lse[:, :, :4] == -mx.inf)
    assert mx.all(aux.max_scores[:, :, :4] == -mx.inf) and mx.all(aux.intermediates["sums"][:, :, :4] == 0)
    assert mx.all(mx.isfinite(out)) and mx.all(mx.isfinite(aux.lse[:, :, 4:]))


def test_on_any_number_of_threads_the_same_bits() -> None:
    given = inputs(SHAPES["two_blocks"])

    def run(threads: int) -> mx.array:
        options = {"BACKEND": "cpu", "PIPELINE": "staged", "NUM_THREADS": threads}
        return flex.flex_attention(
            *given, block_mask=mods(("causal",), SHAPES["two_blocks"])["mask"], enable_gqa=True, kernel_options=options
        )

    assert mx.array_equal(run(1), run(3))


# ---- errors --------------------------------------------------------------------------------------------------------

Q = mx.ones((1, 2, 8, 4))
STAGED = {"BACKEND": "cpu", "PIPELINE": "staged"}


def test_intermediates_need_the_staged_pipeline() -> None:
    request = flex.AuxRequest(intermediates=True)
    with pytest.raises(
        ValueError, match=r'intermediates=True\) needs kernel_options=\{"PIPELINE": "staged"\}; the fused'
    ):
        flex.flex_attention(Q, Q, Q, return_aux=request)
    _, aux = flex.flex_attention(Q, Q, Q, return_aux=flex.AuxRequest(lse=True), kernel_options=STAGED)
    assert aux.intermediates is None and aux.lse is not None


def test_an_unknown_pipeline() -> None:
    with pytest.raises(ValueError, match="kernel option PIPELINE is one of fused, staged; got 'stage'"):
        flex.flex_attention(Q, Q, Q, kernel_options={"PIPELINE": "stage"})


def test_ops_has_no_stages() -> None:
    with pytest.raises(
        ValueError, match="ops backend has no stage kernels; choose the cpu, metal, cuda or simulator backend"
    ):
        flex.flex_attention(Q, Q, Q, kernel_options={**STAGED, "BACKEND": "ops"})


@pytest.mark.parametrize("options", [STAGED, {"PIPELINE": "staged"}], ids=["cpu", "default"])
def test_transformations_are_refused(options: dict[str, str]) -> None:
    """Also where the backend was not named: ops, which would run there, has no stages."""
    with pytest.raises(flex.BackendUnavailable, match=r"needs values, which mx.compile.*\"ops\"} and without PIPELINE"):
        mx.compile(lambda q: flex.flex_attention(q, Q, Q, kernel_options=options))(Q)


@pytest.mark.parametrize("what", ["out", "lse", "weights"])
def test_a_gradient_is_an_error_not_zero(what: str) -> None:
    request = flex.AuxRequest(lse=True, intermediates=True)

    def loss(q: mx.array) -> mx.array:
        out, aux = flex.flex_attention(q, Q, Q, kernel_options=STAGED, return_aux=request)
        assert aux.intermediates is not None
        return {"out": out, "lse": aux.lse, **aux.intermediates}[what].sum()

    with pytest.raises(flex.GradientError, match='the stages have no backward pass; leave "PIPELINE": "staged" out'):
        mx.grad(loss)(Q)
