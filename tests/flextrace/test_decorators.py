"""Decorated mods: they stay the user's function, show every stage, and are told apart by kind."""

from __future__ import annotations

import functools
import html
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import flextrace as flex
from flextrace.decorators import MaskMod, ScoreMod, as_mod
from flextrace.kernels.spec import Formulas
from flextrace.tracer.errors import with_article

slopes = mx.array([0.5, 0.25])


@flex.score_mod
def alibi(score, b, h, q_idx, kv_idx):
    """ALiBi."""
    return score + slopes[h] * (kv_idx - q_idx)  # a comment


@flex.mask_mod
def causal(b, h, q_idx, kv_idx):
    return q_idx >= kv_idx


class Model:
    def __init__(self, slope: float) -> None:
        self.slope = slope

    @flex.score_mod
    def bias(self, score, b, h, q_idx, kv_idx):
        return score - self.slope * kv_idx


def plain_score(score, b, h, q_idx, kv_idx):
    return score


def plain_mask(b, h, q_idx, kv_idx):
    return h == 0


def test_calling_a_mod_runs_the_users_function() -> None:
    assert alibi(1.0, 0, 1, 2, 4).item() == 1.5
    assert causal(0, 0, q_idx=2, kv_idx=2) is True
    assert flex.score_mod(lambda score, *rest: (score, rest))(1, 2, 3) == (1, (2, 3))


def test_a_mod_looks_like_its_function() -> None:
    assert (alibi.__name__, alibi.__doc__, alibi.__module__) == ("alibi", "ALiBi.", __name__)
    assert repr(alibi) == "<score_mod alibi>" and repr(causal) == "<mask_mod causal>"
    assert repr(flex.mask_mod(functools.partial(plain_mask))) == "<mask_mod plain_mask>"
    assert alibi.kind == "score_mod" and causal.kind == "mask_mod"


def test_methods_are_mods_of_their_instance() -> None:
    steep, flat = Model(2.0), Model(0.5)
    assert steep.bias(1.0, 0, 0, 0, 3) == -5.0 and flat.bias(1.0, 0, 0, 0, 3) == -0.5
    assert isinstance(Model.bias, ScoreMod) and isinstance(steep.bias, ScoreMod)
    assert steep.bias.bind().numbers == [2.0] and flat.bias.bind().numbers == [0.5]
    assert steep.bias.trace() is flat.bias.trace()


def test_decorating_twice_is_decorating_once() -> None:
    again = flex.score_mod(alibi)
    assert again.__flextrace_function__ is alibi.__flextrace_function__
    assert again.expr is alibi.expr


@pytest.mark.parametrize("value", [3, None, "text", mx.array(1.0)])
@pytest.mark.parametrize(("decorator", "kind"), [(flex.score_mod, "score_mod"), (flex.mask_mod, "mask_mod")])
def test_only_functions_are_decorated(decorator: Any, kind: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"@flex.{kind} decorates a function, not {with_article(type(value).__name__)}"):
        decorator(value)


def test_expressions() -> None:
    assert repr(alibi.expr) == "score + (array0[h] * float((kv_idx - q_idx)))"
    assert repr(causal.expr) == "kv_idx <= q_idx"


def test_a_trace_is_made_once_and_follows_what_it_captures() -> None:
    cap = 20.0

    @flex.score_mod
    def softcap(score, b, h, q_idx, kv_idx):
        return cap * mx.tanh(score / cap)

    first = softcap.bind()
    cap = 30.0
    second = softcap.bind()
    assert first.trace is second.trace
    assert (first.numbers, second.numbers) == ([20.0], [30.0])
    assert "number0 = cap (float, read at every call)" in softcap.inspect()


def test_arrays_are_handed_over_as_they_are() -> None:
    assert alibi.bind().arrays[0] is slopes


def test_inspect_shows_every_stage() -> None:
    assert alibi.inspect().splitlines() == [
        "<score_mod alibi>",
        "",
        "@flex.score_mod",
        "def alibi(score, b, h, q_idx, kv_idx):",
        '    """ALiBi."""',
        "    return score + slopes[h] * (kv_idx - q_idx)",
        "",
        "read from its source",
        "",
        "expression:",
        "  score + (array0[h] * float((kv_idx - q_idx)))",
        "  array0 = slopes (float32, 1 dimensions)",
        "",
        "gradient:",
        "  by score: 1.0",
        "  by array0[h] (row): float((kv_idx - q_idx))",
        "",
        "smoothed K: the row term is dropped (shift invariant)",
    ]


def test_inspect_shows_how_the_tiles_of_a_mask_are_decided() -> None:
    ids = mx.array([0, 0, 1])

    @flex.mask_mod
    def same(b, h, q_idx, kv_idx):
        return ids[q_idx] == ids[kv_idx]

    assert same.inspect().splitlines()[-7:] == [
        "",
        "tiles (a bare mask_mod decides them by bounds, here those of the cpu kernel: 0 empty, 1 evaluated, 2 full):",
        "  const bounds::Range q_idx = bounds::range(q_first, q_last);",
        "  const auto u0 = bounds::load<int32_t>(in, 0, q_idx);",
        "  const bounds::Range kv_idx = bounds::range(kv_first, kv_last);",
        "  return bounds::state(bounds::eq(u0, bounds::load<int32_t>(in, 0, kv_idx)));",
        "  ranges of array0 along axis 0: from the least and largest elements of its blocks",
    ]
    assert "tiles" not in alibi.inspect()


def test_inspect_says_when_a_mod_is_traced_anew() -> None:
    @flex.score_mod
    def asking(score, b, h, q_idx, kv_idx):
        return score + len(os.listdir())

    assert "  traced anew at every call: it runs Python whose result may change" in asking.inspect().splitlines()


def test_source_is_the_whole_kernel_text() -> None:
    text = alibi.source("cpu")
    assert "array0" not in text and "fx::load<float>(in, 0, h)" in text
    assert "return splat(" in causal.source("cpu")
    with pytest.raises(ValueError, match="unknown backend 'abacus'; known: metal, cuda, simulator, cpu, ops"):
        alibi.source("abacus")


def test_errors_come_when_the_expression_is_needed() -> None:
    @flex.score_mod
    def wrong(score, b, h, q_idx, kv_idx):
        return score.item()

    with pytest.raises(flex.TraceError, match=r"cannot trace wrong: \.item\(\) needs the value of score"):
        _ = wrong.expr


def test_a_mod_of_the_wrong_kind_says_so() -> None:
    with pytest.raises(flex.TraceError, match="a score_mod takes 5 arguments"):
        flex.score_mod(plain_mask).trace()
    with pytest.raises(flex.TraceError, match="a mask_mod takes 4 arguments"):
        flex.mask_mod(plain_score).trace()


def test_a_method_without_its_instance_says_so() -> None:
    with pytest.raises(flex.TraceError) as caught:
        Model.bias.trace()
    assert caught.value.reason == "bias is a method and belongs to an instance: its first argument is self"
    assert caught.value.remedy == "take that of an instance: Model(...).bias"


# ---- arguments of the public calls ---------------------------------------------------------------------------


def test_as_mod() -> None:
    assert as_mod(alibi, ScoreMod, "score_mod") is alibi
    assert isinstance(as_mod(plain_mask, MaskMod, "block_mask"), MaskMod)
    with pytest.raises(TypeError, match="block_mask takes a mask_mod, <score_mod alibi> is a score_mod"):
        as_mod(alibi, MaskMod, "block_mask")
    with pytest.raises(TypeError, match="score_mod takes a score_mod function, not an int"):
        as_mod(3, ScoreMod, "score_mod")


def star(*args):
    return args[-1] > 2


def test_canonical_source() -> None:
    assert MaskMod(plain_mask).trace().source() == "def plain_mask(b, h, q_idx, kv_idx):\n    return h == 0"
    spaced = MaskMod(lambda b, h, q_idx, kv_idx: h   ==  1)  # fmt: skip
    assert spaced.trace().source().strip("()") == "lambda b, h, q_idx, kv_idx: h == 1"


# ---- where a kernel is -----------------------------------------------------------------------------------------------


def test_state_says_whether_a_call_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXTRACE_CACHE_DIR", str(tmp_path))
    constant = 0.0078125  # no other test multiplies by it
    mod = flex.score_mod(lambda score, b, h, q_idx, kv_idx: score * (constant if h < 9000 else 1.0))
    mask = flex.mask_mod(lambda b, h, q_idx, kv_idx: kv_idx <= q_idx + 12345)
    q = mx.ones((1, 1, 4, 8))
    options = {"BACKEND": "cpu"}
    assert mod.state(mask, backend="cpu") == mask.state(mod, backend="cpu") == "nowhere"
    assert not any(tmp_path.iterdir())
    flex.flex_attention(q, q, q, mod, mask, kernel_options=options)
    assert mod.state(mask, backend="cpu") == mask.state(mod, backend="cpu") == "memory"
    assert mod.state(backend="cpu") == "paired"
    program = (
        "import flextrace as flex\n"
        "mask = flex.mask_mod(lambda b, h, q_idx, kv_idx: kv_idx <= q_idx + 12345)\n"
        "print(mask.state(backend='cpu'))\n"
    )
    flex.flex_attention(q, q, q, block_mask=mask, kernel_options=options)
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run([sys.executable, str(tmp_path / "program.py")], capture_output=True, text=True, check=True)
    assert done.stdout == "disk\n"


def test_state_of_two_masks() -> None:
    with pytest.raises(ValueError, match="are both a mask_mod; a call has one of each kind"):
        flex.mods.causal.state(flex.mods.causal)


@pytest.mark.parametrize("backend", ["cpu", "metal", "simulator"])
def test_source_of_the_mod_alone(backend: str) -> None:
    part = flex.mods.softcap(20.0).source(backend, whole=False)
    assert "tanh" in part and "// score_mod" in part and len(part.splitlines()) < 12
    assert all(line in flex.mods.softcap(20.0).source(backend) for line in part.splitlines())


def test_source_of_every_kernel() -> None:
    bias = mx.zeros((2, 8))
    mod = flex.score_mod(lambda score, b, h, q_idx, kv_idx: score * 2 + bias[h, abs(q_idx - kv_idx) % 8])
    assert "flextrace_attention(" in mod.source("cpu", kernel="decode") != mod.source("cpu")
    backward = mod.source("cpu", kernel="backward", whole=False)
    assert "ScoreGradient{" in backward and "constexpr int SITES = 1;" in backward and "fx::place(in, 0" in backward
    assert "made.slope = 2.0f;" in mod.source("metal", kernel="backward_key", whole=False)
    assert "int64_t element(" in mod.source("metal", kernel="backward_pairs_0", whole=False)
    assert "SITES" not in flex.mods.causal.source("cpu", kernel="backward", whole=False)
    with pytest.raises(
        ValueError, match="the cpu backend has no kernel 'forward' for this; it has attention, decode, b"
    ):
        mod.source("cpu", kernel="forward")
    with pytest.raises(ValueError, match="the ops backend has no kernel 'backward'.*; it has attention"):
        mod.source("ops", kernel="backward")


# ---- where there is no text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [{}, {"__name__": "no_such_module"}, {"__name__": "__main__"}, {"__name__": "math"}])
def test_a_mod_without_source_is_shown_described_and_pickled_as_its_expression(module: dict[str, Any]) -> None:
    names: dict[str, Any] = {**module, "slopes": slopes}
    exec("def late(score, b, h, q_idx, kv_idx):\n    return score + slopes[h] * 2 if q_idx > kv_idx else score", names)
    mod = flex.score_mod(names["late"])
    shown = [
        "def late(score, b, h, q_idx, kv_idx):",
        "    return (score + (array0[h] * 2.0)) if (kv_idx < q_idx) else score",
    ]
    assert mod.trace().source().splitlines() == shown
    assert "\n".join(shown) in mod.inspect() and "read from its bytecode" in mod.inspect()
    assert "array0[h] * 2.0" in html.unescape(re.sub(r"<.*?>", "", mod._repr_html_()))
    assert Formulas(mod.trace().formula, None).described()["score_mod"]["source"] == shown
    assert "score_mod(" in mod.source("cpu") and "score_mod(" in mod.source("metal")
    again = pickle.loads(pickle.dumps(mod))
    assert again.trace().expr is mod.trace().expr
    q = mx.random.normal((1, 2, 8, 64))
    assert mx.array_equal(flex.flex_attention(q, q, q, again), flex.flex_attention(q, q, q, mod))
