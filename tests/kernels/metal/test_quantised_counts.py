"""Quantised Metal attention: what the text of the kernel has more, and what a run moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from apparatus import clang_check
from apparatus.mods import traces
from apparatus.quantised import smoothing
from apparatus.simulated import backend, broken, inputs
from calls import attention_call, formulas, run_on

import flextrace as flex
from flextrace.int8.smoothing import smoothing as smoothing_of
from flextrace.kernels import QKQuant
from flextrace.kernels.gpu.tile_lists import CUT_TILES, NO_BLOCKS
from flextrace.kernels.metal import MetalBackend
from flextrace.kernels.metal.attention.plan import plan_for
from flextrace.kernels.metal.generate import kernel_text
from flextrace.kernels.metal.scoring import Scoring
from flextrace.kernels.simulator import SimulationError, recording

# ---- the text and the counts ---------------------------------------------------------------------------------------


def device_reads(quant: QKQuant | None, smooth: bool, length: int = 128, dim: int = 64) -> Any:
    tensors = inputs((1, 1, length, dim, 1, 1, length, dim), "float16")
    call = attention_call(*tensors, 1.0, quant=quant, smoothing=smoothing(tensors[1]) if smooth else None)
    with recording() as reports:
        run_on(backend(), call)
    return reports[-1]


@pytest.mark.parametrize("dim", [64, 128])
def test_keys_with_their_scales_take_half_the_bytes(dim: int) -> None:
    plain, whole = device_reads(None, False, dim=dim), device_reads(QKQuant("row"), True, dim=dim)
    keys, scales = whole.buffers["k"].read, whole.buffers["key_scales"].read
    assert keys + scales <= 0.55 * plain.buffers["k"].read
    assert keys == plain.buffers["k"].read // 2 and scales * dim == keys * 4, "a scale is read once for all simdgroups"
    assert all(whole.buffers[name].read == plain.buffers[name].read for name in ("q", "v"))
    assert whole.threadgroup_allocated <= 32 * 1024


def test_all_else_is_as_without() -> None:
    plain, smooth = device_reads(None, False), device_reads(None, True)
    assert smooth.buffers == plain.buffers and smooth.matrix_multiplies == plain.matrix_multiplies
    whole = device_reads(QKQuant("row"), True)
    assert whole.matrix_multiplies == plain.matrix_multiplies
    assert whole.threadgroup_barriers == plain.threadgroup_barriers
    assert (
        whole.threadgroup_read <= 0.77 * plain.threadgroup_read
        and whole.threadgroup_written < plain.threadgroup_written
    )
    assert whole.threadgroup_allocated == plain.threadgroup_allocated + 4 * 32, "the scales of a tile's 32 keys"
    assert whole.threadgroup_allocated == plan_for(64, 64, "float16", Scoring(True)).threadgroup_bytes


def test_the_plain_text_does_not_pay() -> None:
    """A text that quantises differs in the hole and in what is passed to it."""
    plain, whole = kernel_text(), kernel_text(scoring=Scoring(True, True, True, True, True))
    before, after = plain.header.split("struct Mods")[1], whole.header.split("struct Mods")[1]
    end = "INLINE Mods captured_by_mods("
    assert before.split(end)[1].split("return mods;")[1] == after.split(end)[1].split("return mods;")[1]
    added = ("row_scales", "key_scales", "row_terms", "mean_rows", "mean_scores", "value_scales", "value_means")
    assert whole.inputs == (*plain.inputs, *added)
    passed = ", ".join(f"{name}, {name}_strides" if name in ("key_scales", "value_scales") else name for name in added)
    assert plain.body == whole.body.replace(f", {passed}", "")
    assert not any(name in before.split(end)[0] for name in added)


@clang_check.needs_clang
@pytest.mark.sampled(3)
@pytest.mark.parametrize("scoring", [Scoring(True), Scoring(False, True), Scoring(True, True, True)], ids=str)
def test_address_spaces(scoring: Scoring, tmp_path: Path) -> None:
    for dims, dtype in (((64, 64), "float16"), ((80, 40), "bfloat16"), ((256, 256), "float32")):
        for blocks in (NO_BLOCKS, CUT_TILES):
            text = kernel_text(formulas(*traces("alibi", "document_ids")), scoring=scoring)
            source = clang_check.instance(text, plan_for(*dims, dtype, scoring), blocks)
            assert clang_check.complaints(source, tmp_path) == ""
            assert clang_check.unqualified_pointers(source, tmp_path) == []
            assert clang_check.narrow_offsets(source, tmp_path) == []


BOUNDS = [
    ("SCALES * P::BK || key >= keys.end) return;", "SCALES * P::BK) return;"),
    ("kv_idx = metal::min(first + i, kv_len - 1)", "kv_idx = first + i"),
]


@pytest.mark.parametrize(("right", "wrong"), BOUNDS, ids=["key scales", "scores of means"])
def test_every_bound_is_needed(right: str, wrong: str) -> None:
    tensors = inputs((1, 1, 70, 17, 1, 1, 75, 17), "float32")
    with pytest.raises(SimulationError, match="out of bounds"):
        run_on(broken(right, wrong), attention_call(*tensors, 1.0, quant=QKQuant("row", False, smooth_q=True)))


@pytest.mark.parametrize(
    "quant", [None, QKQuant("block"), QKQuant("row", smooth_q=True)], ids=["smoothed", "block", "row"]
)
def test_the_launch_is_lazy_and_works_inside_compile(quant: QKQuant | None) -> None:
    """Neither q nor k is evaluated: with a stand-in for MLX's lazy kernel, mx.compile traces it."""
    launches: list[dict[str, Any]] = []

    def factory(**definition: Any) -> Any:
        def launch(**arguments: Any) -> list[mx.array]:
            launches.append(definition | arguments)
            shapes = zip(arguments["output_shapes"], arguments["output_dtypes"], strict=True)
            total = sum(x.astype(mx.float32).sum() for x in arguments["inputs"])
            return [mx.full(shape, total).astype(dtype) for shape, dtype in shapes]

        return launch

    lazy, ids = MetalBackend(factory), mx.array(np.repeat([0, 1], [30, 40])[None])
    mask = flex.mask_mod(lambda b, h, q_idx, kv_idx: ids[b, q_idx] == ids[b, kv_idx])

    @mx.compile
    def compiled(q: mx.array) -> mx.array:
        call = attention_call(q, q, q, 1.0, mask_mod=mask.bind(), quant=quant, want_lse=True)
        call = call._replace(smoothing=smoothing_of(call))
        result = run_on(lazy, call)
        assert result.lse is not None
        return result.out.sum() + result.lse.sum()

    assert compiled(mx.ones((1, 2, 70, 16), mx.float16)).shape == ()
    q, k = launches[-1]["inputs"][:2]
    assert q.dtype == mx.float16 and k.dtype == (mx.float16 if quant is None else mx.int8)
