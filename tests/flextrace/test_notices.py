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


SHORT, LONG = mx.ones((1, 1, 3, 8)), mx.ones((1, 1, 5, 8))
TOP_LEFT = {
    "causal": (lambda: flex.mods.causal, "causal is", "flex.mods.causal(offset=kv_len - q_len)"),
    "window": (
        lambda: flex.mods.sliding_window(2),
        "sliding_window is",
        "flex.mods.sliding_window(..., offset=kv_len - q_len)",
    ),
    "dilated": (lambda: flex.mods.dilated_window(4, 2), "dilated_window is", "flex.mods.dilated_window(..., offset="),
    "sinks": (lambda: flex.mods.attention_sinks(1, 2), "attention_sinks is", "flex.mods.attention_sinks(..., offset="),
    "prefix": (lambda: flex.mods.prefix_lm([1]), "prefix_lm is", "flex.mods.prefix_lm(..., offset="),
    "and": (lambda: flex.mods.padding([4]) & flex.mods.causal, "causal is", "flex.mods.causal(offset="),
    "or": (lambda: flex.or_masks(flex.mods.causal, lambda b, h, q, k: k < 2), "causal is", "flex.mods.causal(offset="),
}


def told(call: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in caught if warning.category is flex.FlextraceWarning]


@pytest.mark.parametrize("mask", TOP_LEFT)
def test_a_causal_mask_of_fewer_queries_than_keys_says_how_it_is_aligned(fresh_notices: None, mask: str) -> None:
    make, name, remedy = TOP_LEFT[mask]

    def call() -> None:
        for _ in range(2):
            flex.flex_attention(SHORT, LONG, LONG, block_mask=make(), kernel_options={"BACKEND": "ops"})

    (said,) = told(call)
    assert f"flex.mods.{name} aligned top left, as in torch: of 5 keys, 3 queries see no more than the first 3." in said
    assert remedy in said and 'MLX\'s mask="causal" is aligned lower right' in said
    assert told(call) == []


def test_a_block_mask_of_it_says_so_when_it_is_made(fresh_notices: None) -> None:
    (said,) = told(lambda: flex.create_block_mask(flex.mods.causal, None, None, 1, 8))
    assert "of 8 keys, 1 query sees no more" in said and "create_block_mask(..., offset=kv_len - q_len)" in said


QUIET = {
    "an offset": lambda: flex.flex_attention(SHORT, LONG, LONG, block_mask=flex.mods.causal(offset=2)),
    "offset 0": lambda: flex.flex_attention(SHORT, LONG, LONG, block_mask=flex.mods.causal(offset=0)),
    "a window's": lambda: flex.flex_attention(SHORT, LONG, LONG, block_mask=flex.mods.sliding_window(2, offset=0)),
    "an array": lambda: flex.flex_attention(SHORT, LONG, LONG, block_mask=flex.mods.causal(offset=mx.array([2]))),
    "combined": lambda: flex.flex_attention(
        SHORT, LONG, LONG, block_mask=flex.mods.causal(offset=2) & flex.mods.padding([4])
    ),
    "equal lengths": lambda: flex.flex_attention(LONG, LONG, LONG, block_mask=flex.mods.causal),
    "more queries": lambda: flex.flex_attention(LONG, SHORT, SHORT, block_mask=flex.mods.causal),
    "one's own": lambda: flex.flex_attention(SHORT, LONG, LONG, block_mask=lambda b, h, q, k: q >= k),
    "a BlockMask's": lambda: flex.create_block_mask(flex.mods.causal, None, None, 3, 5, offset=0),
    "a BlockMask": lambda: flex.flex_attention(
        SHORT, LONG, LONG, block_mask=flex.create_block_mask(flex.mods.causal, None, None, 3, 5, offset=2)
    ),
    "rows of one": lambda: flex.flex_attention(
        SHORT, LONG, LONG, block_mask=flex.create_block_mask(flex.mods.causal, None, None, 5, 5).at_offset(0, 3)
    ),
}


@pytest.mark.parametrize("call", QUIET)
def test_where_an_offset_was_said_or_changes_nothing_nothing_is_said(
    fresh_notices: None, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setenv("FLEXTRACE_BACKEND", "ops")
    assert told(QUIET[call]) == []


def test_a_program_that_is_only_its_call_is_named_too(fresh_notices: None) -> None:
    code = compile("notice('topic', 'words')", "<the user's cell>", "exec")
    assert line_of(lambda: exec(code, {"__name__": "__main__", "notice": notices.notice}))[0] == "<the user's cell>"
