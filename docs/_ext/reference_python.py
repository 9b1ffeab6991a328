"""The pages `reference/python/*.md`, from signatures and docstrings.

The sources are parsed, not imported: the native module keeps its docstrings in `_core.pyi`, and a
page needs no optional dependency of the code it describes. Docstrings are Markdown in Google style.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

MODULES = (
    "wardrop",
    "wardrop.engines",
    "wardrop.replay",
    "wardrop.games.routing",
    "wardrop.games.caching",
    "wardrop.games.resource",
    "wardrop.games.coupled",
)
SECTIONS = (
    "Args",
    "Arguments",
    "Returns",
    "Yields",
    "Raises",
    "Attributes",
    "Note",
    "Example",
    "Examples",
)
CONSTRUCTORS = ("__new__", "__init__")
WIDTH = 88

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def pages(root: Path) -> dict[str, str]:
    """File name to Markdown: one page per public module, and `index.md`.

    Args:
        root: the folder of the repository.
    """
    made = {f"{module}.md": _module_page(root / "python", module) for module in MODULES}
    entries = "\n".join(made_name.removesuffix(".md") for made_name in made)
    made["index.md"] = (
        "# Python API\n\nThe public modules of the package, generated from their signatures and "
        "docstrings.\n\n```{toctree}\n:maxdepth: 1\n\n" + entries + "\n```\n"
    )
    return made


def _module_page(package: Path, module: str) -> str:
    file = _source(package, module)
    tree = ast.parse(file.read_text())
    parts = [f"# `{module}`\n", _markdown(ast.get_docstring(tree) or "")]
    for name in _exported(tree):
        node, docstring = _find(package, module, tree, name)
        if isinstance(node, Definition):
            parts.extend(_definition(node, name, 2))
        elif node is not None:
            parts.append(f"## `{name}`\n\n```python\n{ast.unparse(node)[:400]}\n```\n")
            parts.append(_markdown(docstring))
    return "\n".join(part for part in parts if part) + "\n"


def _source(package: Path, module: str) -> Path:
    base = package.joinpath(*module.split("."))
    for file in (base / "__init__.py", base.with_suffix(".pyi"), base.with_suffix(".py")):
        if file.exists():
            return file
    raise RuntimeError(f"{module}: no source below {package}; adapt MODULES in {__file__}")


def _exported(tree: ast.Module) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def _find(package: Path, module: str, tree: ast.Module, name: str) -> tuple[ast.stmt | None, str]:
    """The statement that defines a name, and the text that follows a constant."""
    for index, node in enumerate(tree.body):
        if isinstance(node, Definition) and node.name == name:
            return node, ""
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and target.id == name:
                return node, _text_after(tree.body, index)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if (alias.asname or alias.name) == name and node.module.startswith("wardrop"):
                    inner = ast.parse(_source(package, node.module).read_text())
                    return _find(package, node.module, inner, alias.name)
    return None, ""


def _definition(node: Definition, path: str, level: int) -> Iterator[str]:
    if not isinstance(node, ast.ClassDef):
        yield f"{'#' * level} `{path}`\n\n```python\n{_signature(node)}\n```\n"
        yield _markdown(ast.get_docstring(node) or "")
        return
    constructor = next(
        (
            n
            for n in node.body
            if isinstance(n, ast.FunctionDef) and n.name in ("__new__", "__init__")
        ),
        None,
    )
    shown = _signature(constructor, node.name) if constructor else _head(node)
    yield f"{'#' * level} `{path}`\n\n```python\n{shown}\n```\n"
    yield _markdown(ast.get_docstring(node) or "")
    if constructor and (text := ast.get_docstring(constructor)):
        yield _markdown(text)
    yield from _fields(node)
    for child in node.body:
        if isinstance(child, ast.FunctionDef) and not child.name.startswith("_"):
            if _is_property(child):
                continue
            yield from _definition(child, f"{path}.{child.name}", level + 1)


def _head(node: ast.ClassDef) -> str:
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    return f"class {node.name}({bases})" if bases else f"class {node.name}"


def _fields(node: ast.ClassDef) -> Iterator[str]:
    rows: list[str] = []
    for index, child in enumerate(node.body):
        if isinstance(child, ast.FunctionDef) and _is_property(child):
            text = " ".join((ast.get_docstring(child) or "").split())
            rows.append(f"* `{_signature(child)}`" + (f"  \n  {text}" if text else ""))
        if isinstance(child, ast.AnnAssign) and not ast.unparse(child.target).startswith("_"):
            default = f" = {ast.unparse(child.value)}" if child.value else ""
            text = " ".join(_text_after(node.body, index).split())
            shown = f"{ast.unparse(child.target)}: {ast.unparse(child.annotation)}{default}"
            rows.append(f"* `{shown}`" + (f"  \n  {text}" if text else ""))
    if rows:
        yield "\n".join(rows) + "\n"


def _text_after(body: list[ast.stmt], index: int) -> str:
    after = body[index + 1] if index + 1 < len(body) else None
    if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
        return after.value.value if isinstance(after.value.value, str) else ""
    return ""


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef, name: str | None = None) -> str:
    if _is_property(node):
        return f"{node.name}: {ast.unparse(node.returns)}" if node.returns else node.name
    arguments = node.args
    first = (arguments.posonlyargs or arguments.args)[:1]
    if first and first[0].arg in ("self", "cls"):
        (arguments.posonlyargs or arguments.args).pop(0)
    back = f" -> {ast.unparse(node.returns)}" if node.returns and name is None else ""
    line = f"{name or node.name}({ast.unparse(arguments)}){back}"
    if len(line) <= WIDTH:
        return line
    inner = ",\n    ".join(_split(ast.unparse(arguments)))
    return f"{name or node.name}(\n    {inner},\n){back}"


def _is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(ast.unparse(decorator) == "property" for decorator in node.decorator_list)


def _split(text: str) -> list[str]:
    """Arguments of a signature, split at the commas outside of brackets."""
    parts, depth, start = [], 0, 0
    for index, character in enumerate(text):
        depth += character in "([{"
        depth -= character in ")]}"
        if character == "," and depth == 0:
            parts.append(text[start:index].strip())
            start = index + 1
    return [*parts, text[start:].strip()]


def _markdown(docstring: str) -> str:
    """A Google docstring as Markdown: each section becomes a list below a bold word."""
    lines = textwrap.dedent(docstring).splitlines()
    out: list[str] = []
    index = 0
    while index < len(lines):
        title = lines[index].strip().removesuffix(":")
        if title in SECTIONS and lines[index].endswith(":") and not lines[index].startswith(" "):
            index += 1
            block: list[str] = []
            while index < len(lines) and (not lines[index].strip() or lines[index].startswith(" ")):
                block.append(lines[index])
                index += 1
            out += ["", f"**{title}**", "", *_entries(textwrap.dedent("\n".join(block))), ""]
        else:
            out.append(lines[index])
            index += 1
    return "\n".join(out).strip() + "\n" if out else ""


def _entries(block: str) -> list[str]:
    entries: list[str] = []
    for line in block.splitlines():
        if not line.strip():
            continue
        if not line.startswith(" "):
            named = re.match(r"([*\w.,` ()]+?): (.*)", line)
            entries.append(f"* `{named[1].strip('`')}`: {named[2]}" if named else f"* {line}")
        else:
            entries.append(f"  {line.strip()}")
    return entries
