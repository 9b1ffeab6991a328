"""The page `reference/cli.md`, from the click commands that typer builds."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from typing import Any

import typer.main

from wardrop.commands import SUBCOMMANDS

HEAD = """# Command line

Every subcommand of `wardrop` with its options. `wardrop SUBCOMMAND --help` prints the same.
This page is generated from the commands themselves.
"""


def page() -> str:
    """The whole page in Markdown: one section per command."""
    parts = [HEAD]
    for name, command in _subcommands():
        parts.extend(_sections(f"wardrop {name}", command, 2))
    return "\n".join(parts)


def _subcommands() -> Iterator[tuple[str, Any]]:
    for name, subcommand in SUBCOMMANDS.items():
        app: Any = importlib.import_module(subcommand.module).app
        yield name, typer.main.get_command(app)


def _sections(path: str, command: Any, level: int) -> Iterator[str]:
    yield f"{'#' * level} `{path}`\n\n{_text(command.help or '')}\n"
    if hasattr(command, "commands"):
        for name, child in sorted(command.commands.items()):
            yield from _sections(f"{path} {name}", child, level + 1)
        return
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    shown = " ".join(argument.metavar or argument.name.upper() for argument in arguments)
    yield f"```text\n{path} [OPTIONS] {shown}".rstrip() + "\n```\n"
    rows = [_row(parameter) for parameter in (*arguments, *options)]
    if rows:
        yield "| option | default | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def _row(parameter: Any) -> str:
    names = [parameter.name.upper()] if parameter.param_type_name == "argument" else []
    names += [*getattr(parameter, "opts", []), *getattr(parameter, "secondary_opts", [])]
    if parameter.param_type_name == "argument":
        names = names[:1]
    text = _text(getattr(parameter, "help", None) or "").replace("\n", " ")
    inside = re.search(r"\s*\[default: (.*?)\]", text)
    text = re.sub(r"\s*\[default: .*?\]", "", text)
    default = inside[1] if inside else _default(parameter)
    return (
        f"| {', '.join(f'`{n}`' for n in names)} | {default} | {text.replace('|', chr(92) + '|')} |"
    )


def _default(parameter: Any) -> str:
    value = parameter.default
    if parameter.required:
        return "required"
    if value is None or callable(value) or value in ((), [], ""):
        return "–"
    if repr(value).startswith("Sentinel"):
        return "–"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{value}`"


def _text(text: str) -> str:
    """Help text without typer's markup and control characters."""
    return (
        re.sub(r"\[/?(?:bold|dim|green|cyan|yellow|italic)\]", "", text).replace("\b", "").strip()
    )
