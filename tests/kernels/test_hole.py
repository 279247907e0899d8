"""The hole of a kernel: what a template becomes, and what is found in it again."""

from __future__ import annotations

from pathlib import Path

import pytest

import flextrace as flex
from flextrace.kernels import cpu, metal
from flextrace.kernels.template.hole import FUNCTIONS, Excerpt, fill, written_by

TEMPLATE = """\
constexpr int LEFT = 1;   // stays
// {{ struct
struct Mods {
// }}
  // {{ score_mod
  // A comment.
  float score_mod(float score) const {
    return score;
  }
  // }}
  float factor(int row) const { return 1.0f; }
};
"""
FILLED = """\
constexpr int LEFT = 22;   // stays
// {{ struct
template <typename A>
struct Mods {
  A a;
// }}
  // {{ score_mod
  // A comment.
  float score_mod(float score) const {
    if (score > 0)
      return 1;

    return 2;
  }
  // }}
  float factor(int row) const { return factors[row]; }
};
"""
TEXTS = {
    "struct": "template <typename A>\nstruct Mods {\n  A a;",
    "score_mod": "if (score > 0)\n  return 1;\n\nreturn 2;",
}


@pytest.fixture
def template(tmp_path: Path) -> Path:
    file = tmp_path / "mod.h"
    file.write_text(TEMPLATE, encoding="ascii")
    return file


def test_what_stands_between_marks_is_replaced(template: Path) -> None:
    assert fill(template, TEXTS, {"LEFT": "22", "factor": "factors[row]"}) == FILLED
    assert fill(template, {}, {}) == TEMPLATE, "without anything to fill it lies as it is"


@pytest.mark.parametrize(
    ("texts", "values"), [({"mask_mod": ""}, {}), ({}, {"RIGHT": "1"})], ids=["a mark", "a constant"]
)
def test_what_the_template_lacks_is_an_error(template: Path, texts: dict[str, str], values: dict[str, str]) -> None:
    with pytest.raises(KeyError):
        fill(template, texts, values)


def test_it_is_found_again_with_its_comments() -> None:
    lines = ["  // A comment.", "  float score_mod(float score) const {", "    if (score > 0)", "      return 1;", ""]
    lines += ["    return 2;", "  }"]
    assert written_by(["score_mod"], FILLED) == [Excerpt(8, lines)]
    assert written_by(["mask_mod"], FILLED) == []


@pytest.mark.parametrize("backend", [cpu, metal], ids=lambda module: module.__name__.rpartition(".")[2])
def test_each_mod_fills_its_functions_once(backend: object) -> None:
    name = str(vars(backend)["__name__"]).rpartition(".")[2]
    text = flex.mods.alibi(2).source(name)
    (score,) = written_by(["score_mod"], text)
    assert text.splitlines()[score.first - 1 : score.first - 1 + len(score.lines)] == score.lines
    wanted = [name for name in FUNCTIONS["mask_mod"] if name != "mask_row" or backend is metal]
    excerpts = written_by(["mask_mod"], flex.mods.causal.source(name))
    assert [next(name for name in wanted if f"{name}(" in "".join(e.lines)) for e in excerpts] == wanted
