"""Every trace of these tests is made from the source and from the bytecode of its function, and must be the same."""

from __future__ import annotations

import pytest
from both_readers import check_both


@pytest.fixture(autouse=True)
def both_readers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("one_reader") is None:
        check_both(monkeypatch, any_reason=request.node.get_closest_marker("any_reason") is not None)
