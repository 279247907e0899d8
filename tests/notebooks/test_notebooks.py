"""notebooks/*.ipynb run from the top in under a minute each, and what is kept in them is what such a run gives."""

from __future__ import annotations

import base64
import getpass
import os
import re
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

import execute  # noqa: E402

from flextrace.kernels import backend_for  # noqa: E402

NOTEBOOKS = execute.notebooks()
REBUILD = "run `python tests/notebooks/execute.py`"
BYTES, PICTURE_BYTES = 600_000, 100_000
PLACES = re.compile(r"(?<![\w.])/(tmp|home|root|Users|work|private|var|opt|usr|mnt)/|[A-Z]:\\|ipykernel_\d|\x1b\[")
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def codes(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: Any) -> list[tuple[str, ...]]:
    """What each output of a cell is, without what it says. (A library may have something to log.)"""
    outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return [(output.output_type, *sorted(output.get("data", {}))) for output in outputs]


def texts(cell: Any) -> list[str]:
    data = [text for output in cell.outputs for kind, text in output.get("data", {}).items() if kind != "image/png"]
    return [output.text for output in cell.outputs if "text" in output] + data


def names_of_this_machine() -> list[str]:
    """Words that an output must not hold: where this run is, and whose."""
    folders = [str(Path.home()), str(Path(__file__).parents[2]), tempfile.gettempdir(), os.path.dirname(os.__file__)]
    words = [rf"\b{re.escape(name)}\b" for name in (getpass.getuser(), socket.gethostname()) if len(name) > 4]
    return [re.escape(folder) + "/" for folder in folders if len(folder) > 2] + words


def test_there_are_six() -> None:
    assert [path.stem[:2] for path in NOTEBOOKS] == ["1_", "2_", "3_", "4_", "5_", "6_"]


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.long] if path.stem == "6_training" else []) for path in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_it_runs_and_shows_what_is_kept(path: Path, tmp_path: Path) -> None:
    if "simulator" in path.read_text(encoding="utf-8"):
        backend_for("simulator")  # where it cannot run, the test is skipped
    kept = read(path)
    ran = execute.run(read(path), tmp_path)
    for before, after in zip(codes(kept), codes(ran), strict=True):
        assert kinds(after) == kinds(before), f"{before.source}\nshows another kind of output; {REBUILD}"
    assert any((tmp_path / "cache").rglob("manifest.json")), "it made no kernel in the cache that it was given"


@each
def test_kept_outputs_are_those_of_one_run_from_the_top(path: Path) -> None:
    cells = codes(read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), REBUILD
    assert all(cell.source.strip() for cell in cells)
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


@each
def test_kept_outputs_say_nothing_of_a_machine(path: Path) -> None:
    notebook = read(path)
    machine = [PLACES, *map(re.compile, names_of_this_machine())]
    for cell in codes(notebook):
        for text in texts(cell):
            found = [pattern.search(text) for pattern in machine]
            shown = [text[max(0, m.start() - 40) : m.end() + 40] for m in found if m is not None]
            assert not shown, f"{shown} in the output of\n{cell.source}"
    assert notebook.metadata == execute.METADATA and all(not cell.metadata for cell in notebook.cells), REBUILD


@each
def test_it_has_pictures_and_is_small(path: Path) -> None:
    outputs = [output for cell in codes(read(path)) for output in cell.outputs]
    pictures = [base64.b64decode(o.data["image/png"]) for o in outputs if "image/png" in o.get("data", {})]
    drawn = [o for o in outputs if "<svg" in o.get("data", {}).get("text/html", "")]
    assert pictures or drawn
    assert max(map(len, pictures), default=0) < PICTURE_BYTES
    assert path.stat().st_size < BYTES


@each
def test_it_is_as_execute_would_write_it(path: Path) -> None:
    assert nbformat.writes(execute.normalised(read(path))) + "\n" == path.read_text(encoding="utf-8"), REBUILD


# ---- execute.py itself -----------------------------------------------------------------------------------------------


def notebook_of(*sources: str) -> Any:
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])


def test_run_gives_outputs_that_tell_no_machine(tmp_path: Path) -> None:
    sources = (
        "def place():\n    return place.__code__.co_filename",
        "print('File \"' + place() + '\"')\nprint(1)",
        "import sys\nsys.executable",
    )
    ran = execute.run(notebook_of(*sources), tmp_path)
    assert ran.cells[1].outputs == [{"output_type": "stream", "name": "stdout", "text": "Cell In[1]\n1\n"}]
    assert os.path.samefile(ran.cells[2].outputs[0].data["text/plain"].strip("'"), sys.executable)
    assert [cell.execution_count for cell in ran.cells] == [1, 2, 3]
    assert ran.metadata == execute.METADATA and ran.cells[0].id == "cell-1" and not ran.cells[0].metadata
    assert ran == execute.normalised(nbformat.from_dict(ran))


def test_run_stops_at_an_error(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="ZeroDivisionError"):
        execute.run(notebook_of("1 / 0", "print(2)"), tmp_path)


def test_names_choose_notebooks() -> None:
    assert [path.stem[0] for path in execute.notebooks("1")] == ["1"]
    with pytest.raises(SystemExit, match="no notebook is called 9; there are 1_"):
        execute.notebooks("1", "9")
