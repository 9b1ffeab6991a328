"""The docs' examples print what the docs say, their pictures exist, and the tutorial runs.

`WARDROP_UPDATE_DOCS=1` writes the fresh output into the pages instead of comparing it.
"""

import contextlib
import io
import os
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "explanation" / "games"
TUTORIAL = ROOT / "docs" / "tutorials" / "three_games.py"
PAGES = sorted(DOCS.glob("*.md"))
EXAMPLE = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)


def printed(code: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "docs", "exec"), {"__name__": "docs"})
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def test_every_game_has_a_page_with_an_example() -> None:
    names = {page.stem for page in PAGES}
    assert {"routing", "caching", "resource", "coupled"} <= names
    for page in PAGES:
        if page.stem != "index":
            assert EXAMPLE.search(page.read_text()), f"{page.name} must hold a worked example"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_of_a_page_print_what_it_says(page: Path) -> None:
    text = page.read_text()
    for match in EXAMPLE.finditer(text):
        code, expected = match.groups()
        found = printed(code)
        if os.environ.get("WARDROP_UPDATE_DOCS"):
            fresh = f"```python\n{code}```\n\n```text\n{found}```"
            page.write_text(page.read_text().replace(match.group(0), fresh))
        else:
            assert found == expected, f"{page.name}: the printed output has changed"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_linked_file_exists(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_tutorial_prints_what_its_page_says() -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        runpy.run_path(str(TUTORIAL))
    page = (TUTORIAL.parent / "three-games.md").read_text()
    shown = re.search(r"```text\n(.*?)```", page, re.DOTALL)
    assert shown
    assert out.getvalue() == shown[1]
