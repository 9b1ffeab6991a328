"""`wardrop audit`: changes of settings, with author, reason and outcome."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from wardrop.commands.admin_client import URL_HELP, admin_url, ask, exit_on_error
from wardrop.control.audit import Record, outcomes, read_audit

_FIRST_UNIX_TIME_S = 1e9
"""A smaller time is not Unix time, but seconds of a simulation's clock."""
_MAX_RECORDS = 1024
"""Records that the admin API returns at most."""

Event = Literal["change", "kept", "rolled_back", "regime", "price_guard"]
"""Kinds of records."""

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def audit(
    path: Annotated[
        Path | None, typer.Argument(help="audit log (JSON lines); without it the router is asked")
    ] = None,
    last: Annotated[int, typer.Option(help="number of records, the latest ones", min=1)] = 50,
    event: Annotated[Event | None, typer.Option(help="records of one kind only")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="print JSON lines, with the evidence")
    ] = False,
    url: Annotated[str | None, typer.Option(help=URL_HELP)] = None,
) -> None:
    """Print changes of settings, oldest first: time, setting, author, reason and outcome."""
    with exit_on_error("audit"):
        records = _read(path) if path is not None else _ask(url, last)
    outcome_of = outcomes(records)
    for record in [r for r in records if event is None or r.event == event][-last:]:
        typer.echo(record.line() if as_json else _line(record, outcome_of))


def _read(path: Path) -> list[Record]:
    if not path.is_file():
        raise ValueError(
            f"got {str(path)!r}, which is not a file; expected an audit log, as written with "
            "`wardrop dynamo --audit-file FILE`. Without a path the running router is asked"
        )
    return list(read_audit(path))


def _ask(url: str | None, last: int) -> list[Record]:
    answer = ask(admin_url(url), f"/v1/audit?last={min(last, _MAX_RECORDS)}")
    return [Record(**record) for record in answer]


def _line(record: Record, outcome_of: dict[int, str]) -> str:
    if record.at_s > _FIRST_UNIX_TIME_S:
        when = datetime.fromtimestamp(record.at_s, UTC).strftime("%Y-%m-%d %H:%M:%S")
    else:
        when = f"{record.at_s:.1f} s"
    change = f"{record.setting}: {_value(record.before)} → {_value(record.after)}"
    outcome = outcome_of.get(record.number, "") if record.event == "change" else ""
    suffix = f"  [{outcome.replace('_', ' ')}]" if outcome else ""
    change_number = f" of {record.of}" if record.of else ""
    return (
        f"{record.number:>5}  {when}  {record.event + change_number:<16}{record.by:<11}"
        f"{change:<32}{record.reason}{suffix}"
    )


def _value(value: object) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)
