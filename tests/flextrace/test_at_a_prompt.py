"""What a prompt and a notebook show of caches, of `inspect()` and of errors."""

from __future__ import annotations

import copy
import sys
import types
from typing import Any

import mlx.core as mx
import pytest

import flextrace as flex


@flex.mask_mod
def wrong(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx.item() >= kv_idx


def test_an_int8_cache_says_what_it_holds() -> None:
    cache = flex.Int8KV(step=16)
    assert repr(cache) == "<Int8KV, empty>"
    cache.update(mx.ones((1, 2, 10, 64), mx.float16), mx.ones((1, 2, 10, 32), mx.float16))
    told = f"<Int8KV: 10 tokens, batch 1, 2 heads, key int8 x 64, value float16 x 32, {cache.nbytes:,} bytes>"
    assert repr(cache) == told and repr(copy.copy(cache)) == told
    cache.trim(10)
    assert repr(cache) == "<Int8KV, empty>"


def test_inspect_shows_itself_as_it_prints() -> None:
    text = flex.mods.causal.inspect()
    assert isinstance(text, str) and repr(text) == str(text) and "\nexpression:\n" in repr(text)


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """IPython, as far as an error asks it."""
    compiler = types.SimpleNamespace(format_code_name=lambda name: ("Cell", "In[3]") if name == "<cell>" else None)
    shell = types.SimpleNamespace(compile=compiler, InteractiveTB=types.SimpleNamespace(mode="Context"))
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))  # type: ignore[arg-type]
    return shell


def raised(**arguments: Any) -> Any:
    q = mx.ones((1, 1, 4, 8))
    cell = compile("flex.flex_attention(q, q, q, **arguments)", "<cell>", "exec")
    with pytest.raises((flex.TraceError, flex.BackendUnavailable)) as error:
        exec(cell, {"flex": flex, "q": q, "arguments": arguments, "__name__": "__main__"})
    return error.value


def test_a_notebook_shows_the_users_lines_and_the_message(shell: types.SimpleNamespace) -> None:
    error = raised(block_mask=wrong)
    lines = error._render_traceback_()
    assert "Cell In[3], line 1, in <module>" in lines
    shown = "\n".join(lines)
    assert f"TraceError: {error}" in shown and "return q_idx.item() >= kv_idx" in shown
    assert "flextrace/" not in shown.replace("tests/flextrace/", "") and len(shown.splitlines()) < 16
    assert lines[-1] == "(the rest: %xmode Verbose, then %tb)"


def test_the_whole_traceback_is_shown_on_request(shell: types.SimpleNamespace) -> None:
    error = raised(block_mask=wrong)
    shell.InteractiveTB.mode = "Verbose"
    shell.InteractiveTB.structured_traceback = lambda kind, value, tb: [kind.__name__, str(value is error), str(tb)]
    assert error._render_traceback_() == ["TraceError", "True", str(error.__traceback__)]


def test_a_backend_that_cannot_run_is_brief_too(shell: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    lines = raised(kernel_options={"BACKEND": "cpu"})._render_traceback_()
    assert any(line.startswith("BackendUnavailable: the cpu backend found no C++ compiler: CXX=") for line in lines)
