"""How accurate int8 attention is: the targets on the whole zoo, and `flextrace bench --accuracy`."""

from __future__ import annotations

import json
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import quant_reference
import zoo
from calls import attention_call
from typer.testing import CliRunner

import flextrace as flex
from flextrace import QKQuant, mods
from flextrace.bench import accuracy
from flextrace.cli import app
from flextrace.exact import exact_attention, quantised_attention
from flextrace.int8.smoothing import smoothing
from flextrace.kernels import AttentionCall, backend_for

B, H, L, D = 1, 2, 256, 128


def make_call(inputs: str, entry: zoo.Entry, quant: QKQuant) -> AttentionCall:
    mod = entry.make(B, H, L, L, np.random.default_rng(1))
    bound = (flex.ScoreMod if entry.kind == "score" else flex.MaskMod)(mod).bind()
    both = (bound, None) if entry.kind == "score" else (None, bound)
    return attention_call(*accuracy.tensors(inputs, (B, H, L, D), "float16"), D**-0.5, *both, quant=quant)


def figures(call: AttentionCall) -> quant_reference.Figures:
    assert call.quant is not None
    call = call._replace(smoothing=smoothing(call) if call.quant.smooth_k else None)
    return quant_reference.figures(quantised_attention(call).out, exact_attention(call).out)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("inputs", accuracy.INPUTS)
@pytest.mark.parametrize("entry", [e for e in zoo.ZOO.values() if e.name != "empty"], ids=str)
def test_the_algorithm_meets_the_targets(entry: zoo.Entry, inputs: str) -> None:
    """In numpy, no kernel. Scales by rows; those by blocks come close, and miss some: see test_scales_by_blocks."""
    found = figures(make_call(inputs, entry, QKQuant("row")))
    assert found.cosine >= accuracy.COSINE and found.relative_l1 <= accuracy.RELATIVE_L1, found


SOME = (
    "identity",
    "alibi",
    "relative_bias",
    "softcap",
    "causal",
    "sliding_window",
    "packed_causal_document",
    "prefix_lm",
)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("inputs", accuracy.INPUTS)
@pytest.mark.parametrize("name", SOME)
def test_kernels_meet_the_targets(name: str, inputs: str) -> None:
    """The cpu kernel on some of the zoo; test_the_cpu_kernel_meets_the_targets_at_full_size has it all."""
    entry = zoo.ZOO[name]
    call, mod = make_call(inputs, entry, QKQuant("row")), entry.make(B, H, L, L, np.random.default_rng(1))
    both = (mod, None) if entry.kind == "score" else (None, mod)
    got = flex.flex_attention(call.q, call.k, call.v, *both, kernel_options={"BACKEND": "cpu", "QK_QUANT": "int8"})
    found = quant_reference.figures(np.array(got.astype(mx.float32)), exact_attention(call).out)
    assert found.cosine >= accuracy.COSINE and found.relative_l1 <= accuracy.RELATIVE_L1, found


@pytest.mark.long
@pytest.mark.skipif(backend_for("cpu", to_run=False).unavailable() is not None, reason="no C++ compiler")
@pytest.mark.parametrize("inputs", accuracy.INPUTS)
@pytest.mark.parametrize("entry", [e for e in zoo.ZOO.values() if e.name != "empty"], ids=str)
def test_the_cpu_kernel_meets_the_targets_at_full_size(entry: zoo.Entry, inputs: str) -> None:
    """2x16x2048x128, all heads, beside float64. Head h of two mods multiplies scores, and what int8 makes of them, by
    0.5 + 0.25 h: no rounding of q and k to 8 bits meets the targets there, so theirs grow with it."""
    batch, heads, length = 2, 16, 2048
    mod = entry.make(batch, heads, length, length, np.random.default_rng(1))
    both = (mod, None) if entry.kind == "score" else (None, mod)
    bound = (flex.ScoreMod if entry.kind == "score" else flex.MaskMod)(mod).bind()
    q, k, v = accuracy.tensors(inputs, (batch, heads, length, D), "float16")
    got = flex.flex_attention(q, k, v, *both, kernel_options={"BACKEND": "cpu", "QK_QUANT": "int8"})
    exact = exact_attention(attention_call(q, k, v, D**-0.5, *((bound, None) if both[0] else (None, bound))))
    found = quant_reference.figures(np.array(got.astype(mx.float32)).astype(np.float64), exact.out)
    print(f"FIGURES {inputs} {entry.name} {found.cosine:.6f} {found.relative_l1:.5f}")
    factors = 0.5 + 0.25 * np.arange(heads) if entry.name in ("per_head_list", "per_head_loop") else np.ones(1)
    assert 1 - found.cosine <= (1 - accuracy.COSINE) * (factors**2).mean(), found
    assert found.relative_l1 <= accuracy.RELATIVE_L1 * factors.mean(), found


@pytest.mark.parametrize("granularity", ["block", "row"])
@pytest.mark.parametrize("name", ["identity", "alibi", "softcap", "causal", "packed_causal_document"])
def test_smoothing_does_the_work(name: str, granularity: Any) -> None:
    """Where k has outlier channels, errors without smoothing are at least twice as large."""
    smooth, rough = (
        figures(make_call("outlier", zoo.ZOO[name], QKQuant(granularity, smooth_k=smooth))) for smooth in (True, False)
    )
    assert rough.relative_l1 > 2 * smooth.relative_l1 and rough.cosine < accuracy.COSINE


@pytest.mark.parametrize("inputs", accuracy.INPUTS)
def test_scales_by_blocks(inputs: str) -> None:
    """The largest of 128 x 128 normal numbers makes a step 1.45 times that of 128 alone: relative L1 about 0.013."""
    by_block, by_row = (figures(make_call(inputs, zoo.ZOO["identity"], QKQuant(g))) for g in ("block", "row"))
    assert by_block.cosine >= accuracy.COSINE - 2e-5 and by_block.relative_l1 < 0.0145
    assert 1.2 < by_block.relative_l1 / by_row.relative_l1 < 1.7


@pytest.mark.sampled(2)
@pytest.mark.parametrize("quant", [QKQuant("block", q_block=8, k_block=16), QKQuant("row", smooth_q=True, q_block=8)])
@pytest.mark.parametrize("mask", [None, "documents"])
@pytest.mark.parametrize("score", [None, "softcap"])
def test_the_two_references_agree(score: str | None, mask: str | None, quant: QKQuant) -> None:
    """What the bench computes on expressions is what tests/quant_reference.py computes on plain functions."""
    offsets, rng = [0, 5, 19, 30], np.random.default_rng(0)
    ids = np.repeat(np.arange(3), np.diff(offsets))
    score_mod = None if score is None else mods.softcap(4.0)
    mask_mod = None if mask is None else mods.causal_document(offsets)
    arrays = [rng.normal(size=(2, heads, 30, 16)).astype(np.float32) + 1 for heads in (4, 2, 2)]
    arrays[1][0, 0, 7, 3], arrays[1][1, 1, :, 5] = np.inf if mask else 0, 0
    bound = (None if score_mod is None else score_mod.bind(), None if mask_mod is None else mask_mod.bind())
    call = attention_call(*(mx.array(x) for x in arrays), 0.4, *bound, quant=quant)
    call = call._replace(smoothing=smoothing(call))
    got = quantised_attention(call)
    given = None if mask is None else ids
    want = quant_reference.attention(*arrays, quant, score_mod, mask_mod, 0.4, given, given, score is not None)
    np.testing.assert_allclose(got.out, want.out, atol=1e-5)
    np.testing.assert_allclose(got.lse, want.lse, atol=1e-5)
    assert np.isnan(got.out).any() == bool(mask)


def test_a_block_of_zeros_and_one_that_is_not_finite() -> None:
    x = np.zeros((6, 4), np.float32)
    x[2:4], x[4], x[5, 0] = 1e-38, 2.0, np.nan
    got = quant_reference.quantise(x, 2, np.zeros(6, int))
    assert got.scale[:4].tolist() == [0, 0, 0, 0] and not got.integers[:4].any()
    assert got.integers[4].tolist() == [127] * 4 and got.scale[4] == pytest.approx(2 / 127) and np.isnan(got.scale[5])


# -- the command -------------------------------------------------------------------------------------------------

SMALL = ["bench", "--accuracy", "--heads", "2", "--lengths", "256", "--mods", "none,softcap,causal documents"]


def test_table() -> None:
    result = CliRunner().invoke(app, [*SMALL, "--backend", "reference"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "the algorithm in numpy, no kernel ran" in result.output
    for text in ("outlier, softcap", "added back", "dropped", "SageAttention", "per row: cosine >= 0.9999", "6 of 6"):
        assert text in result.output, text


@pytest.mark.skipif(not backend_for("cpu", to_run=False).quantises, reason="the cpu backend does not quantise")
def test_cpu_kernel_is_as_accurate_as_the_reference() -> None:
    reports = []
    for backend in ("reference", "cpu"):
        result = CliRunner().invoke(app, [*SMALL, "--backend", backend, "--json"])
        assert result.exit_code == 0, result.output
        reports.append(json.loads(result.output))
    (reference,), (cpu,) = (report["tables"] for report in reports)
    assert len(cpu["rows"]) == len(reference["rows"]) == 2 * 3 * len(accuracy.QUANTS)
    for mine, its in zip(cpu["rows"], reference["rows"], strict=True):
        assert mine["relative_l1"] == pytest.approx(its["relative_l1"], rel=0.05, abs=1e-3)
        assert (mine["mod"], mine["quant"], mine["row_term"]) == (its["mod"], its["quant"], its["row_term"])


def test_a_missed_target_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "RELATIVE_L1", 1e-6)
    assert CliRunner().invoke(app, [*SMALL, "--backend", "reference"]).exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "ops"], "the ops backend neither quantises nor smooths"),
        (["--backend", "gpu"], "unknown backend 'gpu'; known: metal, cuda, simulator, cpu, ops, reference"),
        (["--mods", "nothing"], "unknown mod 'nothing'; known: none, causal"),
        (["--dtypes", "int8"], "unknown dtype 'int8'; known: float32"),
        (["--counts"], "--counts and --accuracy are two reports"),
        (["--no-peers"], "--sections and --no-peers are about times"),
        (["--jobs", "2"], "--jobs is about simulations"),
    ],
)
def test_errors(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, [*SMALL, *arguments])
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize("option", [["--backend", "cpu"], ["--batch", "2"]], ids=" ".join)
def test_options_of_accuracy_alone(option: list[str]) -> None:
    result = CliRunner().invoke(app, ["bench", *option])
    assert result.exit_code == 2
    assert "add --accuracy" in result.output


def test_batch() -> None:
    options = ["--accuracy", "--batch", "2", "--heads", "1", "--lengths", "64", "--mods", "none", "--json"]
    result = CliRunner().invoke(app, ["bench", *options])
    assert json.loads(result.output)["tables"][0]["shape"] == [2, 1, 64, 128]
