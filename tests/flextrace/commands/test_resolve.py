"""MODULE:NAME -> mod: every way to name one, and what is said of a name that is none."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_notes import NOTES

import flextrace as flex
from flextrace.commands.resolve import ResolveError, find_mod, find_mods
from flextrace.decorators import title_of


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with notes.py and package/inner.py, which is the current one."""
    (tmp_path / "notes.py").write_text(NOTES)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "inner.py").write_text("from .base import causal\n")
    (tmp_path / "package" / "base.py").write_text("def causal(b, h, q_idx, kv_idx):\n    return q_idx >= kv_idx\n")
    (tmp_path / "broken.py").write_text("import no_such_package\n")
    (tmp_path / "fails.py").write_text("1 / 0\n")
    (tmp_path / "my masks.py").write_text("1 / 0\n")
    (tmp_path / "ends.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "neighbour.py").write_text("from notes import banded\n")
    (tmp_path / "package" / "deep").mkdir()
    (tmp_path / "package" / "deep" / "root.py").write_text("from package.base import causal\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("notes", "package", "broken", "fails", "ends", "neighbour", "root"):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("notes:alibi", "<score_mod alibi>"),
        ("notes.py:alibi", "<score_mod alibi>"),
        ("./notes.py:banded", "<mask_mod banded>"),
        ("notes:plain_mask", "<mask_mod plain_mask>"),
        ("notes.py:plain_score", "<score_mod plain_score>"),
        ("notes:band.mod", "<mask_mod <lambda>>"),
        ("notes:blocks.mask_mod", "<mask_mod banded>"),
        ("package.inner:causal", "<mask_mod causal>"),
        ("neighbour.py:banded", "<mask_mod banded>"),
        ("package/deep/root.py:causal", "<mask_mod causal>"),
        ("notes.py:band.near", "<mask_mod near>"),
        ("flextrace.mods:causal", "<mask_mod causal>"),
    ],
)
def test_a_name_finds_its_mod(folder: Path, target: str, shown: str) -> None:
    assert repr(find_mod(target)) == shown


def test_a_file_elsewhere_finds_its_neighbours(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert repr(find_mod("../neighbour.py:banded")) == "<mask_mod banded>"
    assert repr(find_mod(f"{folder / 'notes.py'}:alibi")) == "<score_mod alibi>"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("notes", "'notes' names no mod: write MODULE:NAME or FILE.py:NAME"),
        ("notes:", "names no mod"),
        (
            "notez:alibi",
            "there is no module 'notez', neither installed nor in this folder; install it, or name its file",
        ),
        ("package.outer:causal", "there is no module 'package.outer'"),
        ("other.py:alibi", "there is no file other.py; the path is from the current folder"),
        ("notes:alibbi", "notes has no 'alibbi'; did you mean 'alibi'?"),
        ("notes:zzz", "notes has no 'zzz'; its mods: alibi, banded, looked_up, loops"),
        ("package.inner:zzz", "it has no mods: decorate one with @flex.score_mod or mask_mod"),
        ("notes:band.modd", "notes.band has no 'modd'; did you mean 'mod'?"),
        ("notes:blocks", "notes:blocks is a BlockMask; name its function: notes:blocks.mask_mod"),
        ("notes:window", "notes:window is an int, not a mod; name a function"),
        ("notes:Band", "is a type, not a mod"),
        ("notes:make_window", "write my_mod = make_window(...) in a module of yours and name MODULE:my_mod"),
        ("notes:make_band", "notes:make_band takes 4 parameters: it is no score_mod"),
        ("notes:any_number", "takes any number of parameters"),
        ("flextrace.mods:sliding_window", "If it makes a mod, name what it made: write my_mod = sliding_window(...)"),
        ("broken:x", "importing broken failed with ModuleNotFoundError: No module named 'no_such_package'; `python -m"),
        (
            "fails.py:x",
            "importing fails.py failed with ZeroDivisionError: division by zero; `python fails.py` shows where",
        ),
        ("ends:x", "put what it runs under `if __name__ == '__main__':`"),
        ("notes:Band.near", "notes:Band.near is a method and belongs to an instance, its first argument is self; make"),
        ("notes.py:Band.near", "as in a = Band(...) at module level, and name notes.py:a.near"),
        ("my masks.py:x", "`python 'my masks.py'` shows where"),
        ("package/inner.py:causal", "it belongs to a package: name it as package.module:NAME"),
    ],
)
def test_what_is_no_mod_is_said_with_the_remedy(folder: Path, target: str, message: str) -> None:
    with pytest.raises(ResolveError) as caught:
        find_mod(target)
    assert message in str(caught.value)


def test_a_current_folder_that_was_deleted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "gone").mkdir()
    monkeypatch.chdir(folder / "gone")
    (folder / "gone").rmdir()
    with pytest.raises(ResolveError, match="the current folder was deleted; cd to one that exists"):
        find_mod("notes:alibi")


@pytest.mark.parametrize(
    "target",
    ["notes:alibi+banded", "notes.py:banded+alibi", "notes:alibi+notes:banded", "notes.py:alibi+./notes.py:banded"],
)
def test_two_mods_of_one_call(folder: Path, target: str) -> None:
    score, mask = find_mods(target)
    assert isinstance(score, flex.ScoreMod) and isinstance(mask, flex.MaskMod)
    assert title_of(score, mask) == "alibi + banded"


def test_one_mod_of_a_call(folder: Path) -> None:
    assert [repr(mod) for mod in find_mods("notes:alibi")] == ["<score_mod alibi>", "None"]
    assert [repr(mod) for mod in find_mods("flextrace.mods:causal")] == ["None", "<mask_mod causal>"]


def test_two_mods_of_one_kind_are_refused(folder: Path) -> None:
    with pytest.raises(ResolveError, match="names two mask_mods.* combine masks in Python with & and"):
        find_mods("notes:banded+plain_mask")
    with pytest.raises(ResolveError, match="or two of them as MODULE:SCORE"):
        find_mods("notes")
