"""The README and the pages it leads to: the example runs, links lead somewhere, and it stays short."""

from __future__ import annotations

import linecache
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "docs" / "measured.md", ROOT / "docs" / "training.md", ROOT / "CHANGELOG.md"]
LINK = re.compile(r"\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)")


def run_example(page: Path) -> dict[str, Any]:
    """The names that the Python texts of a page leave, one after the other."""
    examples = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert examples
    example = "\n".join(examples)
    names: dict[str, Any] = {}
    filename = f"<example of {page.name}>"
    linecache.cache[filename] = (len(example), None, example.splitlines(True), filename)
    exec(compile(example, filename, "exec"), names)
    return names


def test_the_example_runs() -> None:
    assert run_example(PAGES[0])["out"].shape == (1, 4, 1024, 64)


def test_the_example_of_training_runs() -> None:
    names = run_example(ROOT / "docs" / "training.md")
    assert names["d_q"].shape == (1, 4, 256, 64)
    assert names["d_bias"][:, 255:].all() and not names["d_bias"][:, :255].any()  # causal: the other distances


def test_the_readme_works_away_from_its_folder() -> None:
    """A package index shows it: it links to nothing beside it, and the files that it names are there."""
    text = PAGES[0].read_text(encoding="utf-8")
    assert not LINK.findall(text)
    files = re.findall(r"`((?:docs|notebooks|tests|tracer)/[\w./]+|[A-Z]+\.md)`", text)
    assert {"notebooks/1_first_mod.ipynb", "docs/measured.md", "CHANGELOG.md"} <= {*files}
    assert not [file for file in files if not (ROOT / file).exists()]


def test_the_architecture_names_files_that_are_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    files = set(re.findall(r"\b((?:flextrace|tracer|kernels|cache|tests)/[\w./]*\w/?)", text))
    assert len(files) > 30
    assert sorted(file for file in files if not (ROOT / file).exists()) == []


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = LINK.findall(page.read_text(encoding="utf-8"))
    assert links
    for target, heading in links:
        file = (page.parent / target) if target else page
        assert file.exists(), f"{page.name} links to {target}"
        if heading:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings]


def test_the_readme_is_one_screen() -> None:
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= 100
