"""`wardrop set`: change settings of a running router through the audited door, or undo a change."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from wardrop.commands.admin_client import URL_HELP, admin_url, ask, exit_on_error

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def set_(
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SETTING=VALUE]…", help="without any, all settings are printed"),
    ] = None,
    roll_back: Annotated[
        bool, typer.Option("--roll-back", help="undo the latest change that is in force")
    ] = False,
    number: Annotated[
        int | None, typer.Option(help="with --roll-back: number of the change to undo")
    ] = None,
    reason: Annotated[str, typer.Option(help="reason of the change, for the audit log")] = "",
    url: Annotated[str | None, typer.Option(help=URL_HELP)] = None,
) -> None:
    """Print the settings of a running router, change some, or undo a change.

    For example: wardrop set kappa=20; wardrop set policy=toll objective.e2e=2;
    wardrop set queue=true kappa=5; wardrop set --roll-back.
    """
    with exit_on_error("set"):
        address = admin_url(url)
        if roll_back:
            if changes:
                raise ValueError("got changes with --roll-back, expected one or the other")
            body: dict[str, Any] = {"reason": reason}
            if number is not None:
                body["number"] = number
            _print_record(ask(address, "/v1/settings/roll-back", body))
        elif changes:
            pairs = dict(_pair(change) for change in changes)
            _print_record(ask(address, "/v1/settings", {"changes": pairs, "reason": reason}))
        else:
            _print_settings(ask(address, "/v1/settings"))


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise ValueError(f"got {text!r}, expected SETTING=VALUE; `wardrop set` lists all settings")
    if name == "policy":
        return name, value
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _print_record(record: dict[str, Any]) -> None:
    typer.echo(
        f"{record['event']} {record['number']}: {record['setting']}: "
        f"{record['before']} → {record['after']}"
    )


def _print_settings(answer: dict[str, Any]) -> None:
    for name, value in answer["settings"].items():
        bound = answer["bounds"].get(name)
        bounds = f"{bound['low']:g} to {bound['high']:g} {bound['unit']}" if bound else ""
        summary = bound["says"] if bound else ""
        typer.echo(f"{name:<22}{value!s:<14}{bounds:<24}{summary}")
