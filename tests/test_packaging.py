"""The source archive and the metadata: all of the project is in one, and the other says where things are."""

from __future__ import annotations

import shutil
import subprocess
import sys
from email import message_from_string
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
MADE = ("PKG-INFO", "setup.cfg", "flextrace.egg-info/")  # by setuptools, beside the project's own files


@pytest.fixture(scope="module")
def files() -> set[str]:
    """What the repository holds."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone: what the project holds is not known")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name for name in listed.split("\0") if name and (ROOT / name).exists()}


@pytest.fixture(scope="module")
def archive(files: set[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive, unpacked."""
    if int(metadata.version("setuptools").split(".")[0]) < 77:
        pytest.skip("setuptools 77 is needed to build: pip install -e '.[dev]'")
    folder = tmp_path_factory.mktemp("sdist")
    for name in files:
        target = folder / "project" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    command = [sys.executable, "-c", BUILD, str(folder)]
    subprocess.run(command, cwd=folder / "project", capture_output=True, check=True, timeout=120)
    (packed,) = folder.glob("*.tar.gz")
    shutil.unpack_archive(packed, folder / "unpacked")
    (unpacked,) = (folder / "unpacked").iterdir()
    return unpacked


def test_the_source_archive_holds_the_project(archive: Path, files: set[str]) -> None:
    held = {path.relative_to(archive).as_posix() for path in archive.rglob("*") if path.is_file()}
    assert {name for name in held if not name.startswith(MADE)} == files


def test_the_metadata_says_where_things_are(archive: Path) -> None:
    fields = message_from_string((archive / "PKG-INFO").read_text(encoding="utf-8"))
    links = dict(line.split(", ", 1) for line in fields.get_all("Project-URL") or [])
    assert links and all(link.startswith("https://") for link in links.values())
    assert fields.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")
