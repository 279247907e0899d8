"""What a call costs besides its kernel: the files that a warm call enters, and what importing flextrace loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import mlx.core as mx
import pytest

import flextrace as flex
from flextrace import cache, kernels, tracer

MOST = 10
ROOMS = [Path(package.__file__ or "").parent for package in (flex, cache, kernels, tracer)]
slopes = mx.array([0.5, 0.25])


@flex.score_mod
def alibi(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score - slopes[h] * (q_idx - kv_idx)


def entered(call: Any) -> set[str]:
    """The files of the project in which a function begins during the call."""
    found: set[str] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            found.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return {name for name in found if any(room in Path(name).parents for room in ROOMS)}


def test_a_warm_call_enters_few_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXTRACE_BACKEND", "cpu")
    q, steep, factor = mx.ones((1, 2, 16, 8)), mx.array([0.5, 0.25]), 0.5

    @flex.score_mod
    def captured(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score - factor * steep[h] * (q_idx - kv_idx)

    for score_mod in (alibi, captured):
        for _ in range(2):
            cold = entered(lambda mod=score_mod: flex.flex_attention(q, q, q, mod, flex.mods.causal))
        warm = entered(lambda mod=score_mod: flex.flex_attention(q, q, q, mod, flex.mods.causal))
        assert warm == cold and 5 <= len(warm) <= MOST, sorted(warm)


@pytest.mark.filterwarnings("ignore::flextrace.FlextraceWarning")
def test_a_warm_call_that_generates_enters_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer queries than keys: with an offset, or without one once the notice is said."""
    monkeypatch.setenv("FLEXTRACE_BACKEND", "cpu")
    q, keys, offset = mx.ones((1, 2, 1, 8)), mx.ones((1, 2, 16, 8)), mx.array([15])
    for mask in (flex.mods.causal(offset=15), flex.mods.causal(offset=offset), flex.mods.causal):
        for _ in range(2):
            entered(lambda mask=mask: flex.flex_attention(q, keys, keys, alibi, mask))
        warm = entered(lambda mask=mask: flex.flex_attention(q, keys, keys, alibi, mask))
        assert 5 <= len(warm) <= MOST, sorted(warm)


def test_a_warm_call_sees_that_a_capture_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXTRACE_BACKEND", "cpu")
    q, flag, table = mx.ones((1, 1, 4, 8)), True, mx.array([1.0] * 4)

    @flex.score_mod
    def mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score + table[kv_idx] if flag else score * 0.0

    def largest() -> float:
        aux = flex.AuxRequest(max_scores=True)
        result = flex.flex_attention(q, q, q, mod, scale=0.0, return_aux=aux)[1].max_scores
        assert result is not None
        return float(result.max())

    assert largest() == largest() == 1.0
    table = mx.array([2.0] * 4)
    assert largest() == 2.0
    flag = False
    assert largest() == 0.0
    flag, table = True, mx.array([3] * 4)  # of another type
    assert largest() == 3.0
    table = mx.array([1.0] * 3)
    with pytest.raises(ValueError, match="table has 3 entries"):
        largest()


def test_importing_flextrace_loads_no_backend() -> None:
    program = (
        "import sys, flextrace; print(*sorted(name for name in sys.modules if name.startswith('flextrace.kernels.')))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    loaded = {name.split(".")[2] for name in done.stdout.split()}
    assert "registry" in loaded and not loaded & {"cpu", "metal", "simulator", "ops"}, done.stdout
