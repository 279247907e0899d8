"""What a prompt and a notebook show of caches, of `inspect()` and of errors."""

from __future__ import annotations

import builtins
import copy
import sys
import types
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import flextrace as flex
from flextrace.kernels import registry


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


def raised(kind: type[Exception], **arguments: Any) -> Any:
    q = mx.ones((1, 1, 4, 8))
    cell = compile("flex.flex_attention(q, q, q, **arguments)", "<cell>", "exec")
    names = {"flex": flex, "q": q, "arguments": arguments, "__name__": "__main__"}
    with pytest.raises(kind) as error:
        exec(cell, names)
    return error.value


def test_a_notebook_shows_the_users_lines_and_the_message(shell: types.SimpleNamespace) -> None:
    error = raised(flex.TraceError, block_mask=wrong)
    lines = error._render_traceback_()
    assert "Cell In[3], line 1, in <module>" in lines
    shown = "\n".join(lines)
    assert f"TraceError: {error}" in shown and "return q_idx.item() >= kv_idx" in shown
    assert "flextrace/" not in shown.replace("tests/flextrace/", "") and len(shown.splitlines()) < 16
    assert lines[-1] == "(the rest: %xmode Verbose, then %tb)"


def test_the_whole_traceback_is_shown_on_request(shell: types.SimpleNamespace) -> None:
    error = raised(flex.TraceError, block_mask=wrong)
    shell.InteractiveTB.mode = "Verbose"
    shell.InteractiveTB.structured_traceback = lambda kind, value, tb: [kind.__name__, str(value is error), str(tb)]
    assert error._render_traceback_() == ["TraceError", "True", str(error.__traceback__)]


def test_a_backend_that_cannot_run_is_brief_too(shell: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(registry, "made", {})
    lines = raised(flex.BackendUnavailable, kernel_options={"BACKEND": "cpu"})._render_traceback_()
    assert any(line.startswith("BackendUnavailable: the cpu backend found no C++ compiler: CXX=") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"scale": "large"}, "ValueError: scale"),
        ({"enable_gpa": True}, "TypeError: flex_attention() has no argument 'enable_gpa'; did you mean enable_gqa=?"),
        ({"block_mask": "causal"}, "TypeError: block_mask"),
        ({"kernel_options": {"BACKEND": "cpu"}}, "CacheError: "),
    ],
)
def test_what_flextrace_says_of_arguments_is_brief(
    arguments: dict[str, Any], says: str, shell: types.SimpleNamespace, fresh_cache: Path
) -> None:
    """Of ValueErrors and TypeErrors too, which stay what they are; a refused cache is one more."""
    fresh_cache.mkdir()
    fresh_cache.chmod(0o777)
    kind = getattr(builtins, says.partition(":")[0], flex.CacheError)
    lines = raised(kind, **arguments)._render_traceback_()
    assert lines[:2] == [*lines[:1], "----> exec(cell, names)"] and lines[2] == "Cell In[3], line 1, in <module>"
    assert len(lines) == 8 and lines[5].startswith(says), lines


def test_what_others_raise_keeps_its_traceback(shell: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def users(*_: Any) -> None:
        raise ValueError("not of flextrace")

    inside: dict[str, Any] = {"__name__": "flextrace.attention", "mx": mx}  # code of flextrace, called at the door
    exec("def fails(*_): mx.matmul(mx.ones((2, 3)), mx.ones((2, 3)))\ndef bug(*_): raise AssertionError", inside)
    for called, kind in ((users, ValueError), (inside["fails"], ValueError), (inside["bug"], AssertionError)):
        monkeypatch.setattr("flextrace.attention.check_tensors", called)
        assert not hasattr(raised(kind), "_render_traceback_")


def test_without_ipython_an_error_is_as_python_made_it() -> None:
    assert not vars(raised(ValueError, scale="large"))
