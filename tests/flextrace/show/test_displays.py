"""Displays in notebooks: valid, escaped and small HTML that says what is so, readable in light and dark."""

from __future__ import annotations

import importlib
import linecache
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from calls import attention_spec, formulas
from zoo import ZOO

import flextrace as flex
from flextrace import mods
from flextrace.cache import Store
from flextrace.kernels import backend_for, registry
from flextrace.kernels.blocks import FULL, PARTIAL
from flextrace.kernels.loading import state
from flextrace.kernels.simulator import BufferCount, Finding, Report, SimulationError
from flextrace.show import mods as displays
from flextrace.show.highlighting import highlighted
from flextrace.show.html import STYLE
from flextrace.show.tree import expression_tree

slopes = mx.array([0.5, 0.25])
window, cap = 64, 30.0


@flex.score_mod
def capped(score, b, h, q_idx, kv_idx):
    # <b> & "quotes"
    d = (q_idx - kv_idx) * 2
    return mx.where(d > 5, mx.tanh(score / cap) * cap + slopes[h] * d, -mx.inf)


@flex.mask_mod
def near(b, h, q_idx, kv_idx):
    return (q_idx >= kv_idx) & (q_idx - kv_idx < window)


@flex.mask_mod
def endless(b, h, q_idx, kv_idx):
    while kv_idx > 3:  # <kv>
        kv_idx -= 1
    return kv_idx < 3


class Page(HTMLParser):
    """Elements as they nest; what a display must not have fails at once."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self.pres: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], f"unclosed {self.open}"
        assert "http" not in html.replace('xmlns="http://www.w3.org/2000/svg"', ""), "it loads something"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "img"), tag
        names = [name for name, _ in attrs]
        assert "id" not in names and not any(name.startswith("on") for name in names) and len(set(names)) == len(names)
        assert not (tag in ("div", "pre", "table", "details") and {"span", "pre", "summary"} & set(self.open)), tag
        self.open.append(tag)
        self.elements.append((tag, dict(attrs)))
        if tag == "pre":
            self.pres.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.texts.append((tuple(self.open), data))
        if "pre" in self.open:
            self.pres[-1] += data

    @property
    def text(self) -> str:
        return "".join(data for place, data in self.texts if "style" not in place)

    def rows(self) -> list[str]:
        """The cells of all tables."""
        return [data for place, data in self.texts if place[-1:] == ("td",)]

    def marked(self) -> str:
        return "".join(data for place, data in self.texts if "span" in place and "pre" in place)


def page(shown: Any) -> Page:
    html = shown._repr_html_()
    assert len(html) < 100_000
    return Page(html)


# ---- mods ------------------------------------------------------------------------------------------------------------


def test_a_mod_shows_its_source_as_written_beside_its_tree_and_captures() -> None:
    shown = page(capped)
    assert shown.pres[0].startswith('@flex.score_mod\ndef capped(score, b, h, q_idx, kv_idx):\n    # <b> & "quotes"\n')
    assert shown.pres[1].rstrip("\n").split("\n") == expression_tree(capped.trace())
    assert [cell for cell in shown.rows() if cell] == [
        *("slopes", "array0", "float32", "[2]"),
        *("cap", "number0", "float", "30.0"),
    ]
    assert "score_mod capped" in shown.text


def test_a_mod_of_an_edited_file_shows_the_source_it_was_traced_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    text = "import flextrace as flex\n@flex.mask_mod\ndef near(b, h, q_idx, kv_idx):\n    return q_idx - kv_idx < 4\n"
    text += "far = flex.mask_mod(lambda b, h, q_idx, kv_idx: (q_idx - kv_idx\n    > 4))  # é\n"
    file = tmp_path / "edited_and_reloaded.py"
    file.write_text(text)
    module = importlib.import_module("edited_and_reloaded")
    near, far = module.near, module.far
    sources = [page(mod).pres[0] for mod in (near, far)]
    assert sources == [
        "@flex.mask_mod\ndef near(b, h, q_idx, kv_idx):\n    return q_idx - kv_idx < 4\n",
        "lambda b, h, q_idx, kv_idx: (q_idx - kv_idx\n    > 4)\n",
    ]
    file.write_text("# more\n# lines\n" + text.replace("4", "16"))
    linecache.checkcache()
    module = importlib.reload(module)
    assert [page(mod).pres[0] for mod in (near, far)] == sources
    assert [page(mod).pres[0] for mod in (module.near, module.far)] == [text.replace("4", "16") for text in sources]


def test_captures_are_those_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "cap", 12.5)
    monkeypatch.setitem(globals(), "slopes", mx.zeros((7,), mx.bfloat16))
    cells = [cell for cell in page(capped).rows() if cell]
    assert cells == ["slopes", "array0", "bfloat16", "[7]", "cap", "number0", "float", "12.5"]


def test_trees() -> None:
    assert expression_tree(capped.trace()) == [
        "e0 = (q_idx - kv_idx) * 2",
        "",
        "if",
        "├─ 5 < e0",
        "├─ then: +",
        "│  ├─ tanh(score / cap) * cap",
        "│  └─ slopes[h] * float(e0)",
        "└─ else: -inf",
    ]
    assert expression_tree(mods.causal.trace()) == ["kv_idx <= q_idx"]
    table = mx.zeros((64, 4))

    @flex.score_mod
    def looked_up(score, b, h, q_idx, kv_idx):
        return score + mx.exp(table[mx.minimum(mx.abs(kv_idx - q_idx), 40 + window), h] * -score)

    assert expression_tree(looked_up.trace()) == [
        "+",
        "├─ score",
        "└─ exp",
        "   └─ *",
        "      ├─ table[...]",
        "      │  ├─ min",
        "      │  │  ├─ abs(kv_idx - q_idx)",
        "      │  │  └─ window + 40",
        "      │  └─ h",
        "      └─ -score",
    ]


def test_a_tree_of_many_lines_is_cut_and_says_so() -> None:
    @flex.score_mod
    def long(score, b, h, q_idx, kv_idx):
        for i in range(100):
            score = mx.sin(score) + float(i) * kv_idx
        return score

    lines = expression_tree(long.trace())
    assert len(lines) == 80
    assert re.fullmatch(r"\.\.\. \d+ more lines; print\(mod\.expr\) shows all as Python", lines[-1])


def test_a_mod_that_cannot_be_traced_shows_why() -> None:
    shown = page(endless)
    assert "cannot be traced" in shown.text
    with pytest.raises(flex.TraceError) as error:
        endless.trace()
    assert shown.pres == [displays.user_source(endless), str(error.value)]
    assert "while kv_idx > 3:  # <kv>\n" in shown.pres[0] and "^^^" in shown.pres[1]


def test_a_captured_number_that_cannot_be_used_shows_why() -> None:
    step = 0

    @flex.mask_mod
    def strided(b, h, q_idx, kv_idx):
        return kv_idx % step == 0

    assert "integer division or modulo by step = 0" in page(strided).text
    step = 2
    assert "integer division" not in page(strided).text


def test_the_kernel_is_folded_away_and_the_users_lines_are_marked() -> None:
    shown = page(near)
    folded = [(place, data) for place, data in shown.texts if "details" in place]
    assert "its lines in the cpu kernel" in [data for place, data in folded if place[-1] == "summary"]
    marks = [data for place, data in shown.texts if place.count("span") and "details" in place]
    assert marks and not any("(void)" in data for data in marks)
    inside = near.source("cpu").split("mask_mod(int b, int h, int q_idx, const Inputs& in) {")[1].split("\n  }\n")[0]
    assert inside.strip("\n") in "\n".join(shown.pres)


def test_lambdas_and_combined_masks_have_a_source() -> None:
    assert displays.user_source(flex.mask_mod(lambda b, h, q, kv: kv <= q)) == "lambda b, h, q, kv: kv <= q"
    assert "mask_mod (causal & near)" in page(mods.causal & near).text
    built: dict[str, Any] = {}
    exec("def unknown(b, h, q_idx, kv_idx):\n    return True", built)
    assert "def unknown(b, h, q_idx, kv_idx):\n    return True" in page(flex.mask_mod(built["unknown"])).text


def test_masks_have_a_picture_of_what_they_keep() -> None:
    html = near._repr_html_()
    found = re.findall(r'<rect x="(\d+)" y="(\d+)" width="(\d+)" height="(\d+)"', html)
    boxes = [tuple(map(int, box)) for box in found]
    assert "first 192 rows and keys" in html  # three times the window
    cell = boxes[0][3]
    kept = np.zeros((64, 64), bool)
    for x, y, width, _ in boxes:
        kept[y // cell, x // cell : (x + width) // cell] = True
    dense = np.array(flex.create_mask(near, None, None, 192, 192))[0, 0]
    np.testing.assert_array_equal(kept, dense.reshape(64, 3, 64, 3).any(axis=(1, 3)))
    assert "<svg" not in capped._repr_html_()


@pytest.mark.parametrize("backend", ["cpu", pytest.param("simulator", marks=pytest.mark.long)])
def test_every_mod_of_the_zoo_is_shown(backend: str, monkeypatch: pytest.MonkeyPatch, fresh_cache: Path) -> None:
    monkeypatch.setenv("FLEXTRACE_BACKEND", backend)
    for entry in ZOO.values():
        function = entry.make(2, 4, 48, 64, np.random.default_rng(0))
        mod = flex.score_mod(function) if entry.kind == "score" else flex.mask_mod(function)
        shown = page(mod)
        assert f"on {backend}: not compiled yet" in shown.text, entry
        assert shown.pres[1].rstrip("\n").split("\n") == expression_tree(mod.trace())
        for capture in (*mod.trace().arrays, *mod.trace().numbers):
            assert capture.name in shown.pres[1] and capture.name in shown.rows()
    assert not fresh_cache.exists()


# ---- where the kernel is ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["cpu", "simulator"])
def test_the_state_of_the_kernel_is_looked_up_and_nothing_is_made(
    backend: str, monkeypatch: pytest.MonkeyPatch, fresh_cache: Path
) -> None:
    monkeypatch.setenv("FLEXTRACE_BACKEND", backend)
    assert f"on {backend}: not compiled yet" in page(near).text
    assert not fresh_cache.exists()
    backend_for(backend).load(attention_spec(None, near.trace()))
    assert f"on {backend}: in memory" in page(near).text
    monkeypatch.setattr(registry, "made", {})  # as after a restart
    (entry,) = Store().entries()
    os.utime(entry.folder / "manifest.json", (1e9, 1e9))
    assert f"on {backend}: on disk" in page(near).text
    assert [entry.used for entry in Store().entries()] == [1e9]  # no use was noted
    assert f"on {backend}: not compiled yet" in page(capped).text


def test_a_kernel_with_another_mod_is_told_from_one_of_the_mod_alone(fresh_cache: Path) -> None:
    backend = backend_for("simulator")
    score, mask, other = capped.trace(), near.trace(), mods.causal.trace()
    backend.load(attention_spec(score, mask))
    assert state(backend, formulas(score, mask)) == "memory"
    assert state(backend, formulas(score)) == state(backend, formulas(None, mask)) == "paired"
    assert state(backend, formulas(None, other)) == state(backend, formulas(score, other)) == "nowhere"
    assert state(backend_for("ops"), formulas(score)) == "memory"


def test_without_a_compiler_the_display_says_what_runs(monkeypatch: pytest.MonkeyPatch, fresh_cache: Path) -> None:
    monkeypatch.setattr("flextrace.kernels.cpu.backend.find_compiler", lambda wanted: None)
    assert "on ops: MLX operations, no kernel" in page(capped).text
    assert state(backend_for("cpu", to_run=False), formulas(capped.trace())) == "nowhere"


def test_a_cache_that_others_can_write_to_is_no_obstacle(fresh_cache: Path) -> None:
    fresh_cache.mkdir(mode=0o777)
    fresh_cache.chmod(0o777)
    assert "on cpu: not compiled yet" in page(capped).text


# ---- kernel texts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["cpu", "metal"])
def test_kernel_html_has_every_line_of_the_kernel(backend: str) -> None:
    text = capped.source(backend)
    shown = Page(displays.kernel_html(text, "<mine>", ["score_mod"]))
    assert shown.pres[-1].rstrip("\n") == text.strip("\n")
    assert "<mine>" in shown.text and f"the whole kernel, {len(text.splitlines()):,} lines" in shown.text
    assert "tanh" in shown.pres[0] and len(shown.pres) == 2
    both = Page(displays.kernel_html(text, "both"))
    assert len(both.pres) > 2


@pytest.mark.parametrize("language", ["python", "cpp", "text"])
def test_highlighting_keeps_every_character(language: str) -> None:
    text = 'int f(float x) { return "<&>" + 1.5f; } // "a"\n\n/* two\n   lines < */\n'
    text += 'def g(): return """a\nb"""\n  \tx = \'&amp;\''
    shown = Page(highlighted(text, language, {0, 3}))
    assert shown.pres == [text + "\n"]
    marks = [attrs for _, attrs in shown.elements if attrs.get("class") == "mark"]
    assert len(marks) == 2
    assert bool([attrs for _, attrs in shown.elements if attrs.get("class") == "n"]) == (language != "text")


def test_without_pygments_texts_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    coloured = capped._repr_html_()
    monkeypatch.setitem(sys.modules, "pygments.lexers", None)
    plain = capped._repr_html_()
    assert Page(plain).text == Page(coloured).text and "<span class=k>" in coloured
    assert "<span class=k>" not in plain


def test_importing_flextrace_imports_nothing_of_notebooks() -> None:
    program = (
        "import sys, flextrace as flex; flex.mods.causal.inspect(); flex.simulator\n"
        "print([name for name in ('IPython', 'pygments', 'matplotlib', 'flextrace.show.mods', "
        "'flextrace.show.notebook', 'flextrace.show.html') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# ---- BlockMasks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(None, None, 512, 512), (2, 3, 500, 700)])
def test_a_block_mask_shows_its_blocks_and_their_counts(shape: Any) -> None:
    made = flex.create_block_mask(near, *shape, BLOCK_SIZE=32)
    shown = page(made)
    states = made.blocks.states()
    full, partial = int((states == FULL).sum()), int((states == PARTIAL).sum())
    empty = states.size - full - partial
    assert f"{full} full, {partial} partial, {empty:,} empty of {states.size:,} blocks" in shown.text
    assert ("batch 0, head 0" in shown.text) == (shape[0] is not None)
    boxes = [attrs for tag, attrs in shown.elements if tag == "rect" and "class" in attrs]
    for kind, name in ((FULL, "full"), (PARTIAL, "partial")):
        area = sum(int(box["width"] or 0) * int(box["height"] or 0) for box in boxes if box["class"] == name)
        assert area == int((states[0, 0] == kind).sum()) * int(boxes[0]["height"] or 0) ** 2


def test_a_large_or_empty_block_mask_is_shown_too() -> None:
    assert "<rect" in flex.create_block_mask(near, None, None, 100_000, 100_000)._repr_html_()
    page(flex.create_block_mask(near, None, None, 100_000, 100_000))
    assert "<svg" not in flex.create_block_mask(near, None, None, 0, 5)._repr_html_()


# ---- reports of the simulator ----------------------------------------------------------------------------------------


def report(*findings: Finding, checks: bool = True) -> Report:
    buffers = {
        "q<T>": BufferCount("q<T>", "device", 4096, 12345, 0, 0),
        "out": BufferCount("out", "device", 2048, 0, 2048, 0),
    }
    return Report("k&r", checks, buffers, 1111, 2222, 17440, {}, 512, 4, 3, 48, 6, 7, findings)


def test_a_report_shows_buffers_and_counts() -> None:
    shown = page(report())
    assert "simulated kernel k&r: no findings" in shown.text
    assert shown.rows() == [
        *("q<T>", "device", "4,096", "12,345", "0"),
        *("out", "device", "2,048", "0", "2,048"),
        *("(all of it)", "threadgroup", "17,440", "1,111", "2,222"),
        *("512", "4", "3", "48", "6", "7"),
    ]
    unchecked = page(report(checks=False))
    assert "not checked" in unchecked.text and "12,345" not in unchecked.text


def test_findings_stand_out_in_reports_and_errors() -> None:
    race = Finding("race", "lane 3 writes tile[<i>] & so on", "k.metal:17", "tile", (3, 37))
    wild = Finding("wild access", "lane 0 follows a pointer", "k.metal:2", "", (0,))
    found = report(race, wild)
    shown = page(found)
    assert "simulated kernel k&r: 2 findings" in shown.text
    highlighted = [attrs for _, attrs in shown.elements if attrs.get("class") == "finding"]
    assert len(highlighted) == 2 and "race at k.metal:17: lane 3 writes tile[<i>] & so on" in shown.text
    assert SimulationError(found)._repr_html_() == found._repr_html_() == displays.report_html(found)


# ---- light and dark --------------------------------------------------------------------------------------------------


def palettes() -> list[dict[str, str]]:
    """The light colours and the two (equal) sets of dark ones."""
    blocks = re.findall(r"\{ (color-scheme: [^}]*) \}", STYLE)
    return [dict(re.findall(r"--(\w[\w-]*): (.*?)(?:;|$)", block)) for block in blocks]


def luminance(colour: str) -> float:
    digits = re.findall(r"#([0-9a-f]{3,6})", colour)[-1]
    digits = digits if len(digits) == 6 else "".join(2 * digit for digit in digits)
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_every_text_is_readable_in_light_and_dark() -> None:
    light, dark, dark_too = palettes()
    assert light.keys() == dark.keys() and dark == dark_too
    assert luminance(light["back"]) > 0.5 > luminance(dark["back"])
    for palette in (light, dark):
        for ink in ("ink", "keyword", "type", "number", "string", "comment"):
            for back in ("back", "shade", "mark"):
                assert contrast(palette[ink], palette[back]) >= 4.5, (ink, back)  # what the W3C asks for
        assert contrast(palette["quiet"], palette["back"]) >= 4.5
        assert contrast(palette["bad"], palette["bad-back"]) >= 4.5
        assert contrast(palette["full"], palette["partial"]) > 1.8 < contrast(palette["full"], palette["empty"])
        assert contrast(palette["partial"], palette["empty"]) > 1.8


def test_every_class_that_displays_use_has_a_rule() -> None:
    html = "".join(shown._repr_html_() for shown in (capped, near, endless, report(), report(checks=False)))
    html += flex.create_block_mask(near, 2, None, 512, 512)._repr_html_() + displays.kernel_html(near.source(), "near")
    used = {name for found in re.findall(r'class="?([\w ]+)', html) for name in found.split()}
    styled = set(re.findall(r"\.([a-z]+)\b", STYLE))
    assert used - styled == set()
