"""QK_QUANT, SMOOTH_K and SMOOTH_Q: what they mean together, what is refused, and whole calls beside the reference."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import quant_reference

import flextrace as flex
from flextrace import QKQuant, mods
from flextrace.kernels import BACKENDS, backend_for
from flextrace.options import check_options, quant_options

QUANTISING = [
    name
    for name in BACKENDS
    if backend_for(name, to_run=False).quantises and backend_for(name, to_run=False).unavailable() is None
]
Q = mx.random.normal((1, 2, 16, 8))


def attend(**options: Any) -> mx.array:
    return flex.flex_attention(Q, Q, Q, kernel_options=options)


@pytest.mark.parametrize(
    ("options", "quant", "smooth_k"),
    [
        ({}, None, False),
        ({"SMOOTH_K": True}, None, True),
        ({"SMOOTH_K": False, "SMOOTH_Q": False}, None, False),
        ({"QK_QUANT": "int8"}, QKQuant(), True),
        ({"QK_QUANT": "int8", "SMOOTH_K": False}, QKQuant(smooth_k=False), False),
        ({"QK_QUANT": "int8", "SMOOTH_Q": True}, QKQuant(smooth_q=True), True),
        ({"QK_QUANT": QKQuant("row", k_block=32)}, QKQuant("row", k_block=32), True),
        ({"QK_QUANT": QKQuant(smooth_k=False)}, QKQuant(smooth_k=False), False),
        ({"QK_QUANT": QKQuant(smooth_k=False), "SMOOTH_K": True}, QKQuant(), True),
        ({"QK_QUANT": QKQuant(smooth_q=True), "SMOOTH_Q": False}, QKQuant(), True),
    ],
)
def test_options_together(options: dict[str, Any], quant: QKQuant | None, smooth_k: bool) -> None:
    assert quant_options(check_options(options)) == (quant, smooth_k)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"QK_QUANT": "int4"}, "QK_QUANT is one of int8; got 'int4'"),
        ({"QK_QUANT": 8}, "QK_QUANT takes a str or a QKQuant, not 8"),
        ({"QK_QUANT": True}, "QK_QUANT takes a str or a QKQuant, not True"),
        ({"QK_QUANT": QKQuant}, r"not <class .*QKQuant'>; write QKQuant\(\)"),
        ({"SMOOTH_K": 1}, "SMOOTH_K takes a bool, not 1"),
        ({"NUM_THREADS": True}, "NUM_THREADS takes an int, not True"),
        ({"SMOOTH_Q": True}, 'add "QK_QUANT": "int8", or leave it out'),
        ({"SMOOTH_Q": True, "SMOOTH_K": True}, 'add "QK_QUANT": "int8", or leave it out'),
        ({"QK_QUANTS": "int8"}, "did you mean 'QK_QUANT'?"),
        ({"QK_QUANT": "int8", "PIPELINE": "staged"}, 'QK_QUANT and "PIPELINE": "staged" exclude each other'),
        ({"SMOOTH_K": True, "PIPELINE": "staged"}, 'SMOOTH_K and "PIPELINE": "staged" exclude each other'),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        attend(**options)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"granularity": "tensor"}, "granularity is 'block' or 'row'; got 'tensor'"),
        ({"smooth_k": 1}, "smooth_k is True or False; got 1"),
        ({"smooth_q": None}, "smooth_q is True or False; got None"),
        ({"q_block": 0}, "q_block is a positive whole number of rows; got 0"),
        ({"k_block": 64.0}, "k_block is a positive whole number of rows; got 64.0"),
        ({"k_block": True}, "k_block is a positive whole number of rows; got True"),
        ({"q_block": 2**31}, "q_block is a positive whole number of rows"),
    ],
)
def test_fields_are_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QKQuant(**fields)


@pytest.mark.parametrize("option", [{"QK_QUANT": "int8"}, {"SMOOTH_K": True}], ids=str)
@pytest.mark.parametrize("backend", [name for name in BACKENDS if not backend_for(name, to_run=False).quantises])
def test_backends_without_it_refuse(backend: str, option: dict[str, Any]) -> None:
    """Never silently in full precision; the message names those that have it."""
    if backend_for(backend, to_run=False).unavailable() is not None:
        pytest.skip(f"no {backend} here")
    with pytest.raises(ValueError, match=f"the {backend} backend neither quantises nor smooths") as error:
        attend(BACKEND=backend, **option)
    for name in BACKENDS:
        assert (f" {name}" in str(error.value).split(";")[1]) == backend_for(name, to_run=False).quantises
    assert f"leave {next(iter(option))} out" in str(error.value)


def test_when_no_backend_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in BACKENDS:
        monkeypatch.setattr(type(backend_for(name, to_run=False)), "quantises", False)
    with pytest.raises(ValueError, match="no backend of this version does; leave QK_QUANT out"):
        attend(QK_QUANT="int8")


def test_without_a_compiler_it_is_not_run_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    from flextrace import run
    from flextrace.kernels import registry

    def missing(name: str) -> Any:
        if name == "cpu":
            raise flex.BackendUnavailable("the cpu backend found no C++ compiler")
        return backend_for(name)

    monkeypatch.setattr(run, "backend_for", missing)
    monkeypatch.setattr(registry, "made", {})
    monkeypatch.setattr(registry, "owner_of", lambda device: "cpu")
    with pytest.raises(flex.BackendUnavailable, match="no C"):
        attend(QK_QUANT="int8")


# -- whole calls -------------------------------------------------------------------------------------------------


@pytest.mark.skipif("cpu" not in QUANTISING, reason="the cpu backend does not quantise")
@pytest.mark.parametrize("transform", [mx.compile, mx.vmap], ids=["compile", "vmap"])
@pytest.mark.parametrize("option", [{"QK_QUANT": "int8"}, {"SMOOTH_K": True}], ids=str)
def test_inside_a_transformation(transform: Any, option: dict[str, Any]) -> None:
    """The cpu backend needs values, and ops is no stand-in."""
    q = mx.stack([Q, Q]) if transform is mx.vmap else Q

    def call(x: mx.array) -> mx.array:
        return flex.flex_attention(x, x, x, kernel_options={"BACKEND": "cpu", **option})

    with pytest.raises(flex.BackendUnavailable, match="without QK_QUANT, SMOOTH_K and SMOOTH_Q"):
        transform(call)(q)


@pytest.mark.skipif("cpu" not in QUANTISING, reason="the cpu backend does not quantise")
def test_a_gradient_is_refused() -> None:
    def loss(x: mx.array) -> mx.array:
        return flex.flex_attention(x, x, x, kernel_options={"BACKEND": "cpu", "QK_QUANT": "int8"}).sum()

    with pytest.raises(flex.GradientError):
        mx.grad(loss)(Q)


BATCH, HEADS, KV_HEADS, ROWS, KEYS, D = 2, 4, 2, 26, 37, 16
RNG = np.random.default_rng(0)
IDS = np.sort(RNG.integers(0, 3, size=(BATCH, KEYS)), axis=1)
CAPTURED = mx.array(IDS)
CALLS = {
    "plain": (None, None, None, False),
    "documents": (None, lambda b, h, q, k: CAPTURED[b, q] == CAPTURED[b, k] and q >= k, IDS, False),
    "alibi": (mods.alibi(HEADS), mods.causal(offset=0), None, False),
    "softcap": (mods.softcap(4.0), None, None, True),
    "softcap, documents": (mods.softcap(4.0), mods.document(CAPTURED), IDS, True),
}


@pytest.mark.sampled(8)
@pytest.mark.parametrize("backend", QUANTISING)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    "quant",
    [QKQuant("block"), QKQuant("row"), QKQuant(smooth_q=True, q_block=8, k_block=16), QKQuant(smooth_k=False)],
    ids=["block", "row", "smooth_q", "unsmoothed"],
)
def test_calls(quant: QKQuant, name: str, dtype: str, backend: str) -> None:
    score_mod, mask_mod, ids, add_back = CALLS[name]
    shapes = ((BATCH, HEADS, ROWS, D), (BATCH, KV_HEADS, KEYS, D), (BATCH, KV_HEADS, KEYS, 8))
    rng = np.random.default_rng(1)
    arrays = [mx.array(rng.normal(size=shape) + i).astype(getattr(mx, dtype)) for i, shape in enumerate(shapes)]
    out, aux = flex.flex_attention(
        *arrays,
        score_mod=score_mod,
        block_mask=mask_mod,
        enable_gqa=True,
        return_aux=flex.AuxRequest(lse=True, max_scores=True),
        kernel_options={"BACKEND": backend, "QK_QUANT": quant},
    )
    exact = [np.array(x.astype(mx.float32)) for x in arrays]
    row_ids = None if ids is None else ids[:, :ROWS]
    want = quant_reference.attention(
        *exact, quant, score_mod, mask_mod, None, row_ids, ids, add_back and quant.smooth_k
    )
    # 16-bit inputs are often half-way between two integers, where a fused multiply-add may round the other way: a few
    # rows then differ by what one step of an element of q or k makes of a score.
    step = D**-0.5 * abs(exact[0]).max() * abs(exact[1]).max() / 127
    unit = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    # CUDA's tanh of 16-bit inputs is right to 2^-11, by PTX, and the softcap is 4.
    tanh = 4 * 2.0**-11 if backend == "cuda" and dtype != "float32" and "softcap" in name else 0.0
    for got, expected in ((out, want.out), (aux.lse, want.lse), (aux.max_scores, want.max_scores)):
        allowed = 2e-5 + tanh + (2e-5 + (unit if got is out else 0)) * abs(expected)
        error = abs(np.array(got.astype(mx.float32)) - expected)
        assert (error <= allowed + (0 if dtype == "float32" else step)).all(), (name, quant, error.max(), step)
        assert (error > allowed).mean() < 0.03, (name, quant)


@pytest.mark.parametrize("backend", QUANTISING)
@pytest.mark.parametrize("quant", [QKQuant("row"), QKQuant("block", smooth_k=False)], ids=["smoothed", "as it is"])
def test_scales_whose_product_overflows(quant: QKQuant, backend: str) -> None:
    """The rows are orthogonal: their score is 0."""
    q, v = mx.array([[[[1e30, 0.0]]]]), mx.array([[[[1.0, 2.0], [3.0, 6.0]]]])
    k = mx.array([[[[0.0, 1e30], [0.0, -1e30]]]])
    got = flex.flex_attention(q, k, v, kernel_options={"BACKEND": backend, "QK_QUANT": quant})
    np.testing.assert_array_equal(got, [[[[2, 4]]]])


@pytest.mark.sampled(2)
@pytest.mark.parametrize("backend", QUANTISING)
@pytest.mark.parametrize("name", CALLS)
def test_smoothing_alone_is_exact(name: str, backend: str) -> None:
    score_mod, mask_mod, _, _ = CALLS[name]
    rng = np.random.default_rng(2)
    q, k, v = (mx.array(rng.normal(size=(BATCH, HEADS, KEYS, D)).astype(np.float32) + 2) for _ in range(3))
    kept = [
        flex.flex_attention(q, k, v, score_mod, mask_mod, return_lse=True, kernel_options={"BACKEND": backend, **more})
        for more in ({}, {"SMOOTH_K": True})
    ]
    for plain, smooth in zip(*kept, strict=True):
        np.testing.assert_allclose(np.array(smooth), np.array(plain), atol=2e-5, rtol=2e-5)


def test_inspect_says_what_becomes_of_the_row_term() -> None:
    assert "smoothed K: the row term is dropped (shift invariant)" in mods.alibi(4).inspect()
    assert "smoothed K: the row term is added back before the mod" in mods.softcap(30.0).inspect()
    assert "smoothed K" not in mods.causal.inspect()
