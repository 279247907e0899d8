"""Tables of the bench: what tells rows apart and what was measured is whole on every terminal and in files."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from flextrace.bench import accuracy, report
from flextrace.bench.backward import StepRow
from flextrace.bench.decode import DecodeRow
from flextrace.bench.int8 import Int8Row
from flextrace.bench.masks import MaskRow
from flextrace.show import terminal as printing


def on_a_terminal(columns: int, encoding: str = "utf-8") -> Console:
    file = io.TextIOWrapper(io.BytesIO(), encoding)
    return Console(file=file, width=columns, force_terminal=True, color_system=None, highlight=False, soft_wrap=True)


def text_on(console: Console) -> str:
    assert isinstance(console.file, io.TextIOWrapper) and isinstance(console.file.buffer, io.BytesIO)
    console.file.flush()
    return console.file.buffer.getvalue().decode(console.encoding)


def long_report(shape: tuple[int, int, int, int]) -> report.Report:
    """Every section, with figures of many digits."""
    made = report.Report({"machine": "x86_64", "threads": 2}, peak_gflops=123.0)
    for dtype in ("float32", "bfloat16"):
        made.rows += [report.Row(mod, dtype, shape, 123.45, 1234.56, 12345.67, 100.0) for mod in report.NAMES]
    made.start = {"cold_ms": 1234.0, "warm_ms": 12.0, "call_us": 33.0, "kernel_us": 22.0}
    made.masks = [MaskRow("documents", 1048576, 12345.67, 1_234_567_890, 12_345_678, 99.99, "torch", 1234.5)]
    made.mask_calls = {"mask_mod": 1.0, "BlockMask": None}
    made.int8 = [Int8Row("decode 1x8x32768x128", "K and V in int8", 1234.5, 123_456_789, 1.23)]
    made.decode = [
        DecodeRow(131072, "bfloat16", 1024, 123.45, None, None, 123_456_789),
        DecodeRow(131072, "bfloat16", None, 2469.0, 12345.6, 123.4, 123_456_789_000),
    ]
    made.steps = [StepRow("window", (1, 8, 4096, 64), 123.45, 456.78, 45678.9, 12345.6)]
    made.long_step = {"seconds": 12.3, "bytes": 123_456_789}
    made.memory = {mask: {"seconds": 12.3, "bytes": 123_456_789} for mask in ("none", "causal", "window")}
    return made


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("columns", [40, 60, 80, 160])
def test_every_row_of_the_bench_is_whole(columns: int, encoding: str) -> None:
    console = on_a_terminal(columns, encoding)
    report.show(long_report((1, 16, 131072, 128)), console)
    text = text_on(console).replace("|", " ")  # ascii has lines where utf-8 has spaces
    for dtype in ("float32", "bfloat16"):
        for mod in report.NAMES:
            assert f"{mod:<9}{dtype:<9}1x16x131072x128" in text
    for figure in (
        "123.45 1234.56",
        "12345.67 100.0x",
        "1,048,576 12345.67",
        "torch 1234.5 ms",
        "123.45   333.33 2.70x 456.78",
        "45678.9 100.0x 12345.6 27.0x",
        "12.30 s, 123 MB above",
        "1234.50",
        "131,072  1,024  bfloat16  123.45  1.0     -     -       -     -",
        "131,072         bfloat16 2469.00 50.0 123.4   41% 12345.6  5.0x",
        "share of the read bandwidth: 41% at least, missed (target 75%)",
        "1234 ms",
    ):
        assert figure in text
    assert "…" not in text


def test_the_times_fit_80_columns() -> None:
    console = on_a_terminal(80)
    report.show(long_report((1, 8, 4096, 64)), console)
    assert max(map(len, text_on(console).splitlines())) <= 80


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_every_row_of_the_accuracy_is_whole(columns: int) -> None:
    console = on_a_terminal(columns)
    rows = [
        accuracy.Row("outlier", "softcap + causal documents", quant, "added back", 0.99999, 0.0123, 1.2e-3, 0.1)
        for quant in accuracy.QUANTS
    ]
    accuracy.show(rows, "cpu, 1x4x1024x128, float16", console)
    text = text_on(console)
    for row in rows:
        assert f"{row.quant:<18}{row.row_term:<11}0.99999   0.0123 1.20e-03 1.00e-01" in text
    assert "…" not in text
    if columns >= 80:
        assert max(map(len, text.splitlines())) <= columns


def test_a_table_that_fits_is_no_wider_than_it_needs() -> None:
    console = on_a_terminal(80)
    table = Table("a", "b")
    table.add_row("1", "2")
    printing.print_table(console, table)
    assert {len(line) for line in text_on(console).splitlines()} == {9}
