"""The decode section of `flextrace bench`."""

from __future__ import annotations

import ctypes
import json

import mlx.core as mx
import pytest

from flextrace.bench import decode
from flextrace.bench.measure import library
from flextrace.bench.report import main
from flextrace.kernels.buffers import locate


@pytest.mark.long
def test_the_section_compares_in_turns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("LENGTHS", (128, 256)), ("LONG", 512), ("WINDOW", 64), ("DTYPES", ("float32", "float16"))):
        monkeypatch.setattr(decode, name, value)
    monkeypatch.setattr("flextrace.bench.measure.SECONDS", 0.01)
    monkeypatch.setattr("flextrace.bench.measure.PAUSE", 0.0)
    main(sections=["decode"], as_json=True)
    rows = [decode.DecodeRow(**row) for row in json.loads(capsys.readouterr().out)["decode"]]
    of_length = [(keys, kept, None) for keys in (128, 256) for kept in ("float32", "float16", "Int8KV")]
    windows = [(512, kept, window) for kept in ("float32", "float16", "Int8KV") for window in (None, 64)]
    assert [(row.keys, row.kept, row.window) for row in rows] == of_length + windows
    assert rows[0].kv_bytes == 2 * 8 * 128 * 128 * 4 and rows[-1].kv_bytes == 2 * 8 * 64 * (128 + 4)
    assert all(row.share and row.share > 0 for row in rows[:6]) and all(row.share is None for row in rows[6:])
    assert [row.beside_mlx is None for row in rows[:3]] == [False, False, True]
    assert [target.what.partition(",")[0] for target in decode.targets(rows)] == [
        *("share of the read bandwidth", "times MLX's speed", "Int8KV", "the window")
    ]
    assert decode.decode_table(rows).row_count == 12


def test_targets_are_those_of_the_slowest() -> None:
    rows = [
        decode.DecodeRow(32768, "float16", None, 4.0, 40.0, 50.0, 160_000_000),  # 40 GB/s
        decode.DecodeRow(32768, "float32", None, 8.0, 24.0, 50.0, 240_000_000),  # 30 GB/s
        decode.DecodeRow(32768, "Int8KV", None, 2.0, None, 50.0, 80_000_000),
        decode.DecodeRow(32768, "float16", 1024, 0.5, None, None, 5_000_000),
    ]
    found = {target.what: (target.found, target.met) for target in decode.targets(rows)}
    assert found == {
        "share of the read bandwidth": (0.6, False),
        "times MLX's speed": (3.0, False),
        "Int8KV, times float16's speed": (2.0, True),
        "the window, times the full cache's speed": (8.0, False),
    }
    assert decode.said_of(decode.Target("x", 0.75, 0.6)) == "x: 60% at least, missed (target 75%)"
    assert decode.said_of(decode.Target("x", 4.0, 5.0)) == "x: 5.0x at least, met (target 4.0x)"


def test_every_byte_is_read_once() -> None:
    """But for what is left of the last step."""
    entry = library("bandwidth").flextrace_read
    entry.restype = ctypes.c_int64
    arrays = [mx.zeros((3, 10_007)), mx.zeros((129,))]
    mx.eval(arrays)
    pieces = (ctypes.c_void_p * 2)(*(locate(array)[0] for array in arrays))
    sizes = (ctypes.c_int64 * 2)(*(array.nbytes for array in arrays))
    read = {entry(pieces, sizes, ctypes.c_int64(2), ctypes.c_int64(threads)) for threads in (1, 2, 5)}
    assert len(read) == 1 and 0 <= sum(sizes) - read.pop() < 2 * 512
