"""How every command prints: a titled text report or one JSON object, and errors in one line.

Where it stands: between the commands and the terminal. No prompt, token or block id is ever
printed.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ParamSpec, cast

import typer

from wardrop.charts import PlotMissingError
from wardrop.errors import InputError

P = ParamSpec("P")


@dataclass
class Report:
    """The result of a command.

    Attributes:
        title: one line.
        values: the JSON object: plain numbers, strings, lists, mappings.
        lines: the text for a human.
        assumptions: printed last in both forms.
    """

    title: str
    values: dict[str, object]
    lines: list[str] = field(default_factory=list[str])
    assumptions: Sequence[str] = ()

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Add a right-aligned text table; the first column is left-aligned."""
        widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
        for row in (heads, *rows):
            cells = [row[0].ljust(widths[0])]
            cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            self.lines.append("  " + "  ".join(cells).rstrip())

    def show(self, as_json: bool) -> None:
        """Print to stdout."""
        if as_json:
            body = {"title": self.title, **self.values, "assumptions": list(self.assumptions)}
            typer.echo(json.dumps(finite(body), indent=2))
            return
        typer.echo(self.title)
        for line in self.lines:
            typer.echo(line)
        if self.assumptions:
            typer.echo("assumes")
            for assumption in self.assumptions:
                typer.echo(f"  - {assumption}")


def finite(value: object) -> object:
    """The value with nan and infinities as null, for JSON that any reader takes."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        items = cast("dict[object, object]", value)
        return {str(key): finite(item) for key, item in items.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in cast("list[object]", value)]
    return value


def bar(share: float, width: int = 40) -> str:
    """A bar of `share` (0 to 1) of the width, in eighths of a character."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]


def exits_cleanly(command: Callable[P, None]) -> Callable[P, None]:
    """Wrap a command: bad input or a missing extra is one line on stderr and exit code 2."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (InputError, PlotMissingError) as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from error

    return wrapped
