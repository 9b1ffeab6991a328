"""Every page: its examples print what it says, its links and anchors exist.

`WARDROP_UPDATE_DOCS=1` writes the fresh output of the examples into the pages.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
TRACKED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
).stdout.splitlines()
PAGES = sorted(ROOT / name for name in TRACKED if (ROOT / name).exists()) or sorted(
    DOCS.rglob("*.md")
)
EXAMPLE = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)
WITH_EXAMPLES = [
    page
    for page in PAGES
    if page.is_relative_to(DOCS) and "games" not in page.parts and EXAMPLE.search(page.read_text())
]
LINK = re.compile(r"\]\(([^)\s#]*)(?:#([^)\s]+))?\)")
GENERATED = {"cli.md", "configuration.md", "metrics.md", "python"}
LONGEST_LINE = 150
UNWRAPPED = ("CHANGELOG.md", "SECURITY.md")


def relative(page: Path) -> str:
    return str(page.relative_to(ROOT))


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text()), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in plain}


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=relative)
def test_the_examples_of_a_page_print_what_it_says(page: Path, tmp_path: Path) -> None:
    text = page.read_text()
    for code, expected in EXAMPLE.findall(text):
        ran = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        if os.environ.get("WARDROP_UPDATE_DOCS"):
            old = f"```python\n{code}```\n\n```text\n{expected}```"
            new = f"```python\n{code}```\n\n```text\n{ran.stdout}```"
            page.write_text(page.read_text().replace(old, new))
        else:
            assert ran.stdout == expected, f"{relative(page)}: the printed output has changed"


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target, anchor in LINK.findall(without_code(page.read_text())):
        if "://" in target or target.startswith("mailto:"):
            continue
        file = (page.parent / target).resolve() if target else page
        if file.is_relative_to(DOCS / "reference") and GENERATED & {file.name, file.parent.name}:
            continue
        assert file.exists(), f"{relative(page)} links to {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{relative(page)} links to {target}#{anchor}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name not in UNWRAPPED], ids=relative
)
def test_no_line_of_a_page_is_too_long_to_read(page: Path) -> None:
    for number, line in enumerate(page.read_text().splitlines(), 1):
        assert len(line) <= LONGEST_LINE, f"{relative(page)}:{number} has {len(line)} characters"


def test_every_page_that_the_code_names_exists() -> None:
    sources = [
        file
        for folder, ends in (("rust", "rs"), ("python", "py*"), ("tests", "py"), ("bench", "py"))
        for file in (ROOT / folder).rglob(f"*.{ends}")
        if file.suffix in (".rs", ".py", ".pyi")
    ]
    named = {
        (relative(file), page)
        for file in sources
        for page in re.findall(r"\bdocs/[\w/-]+\.md", file.read_text())
    }
    assert named
    assert {pair for pair in named if not (ROOT / pair[1]).exists()} == set()
