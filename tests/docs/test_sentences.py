"""Sentences of pages, docstrings and comments have at most 25 words."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.docs.test_pages import PAGES, ROOT, relative, without_code

MOST_WORDS = 25
"""Words of a sentence, which a colon or semicolon ends. Code is one word; brackets do not count."""
ENDS = re.compile(r"(?<=[.!?:;])(?:\*\*|\"|”)?\s+")
ITEM = re.compile(r"\n\s*(?:[-*]|\d+\.)\s+")


def sentences(text: str) -> Iterator[str]:
    """Sentences of a text in Markdown, without code blocks and tables."""
    for paragraph in re.split(r"\n\s*\n", without_code(text)):
        if re.search(r"^\s*\|", paragraph, re.MULTILINE):
            continue
        for item in ITEM.split("\n" + paragraph):
            plain = re.sub(r"``?[^`]*``?", "code", item)
            plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", plain)
            plain = re.sub(r"\([^()]*\)", "", plain)
            yield from ENDS.split(" ".join(plain.split()))


def too_long(text: str) -> list[str]:
    return [each for each in sentences(text) if len(each.split()) > MOST_WORDS]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=relative
)
def test_sentences_of_a_page_are_short(page: Path):
    assert too_long(page.read_text()) == []


def docstrings(source: str) -> Iterator[str]:
    """Docstrings of a Python file, and the texts that stand below constants and attributes."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            text = node.value.value
            if isinstance(text, str):
                yield inspect.cleandoc(text)


def rust_comments(source: str) -> Iterator[str]:
    """Blocks of neighbouring comment lines of a Rust file."""
    block: list[str] = []
    for line in [*source.splitlines(), ""]:
        comment = re.match(r"\s*//[/!]? ?(.*)", line)
        if comment:
            block.append(comment[1])
        elif block:
            yield "\n".join(block)
            block = []


def python_comments(source: str) -> Iterator[str]:
    """Blocks of neighbouring comment lines of a Python file."""
    for block in re.findall(r"(?:^[ \t]*# .*\n?)+", source, re.MULTILINE):
        yield re.sub(r"^[ \t]*# ", "", block, flags=re.MULTILINE)


def without_literals(text: str) -> str:
    """The text without indented blocks, which hold tables, grammars and commands."""
    return re.sub(r"^ {4,}.*$|^ {2,}\S+ {2,}.*$", "", text, flags=re.MULTILINE)


SOURCES = sorted(
    file
    for folder in ("python", "rust", "frontend/src", "tests", "bench")
    for file in (ROOT / folder).rglob("*")
    if file.suffix in (".py", ".pyi", ".rs") and not {"target", "build"} & set(file.parts)
    if "_pb2" not in file.name
)


def test_sentences_of_docstrings_and_comments_are_short():
    assert len(SOURCES) > 500
    found = {}
    for file in SOURCES:
        source = file.read_text()
        is_rust = file.suffix == ".rs"
        texts = (
            rust_comments(source) if is_rust else [*docstrings(source), *python_comments(source)]
        )
        if long := [each for text in texts for each in too_long(without_literals(text))]:
            found[relative(file)] = long
    assert found == {}
