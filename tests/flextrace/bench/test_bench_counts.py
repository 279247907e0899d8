"""`flextrace bench --counts`: what is counted, what it is compared with, and which targets hold."""

from __future__ import annotations

import json
import multiprocessing
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from typer.testing import CliRunner

from flextrace.bench import BenchError, cases, counts, counts_table
from flextrace.bench.counts import Run, plan_runs, simulate, targets
from flextrace.cli import app
from flextrace.kernels.simulator.mlx_attention import steel_attention

COUNTS = ["bench", "--counts", "--jobs", "1", "--head-dim", "64", "--dtypes", "float32"]


def ours(mask: str, length: int, kernel: str = "mask_mod") -> Run:
    return Run(kernel, mask, length, 1, 64, "float32")


# ---- the command --------------------------------------------------------------------------------------------------


def test_table() -> None:
    result = CliRunner().invoke(app, [*COUNTS, "--lengths", "256", "--mods", "none,causal"])
    assert result.exit_code == 0, result.output
    assert "D 64, float32, 1 head" in result.output
    for row in (
        "none 256",
        "flextrace",
        "causal 256",
        "mask_mod",
        "BlockMask",
        "MLX",
        "/ MLX",
        "/ our dense",
        "target",
    ):
        assert row in result.output
    assert "targets: 5 of 5 met" in result.output


def test_gradients_beside_our_dense_run() -> None:
    result = CliRunner().invoke(app, [*COUNTS, "--lengths", "192", "--mods", "backward"])
    assert result.exit_code == 0, result.output
    assert "backward 192" in result.output and "/ our dense" in result.output and "/ MLX" not in result.output
    assert "3.50x" in result.output and "targets: 3 of 3 met" in result.output


def test_one_row_beside_k_and_v_read_once() -> None:
    options = ["--lengths", "1024", "--mods", "decode", "--head-dim", "128", "--dtypes", "float16"]
    result = CliRunner().invoke(app, ["bench", "--counts", *options])
    assert result.exit_code == 0, result.output
    assert "decode 1024" in result.output and "/ MLX" in result.output and "/ K, V once" in result.output
    assert "=1.00x" in result.output and "targets: 3 of 3 met" in result.output


@pytest.mark.long
def test_json_in_a_real_process() -> None:
    command = [Path(sys.executable).with_name("flextrace"), "bench", "--counts", "--json", "--jobs", "2"]
    options = ["--lengths", "128", "--dtypes", "float16", "--mods", "none,document"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert {(row["kernel"], row["mask"], row["head_dim"]) for row in report["rows"]} == {
        (kernel, mask, head_dim)
        for head_dim in (64, 128)
        for mask, kernels in (("none", ("mask_mod", "steel")), ("document", ("mask_mod", "BlockMask", "steel")))
        for kernel in kernels
    }
    dense = report["rows"][0]
    assert dense["counts"]["matrix_multiplies"] == 2 * 16 * 16 * 8
    assert dense["ratio_to_steel"]["matrix_multiplies"] == 1.0
    assert dense["ratio_to_dense"]["device_read"] == 1.0
    assert all(target["met"] for target in report["targets"])


def test_a_missed_target_ends_with_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(counts.STATED, "none", ((0, "threadgroup_read", "steel", 0.1, False),))
    result = CliRunner().invoke(app, [*COUNTS, "--lengths", "128", "--mods", "none"])
    assert result.exit_code == 1
    assert "targets: 0 of 1 met" in result.output
    assert "missed: none, L 128, D 64, float32: threadgroup_read 0.4" in result.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mods", "alibi"], "--counts has no mod 'alibi'; known: none, causal, window, document, backward, decode"),
        (["--dtypes", "float64"], "--counts has no dtype 'float64'"),
        (["--head-dim", "96"], "--counts has no head dim 96; known: 64, 80, 128"),
        (["--lengths", "512,many"], "--lengths takes whole numbers with commas between them"),
        (["--lengths", "0"], "--lengths takes positive numbers"),
        (["--sections", "start"], "--sections and --no-peers are about times; leave them out with --counts"),
    ],
)
def test_errors(options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["bench", "--counts", *options])
    assert result.exit_code == 2
    assert message in result.output


def test_a_machine_without_the_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    result = CliRunner().invoke(app, [*COUNTS, "--lengths", "64"])
    assert result.exit_code == 2
    assert "install g++ 12 or later" in result.output


def test_an_interrupt_waits_for_no_run() -> None:
    """The process of the long run is ended by a signal: had it been waited for, it would end by itself."""
    runs = counts._in_processes([ours("none", 64), ours("none", 4096)], 2)
    assert next(runs)[0] == ours("none", 64)
    workers = multiprocessing.active_children()
    runs.close()
    assert -signal.SIGTERM in [worker.exitcode for worker in workers]
    assert multiprocessing.active_children() == []


# ---- what is counted ----------------------------------------------------------------------------------------------


def test_steel_runs_as_mlx_would_run_it() -> None:
    p = cases.problem(1, 1, 128, 64, "float32")
    kept = cases.kept_pairs(p, "document")
    _, want = steel_attention(*p.tensors(), 0.125, mask=mx.array(kept)[None, None])
    found = simulate(ours("document", 128, "steel"))
    assert {name: found[name] for name in want.as_dict()} == want.as_dict()
    assert found["mask_read"] == 128 * 128, "a byte for each pair"
    assert found["device_read"] == found["kv_read"] + found["mask_read"] + 128 * 64 * 4
    causal = simulate(ours("causal", 128, "steel"))
    assert causal["mask_read"] == 0 and causal["kv_read"] < found["kv_read"]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kernel", ["mask_mod", "BlockMask"])
@pytest.mark.parametrize("mask", ["causal", "window", "document"])
def test_keys_and_values_are_read_for_the_tiles_left_only(mask: str, kernel: str) -> None:
    run = ours(mask, 512, kernel)
    assert simulate(run)["kv_read"] == run.tiles_left() * simulate(run.dense)["kv_read"]
    assert 0 < run.tiles_left() < 0.65


def test_tiles_left_by_hand() -> None:
    assert ours("none", 256).tiles_left() == 1.0
    assert ours("causal", 512).tiles_left() == (8 + 16 + 24 + 32) / (4 * 32), "tiles of 128 rows and 16 keys"


def test_captured_arrays_count_as_bytes_that_tell_the_mask() -> None:
    found = simulate(ours("document", 128))
    assert found["mask_read"] >= 2 * 4 * 128, "every row's and every key's document at least once"
    assert simulate(ours("causal", 128))["mask_read"] == 0


def test_a_kernel_that_does_not_run_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*args: Any, **options: Any) -> Any:
        raise counts.CompileError("steel_attention.h:1: error: planted")

    monkeypatch.setattr(counts, "steel_attention", refuses)
    with pytest.raises(BenchError, match=r"MLX's kernel \(mlx .*does not run in the simulator.*planted"):
        simulate(ours("none", 128, "steel"))


# ---- targets ------------------------------------------------------------------------------------------------------


def test_targets_are_stated_at_their_lengths() -> None:
    assert {(mask, row[0]) for mask, stated in counts.STATED.items() for row in stated if row[0]} == {
        ("causal", counts.LENGTHS["causal"]),
        ("window", counts.LENGTHS["window"]),
        (counts.DECODE, counts.LENGTHS[counts.DECODE]),
    }
    runs = plan_runs(counts.MASKS, None, 1, (64,), ("float32",))
    same = {name: 100 for name in (*counts.SHOWN, "steps")}
    found = {run: same for run in {*runs, *(run.dense for run in runs)}}
    made = {(t.run.mask, t.run.kernel, t.count): (t.beside, t.limit, t.met) for t in targets(found, runs)}
    assert made["none", "mask_mod", "device_read"] == ("steel", 0.6, False)
    assert made["none", "mask_mod", "threadgroup_read"] == ("steel", 0.6, False)
    assert made["none", "mask_mod", "matrix_multiplies"] == ("steel", 1.0, True)
    for kernel in ("mask_mod", "BlockMask"):
        assert made["causal", kernel, "device_read"] == ("dense", 0.56, False)
        assert made["window", kernel, "device_read"] == ("dense", 0.12, False)
        assert made["document", kernel, "kv_read"][2] is False
    assert made[counts.DECODE, counts.DECODE, "steps"] == ("steel", 1.0, True)
    short = plan_runs(("causal",), [512], 1, (64,), ("float32",))
    found = {run: same for run in {*short, *(run.dense for run in short)}}
    assert {target.count for target in targets(found, short)} == {"kv_read"}


def test_fewer_multiplies_than_stated_miss_an_exact_target() -> None:
    runs = plan_runs(("none",), [64], 1, (64,), ("float32",))
    found = {run: {name: 100 if run.kernel == "steel" else 50 for name in counts.SHOWN} for run in runs}
    missed = [str(target) for target in targets(found, runs) if not target.met]
    assert missed == ["none, L 64, D 64, float32: matrix_multiplies 0.500x MLX's, target exactly 1.000x"]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1000, "1k"), (65536, "65.5k"), (999499, "999k"), (999999, "1000k"), (2281472, "2.28M")],
)
def test_short_numbers(count: int, text: str) -> None:
    assert counts_table._short(count) == text


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_every_stated_target_is_met(head_dim: int, dtype: str) -> None:
    runs = plan_runs(counts.MASKS, None, 1, (head_dim,), (dtype,))
    found = counts.measure(runs, 2, lambda run: None)
    assert [str(target) for target in targets(found, runs) if not target.met] == []
