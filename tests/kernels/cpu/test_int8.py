"""int8 on the CPU: the verbs of one tile exactly, then attention against the same rounding in numpy."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest
import quant_reference
import reference
import zoo
from calls import attention_call, attention_spec, run_on
from quant_reference import quantise
from reference import Array

import flextrace as flex
from flextrace.kernels import QKQuant, Result, Smoothing, backend_for, cpu, toolchain
from flextrace.kernels.cpu.launch import FEW_ROWS

FOLDER = Path(cpu.__file__).parent
PORTABLE = ("-DFLEXTRACE_PORTABLE_INT8",)
# Other instruction sets that this processor runs too: 32 byte registers with AVX-VNNI or without a dot instruction.
X86 = {"native": (), "portable": PORTABLE, "without_avx512": ("-mno-avx512f",), "sse2": ("-march=x86-64",)}
VARIANTS = X86 if platform.machine() in ("x86_64", "AMD64") else {"native": (), "portable": PORTABLE}


# ---- one tile ------------------------------------------------------------------------------------------------------


class Tile(NamedTuple):
    scores: Array
    q_scale: Array
    k_scale: Array
    special: bool


class Verbs:
    """int8_check.cpp, compiled with these flags after the usual ones."""

    def __init__(self, folder: Path, flags: tuple[str, ...]) -> None:
        compiler = toolchain.find_compiler()
        assert compiler is not None
        flags = (*compiler.flags, *flags, f"-I{FOLDER / 'int8'}")
        self.compiler = toolchain.Compiler(compiler.path, flags, "")
        self.compiler.build(Path(__file__).parent / "int8_check.cpp", folder / "check.so")
        self.library = ctypes.CDLL(str(folder / "check.so"))
        self.rows, self.keys = self.library.rows_of_group(), self.library.keys_of_tile()

    def scores(
        self,
        q: Array,
        k: Array,
        q_block: int = 1,
        k_block: int = 1,
        means: Array | None = None,
        groups: Array | None = None,
    ) -> Tile:
        """q: [at most rows, columns], k: [at most keys, columns]."""
        kinds = (np.float32, np.float32, np.float32, np.int32)
        wanted = zip((q, k, means, groups), kinds, strict=True)
        given = [None if x is None else np.ascontiguousarray(x, kind) for x, kind in wanted]
        scores = np.empty((self.rows, self.keys), np.float32)
        q_scale, k_scale = np.empty(len(q), np.float32), np.zeros(self.keys, np.float32)
        addresses = [None if x is None else ctypes.c_void_p(x.ctypes.data) for x in (scores, q_scale, k_scale, *given)]
        sizes = [ctypes.c_int64(n) for n in (len(q), len(k), q.shape[1], q_block, k_block)]
        special = self.library.int8_scores(*addresses, *sizes)
        return Tile(scores[: len(q), : len(k)], q_scale, k_scale[: len(k)], bool(special))


@pytest.fixture(scope="module", params=VARIANTS)
def verbs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Verbs:
    return Verbs(tmp_path_factory.mktemp(request.param), VARIANTS[request.param])


def test_the_dot_instruction_is_used_where_there_is_one(verbs: Verbs, request: pytest.FixtureRequest) -> None:
    variant = request.node.callspec.params["verbs"]
    command = [verbs.compiler.path, *verbs.compiler.flags, "-dM", "-E", "-x", "c++", os.devnull]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    macros = {line.split()[1] for line in text.splitlines()}
    known = {"__AVX512VNNI__", "__ARM_FEATURE_DOTPROD"} | ({"__AVXVNNI__"} if "__AVX512F__" not in macros else set())
    assert verbs.library.uses_dot_instruction() == (variant != "portable" and not known.isdisjoint(macros))


@pytest.mark.parametrize("columns", [1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 80, 127, 128, 130, 256, 576])
def test_products_of_whole_numbers_are_exact(verbs: Verbs, columns: int) -> None:
    rng = np.random.default_rng(columns)
    for rows in (1, verbs.rows - 1, verbs.rows):
        for keys in (1, 5, verbs.keys - 3, verbs.keys):
            q, k = (rng.integers(-127, 128, (n, columns)) for n in (rows, keys))
            for x in (q, k):  # one unit is then worth 1
                x[:, rng.integers(columns)] = rng.choice([-127, 127], len(x))
            tile = verbs.scores(q, k)
            assert (tile.q_scale == 1).all() and (tile.k_scale == 1).all()
            np.testing.assert_array_equal(tile.scores, q @ k.T)


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_products_do_not_saturate(verbs: Verbs, sign: int) -> None:
    q, k = np.full((verbs.rows, 1024), 127), np.full((verbs.keys, 1024), sign * 127)
    assert (verbs.scores(q, k).scores == sign * 127 * 127 * 1024).all()  # below 2**24


def test_rounding_is_to_nearest_with_one_scale_per_block(verbs: Verbs) -> None:
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(verbs.rows, 72)).astype(np.float32), rng.normal(size=(100, 72)).astype(np.float32)
    k[10:20] *= 30
    for q_block, k_block in ((1, 1), (4, 7), (128, 64), (5, 1000)):
        tile = verbs.scores(q, k, q_block, k_block)
        whole = [quantise(x, block, np.zeros(len(x))) for x, block in ((q, q_block), (k, k_block))]
        np.testing.assert_array_equal(tile.q_scale, whole[0].scale)
        np.testing.assert_array_equal(tile.k_scale, whole[1].scale)
        exact = (whole[0].integers @ whole[1].integers.T) * whole[0].scale[:, None] * whole[1].scale
        np.testing.assert_allclose(tile.scores, exact, rtol=1e-6)


def test_a_block_ends_where_the_group_changes(verbs: Verbs) -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat([0, 1, 0], [20, 30, 50])
    q, k = rng.normal(size=(verbs.rows, 24)), rng.normal(size=(100, 24)) * np.where(groups == 1, 100, 1)[:, None]
    means = rng.normal(size=(100, 24))
    tile = verbs.scores(q, k, 1, 64, means, groups)
    less = k.astype(np.float32) - means.astype(np.float32)[groups]
    for begin, end in ((0, 20), (20, 50), (50, 64), (64, 100)):
        assert (tile.k_scale[begin:end] == np.float32(abs(less[begin:end]).max()) / np.float32(127)).all()


def test_zero_blocks_give_zero(verbs: Verbs) -> None:
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(verbs.rows, 40)), rng.normal(size=(verbs.keys, 40))
    q[:2] = k[:64] = 0
    q[2:4] = 1e-40  # counts as zero: 127 / 1e-40 is no float32
    tile = verbs.scores(q, k, 2, 64)
    assert (tile.scores[:4] == 0).all() and (tile.scores[:, :64] == 0).all()
    assert np.isfinite(tile.scores).all() and (tile.scores[4:, 64:] != 0).mean() > 0.9


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_an_infinity_spoils_only_its_own_row(verbs: Verbs, bad: float) -> None:
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(verbs.rows, 40)), rng.normal(size=(verbs.keys, 40))
    q[1, 39] = k[5, 0] = k[70] = bad
    tile = verbs.scores(q, k, 128, 64)
    assert tile.special
    assert np.isnan(tile.q_scale).nonzero()[0].tolist() == [1]
    assert np.isnan(tile.k_scale).nonzero()[0].tolist() == [5, 70]
    q[1, 39] = k[5, 0] = k[70] = 0
    clean = verbs.scores(q, k, 128, 64)
    assert not clean.special
    rows, keys = np.delete(np.arange(verbs.rows), 1), np.delete(np.arange(verbs.keys), [5, 70])
    np.testing.assert_array_equal(tile.scores[np.ix_(rows, keys)], clean.scores[np.ix_(rows, keys)])


# ---- inputs -------------------------------------------------------------------------------------------------------


class Inputs(NamedTuple):
    """q: [B, H, Lq, D]; k: [Bkv, Hkv, Lkv, D]; v: [Bkv, Hkv, Lkv, Dv]; already rounded to `dtype`."""

    q: mx.array
    k: mx.array
    v: mx.array

    @staticmethod
    def random(shape: Shape, dtype: mx.Dtype, bias: float = 2.0, q_bias: float = 0.3) -> Inputs:
        """Keys and queries with a mean of their own per channel."""
        rng = np.random.default_rng(0)
        q = rng.normal(size=(shape.B, shape.H, shape.Lq, shape.D)) + q_bias * rng.normal(size=shape.D)
        k = rng.normal(size=(shape.Bkv, shape.Hkv, shape.Lkv, shape.D)) + bias * rng.normal(size=shape.D)
        v = rng.normal(size=(shape.Bkv, shape.Hkv, shape.Lkv, shape.Dv))
        return Inputs(*(mx.array(x.astype(np.float32)).astype(dtype) for x in (q, k, v)))

    def arrays(self) -> list[Array]:
        return [np.array(x.astype(mx.float32)) for x in self]


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
    "kv_batch_one": Shape(2, 2, 70, 64, 1, 1, 90, 64),
    "nine_rows": Shape(2, 4, FEW_ROWS + 1, 128, 2, 4, 300, 128),
    "tiny": Shape(1, 1, FEW_ROWS + 1, 1, 1, 1, 5, 1),
}


def smoothing(
    k: mx.array, key_ids: Array | None = None, row_ids: Array | None = None, add_back: bool = False
) -> Smoothing:
    """The means of keys whose documents are 0, 1, ... in `key_ids` [1 or batch, kv_len]."""
    if key_ids is None or row_ids is None:
        return Smoothing(k.astype(mx.float32).mean(axis=2, keepdims=True), add_back=add_back)
    values = np.array(k.astype(mx.float32))
    ids = np.broadcast_to(key_ids, (len(values), values.shape[2]))
    means = np.zeros((*values.shape[:2], int(ids.max()) + 1, values.shape[3]), np.float32)
    for b, group in np.ndindex(len(ids), means.shape[2]):
        if (ids[b] == group).any():
            means[b, :, group] = values[b, :, ids[b] == group].mean(axis=0)
    return Smoothing(mx.array(means), *(mx.array(x.astype(np.int32)) for x in (key_ids, row_ids)), add_back)


def rounded_attention(
    inputs: Inputs, quant: QKQuant, smooth: Smoothing | None, score_mod: Any = None, mask_mod: Any = None
) -> reference.Attention:
    """What quantised attention is to give."""
    ids = [] if smooth is None else [smooth.row_groups, smooth.key_groups]
    documents = (None if x is None else np.array(x) for x in ids or (None, None))
    add_back = smooth is not None and smooth.add_back
    arrays, scale = inputs.arrays(), inputs.q.shape[-1] ** -0.5
    return quant_reference.attention(*arrays, quant, score_mod, mask_mod, scale, *documents, add_back=add_back)


def run(
    inputs: Inputs,
    quant: QKQuant | None = None,
    smooth: Smoothing | None = None,
    score_mod: Any = None,
    mask_mod: Any = None,
    block_mask: bool = False,
    threads: int = 0,
) -> Result:
    score = None if score_mod is None else flex.score_mod(score_mod).bind()
    mask = None if mask_mod is None else flex.mask_mod(mask_mod)
    sizes = (*inputs.q.shape[:3], inputs.k.shape[2])
    blocks = flex.create_block_mask(mask, *sizes, BLOCK_SIZE=32).blocks if block_mask and mask is not None else None
    call = attention_call(*inputs, inputs.q.shape[-1] ** -0.5, score, None if mask is None else mask.bind(), blocks)
    call = call._replace(want_lse=True, want_max=True, threads=threads, quant=quant, smoothing=smooth)
    return run_on(backend_for("cpu"), call)


def relative_l1(got: mx.array, expected: Array) -> float:
    return float(abs(np.array(got.astype(mx.float32)) - expected).sum() / abs(expected).sum())


# A few elements lie so near the middle of two integers that a kernel without fused multiply-add rounds them the other
# way, which a few rows show.
OUT = {mx.float32: 2e-4, mx.float16: 5e-4, mx.bfloat16: 3e-3}
# bfloat16 numbers themselves, unsmoothed, are exactly in the middle more often.
STATISTICS = {mx.float32: 2e-4, mx.float16: 2e-4, mx.bfloat16: 1e-3}


def assert_attention(result: Result, expected: reference.Attention, dtype: mx.Dtype) -> None:
    assert relative_l1(result.out, expected.out) < OUT[dtype]
    for got, wanted in ((result.lse, expected.lse), (result.max_scores, expected.max_scores)):
        assert got is not None
        reference.assert_close(got, wanted, 2e-2, 2e-3, "lse or max_scores")
        finite = np.isfinite(wanted)
        assert abs(np.array(got)[finite] - wanted[finite]).mean() < STATISTICS[dtype]


QUANTS = {
    "block": QKQuant("block"),
    "row": QKQuant("row"),
    "smooth_q": QKQuant("block", smooth_q=True),
    "row_smooth_q": QKQuant("row", smooth_q=True, q_block=20),
    "odd_blocks": QKQuant("block", smooth_q=True, q_block=33, k_block=50),
    "long_blocks": QKQuant("block", q_block=100000, k_block=100000),
    "no_smoothing": QKQuant("block", smooth_k=False, smooth_q=True),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("quant", ["block", "row_smooth_q"])
@pytest.mark.parametrize("documents", [None, "shared", "per batch"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_averages_keys_itself(shape: str, documents: str | None, quant: str, dtype: mx.Dtype) -> None:
    """Means that it is given and need not read are wrong here; any would leave the scores, but not what is rounded."""
    sizes = SHAPES[shape]
    inputs = Inputs.random(sizes, dtype, 9.0)
    key_ids = row_ids = None
    if documents is not None:
        batches, rng = sizes.Bkv if documents == "per batch" else 1, np.random.default_rng(1)
        key_ids = rng.permuted(np.arange(batches * sizes.Lkv).reshape(batches, -1) % 3, axis=1)
        row_ids = rng.integers(0, 3, size=(batches, sizes.Lq))
    given = smoothing(inputs.k, key_ids, row_ids)
    mask = None
    if key_ids is not None and row_ids is not None:
        of_rows, of_keys = (np.broadcast_to(ids, (sizes.B, ids.shape[1])) for ids in (row_ids, key_ids))
        rows, keys = mx.array(of_rows), mx.array(of_keys)
        mask = lambda b, h, q_idx, kv_idx: rows[b, q_idx] == keys[b, kv_idx]  # noqa: E731
    own = replace(given, means=given.means + 1000.0, averages=True)
    for chosen in (QUANTS[quant], None):
        expected, got = (run(inputs, chosen, smooth, mask_mod=mask) for smooth in (given, own))
        for name in ("out", "lse"):
            one, other = (np.array(getattr(result, name).astype(mx.float32)) for result in (got, expected))
            np.testing.assert_array_equal(np.isinf(one), np.isinf(other))
            assert relative_l1(mx.array(np.nan_to_num(one, neginf=0.0)), np.nan_to_num(other, neginf=0.0)) < 2e-3


def test_the_kernel_s_averages_leave_out_what_is_not_finite() -> None:
    inputs = Inputs.random(SHAPES["gqa"], mx.float32, 9.0)
    k = np.array(inputs.k)
    clean = k.copy()
    clean[0, 0, 7, 3] = clean[1, 1, 9, 4] = 0
    given = smoothing(mx.array(clean))
    k[0, 0, 7, 3], k[1, 1, 9, 4] = np.inf, np.nan
    bad = mx.array(np.isfinite(k).all(axis=(1, 3)))
    mask = lambda b, h, q_idx, kv_idx: bad[b, kv_idx]  # noqa: E731
    own = replace(given, means=given.means * 0, averages=True)
    one, other = (run(inputs._replace(k=mx.array(k)), QUANTS["row"], smooth, mask_mod=mask) for smooth in (own, given))
    np.testing.assert_allclose(np.array(one.out), np.array(other.out), atol=2e-3)


# ---- attention -----------------------------------------------------------------------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_attention_rounds_as_numpy_does(shape: str, quant: str, dtype: mx.Dtype) -> None:
    inputs, chosen = Inputs.random(SHAPES[shape], dtype), QUANTS[quant]
    smooth = smoothing(inputs.k) if chosen.smooth_k else None
    assert_attention(run(inputs, chosen, smooth), rounded_attention(inputs, chosen, smooth), dtype)


MODS = {
    "alibi": False,
    "relative_bias": False,
    "softcap": True,
    "sigmoid_activation": True,
    "causal_as_score_mod": True,
}
MASKS = ("causal", "checkerboard_heads", "empty_rows", "padding_lengths")


def made(name: str, shape: Shape) -> list[Any]:
    """A mod of the zoo for the kernel, and for numpy."""
    sizes, rng = (shape.B, shape.H, shape.Lq, shape.Lkv), np.random.default_rng
    return [zoo.ZOO[name].make(*sizes, rng(3), array) for array in (zoo.mx_array, reference.array)]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("quant", ["block", "row_smooth_q", "no_smoothing"])
@pytest.mark.parametrize("name", [*MODS, *MASKS])
def test_every_kind_of_mod_sees_the_whole_score(name: str, quant: str) -> None:
    shape, chosen = SHAPES["gqa"], QUANTS[quant]
    inputs = Inputs.random(shape, mx.float32)
    smooth = smoothing(inputs.k, add_back=MODS.get(name, False)) if chosen.smooth_k else None
    kind = f"{zoo.ZOO[name].kind}_mod"
    mod, plain = made(name, shape)
    for block_mask in (False, True) if kind == "mask_mod" else (False,):
        result = run(inputs, chosen, smooth, **{kind: mod}, block_mask=block_mask)
        assert_attention(result, rounded_attention(inputs, chosen, smooth, **{kind: plain}), mx.float32)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("add_back", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_smoothing_alone_changes_nothing(shape: str, add_back: bool) -> None:
    inputs = Inputs.random(SHAPES[shape], mx.float32)
    mod = (lambda score, b, h, q_idx, kv_idx: 3 * mx.tanh(score / 3)) if add_back else None
    plain, smooth = run(inputs, None, None, mod), run(inputs, None, smoothing(inputs.k, add_back=add_back), mod)
    tolerance = reference.tolerance("float32")
    for name in ("out", "lse", "max_scores"):
        reference.assert_close(getattr(smooth, name), np.array(getattr(plain, name)), *tolerance[:2], name)


def test_smoothing_helps_float16_where_keys_are_biased() -> None:
    """The mean makes scores of the order of 1000, whose differences are what counts."""
    shape = Shape(1, 2, 64, 64, 1, 2, 256, 64)
    inputs = Inputs.random(shape, mx.float16, bias=60.0)
    q, k, v = inputs.arrays()
    exact = reference.attention(q, k, v).out
    assert relative_l1(run(inputs, None, smoothing(inputs.k)).out, exact) < 5e-4
    with_smoothing = relative_l1(run(inputs, QKQuant(), smoothing(inputs.k)).out, exact)
    without = relative_l1(run(inputs, QKQuant(smooth_k=False)).out, exact)
    assert with_smoothing < 0.02 < 10 * with_smoothing < without


def documents(lengths: list[int]) -> Array:
    return np.repeat(np.arange(len(lengths)), lengths)[None]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("quant", [None, "block", "odd_blocks", "row_smooth_q"])
def test_documents_have_means_of_their_own(quant: str | None) -> None:
    shape = Shape(2, 2, 150, 24, 2, 1, 150, 16)
    ids = np.stack([documents([40, 3, 67, 40])[0], documents([130, 20])[0]])
    chosen = QKQuant(q_block=1, k_block=1) if quant is None else QUANTS[quant]
    captured = mx.array(ids.astype(np.int32))

    def same(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return captured[b, q_idx] == captured[b, kv_idx]

    def plain(b: int, h: int, q_idx: int, kv_idx: int) -> bool:
        return bool(ids[b, q_idx] == ids[b, kv_idx])

    inputs = Inputs.random(shape, mx.float32)
    k = np.array(inputs.k)
    k[np.arange(2)[:, None, None], 0, np.arange(150)[:, None], np.arange(24)] += 20.0 * ids[:, :, None]
    inputs = inputs._replace(k=mx.array(k))
    smooth = smoothing(inputs.k, ids, ids)
    result = run(inputs, None if quant is None else chosen, smooth, mask_mod=same, block_mask=True)
    if quant is None:
        expected = reference.attention(*inputs.arrays(), None, plain)
        tolerance = reference.tolerance("float32")
        reference.assert_close(result.out, expected.out, *tolerance[:2], "out")
        reference.assert_close(result.lse, expected.lse, 1e-4, 1e-5, "lse")
    else:
        assert_attention(result, rounded_attention(inputs, chosen, smooth, None, plain), mx.float32)
    # Another document's content, however large, does not reach this one: bit for bit.
    elsewhere = (ids != 1)[:, None, :, None]
    other = inputs._replace(k=mx.where(mx.array(elsewhere), inputs.k * -50 + 7, inputs.k))
    other = other._replace(q=mx.where(mx.array(elsewhere), other.q * 9, other.q))
    again = run(other, None if quant is None else chosen, smoothing(other.k, ids, ids), mask_mod=same, block_mask=True)
    kept = np.broadcast_to(ids == 1, (2, 150))
    for b in range(2):
        one, two = (np.array(x.out)[b][:, kept[b]] for x in (result, again))
        np.testing.assert_array_equal(one, two)


def test_documents_per_batch_may_share_keys() -> None:
    """One batch of keys, cut differently by each batch of queries, gives what a copy for each gives."""
    shape = Shape(2, 2, 60, 16, 1, 1, 60, 16)
    ids = np.stack([documents([40, 20])[0], documents([10, 50])[0]])
    captured = mx.array(ids.astype(np.int32))
    inputs = Inputs.random(shape, mx.float32)
    twice = Inputs(inputs.q, *(mx.array(np.repeat(np.array(x), 2, axis=0)) for x in (inputs.k, inputs.v)))
    assert memoryview(twice.k).strides[0] > 0 == memoryview(mx.repeat(inputs.k, 2, axis=0)).strides[0]
    smooth = smoothing(twice.k, ids, ids)
    mask = lambda b, h, q_idx, kv_idx: captured[b, q_idx] == captured[b, kv_idx]  # noqa: E731
    plain = lambda b, h, q_idx, kv_idx: bool(ids[b, q_idx] == ids[b, kv_idx])  # noqa: E731
    one, two = (run(x, QUANTS["block"], smooth, mask_mod=mask) for x in (inputs, twice))
    np.testing.assert_array_equal(np.array(one.out), np.array(two.out))
    assert_attention(one, rounded_attention(twice, QUANTS["block"], smooth, None, plain), mx.float32)


def test_a_row_of_no_document_gives_nothing() -> None:
    inputs = Inputs.random(Shape(1, 1, 4, 8, 1, 1, 20, 8), mx.float32)
    rows, keys = np.array([[0, -1, 0, -1]]), np.zeros((1, 20), np.int32)
    captured = mx.array(rows.astype(np.int32)[0])
    smooth = smoothing(inputs.k, keys, rows)
    result = run(inputs, QKQuant(), smooth, mask_mod=lambda b, h, q_idx, kv_idx: captured[q_idx] == 0)
    assert result.lse is not None and result.max_scores is not None
    assert np.isneginf(np.array(result.lse)[0, 0]).tolist() == [False, True, False, True]
    assert np.isneginf(np.array(result.max_scores)[0, 0]).tolist() == [False, True, False, True]
    assert (np.array(result.out)[0, 0, 1::2] == 0).all()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("quant", [None, "block", "smooth_q", "row"])
def test_infinities_give_what_plain_attention_gives(quant: str | None) -> None:
    shape = Shape(1, 1, 40, 16, 1, 1, 200, 16)
    inputs = Inputs.random(shape, mx.float32)
    q, k, v = (np.array(x) for x in inputs)
    q[0, 0, 3, 2], q[0, 0, 7, 0], k[0, 0, 150, 5], k[0, 0, 20, 3] = np.inf, np.nan, np.inf, -np.inf
    spoiled = Inputs(*(mx.array(x) for x in (q, k, v)))
    smooth = smoothing(mx.array(np.where(np.isfinite(k), k, 0)))
    chosen = None if quant is None else QUANTS[quant]

    def hidden(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:  # rows from 20 on do not see the spoiled keys
        return (q_idx < 20) | ((kv_idx != 150) & (kv_idx != 20))

    got, plain = run(spoiled, chosen, smooth, mask_mod=hidden), run(spoiled, mask_mod=hidden)
    for name in ("out", "lse", "max_scores"):
        one, two = (np.array(getattr(x, name)) for x in (got, plain))
        np.testing.assert_array_equal(np.isnan(one), np.isnan(two), err_msg=name)
        np.testing.assert_array_equal(np.isposinf(one), np.isposinf(two), err_msg=name)
    with np.errstate(invalid="ignore"):
        if chosen is None:
            want = reference.attention(*spoiled.arrays(), None, hidden)
        else:
            want = rounded_attention(spoiled, chosen, smooth, None, hidden)
    unspoiled = slice(20, None)
    for name, allowed in (("out", 2e-5), ("lse", 1e-4), ("max_scores", 1e-4)):
        one, two = np.array(getattr(got, name))[0, 0, unspoiled], getattr(want, name)[0, 0, unspoiled]
        np.testing.assert_allclose(one, two, atol=allowed, rtol=allowed, err_msg=name)


@pytest.mark.parametrize("quant", [None, "block"])
def test_a_mean_that_is_not_finite_is_not_used(quant: str | None) -> None:
    inputs = Inputs.random(SHAPES["gqa"], mx.float32)
    means = np.zeros((2, 2, 1, 40), np.float32)
    means[1, 0, 0, 3], means[1, 1, 0, 7] = np.inf, np.nan
    got = run(inputs, None if quant is None else QUANTS[quant], Smoothing(mx.array(means)))
    plain = run(inputs)
    reference.assert_close(got.out[1], np.array(plain.out[1]), 2e-5, 2e-5, "out")
    assert got.lse is not None and plain.lse is not None
    reference.assert_close(got.lse[1], np.array(plain.lse[1]), 2e-5, 2e-5, "lse")


@pytest.mark.parametrize("zeros", ["q", "k", "both"])
def test_all_zero_inputs_give_the_mean_of_v(zeros: str) -> None:
    inputs = Inputs.random(SHAPES["gqa"], mx.float32)
    q, k = (mx.zeros_like(x) if zeros in (name, "both") else x for name, x in (("q", inputs.q), ("k", inputs.k)))
    result = run(Inputs(q, k, inputs.v), QKQuant(smooth_q=True), smoothing(k))
    mean = np.repeat(np.array(inputs.v).mean(axis=2, keepdims=True), 2, axis=1)
    reference.assert_close(result.out, np.broadcast_to(mean, result.out.shape), 1e-5, 1e-5, "out")


@pytest.mark.parametrize("layout", [(0, 2, 1, 3), (0, 1, 3, 2), (3, 2, 1, 0)])
def test_any_strides(layout: tuple[int, ...]) -> None:
    inputs = Inputs.random(SHAPES["gqa"], mx.bfloat16)
    back = tuple(np.argsort(layout))
    strided = Inputs(*(mx.contiguous(x.transpose(layout)).transpose(back) for x in inputs))
    smooth = smoothing(inputs.k)
    one, two = (run(x, QKQuant(smooth_q=True), smooth) for x in (inputs, strided))
    np.testing.assert_array_equal(np.array(one.out.astype(mx.float32)), np.array(two.out.astype(mx.float32)))


def test_bits_do_not_depend_on_threads() -> None:
    inputs = Inputs.random(Shape(1, 2, 700, 64, 1, 1, 700, 64), mx.float32)
    quant, smooth = QKQuant(smooth_q=True), smoothing(inputs.k)
    one, several = (run(inputs, quant, smooth, threads=threads) for threads in (1, 5))
    np.testing.assert_array_equal(np.array(one.out), np.array(several.out))
    np.testing.assert_array_equal(np.array(one.lse), np.array(several.lse))


def test_the_portable_path_gives_the_same_numbers(fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = Inputs.random(SHAPES["ragged"], mx.float32)
    smooth, quant = smoothing(inputs.k, add_back=True), QKQuant(smooth_q=True)
    results = []
    for flags in ((), PORTABLE):
        monkeypatch.setattr(toolchain, "FLAGS", (*toolchain.FLAGS, *flags))
        toolchain.find_compiler.cache_clear()
        monkeypatch.setattr("flextrace.kernels.registry.made", {})
        results.append(run(inputs, quant, smooth, lambda score, b, h, q_idx, kv_idx: 5 * mx.tanh(score / 5)))
    toolchain.find_compiler.cache_clear()
    for name in ("out", "lse", "max_scores"):
        np.testing.assert_array_equal(*(np.array(getattr(result, name)) for result in results))
    texts = {file.read_text() for file in fresh_cache.glob("kernels/*/*/kernel.cpp")}
    assert len(texts) == 1 and len(list(fresh_cache.glob("kernels/*/*"))) == 2


@pytest.mark.parametrize("quant", [QKQuant(), QKQuant("row"), QKQuant(smooth_q=True)], ids=["block", "row", "smooth_q"])
def test_accuracy_of_random_and_biased_keys(quant: QKQuant) -> None:
    """The issue's bounds, at a smaller size; without smoothing a biased K is visibly worse."""
    for bias in (0.0, 3.0):
        inputs = Inputs.random(Shape(1, 2, 512, 128, 1, 2, 1024, 128), mx.float32, bias=bias, q_bias=0)
        exact = reference.attention(*inputs.arrays()).out
        got = run(inputs, quant, smoothing(inputs.k)).out
        cosine = float((np.array(got) * exact).sum() / np.linalg.norm(got) / np.linalg.norm(exact))
        assert cosine >= 0.9999
        assert relative_l1(got, exact) <= 0.0135
        if bias:
            without = run(inputs, quant, None).out
            assert relative_l1(without, exact) > 1.5 * relative_l1(got, exact)


def test_the_plain_kernel_does_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The three ways to read keys are three texts: each differs in one line of the hole."""
    from flextrace.kernels.cpu.generate import kernel_text

    plain, smoothed, quantised = (kernel_text(attention_spec(variant=keys)) for keys in (None, "SMOOTHED", "QUANTISED"))
    assert plain.replace("KEYS = PLAIN", "KEYS = QUANTISED") == quantised
    assert plain.replace("KEYS = PLAIN", "KEYS = SMOOTHED") == smoothed
