"""`help()` of every native object begins with the first paragraph of its stub."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import wardrop
from wardrop import _core

STUB = Path(wardrop.__file__).parent / "_core.pyi"


def first_paragraph(text: str | None) -> str:
    """The first paragraph as one line, without the marks that Rust's lints ask for."""
    paragraph = inspect.cleandoc(text or "").split("\n\n")[0]
    return " ".join(paragraph.split()).replace("`", "")


def documented() -> Iterator[tuple[str, str, str | None]]:
    """Name, docstring of the stub and docstring at run time of every documented native object."""
    for node in ast.parse(STUB.read_text()).body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef) or not hasattr(_core, node.name):
            continue
        native = getattr(_core, node.name)
        if stub := ast.get_docstring(node):
            yield node.name, stub, native.__doc__
        for member in node.body:
            if not isinstance(member, ast.FunctionDef) or member.name.startswith("__"):
                continue
            if stub := ast.get_docstring(member):
                attribute = inspect.getattr_static(native, member.name)
                function = getattr(attribute, "__func__", attribute)
                yield f"{node.name}.{member.name}", stub, function.__doc__


@pytest.mark.parametrize(
    ("stub", "native"), [pytest.param(*docs, id=name) for name, *docs in documented()]
)
def test_help_of_a_native_object_begins_as_its_stub(stub: str, native: str | None) -> None:
    assert first_paragraph(native) == first_paragraph(stub)
