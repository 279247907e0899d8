"""The block-mask section of `flextrace bench`."""

from __future__ import annotations

import json

import pytest

from flextrace.bench import masks
from flextrace.bench.report import main


@pytest.mark.long
def test_the_section_measures_in_new_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flextrace.bench import report

    monkeypatch.setattr(report, "CASES", [("window", 4096), ("table", 256)])
    monkeypatch.setattr(report, "mask_calls", lambda: {"mask_mod": lambda: None, "BlockMask": lambda: None})
    monkeypatch.setattr("flextrace.bench.measure.SECONDS", 0.01)
    main(lengths=[128], dtypes=["float32"], sections=["masks"], peers=False, as_json=True)
    window, table = json.loads(capsys.readouterr().out)["masks"]
    assert (
        window["mask"] == "window" and window["tokens"] == 4096 and window["sparsity"] == pytest.approx(75.39, abs=0.1)
    )
    assert window["peer_ms"] is None and window["milliseconds"] > 0 and window["mask_bytes"] < 5000
    assert table["peer"] == "dense" and table["peer_ms"] > 0
    shown = masks.mask_table([masks.MaskRow(**window), masks.MaskRow(**table)])
    assert shown.row_count == 2


@pytest.mark.parametrize("name", masks.MASKS)
def test_every_mask_can_be_made(name: str) -> None:
    import flextrace as flex

    tokens = 65536 if name == "natten" else 1024
    assert 0 <= flex.create_block_mask(masks.MASKS[name](tokens), None, None, tokens, tokens).sparsity() < 100
