"""Fixtures of the cache tests: a store in a fresh folder, and a process that has not warned yet."""

import threading
from pathlib import Path

import pytest

from flextrace.cache import Store, fallback, store


@pytest.fixture(autouse=True)
def unwarned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallback, "_first_warning", threading.Lock())
    monkeypatch.setattr(store, "_private_stores", {})
    monkeypatch.delenv("FLEXTRACE_CACHE_DIR", raising=False)


@pytest.fixture
def cache(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")
