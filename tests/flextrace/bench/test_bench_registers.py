"""Registers of the Metal kernels, by a compiler that stands in for Apple's: they are few, and code is short."""

from __future__ import annotations

import pytest
from apparatus import clang_check
from rich.console import Console

from flextrace.bench import counts_table
from flextrace.bench.registers import CODE, SPILLED, SPILLED_LARGE, TEXTS, large_run, lines
from flextrace.kernels.simulator.registers import measured_steel

DTYPES = ("float32", "float16", "bfloat16")
USUAL = [(dim, dim) for dim in (64, 80, 96, 128)]
LARGE = [(192, 128), (192, 192), (256, 256), (512, 512), (576, 512)]


@clang_check.needs_stand_in
@pytest.mark.sampled(36)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", USUAL)
@pytest.mark.parametrize("text", TEXTS)
def test_a_thread_keeps_its_registers_and_code_is_short(text: str, dims: tuple[int, int], dtype: str) -> None:
    (line,) = lines([text], [dims], [dtype])
    assert line.ours.code <= CODE[text]
    assert line.ours.spilled <= (SPILLED if text != "tiled_natten" else SPILLED_LARGE)
    assert line.steel is not None and line.steel.spilled <= SPILLED


@clang_check.needs_stand_in
@pytest.mark.sampled(15)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", LARGE)
@pytest.mark.parametrize("text", ["none", "causal"])
def test_large_head_dims_keep_most_of_them(text: str, dims: tuple[int, int], dtype: str) -> None:
    (line,) = lines([text], [dims], [dtype])
    assert line.ours.spilled <= SPILLED_LARGE and line.ours.code <= CODE[text] and line.steel is None
    assert line.plan.value_slices == 1 and line.plan.q_in_registers, "scores are computed once, queries read once"


@clang_check.needs_stand_in
@pytest.mark.long
def test_mlx_s_kernel_compiles_for_every_head_dim_that_it_has() -> None:
    for dtype in DTYPES:
        for dim, _ in USUAL:
            found = measured_steel(dim, dtype)
            assert 64 <= found.free < 256 and found.spilled <= SPILLED and found.code > 1024


def test_a_machine_without_clang_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts_table, "why_not", lambda: "no clang, which counts registers: apt-get install clang-19")
    console = Console(record=True, width=100)
    counts_table.show_registers(TEXTS, (64,), ("float32",), console)
    assert "registers: not counted. no clang" in console.export_text()


@pytest.mark.sampled(5)
@pytest.mark.parametrize("dims", LARGE)
def test_large_head_dims_read_queries_once(dims: tuple[int, int]) -> None:
    """Device memory: q once, and k and v once for the rows of each threadgroup."""
    run = large_run(*dims, "float16")
    assert run.device < (1.0 if max(dims) <= 256 else 1.3) * run.unfused, "48 rows, or 24"
