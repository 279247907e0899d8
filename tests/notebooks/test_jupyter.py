"""A real kernel: redefined mods are picked up at once, errors point into cells, the magics define and show."""

from __future__ import annotations

import json
import os
import re
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flextrace as flex

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

KEYS = 6
TEXT = """\
# %% start
import json, sys
import mlx.core as mx
import flextrace as flex
%load_ext flextrace

eye = mx.eye(6)[None, None]

def weights(mod, backend="ops"):
    "The first row of the softmax over a mod of scores of 0."
    out = flex.flex_attention(0 * eye, eye, eye, score_mod=mod, kernel_options={"BACKEND": backend})
    print(json.dumps(out[0, 0, 0].tolist()))

print(sys.executable)

# %% mod
@flex.score_mod
def mod(score, b, h, q_idx, kv_idx):
    return score + 0.5 * kv_idx
weights(mod)

# %% other body
@flex.score_mod
def mod(score, b, h, q_idx, kv_idx):
    return score - 0.5 * kv_idx
weights(mod)

# %% first body
@flex.score_mod
def mod(score, b, h, q_idx, kv_idx):
    return score + 0.5 * kv_idx
weights(mod)

# %% timed
%%time
def timed_mod(score, b, h, q_idx, kv_idx):
    return score + 0.25 * kv_idx
weights(timed_mod)

# %% timed line
%time weights(lambda score, b, h, q_idx, kv_idx: score - 0.25 * kv_idx)

# %% timeit
%%timeit -n 1 -r 1 factor = 0.75
def timed_mod(score, b, h, q_idx, kv_idx):
    return score + factor * kv_idx
weights(timed_mod)

# %% timeit line
%timeit -n 1 -r 1 weights(lambda score, b, h, q_idx, kv_idx: score - 0.75 * kv_idx)

# %% profiled
%%prun -q
def profiled_mod(score, b, h, q_idx, kv_idx):
    return score + 1.25 * kv_idx
weights(profiled_mod)

# %% helper
def shape(x):
    return 0.5 * x

# %% helped
@flex.score_mod
def helped(score, b, h, q_idx, kv_idx):
    return score + shape(kv_idx)
weights(helped)

# %% helper again
def shape(x):
    return 0.25 * x

# %% helped after
weights(helped)

# %% deep
def inner(x):
    return x
def shape(x):
    return inner(x) * 2

# %% deep inner
def inner(x):
    return -x

# %% helped deep
weights(helped)

# %% number
slope = 0.5
@flex.score_mod
def captures(score, b, h, q_idx, kv_idx):
    return score + slope * kv_idx

# %% with number
weights(captures)

# %% number again
slope = -2

# %% with int
weights(captures)

# %% array
slope = mx.arange(6) % 2

# %% with array
weights(flex.score_mod(lambda score, b, h, q_idx, kv_idx: score + slope[kv_idx]))

# %% array again
@flex.score_mod
def table(score, b, h, q_idx, kv_idx):
    return score + slope[kv_idx]
slope = -2.0 * slope

# %% with array again
weights(table)

# %% array in place
slope[0] = 3

# %% with array in place
weights(table)

# %% branch
steep = True
@flex.score_mod
def branched(score, b, h, q_idx, kv_idx):
    return score + kv_idx if steep else score

# %% branched
weights(branched)

# %% branch again
steep = False
weights(branched)

# %% class
class Model:
    slope = 1.0
    @flex.score_mod
    def bias(self, score, b, h, q_idx, kv_idx):
        return score + self.slope * kv_idx
weights(Model().bias)

# %% class again
class Model:
    slope = 1.0
    @flex.score_mod
    def bias(self, score, b, h, q_idx, kv_idx):
        return score - self.slope * kv_idx
weights(Model().bias)

# %% import beside it
import mlx.core as mx, math
import flextrace as flex
@flex.score_mod
def beside(score, b, h, q_idx, kv_idx):
    return score + mx.minimum(math.pi * kv_idx, 3.0)
weights(beside)

# %% state before
mod

# %% on the cpu
weights(mod, "cpu")

# %% state after
mod

# %% mask
flex.mods.causal

# %% blocks
flex.create_block_mask(flex.mods.causal, None, None, 512, 512)

# %% untraceable
@flex.mask_mod
def endless(b, h, q_idx, kv_idx):
    # until
    while kv_idx > 3:
        kv_idx -= 1
    return kv_idx < 3
endless

# %% traced
endless.expr

# %% called
def half(x):
    return x.item()
@flex.score_mod
def calls(score, b, h, q_idx, kv_idx):
    return half(score)

# %% call
calls.expr

# %% wrong argument
flex.flex_attention(eye, eye, eye,
                    scale="large")

# %% refused cache
import os
os.chmod(os.environ["FLEXTRACE_CACHE_DIR"], 0o777)
flex.flex_attention(eye, eye, eye, score_mod=lambda s, b, h, q, kv: s - 99 * kv, kernel_options={"BACKEND": "cpu"})

# %% trusted again
os.chmod(os.environ["FLEXTRACE_CACHE_DIR"], 0o700)

# %% the rest
%xmode Verbose
%tb

# %% as before
%xmode Context

# %% source
%%flex_source metal
factor = 0.125

@flex.score_mod
def relative(score, b, h, q_idx, kv_idx):
    return score + factor * kv_idx

band = flex.mods.causal & flex.mods.sliding_window(17)
factor * 2

# %% after source
weights(relative)

# %% source again
%%flex_source cpu
@flex.score_mod
def relative(score, b, h, q_idx, kv_idx):
    return score - factor * kv_idx

# %% after source again
weights(relative)

# %% default source
%%flex_source
repeated = relative

# %% failing source
%%flex_source
x = 1
y = x / 0

# %% untraceable source
%%flex_source
@flex.score_mod
def sums(score, b, h, q_idx, kv_idx):
    return mx.sum(score)

# %% silent source
%%flex_source metal
band = flex.mods.causal & flex.mods.sliding_window(17)
band; # as in any cell

# %% spaced source
%%flex_source


@flex.score_mod
def means(score, b, h, q_idx, kv_idx):
    return mx.mean(score)

# %% class source
%%flex_source
class Slopes:
    @flex.score_mod
    def bias(self, score, b, h, q_idx, kv_idx):
        return score

# %% module
import os, pathlib
TEXT = '''
import flextrace as flex
def half(x):
    return x / 2
@flex.score_mod
def sloped(score, b, h, q_idx, kv_idx):
    return score + half(kv_idx)
'''
def save(text, seconds):
    pathlib.Path("slopes.py").write_text(text)
    os.utime("slopes.py", (seconds, seconds))
save(TEXT, 1e9)
%load_ext autoreload
%autoreload explicit
%aimport slopes

# %% imported
from slopes import sloped
weights(sloped)
save(TEXT.replace("x / 2", "x / 4"), 1.1e9)

# %% helper edited
weights(sloped)
save("# above" + TEXT.replace("score + half", "score - half"), 1.2e9)

# %% mod edited
weights(sloped)
masked = TEXT.replace("score_mod", "mask_mod").replace("score, b", "b").replace("score + half(kv_idx)", "kv_idx > 2")
save(masked, 1.3e9)

# %% shown edited
sloped

# %% no mod
%%flex_source
x = 1

# %% unknown backend
%%flex_source tpu
x = 1

# %% cache
%flex_cache

# %% cache argument
%flex_cache all

# %% loaded
print([m for m in ('matplotlib.pyplot',) if m in sys.modules])
"""
# name of a cell -> its text; they run in this order, all of them
CELLS = {
    name: text.strip() for name, text in (part.split("\n", 1) for part in TEXT.removeprefix("# %% ").split("\n# %% "))
}


class Ran(dict[str, list[Any]]):
    """The outputs of each cell by its name."""

    def html(self, name: str) -> list[str]:
        return [output.data["text/html"] for output in self[name] if "text/html" in output.get("data", {})]

    def printed(self, name: str) -> str:
        return "".join(output.text for output in self[name] if output.output_type == "stream")

    def weights(self, name: str) -> Any:
        (line,) = [line for line in self.printed(name).splitlines() if line.startswith("[")]  # not what magics say
        return np.array(json.loads(line))

    def error(self, name: str) -> tuple[str, str]:
        """The error's type and the traceback as it is read."""
        (error,) = [output for output in self[name] if output.output_type == "error"]
        return error.ename, re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """All cells, run once in one kernel with a cache of its own."""
    folder: Path = tmp_path_factory.mktemp("jupyter")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLEXTRACE_CACHE_DIR", str(folder / "cache"))
        patch.delenv("FLEXTRACE_BACKEND", raising=False)
        patch.setenv("JUPYTER_PATH", str(folder))  # the kernel of this Python, not one that somebody installed
        cells = [nbformat.v4.new_code_cell(text) for text in CELLS.values()]
        notebook = nbformat.v4.new_notebook(cells=cells)
        client = nbclient.NotebookClient(
            notebook, timeout=120, kernel_name="python3", allow_errors=True, resources={"metadata": {"path": folder}}
        )
        client.execute()
    yield Ran(zip(CELLS, (cell.outputs for cell in notebook.cells), strict=True))


def softmax(scores: Any) -> Any:
    return np.exp(scores) / np.exp(scores).sum()


KV = np.arange(KEYS)


def test_the_kernel_is_of_this_python(ran: Ran) -> None:
    assert os.path.samefile(ran.printed("start").strip(), sys.executable)


@pytest.mark.parametrize(
    ("cell", "scores"),
    [
        ("mod", 0.5 * KV),
        ("other body", -0.5 * KV),
        ("first body", 0.5 * KV),
        ("timed", 0.25 * KV),
        ("timed line", -0.25 * KV),
        ("timeit", 0.75 * KV),
        ("timeit line", -0.75 * KV),
        ("profiled", 1.25 * KV),
        ("helped", 0.5 * KV),
        ("helped after", 0.25 * KV),
        ("helped deep", -2 * KV),
        ("with number", 0.5 * KV),
        ("with int", -2 * KV),
        ("with array", KV % 2),
        ("with array again", -2.0 * (KV % 2)),
        ("with array in place", np.array([3, -2, 0, -2, 0, -2])),
        ("branched", KV),
        ("branch again", 0 * KV),
        ("class", 1.0 * KV),
        ("class again", -1.0 * KV),
        ("import beside it", np.minimum(np.pi * KV, 3)),
        ("on the cpu", 0.5 * KV),
        ("after source", 0.125 * KV),
        ("after source again", -0.125 * KV),
        ("imported", 0.5 * KV),
        ("helper edited", 0.25 * KV),
        ("mod edited", -0.5 * KV),
    ],
)
def test_what_is_redefined_is_picked_up_at_once(ran: Ran, cell: str, scores: Any) -> None:
    np.testing.assert_allclose(ran.weights(cell), softmax(scores), rtol=1e-5)


def test_displays_in_cells(ran: Ran) -> None:
    before, after = ran.html("state before")[0], ran.html("state after")[0]
    assert "on cpu: not compiled yet" in before and "on cpu: in memory" in after
    assert "mask_mod <b>causal</b>" in ran.html("mask")[0] and "<svg" in ran.html("mask")[0]
    assert "6 full, 4 partial, 6 empty of 16 blocks" in ran.html("blocks")[0]


def test_errors_show_the_line_of_the_cell_with_a_caret(ran: Ran) -> None:
    name, traceback = ran.error("traced")
    assert name == "TraceError"
    assert re.search(r"Cell In\[\d+\], line 4, in endless\n    while kv_idx > 3:\n    \^{17}\nRemedy: ", traceback)
    number = list(CELLS).index("untraceable") + 1
    (html,) = ran.html("untraceable")
    assert f"Cell In[{number}], line 4, in endless" in html and "ipykernel_" not in html
    _, traceback = ran.error("call")
    assert re.search(r"line 5, in calls\n    return half\(score\)\n           \^{11}\n", traceback)
    assert re.search(r"line 2, in half\n    return x\.item\(\)\n           \^{6}\n", traceback)


def test_errors_of_arguments_and_of_the_cache_are_brief(ran: Ran) -> None:
    """The user's line and the message; the rest on request."""
    for cell, kind, line in (("wrong argument", "ValueError", 1), ("refused cache", "CacheError", 3)):
        name, traceback = ran.error(cell)
        first, _, blank, message, *_ = traceback.splitlines()
        number = list(CELLS).index(cell) + 1
        assert name == kind and re.fullmatch(
            rf"Cell In\[{number}\], line {line}, in <(cell line: \d+|module)>.*", first
        )
        assert not blank and message.startswith(f"{kind}: ") and len(traceback.splitlines()) < 8, traceback
    assert "checks.py" not in ran.error("wrong argument")[1]
    assert "store.py" in str(ran["the rest"]) and "store.py" not in str(ran["refused cache"])


def test_flex_source_defines_the_mods_and_shows_their_kernels(ran: Ran) -> None:
    relative, band = ran.html("source")
    assert "score_mod relative on metal" in relative and "mask_mod (causal &amp; sliding_window) on metal" in band
    assert "float</span> score_mod(" in relative and "number0" in relative
    (again,) = ran.html("source again")
    assert "score_mod relative on cpu" in again and "fx::sub" in again
    (default,) = ran.html("default source")
    assert "score_mod relative on " in default
    (text,) = [out.data["text/plain"] for out in ran["source again"] if "data" in out]
    assert text.startswith("score_mod relative on cpu\n") and "auto score_mod(" in text  # for a terminal
    values = [out.data["text/plain"] for out in ran["source"] if out.output_type == "execute_result"]
    assert values == ["0.25"]  # of the last line, as in any cell


def test_a_semicolon_hides_the_last_value(ran: Ran) -> None:
    assert len(ran.html("silent source")) == 1 and not [o for o in ran["silent source"] if "execution_count" in o]


def test_autoreload_renews_imported_mods_and_their_display(ran: Ran) -> None:
    (html,) = ran.html("shown edited")
    assert "mask_mod <b>sloped</b>" in html and "2 &lt; kv_idx" in html.replace("</span>", "")


def test_without_rules_of_autoreload_the_magics_load(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    shell = types.SimpleNamespace(register_magic_function=lambda function, kind, name: names.append(name))
    monkeypatch.setitem(sys.modules, "IPython.extensions.autoreload", None)
    flex.load_ipython_extension(shell)
    assert names == ["flex_source", "flex_cache"]


def test_flex_source_raises_what_its_cell_raises(ran: Ran) -> None:
    name, traceback = ran.error("failing source")
    number = list(CELLS).index("failing source") + 1
    assert name == "ZeroDivisionError" and f"Cell In[{number}], line 3" in traceback.replace("\u200b", "")
    name, traceback = ran.error("untraceable source")
    assert name == "TraceError"
    assert re.search(r"line 6, in means\n    return mx\.mean\(score\)\n", ran.error("spaced source")[1])
    assert re.search(r"line 4, in sums\n    return mx\.sum\(score\)\n           \^{13}\n", traceback)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("class source", "defines no mod; Slopes.bias is a method, take that of an instance: my = Slopes(...).bias"),
        ("no mod", "defines no mod; decorate a function with @flex.score_mod or @flex.mask_mod"),
        ("unknown backend", "takes a backend, metal or cuda or cpu, or nothing; got 'tpu'"),
        ("cache argument", "%flex_cache takes no argument, got 'all'"),
    ],
)
def test_magics_say_what_they_take(ran: Ran, cell: str, message: str) -> None:
    assert message in ran.printed(cell) + str(ran[cell])


def test_flex_cache_lists_kernels(ran: Ran) -> None:
    (html,) = ran.html("cache")
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", html)
    assert "1 kernel on disk" in html and cells[:3] == ["mod", "cpu", "attention, few rows"]
    assert re.fullmatch(r"[\d.]+ kB", cells[3]) and re.fullmatch(r"[0-9a-f]{12}", cells[5]) and cells[6] == ""
    age = time.time() - time.mktime(time.strptime(cells[4], "%Y-%m-%d %H:%M"))
    assert -60 < age < 3600


def test_displays_need_no_matplotlib(ran: Ran) -> None:
    assert ran.printed("loaded") == "[]\n"
