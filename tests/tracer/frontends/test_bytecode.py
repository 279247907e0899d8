"""Code of functions -> steps, blocks and values: every instruction of this Python is known, every flow is followed."""

from __future__ import annotations

import contextlib
import dis
import math
import opcode
import os
import random
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from both_readers import AXES, GRID, as_shaped
from control_flow import Writer, choice
from expressions import Program, define, programs
from hypothesis import HealthCheck, Phase, given, seed, settings
from zoo import ZOO

from flextrace import tracer
from flextrace.tracer import TraceError, reader
from flextrace.tracer.frontends.bytecode import decode as decoding
from flextrace.tracer.frontends.bytecode.decode import REFUSED, ROWS, decode
from flextrace.tracer.frontends.bytecode.flow import Block, flow_of, reachable

INSTRUCTIONS = {name for name, code in opcode.opmap.items() if code < 256 and not name.startswith("INSTRUMENTED_")}
QUIET = list(HealthCheck)
MINOR = sys.version_info[1]


def hidden(function: types.FunctionType) -> types.FunctionType:
    """The same function, whose text is nowhere."""
    code = function.__code__.replace(co_filename="<nowhere>")
    twin = types.FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    twin.__kwdefaults__ = function.__kwdefaults__
    return twin


# ---- instructions ----------------------------------------------------------------------------------------------------


def test_every_instruction_of_this_python_is_read_or_refused() -> None:
    assert INSTRUCTIONS - ROWS.keys() - REFUSED.keys() == set()
    assert not ROWS.keys() & REFUSED.keys()


@pytest.mark.parametrize("name", sorted(ROWS))
def test_the_versions_of_a_row_are_those_that_have_it(name: str) -> None:
    assert (MINOR in ROWS[name].versions) == (name in INSTRUCTIONS)


def test_what_is_refused_names_a_remedy() -> None:
    assert all(reason and remedy for reason, remedy in REFUSED.values())


def codes_of(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes_of(constant)


def library(count: int) -> Iterator[types.CodeType]:
    """The functions of some modules of Python's own library."""
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    for file in random.Random(0).sample(files, count):
        for code in codes_of(compile(file.read_bytes(), str(file), "exec", dont_inherit=True)):
            if code.co_flags & 2:  # CO_NEWLOCALS: a function
                yield code


def test_the_code_of_a_library_becomes_steps_that_jump_to_each_other() -> None:
    for code in library(12):
        steps = decode(code)
        assert all(step.target is None or 0 <= step.target < len(steps) for step in steps)
        depths = {0: 0}  # the height of the stack never falls below 0
        for index, step in enumerate(steps):
            if index in depths:
                here = depths[index] + step.grows[0]
                assert here >= 0, (code, step)
                if step.do not in ("jump", "return", "raise", "refused"):
                    depths.setdefault(index + 1, here)
                if step.target is not None:
                    depths.setdefault(step.target, depths[index] + step.grows[1])


def test_loops_are_entered_at_their_head_alone() -> None:
    loops = 0
    for code in library(12):
        blocks = reachable(flow_of(code))
        for block in blocks:
            if block.loop is not None:
                loops += 1
                inside = block.loop.blocks - {block}
                assert not [other for other in blocks if other not in block.loop.blocks and inside & set(other.after)]
    assert loops > 20


def test_a_block_comes_after_all_that_lead_to_it() -> None:
    for code in library(12):
        blocks = reachable(flow_of(code))
        heads = {block for block in blocks if block.loop is not None}
        for block in blocks:
            assert all(following.order > block.order or following in heads for following in block.after)


def test_copies_of_an_end_are_one_block() -> None:
    def either(a: Any, b: Any, c: Any) -> Any:
        if a:
            x = b
        else:
            x = c
        return x + 1

    blocks = reachable(flow_of(either.__code__))
    added = [block for block in blocks if any(step.do == "binary" for step in block.steps)]
    assert len(added) == 1 and isinstance(added[0], Block)
    assert sum(ins.opname.startswith("BINARY") for ins in dis.get_instructions(either)) in (1, 2)


# What stands on one line -> whether its code without columns gives the same expression, or at least an equal one.
ON_ONE_LINE = {
    "return score + (q_idx if h else 2)": "same",
    "return score + ((b + (q_idx if h else 2)) if kv_idx else 1)": "same",
    "return TABLE[(q_idx if h else kv_idx)] + (score if h else 2.0)": "same",
    "return score + (0 <= q_idx < 5)": "same",
    "return [q_idx, kv_idx][0 if B else 1] + (h and b or q_idx) * 2": "same",
    "return (score if h else 2.0) + 1": "equal",
    "return score + 1 if h else kv_idx + 1": "equal",
    "return score + ((q_idx + 1) if h else (kv_idx + 1))": "equal",
    "return sqrt(score) if h else exp(score)": "same",
    "x = (sqrt(score) if 0 <= q_idx <= h else exp(score)) + 1; return x * 2": "same",
    "x = mx.abs(score) if mx.where(h, q_idx > 2, b) else float(score); return x": "same",
    "x = list([b, h]) if kv_idx else list([q_idx, h]); return score + x[0]": "same",
    "return (q_idx * 16777259) % 7 if h else score % 7": "same",
    "x = {'a': b, 'b': 2} if h else {'b': 3, 'a': 1}; return score + x['b']": "refused",
}


@pytest.mark.one_reader
@pytest.mark.parametrize("line", ON_ONE_LINE)
def test_without_columns_an_end_that_may_be_of_two_expressions_is(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"mx": mx, "sqrt": math.sqrt, "exp": math.exp, "TABLE": mx.arange(64), "B": True}
    mod = define(f"def mod(score, b, h, q_idx, kv_idx):\n    {line}\n", "mod", names)
    wanted = ON_ONE_LINE[line]
    if wanted == "refused":
        for read in ("source", "bytecode"):
            monkeypatch.setattr(reader, "reader_of", lambda code, read=read: read)
            with pytest.raises(TraceError, match="is a dict of 2 or a dict of 2"):
                tracer.trace(mod, "score_mod")
        return
    source = tracer.trace(mod, "score_mod")
    monkeypatch.setattr(decoding, "_span", lambda ins, line: decoding.Span(line))
    monkeypatch.setattr(reader, "reader_of", lambda code: "bytecode")
    flow_of.cache_clear()
    code = tracer.trace(mod, "score_mod")
    flow_of.cache_clear()
    assert as_shaped(source, code, mod).expr is source.expr
    assert code.expr is source.expr or wanted == "equal"


# ---- which reader ----------------------------------------------------------------------------------------------------


def late(score, b, h, q_idx, kv_idx):
    return score * 2 if q_idx > kv_idx else helper(score)


def helper(x):
    return x + 1


def test_helpers_choose_their_reader_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, str]] = []
    real = reader.reader_of
    monkeypatch.setattr(reader, "reader_of", lambda code: read.append((code.co_name, real(code))) or real(code))
    tracer.trace(hidden(late), "score_mod")
    assert ("late", "bytecode") in read and ("helper", "source") in read


@pytest.mark.one_reader
def test_the_source_of_a_function_is_searched_once_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[str] = []
    real = reader.reader_of
    monkeypatch.setattr(reader, "reader_of", lambda code: searched.append(code.co_name) or real(code))

    def mod(score, b, h, q_idx, kv_idx):
        for _ in range(5):
            score = without_source(score)  # noqa: F821
        return score

    monkeypatch.setitem(globals(), "without_source", hidden(helper))
    assert tracer.trace(hidden(mod), "score_mod").reader == "bytecode"
    assert sorted(searched) == ["helper", "mod"]


def test_an_error_shows_the_instructions_of_the_line() -> None:
    def mod(score, b, h, q_idx, kv_idx):
        twice = score * 2
        return twice + nowhere  # noqa: F821

    with pytest.raises(TraceError) as caught:
        tracer.trace(hidden(mod), "score_mod")
    lines = str(caught.value).splitlines()
    line = mod.__code__.co_firstlineno + 2
    columns = ", columns 24 to 30" if MINOR >= 11 else ""
    assert lines[1] == f'  File "<nowhere>", line {line}{columns}, in mod'
    shown, caret = lines[2], lines[3]
    assert shown[caret.index("^") : caret.rindex("^") + 1].startswith("LOAD_GLOBAL")
    assert "name 'nowhere' is not defined" in lines[0] and lines[-1].startswith("Remedy: check the spelling")


def test_what_cannot_be_shown_as_written_is_shown_as_a_function() -> None:
    import flextrace as flex

    shown = flex.score_mod(hidden(late)).inspect()
    assert "def late(score, b, h, q_idx, kv_idx):\n    return (score * 2.0) if (kv_idx < q_idx)" in shown
    assert "read from its bytecode" in shown


# ---- as the other reader ---------------------------------------------------------------------------------------------
# Every trace of these tests is made by both (conftest.py); tests/tracer/test_fuzz.py compares with plain Python too.


OPERANDS = {
    "on several lines": "x = (kv_idx or\n        h and b\n        or q_idx)\nreturn x + score",
    "of a nested or": "x = (kv_idx and\n        (h or b)\n        and q_idx)\nreturn x + score",
    "of a nested or that decides": "x = (kv_idx or\n        (h or b)\n        or q_idx)\nreturn x + score",
    "of one bool": "x = score == 1\nreturn ((q_idx > h) and (x and x or x) or kv_idx) + 1",
    "beside their own value": "return max(q_idx != 2 if h else q_idx != 2, (q_idx > h and q_idx != 2 or q_idx != 2))",
    "of an or in the last arm": "return (h or (q_idx if b else (kv_idx or q_idx)) or b) + score",
    "of an or in the first arm": "return (h or ((kv_idx or q_idx) if b else h) or b) + score",
    "of an and in an arm": "return (h or (q_idx if b else (kv_idx and q_idx)) or b) + score",
    "of an arm of an arm": "return (((b or h) if h else (q_idx if b else (kv_idx and h))) and q_idx) + score",
    "of an arm on several lines": "x = (((kv_idx\n    or q_idx)\n    if b else\n    h)\n    or b)\nreturn x + score",
    "of a chain in an arm": "return ((0 < q_idx <= 2 if b else (kv_idx and 0 < h <= 2)) or q_idx) + score",
    "of arms that are one literal": "return score + ((q_idx if b else 2.5) if h and q_idx else 2.5)",
    "that a literal decides": "return (((kv_idx and 0 and q_idx) if b else (2.5 or h)) and q_idx) + score",
    "that are nothing but a truth": "return ((not (not b)) and h) + (not (not kv_idx)) * 3 + score",
    "beside what follows": "return score + (q_idx < b and (h if h else h)) * h",
}


def check_values(function: types.FunctionType) -> None:
    """Both readers give one expression, of the values that Python gives."""
    traced = tracer.trace(function, "score_mod")
    columns = dict(zip(AXES, map(np.array, zip(*GRID, strict=True)), strict=True))
    wanted = np.array([float(function(*position)) for position in GRID], np.float32)
    assert np.array_equal(np.broadcast_to(tracer.evaluate(traced.expr, columns), len(GRID)), wanted, equal_nan=True)


@pytest.mark.parametrize("name", OPERANDS)
def test_operands_of_and_and_or(name: str) -> None:
    body = OPERANDS[name].replace("\n", "\n    ")
    check_values(define(f"def mod(score, b, h, q_idx, kv_idx):\n    {body}\n", "mod", {}))


@pytest.mark.one_reader
@pytest.mark.parametrize("read", ["source", "bytecode"])
@pytest.mark.parametrize("operands", ["1 + 1 or h", "2 - 2 and h", "kv_idx and 3 * 0 and h", "-(0.5 * 2) or h"])
def test_an_operand_that_is_computed_of_literals_has_its_value(
    operands: str, read: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of these alone (BinOp of literals) the readers may give two expressions, for the compiler computes them."""
    monkeypatch.setattr(reader, "reader_of", lambda code: read)
    text = f"return ((({operands}) if b else q_idx) or kv_idx) + score"
    check_values(define(f"def mod(score, b, h, q_idx, kv_idx):\n    {text}\n", "mod", {}))


@pytest.mark.parametrize("start", [0, *(pytest.param(n, marks=pytest.mark.long) for n in range(100, 5000, 100))])
def test_random_choices(start: int) -> None:
    for number in range(start, start + 100):
        text = choice(random.Random(number), number % 4 + 1)
        used = ("return {} + score", "return {}", "x = {}\n    return x + score", "return score + {} - h")[
            number // 4 % 4
        ]
        check_values(define(f"def mod(score, b, h, q_idx, kv_idx):\n    {used.format(text)}\n", "mod", {}))


@pytest.mark.parametrize("name", sorted(ZOO))
def test_the_zoo(name: str) -> None:
    entry = ZOO[name]
    mod = entry.make(2, 4, 24, 40, np.random.default_rng(0))
    tracer.trace(mod, "score_mod" if entry.kind == "score" else "mask_mod")


@pytest.mark.long
@pytest.mark.parametrize("part", range(10))
def test_ten_thousand_random_functions(part: int) -> None:
    """Ten times: a hundred thousand in all."""

    @seed(part)
    @settings(max_examples=10_000, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=QUIET)
    @given(programs(kind="mask" if part % 2 else "score"))
    def run(program: Program) -> None:
        with contextlib.suppress(TraceError):
            tracer.trace(program.function(mx.array), "mask_mod" if part % 2 else "score_mod")

    run()


@pytest.mark.sampled(25)
@pytest.mark.parametrize("start", range(0, 4000, 100))
def test_random_control_flow(start: int) -> None:
    for number in range(start, start + 100):
        writer = Writer(number)
        lines = [
            "def mod(score, b, h, q_idx, kv_idx):",
            "    x, y = q_idx, kv_idx",
            *writer.block(number % 3 + 1, "    "),
        ]
        source = "\n".join([*lines, "    return x * 7 + y"])
        tracer.trace(define(source, "mod", {}), "score_mod")
