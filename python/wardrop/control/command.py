"""`wardrop audit FILE`: what was changed, when, why, and what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wardrop.control.audit import read_audit

app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def audit(
    path: Annotated[Path, typer.Argument(help="The audit log (JSON lines).", exists=True)],
    last: Annotated[int, typer.Option(help="Only the last so many records.", min=1)] = 50,
    event: Annotated[str | None, typer.Option(help="Only this kind of event.")] = None,
) -> None:
    """Print the records of an audit log, oldest first."""
    try:
        records = [r for r in read_audit(path) if event is None or r.event == event]
    except ValueError as error:
        typer.echo(f"wardrop audit: {error}", err=True)
        raise typer.Exit(1) from None
    for record in records[-last:]:
        change = f"{record.setting}: {record.before} → {record.after}"
        typer.echo(f"{record.at_s:12.1f} s  {record.event:<12}{change:<32}{record.reason}")
