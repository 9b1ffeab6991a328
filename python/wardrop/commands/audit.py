"""`wardrop audit`: what was changed, when, by whom, why, and what came of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from wardrop.commands.admin_client import AdminError, admin_url, ask
from wardrop.control.audit import Record, outcomes, read_audit

app = typer.Typer(add_completion=False, help=__doc__)
_UNIX_S = 1e9
"""Later times are Unix time; earlier ones seconds of some clock."""


@app.command()
def audit(
    path: Annotated[
        Path | None, typer.Argument(help="audit log (JSON lines); none: ask the gateway")
    ] = None,
    last: Annotated[int, typer.Option(help="only the last so many records", min=1)] = 50,
    event: Annotated[str | None, typer.Option(help="only this kind of event")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines, with the evidence")] = False,
    url: Annotated[str | None, typer.Option(help="admin API [env: WARDROP_ADMIN_URL]")] = None,
) -> None:
    """Print the records of a running gateway or of a log, oldest first."""
    try:
        if path is not None:
            records = list(read_audit(path))
        else:
            told = ask(admin_url(url), f"/v1/audit?last={min(last, 1024)}")
            records = [Record(**record) for record in told]
    except (ValueError, OSError, AdminError) as error:
        typer.echo(f"wardrop audit: {error}", err=True)
        raise typer.Exit(1) from None
    came = outcomes(records)
    for record in [r for r in records if event is None or r.event == event][-last:]:
        typer.echo(record.line() if as_json else _line(record, came))


def _line(record: Record, came: dict[int, str]) -> str:
    if record.at_s > _UNIX_S:
        when = datetime.fromtimestamp(record.at_s, UTC).strftime("%Y-%m-%d %H:%M:%S")
    else:
        when = f"{record.at_s:.1f} s"
    change = f"{record.setting}: {_value(record.before)} → {_value(record.after)}"
    ended = came.get(record.number, "") if record.event == "change" else ""
    of = f" of {record.of}" if record.of else ""
    outcome = f"  [{ended.replace('_', ' ')}]" if ended else ""
    return (
        f"{record.number:>5}  {when}  {record.event + of:<16}{record.by:<11}{change:<32}"
        f"{record.reason}{outcome}"
    )


def _value(value: object) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)
