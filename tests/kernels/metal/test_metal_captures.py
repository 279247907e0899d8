"""Many captured arrays: packed, so that twenty fit beside the fused kernel's own buffers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from apparatus import clang_check
from apparatus.simulated import ORDERS, backend, inputs
from apparatus.stage_launches import every_launch
from calls import attention_call, formulas, run_on

import flextrace as flex
from flextrace.kernels import AttentionCall, backend_for
from flextrace.kernels.gpu.tile_lists import CUT_TILES, NO_BLOCKS
from flextrace.kernels.metal import generate
from flextrace.kernels.metal.attention.plan import plan_for
from flextrace.kernels.metal.device import MAX_BUFFERS
from flextrace.kernels.metal.generate import buffers, kernel_text
from flextrace.kernels.metal.scoring import Scoring
from flextrace.kernels.metal.stages import text as stage_text
from flextrace.kernels.simulator import recording

SHAPE = (2, 4, 70, 16, 2, 4, 90, 16)
B, H, Q, KV = 2, 4, 70, 90
Arrays = list[mx.array | np.ndarray[Any, Any]]
# How an array looks and is read: axes, layouts, element types, sizes (MLX passes fewer than 8 elements otherwise).
KINDS: tuple[tuple[Callable[[Any], Any], Callable[..., Any]], ...] = (
    (lambda rng: mx.array(rng.normal(size=H).astype(np.float32)), lambda a, b, h, q, kv: a[h]),
    (lambda rng: mx.array(rng.normal(size=(KV, Q)).astype(np.float16)).T, lambda a, b, h, q, kv: a[q, kv]),
    (
        lambda rng: mx.broadcast_to(mx.array(rng.integers(-9, 9, (B, 1, KV)).astype(np.int16)), (B, H, KV)),
        lambda a, b, h, q, kv: a[b, h, -1 - kv],
    ),
    (lambda rng: rng.normal(size=(2 * Q,))[::2], lambda a, b, h, q, kv: a[q]),
    (lambda rng: mx.array(rng.normal()), lambda a, b, h, q, kv: a),
    (lambda rng: mx.array(rng.integers(0, 255, (H, 3)).astype(np.uint8)), lambda a, b, h, q, kv: a[h, (q + kv) % 3]),
    (lambda rng: mx.array(rng.normal(size=(B, H, 2, KV))).astype(mx.bfloat16), lambda a, b, h, q, kv: a[b, h, 1, kv]),
)


def captured(count: int) -> tuple[Arrays, Callable[..., Any]]:
    """So many arrays, and the sum of an element of each."""
    rng = np.random.default_rng(count)
    arrays = [KINDS[i % len(KINDS)][0](rng) for i in range(count)]

    def total(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        found = 0.0
        for i, array in enumerate(arrays):
            found = found + 0.01 * KINDS[i % len(KINDS)][1](array, b, h, q_idx, kv_idx)
        return found

    return arrays, total


def mods(scores: int, masks: int) -> tuple[flex.ScoreMod, flex.MaskMod]:
    """With so many captured arrays each; the mask asks about keys by row, and drops most of them in whole tiles."""
    _, total = captured(scores)
    ids = [mx.array(np.arange(max(Q, KV)) // (10 + i)) for i in range(masks)]

    def keep(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        same = q_idx == kv_idx
        for array in ids:
            same = same | (array[q_idx] == array[kv_idx])
        return same

    return flex.score_mod(lambda s, b, h, q_idx, kv_idx: s + total(b, h, q_idx, kv_idx)), flex.mask_mod(keep)


def call(score: flex.ScoreMod | None, mask: flex.MaskMod | None, dtype: str = "float32", **rest: Any) -> AttentionCall:
    bound = [None if mod is None else mod.bind() for mod in (score, mask)]
    return attention_call(*inputs(SHAPE, dtype), 0.3, *bound, want_lse=True, want_max=True, **rest)


def close(ours: Any, theirs: Any) -> None:
    for name in ("out", "lse", "max_scores"):
        np.testing.assert_allclose(np.array(getattr(ours, name)), np.array(getattr(theirs, name)), atol=3e-5, rtol=3e-5)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("scores", "masks"), [(20, 0), (0, 20), (14, 6)])
def test_twenty_arrays_in_the_fused_kernel(scores: int, masks: int, order: str) -> None:
    score, mask = mods(scores, masks)
    made = call(score if scores else None, mask if masks else None)
    assert kernel_text(made.mods.formulas).packed
    close(run_on(backend(order), made), run_on(backend_for("cpu"), made))


def test_twenty_arrays_beside_blocks_and_in_the_staged_pipeline() -> None:
    score, mask = mods(14, 6)
    q, k, v = inputs(SHAPE, "float32")
    blocks = flex.create_block_mask(mask, B, H, Q, KV, BLOCK_SIZE=24)  # tiles are cut: states behind the lists

    def result(**options: str) -> mx.array:
        return flex.flex_attention(q, k, v, score, blocks, kernel_options=options)

    want = np.array(result(BACKEND="ops"))
    for options in ({"BACKEND": "simulator"}, {"BACKEND": "simulator", "PIPELINE": "staged"}, {"BACKEND": "cpu"}):
        np.testing.assert_allclose(np.array(result(**options)), want, atol=3e-5, rtol=3e-5)


def test_twenty_arrays_of_the_block_mask_stage() -> None:
    _, mask = mods(0, 20)
    assert stage_text.stage_text("block_mask", formulas(None, mask.trace())).packed
    bound, size = mask.bind(), (32, 16)
    ours, theirs = (
        backend_for(name).stages().block_mask(bound, B, H, Q, KV, size)  # type: ignore[attr-defined]
        for name in ("simulator", "cpu")
    )
    for one, other in zip(ours[:4], theirs[:4], strict=True):
        assert mx.array_equal(one, other)


def pack_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (generate, stage_text):
        monkeypatch.setattr(module, "are_packed", lambda *_: True)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_or_not_the_bits_and_the_tiles_are_the_same(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    score, mask = mods(3, 3)
    assert not kernel_text(formulas(score.trace(), mask.trace())).packed
    found = []
    for _ in range(2):
        with recording() as reports:
            made = run_on(type(backend())(backend().metal_kernel), call(score, mask, dtype))
        found.append((made, reports[-1].matrix_multiplies, reports[-1].buffers["k"].read))
        pack_all(monkeypatch)
        assert kernel_text(formulas(score.trace(), mask.trace())).packed
    (one, *counts), (other, *same) = found
    assert counts == same
    for name in ("out", "lse", "max_scores"):
        assert mx.array_equal(getattr(one, name), getattr(other, name))


def test_shapes_are_those_of_each_call() -> None:
    """One kernel for tables of every length."""
    fresh = type(backend())(backend().metal_kernel)
    tables = [mx.zeros(KV)] * 20

    def mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        for table in tables:
            score = score + table[-1]
        return score

    score = flex.score_mod(mod)
    for length in (5, 9, 300):
        tables[:] = [mx.array(np.arange(length) * (i + 1) / 100).astype(mx.float32) for i in range(20)]
        made = run_on(fresh, call(score, None))
        want = run_on(backend_for("cpu"), call(score, None))
        close(made, want)
    assert len({kernel.text for kernel in fresh.kernels.values()}) == 1


def test_too_many_arrays_say_how_many_and_what_to_write() -> None:
    score, mask = mods(15, 6)
    with pytest.raises(ValueError) as caught:
        flex.flex_attention(*inputs(SHAPE, "float32"), score, mask, kernel_options={"BACKEND": "simulator"})
    message = str(caught.value)
    assert "the mods capture 21 arrays (" in message and "this Metal kernel has room for 20" in message
    assert "stack some into one array, table = mx.stack([a, b]), and write table[0, h] for a[h]" in message
    ids = mx.stack([mx.array(np.arange(KV) // n) for n in (10, 11, 12)])

    def keep(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return (ids[0, q_idx] == ids[0, kv_idx]) | (ids[2, q_idx] == ids[2, kv_idx])

    made = call(score, flex.mask_mod(keep))
    close(run_on(backend(), made), run_on(backend_for("cpu"), made))


def test_a_kernel_with_more_buffers_of_its_own_has_room_for_fewer() -> None:
    everything = Scoring(*[True] * 5)
    score, _ = mods(11, 0)
    assert len(buffers(kernel_text(formulas(score.trace(), None), scoring=everything))) == MAX_BUFFERS
    score, _ = mods(12, 0)
    with pytest.raises(ValueError, match="capture 12 arrays .* has room for 11"):
        kernel_text(formulas(score.trace(), None), scoring=everything)


# ---- clang --------------------------------------------------------------------------------------------------------


@pytest.mark.sampled(4)
@clang_check.needs_clang
@pytest.mark.parametrize("async_copy", [False, True])
def test_address_spaces_of_packed_arrays(tmp_path: Path, async_copy: bool) -> None:
    score, mask = mods(14, 6)
    text = kernel_text(formulas(score.trace(), mask.trace()), async_copy)
    for blocks in (NO_BLOCKS, CUT_TILES):
        source = clang_check.instance(text, plan_for(64, 64, "float32"), blocks)
        assert clang_check.complaints(source, tmp_path) == ""
    assert clang_check.unqualified_pointers(source, tmp_path) == []
    assert clang_check.narrow_offsets(source, tmp_path) == []
    wrong = source.replace("const device int* shape;", "const constant int* shape;")
    assert wrong != source and "error:" in clang_check.complaints(wrong, tmp_path)


@clang_check.needs_clang
def test_address_spaces_of_stages_with_packed_arrays(tmp_path: Path) -> None:
    score, mask = mods(14, 6)
    for launched in every_launch(score.trace(), mask.trace()):
        assert clang_check.complaints(launched.instance(), tmp_path) == ""
