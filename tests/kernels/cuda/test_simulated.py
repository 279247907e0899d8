"""The cuda backend's kernels on the host, thread by thread: right against float64, and each planted mistake is seen."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import mlx.core as mx
import numpy as np
import pytest
import reference
import zoo
from apparatus import simulated
from apparatus.cuda import translate
from apparatus.cuda.simulated import simulated_cuda
from apparatus.simulated import DTYPES, ORDERS, SHAPES, Shape

import flextrace as flex
from flextrace.kernels.cuda import backend
from flextrace.kernels.cuda.backend import CudaBackend
from flextrace.kernels.cuda.generate import FOLDER
from flextrace.kernels.simulator.report import SimulationError
from flextrace.kernels.template.assemble import assemble
from flextrace.mods import alibi

SMALL: Shape = (1, 2, 70, 32, 1, 1, 100, 24)
LONGER: Shape = (1, 1, 150, 64, 1, 1, 700, 128)


def many_rows() -> Any:
    """Few rows have kernels of their own; here they have that of any call."""
    return mock.patch.object(backend, "plan_of", lambda call: None)


def check(
    shape: Shape,
    dtype: str,
    names: tuple[str, ...] = (),
    order: str = "forward",
    block_size: int | None = None,
    change: Callable[[str], str] | None = None,
    architecture: int = 80,
) -> None:
    with simulated_cuda(architecture, order=order, change=change), many_rows():
        simulated.check(shape, dtype, names, order, block_size, on=CudaBackend())


# One of each way through the kernel, every day.
FORWARD: dict[str, tuple[Shape, str, tuple[str, ...], int | None, int]] = {
    "bounds": ((1, 4, 80, 40, 1, 2, 200, 24), "float16", ("alibi", "causal"), None, 80),
    "cut_blocks": ((2, 2, 140, 16, 1, 1, 150, 16), "bfloat16", ("softcap", "video_heads"), 24, 80),
    "whole_blocks": ((1, 1, 70, 16, 1, 1, 1000, 16), "float16", ("document_ids",), 64, 80),
    "unaligned": ((1, 2, 70, 33, 1, 2, 90, 19), "float32", ("causal_window",), None, 80),
    "hopper": ((1, 2, 150, 40, 1, 1, 560, 72), "bfloat16", ("alibi", "causal_window"), None, 90),
    "hopper_ring": ((1, 2, 40, 80, 1, 1, 700, 72), "float16", (), None, 90),
    "hopper_blocks": ((1, 2, 140, 16, 1, 1, 300, 16), "float16", ("video_heads",), 24, 90),
}


@pytest.mark.parametrize("name", FORWARD)
def test_forward(name: str) -> None:
    shape, dtype, names, block_size, architecture = FORWARD[name]
    check(shape, dtype, names, "shuffled", block_size, architecture=architecture)


def test_keys_far_behind_those_that_the_mask_leaves_out() -> None:
    """Two looks ahead, of 32 stretches of 32 tiles each."""
    rng = np.random.default_rng(0)
    q, k, v = (mx.array(rng.normal(size=(1, 1, n, 8))).astype(mx.float16) for n in (2, 70_000, 70_000))
    with simulated_cuda() as simulated, many_rows():
        out = flex.flex_attention(q, k, v, None, far, kernel_options={"BACKEND": "cuda"})
    exact = (np.array(x).astype(np.float64) for x in (q, k[:, :, 66_000:], v[:, :, 66_000:]))
    want = reference.attention(*exact, scale=8**-0.5)
    reference.assert_close(out, want.out, 2e-3, 2e-3, "out")
    assert simulated.reports[-1].buffers["k"].read < 16 * 4_200, "tiles that are left out were read"


def far(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return kv_idx >= 66_000


@pytest.mark.parametrize(("architecture", "special"), [(80, np.nan), (90, np.nan), (90, -np.inf)])
def test_a_value_that_is_left_out_may_be_nan_or_infinite(architecture: int, special: float) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (np.asarray(rng.normal(size=(1, 2, 40, 16)), np.float16) for _ in range(3))
    want = reference.attention(*(x.astype(np.float64) for x in (q, k, v)), mask_mod=reference_causal, scale=0.25)
    v[:, :, 38:, ::3] = special
    options = {"BACKEND": "cuda"}
    with simulated_cuda(architecture), many_rows():
        out = flex.flex_attention(*map(mx.array, (q, k, v)), None, flex.mods.causal, kernel_options=options)
    reference.assert_close(out[:, :, :38], want.out[:, :, :38], 2e-3, 2e-3, "out")
    assert not np.isfinite(np.array(out[:, :, 38:, ::3])).any()
    assert np.isfinite(np.array(out[:, :, 38:, 1::3])).all()


def test_arrays_that_tma_cannot_take_are_copied() -> None:
    """They begin inside 16 bytes, which is known when they are evaluated. The simulator's memory never does: here the
    kernel that writes the maps says so of every array."""
    rng = np.random.default_rng(0)
    exact = [np.asarray(rng.normal(size=(1, 2, 40, 72)), np.float16) for _ in "qkvd"]
    q, k, v, cotangent = map(mx.array, exact)
    texts: list[str] = []

    def taken_by_none(text: str) -> str:
        texts.append(text)
        return text.replace("(uint64_t(from) & 15) == 0", "false")

    def attend(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return flex.flex_attention(q, k, v, kernel_options={"BACKEND": "cuda"})

    with simulated_cuda(90, change=taken_by_none), many_rows():
        (out,), (d_q, d_k, d_v) = mx.vjp(attend, [q, k, v], [cotangent])
    assert any("(uint64_t(from) & 15) == 0" in text for text in texts)
    q64, k64, v64, d64 = (x.astype(np.float64) for x in exact)
    want = reference.attention(q64, k64, v64, scale=72**-0.5)
    reference.assert_close(out, want.out, 2e-3, 2e-3, "out")
    weights = np.exp(q64 @ k64.swapaxes(2, 3) * 72**-0.5)
    weights /= weights.sum(-1, keepdims=True)
    slopes = weights * (d64 @ v64.swapaxes(2, 3) - (d64 * want.out).sum(-1, keepdims=True)) * 72**-0.5
    for got, expected in ((d_q, slopes @ k64), (d_k, slopes.swapaxes(2, 3) @ q64), (d_v, weights.swapaxes(2, 3) @ d64)):
        reference.assert_close(got, expected, 4e-3, 4e-3, "gradient")


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("lowest", [-3e38, -1e30, 1e6])
def test_scores_of_any_size_keep_their_differences(architecture: int, lowest: float) -> None:
    """Rows begin with keys that a score_mod moves as far away as float32 goes, as masks of other libraries do."""
    rng = np.random.default_rng(0)
    q, k, v = (np.asarray(rng.normal(size=(1, 1, n, 16)), np.float16) for n in (40, 300, 300))

    def moved(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return mx.where(kv_idx < 200 + q_idx, lowest, score)

    def same(score: np.ndarray, b: int, h: int, q_idx: Any, kv_idx: Any) -> np.ndarray:
        return np.where(kv_idx < 200 + q_idx, lowest, score)

    with simulated_cuda(architecture), many_rows():
        out = flex.flex_attention(*map(mx.array, (q, k, v)), flex.score_mod(moved), kernel_options={"BACKEND": "cuda"})
    scores = np.einsum("bhqd,bhkd->bhqk", q.astype(np.float64), k.astype(np.float64)) / 4
    scores = same(scores, 0, 0, np.arange(40)[:, None], np.arange(300))
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    want = weights @ v.astype(np.float64) / weights.sum(-1, keepdims=True)
    reference.assert_close(out, want, 2e-3, 2e-3, "out")


def reference_causal(b: int, h: int, q_idx: int, kv_idx: int) -> bool:
    return kv_idx <= q_idx


KERNELS = [(80, dtype) for dtype in DTYPES] + [(90, "float16"), (90, "bfloat16")]


@pytest.mark.sampled(150)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("architecture", "dtype"), KERNELS)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: str, architecture: int, dtype: str, order: str) -> None:
    check(SHAPES[shape], dtype, order=order, architecture=architecture)


@pytest.mark.sampled(200)
@pytest.mark.parametrize(("architecture", "dtype"), KERNELS)
@pytest.mark.parametrize("name", zoo.ZOO)
def test_the_zoo(name: str, architecture: int, dtype: str) -> None:
    check((2, 3, 37, 16, 2, 3, 75, 16), dtype, (name,), architecture=architecture)


@pytest.mark.sampled(60)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("block_size", [16, 24, 64, 128])
@pytest.mark.parametrize("names", [("causal",), ("alibi", "causal"), ("document_ids",)], ids="+".join)
@pytest.mark.parametrize("architecture", [80, 90])
def test_block_masks(architecture: int, names: tuple[str, ...], block_size: int, order: str) -> None:
    check((2, 2, 140, 16, 2, 1, 150, 16), "float16", names, order, block_size, architecture=architecture)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("architecture", [80, 90])
def test_the_bits_do_not_depend_on_the_order_of_lanes(architecture: int) -> None:
    q, k, v = simulated.inputs((1, 2, 70, 64, 1, 2, 300, 64), "bfloat16")
    results = []
    for order in ORDERS:
        with simulated_cuda(architecture, order=order):
            out = flex.flex_attention(q, k, v, alibi(2), return_lse=True, kernel_options={"BACKEND": "cuda"})
        results.append([np.array(x.astype(mx.float32)) for x in out])
    for other in results[1:]:
        assert all((x == y).all() for x, y in zip(results[0], other, strict=True))


# A mistake, where it is, and what is to be seen: a finding, or a wrong number.
MISTAKES = {
    "rows of a fragment": ('"r"(a[0]), "r"(a[1])', '"r"(a[1]), "r"(a[0])', "Not equal to tolerance"),
    "halves of the keys": ('"r"(b0), "r"(b1)', '"r"(b1), "r"(b0)', "Not equal to tolerance"),
    "a wait for the keys": ("ptx::cp_async_wait_group<0>();", "", "Not equal to tolerance"),
    "a wait for the values": ("ptx::cp_async_wait_group<1>();", "", "Not equal to tolerance|race|uninitialised"),
    "a barrier before the product": ("wait_group<0>();\n    __syncthreads();", "wait_group<0>();\n", "race"),
    "a barrier after the product": ("walk.next();\n    __syncthreads();", "walk.next();\n", "race"),
    "a row beyond the last": ("first + row < rows.count", "first + row <= rows.count", "out of bounds"),
    "an address of half a row": ("(lane >> 4) * 8", "(lane >> 4) * 4", "misaligned"),
    "a row too many": ("exists = row < p.q_len;", "exists = row <= p.q_len;", "out of bounds|overlapping"),
    "the lanes of a row": (
        "__shfl_xor_sync(EVERY_LANE, x, 1)",
        "__shfl_xor_sync(EVERY_LANE, x, 4)",
        "Not equal to tolerance",
    ),
    "the order of a pair": ("f16x2_of_f32(second, first)", "f16x2_of_f32(first, second)", "Not equal to tolerance"),
}
HOPPER_MISTAKES = {
    "a wait for the keys": ("wait_for(&memory.has_keys[turn.stage], turn.phase);", "", "Not equal|uninitialised|race"),
    "a wait for the values": ("wait_for(&memory.has_values[turn.stage], turn.phase);", "", "Not equal|bad lane"),
    "a wait for the queries": ("wait_for(&memory.has_queries, 0);", "", "Not equal|race|uninitialised"),
    "a wait for a free stage": ("wait_for(&memory.free_keys[turn.stage], turn.phase ^ 1);", "", "Not equal|race"),
    "a stage that is never free": ("released(&memory.free_keys[turn.stage]);", "", "divergent"),
    "a stage that is free too early": (
        "wait_for_products<0>();\n      pin(mine.out);\n      released(&memory.free_values[before.stage]);",
        "released(&memory.free_values[before.stage]);\n      wait_for_products<0>();\n      pin(mine.out);",
        "Not equal|race",
    ),
    "a wait for a product": ("wait_for_products<1>();", "", "Not equal"),
    "bytes of a box": ("sizeof(stage.values)", "sizeof(stage.values) / 2", "divergent|Not equal|race"),
    "a slab": ("(values, d / SLAB * SLAB_BYTES + 16 * j", "(values, d / SLAB * SLAB_BYTES + 8 * j", "Not equal"),
    "the stride of eight rows": ("1ull << 16 | 64ull << 32", "1ull << 16 | 32ull << 32", "Not equal|race"),
}


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    ("architecture", "mistake"), [(80, name) for name in MISTAKES] + [(90, name) for name in HOPPER_MISTAKES]
)
def test_each_mistake_is_seen(architecture: int, mistake: str) -> None:
    right, wrong, seen = (MISTAKES if architecture == 80 else HOPPER_MISTAKES)[mistake]

    def plant(text: str) -> str:
        planted.append(right in text)
        return text.replace(right, wrong, 1)

    planted: list[bool] = []

    with pytest.raises((SimulationError, AssertionError)) as found:
        check(
            SMALL if architecture == 80 else LONGER, "float16", (), "reverse", change=plant, architecture=architecture
        )
    assert any(planted)
    assert re.search(seen, str(found.value))


PTX_FILES = {"tile/ptx.h", "hopper/barriers.h", "hopper/wgmma.h", "hopper/maps.cu"}


def test_ptx_stands_in_few_files_and_each_instruction_has_a_twin() -> None:
    texts = {path.relative_to(FOLDER).as_posix(): path.read_text(encoding="ascii") for path in _sources()}
    assert {name for name, text in texts.items() if re.search(r"\basm\b", text)} == PTX_FILES
    known = {re.match(r"void ptx_(\w+)", line)[1] for line in translate.prototypes()}  # type: ignore[index]
    for kernel in PTX_FILES:
        used = translate.instructions_of(assemble(FOLDER, kernel, {}))
        assert {name for name in used - known if not name.startswith("wgmma_mma_async_sync_aligned_m64")} == set(), (
            kernel
        )


def _sources() -> list[Path]:
    return [path for path in FOLDER.rglob("*") if path.suffix in (".h", ".cu")]
