"""The int8 section of `flextrace bench`."""

from __future__ import annotations

import json

import pytest

from flextrace.bench import int8
from flextrace.bench.report import main


@pytest.mark.long
def test_the_section_compares_in_turns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(int8, "PASS", (1, 2, 64, 32))
    monkeypatch.setattr(int8, "DECODE", (1, 2, 512, 32))
    monkeypatch.setattr("flextrace.bench.measure.SECONDS", 0.01)
    main(lengths=[128], dtypes=["float32"], sections=["int8"], peers=False, as_json=True)
    rows = [int8.Int8Row(**row) for row in json.loads(capsys.readouterr().out)["int8"]]
    contenders = ["bfloat16", "int8, K smoothed", "float16", "K in int8", "K and V in int8"]
    assert [row.contender for row in rows] == contenders
    assert rows[0].ratio == rows[2].ratio == 1 and all(row.milliseconds > 0 for row in rows)
    full, keys, both = (row.kv_bytes for row in rows[2:])
    assert full > keys > both and both < 0.6 * full
    assert int8.int8_table(rows).row_count == 5
