"""Each program in `examples/` runs and prints the output that its docstring holds."""

from __future__ import annotations

import ast
import doctest
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples"
PROGRAMS = sorted(FOLDER.glob("*.py"))


def expected_output(program: Path) -> str:
    """The indented block under "Expected output"; `...` in it matches any text."""
    docstring = ast.get_docstring(ast.parse(program.read_text()))
    assert docstring, f"{program.name} has no docstring"
    _, found, block = docstring.partition("Expected output")
    assert found, f"the docstring of {program.name} shows no expected output"
    return textwrap.dedent(block.partition("\n")[2]).strip() + "\n"


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_example_prints_what_its_docstring_says(program: Path, tmp_path: Path) -> None:
    if program.stem == "asyncio_server":
        pytest.importorskip("aiohttp")
    ran = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
    )
    assert ran.returncode == 0, ran.stderr
    expected = expected_output(program)
    matches = doctest.OutputChecker().check_output(expected, ran.stdout, doctest.ELLIPSIS)
    assert matches, f"expected:\n{expected}\ngot:\n{ran.stdout}"


def test_the_index_page_lists_every_example() -> None:
    page = (FOLDER / "README.md").read_text()
    assert PROGRAMS
    assert [program.name for program in PROGRAMS if f"]({program.name})" not in page] == []
