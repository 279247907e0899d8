"""`flextrace demo train`: its text, both kinds of attention, and one small run."""

from __future__ import annotations

import io
import re
from itertools import islice
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from rich.console import Console
from typer.testing import CliRunner

import flextrace as flex
from flextrace.cli import app
from flextrace.demo import DemoError, characters, corpus, training
from flextrace.demo.language_model import LanguageModel, fused, loss_of, unfused

TEXT = [corpus.Document("sorted", "Return a new list containing all items from the iterable in ascending order.")] * 20


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WIDTH": 16, "LENGTH": 40, "WINDOW": 17, "COMPARED": 3, "WRITTEN": 4}.items():
        monkeypatch.setattr(training, name, value)
    monkeypatch.setattr(training, "documents", lambda: TEXT)
    monkeypatch.setattr(training, "memory_of_a_step", lambda way, length: 1e6)


# text


def test_characters_come_back() -> None:
    assert len(set(characters.ALPHABET)) == len(characters.ALPHABET) == 96
    text = characters.text_of(TEXT[:2])
    assert text == f"sorted\n\n{TEXT[0].docstring}\n\n\nsorted\n\n{TEXT[0].docstring}"
    assert characters.decoded(characters.encoded(text)) == text
    assert characters.decoded(characters.encoded("na\u00efve\t\u2026")) == "nave"


def test_targets_are_the_text_one_character_on() -> None:
    numbers = mx.arange(50, dtype=mx.int32)
    found = list(islice(characters.batches(numbers, 3, 10, seed=1), 20))
    again = next(characters.batches(numbers, 3, 10, seed=1))
    assert mx.array_equal(found[0].inputs, again.inputs)
    starts = set()
    for inputs, targets in found:
        assert inputs.shape == targets.shape == (3, 10)
        assert mx.array_equal(inputs[:, :1] + mx.arange(10), inputs) and mx.array_equal(inputs + 1, targets)
        starts |= {*inputs[:, 0].tolist()}
    assert min(starts) >= 0 and max(starts) <= 39 and len(starts) > 20
    whole = next(characters.batches(numbers[:11], 1, 10, seed=0))
    assert whole.targets.tolist() == [[*range(1, 11)]]
    with pytest.raises(ValueError, match="the text has 10 characters; expected more than the 10 of a window"):
        next(characters.batches(numbers[:10], 1, 10, seed=0))


# model


def test_both_kinds_of_attention_are_one_model() -> None:
    mx.random.seed(1)
    model = LanguageModel(width=16, heads=4, layers=2, window=17)
    model.blocks[0].attention.sinks = mx.array([0.5, -1.0, 2.0, 0.0])
    text = mx.random.randint(0, 96, (2, 41), key=mx.random.key(2))
    found = {}
    for way in (fused, unfused):
        value, gradients = nn.value_and_grad(model, loss_of)(model, text[:, :-1], text[:, 1:], way)
        found[way] = {"loss": value, **dict(tree_flatten(gradients))}
    assert {"position.weight", "blocks.1.attention.sinks", "characters.weight"} < {*found[fused]}
    for name, expected in found[unfused].items():
        np.testing.assert_allclose(np.array(found[fused][name]), np.array(expected), atol=1e-5, err_msg=name)
        assert mx.abs(expected).max() > 1e-5, name


def test_a_character_sees_its_window_only() -> None:
    model = LanguageModel(width=16, heads=4, layers=1, window=17)
    text = mx.random.randint(0, 96, (1, 40), key=mx.random.key(2))
    other = mx.where(mx.arange(40) == 10, (text + 1) % 96, text)
    changed = mx.abs(model(text, fused) - model(other, fused)).max(axis=-1)[0] > 1e-6
    assert [i for i, far in enumerate(changed.tolist()) if far] == [*range(10, 27)]


# the run


def test_a_small_run_learns_compares_and_writes(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    monkeypatch.setattr(training, "output", lambda: Console(file=text, width=80))
    result = CliRunner().invoke(app, ["demo", "train", "--steps", "40"])
    assert result.exit_code == 0, result.output
    said = text.getvalue()
    assert max(map(len, said.splitlines())) <= 80
    first, last = (re.findall(rf"^{name} .*? ([\d.]+) +([\d.]+)$", said, re.MULTILINE)[0] for name in training.WAYS)
    np.testing.assert_allclose([float(x) for x in first], [float(x) for x in last], rtol=1e-4)
    assert float(first[1]) < float(first[0])
    assert float(re.findall(r"differ by at most (\S+) of", said)[0]) < training.CLOSE
    trained = float(re.findall(r"40/40|37/37 loss ([\d.]+)", said)[-1])
    assert trained < float(first[0]) - 1
    assert all(prompt.strip() in said for prompt in training.PROMPTS)


def test_attention_that_learns_something_else_is_said(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def louder(model: LanguageModel, length: int) -> Any:
        attend = unfused(model, length)
        return lambda layer, x: 1.01 * attend(layer, x)

    monkeypatch.setitem(training.WAYS, "MLX, unfused", louder)
    with pytest.raises(DemoError, match="the losses differ by .* of their size, more than rounding explains"):
        training.train(4, Console(file=io.StringIO()))


def test_a_backend_without_a_gradient_names_the_remedy(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(model: LanguageModel, length: int) -> Any:
        raise flex.GradientError("this backend has no gradient; take another")

    monkeypatch.setitem(training.WAYS, "flextrace", refused)
    result = CliRunner().invoke(app, ["demo", "train", "--steps", "4"])
    assert result.exit_code == 2
    assert result.stderr == "flextrace demo train: this backend has no gradient; take another\n"


def test_too_few_steps_are_refused() -> None:
    result = CliRunner().invoke(app, ["demo", "train", "--steps", "1"])
    assert result.exit_code == 2
    assert result.stderr.startswith("flextrace demo train: --steps must be at least 6, got 1")


def test_the_same_prompt_and_seed_write_the_same(small: None) -> None:
    model = training.Learner.of(fused, 10).model
    written = [training.write(model, "sorted", 8, seed=seed) for seed in (1, 1, 2)]
    assert written[0] == written[1] != written[2] and {len(text) for text in written} == {8}


@pytest.mark.long
def test_a_fused_step_holds_less_than_an_unfused_one() -> None:
    ours, theirs = (training.memory_of_a_step(way, 1024) for way in training.WAYS)
    assert 0 < ours < theirs / 2
