"""Notices: the line that they name is the user's, however many of flextrace's own lie between."""

from __future__ import annotations

import warnings
from typing import Any

import mlx.core as mx
import pytest

import flextrace as flex
from flextrace import notices

Q = mx.ones((1, 1, 4, 8))


def line_of(call: Any) -> tuple[str, int]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    (notice,) = [warning for warning in caught if warning.category is flex.FlextraceWarning]
    return notice.filename, notice.lineno


CALLS = {
    "a call": lambda: flex.flex_attention(Q, Q, Q),
    "inside mx.compile": lambda: mx.compile(lambda x: flex.flex_attention(x, x, x))(Q),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_notice_names_the_line_of_the_call(
    monkeypatch: pytest.MonkeyPatch, fresh_cache: None, fresh_notices: None, call: str
) -> None:
    if call == "a call":
        monkeypatch.setenv("CXX", "no-such-compiler")
    assert line_of(CALLS[call]) == (__file__, CALLS[call].__code__.co_firstlineno)


def test_a_program_that_is_only_its_call_is_named_too(fresh_notices: None) -> None:
    code = compile("notice('topic', 'words')", "<the user's cell>", "exec")
    assert line_of(lambda: exec(code, {"__name__": "__main__", "notice": notices.notice}))[0] == "<the user's cell>"
