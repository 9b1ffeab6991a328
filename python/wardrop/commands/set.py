"""`wardrop set`: change a running gateway by hand, through the audited door, or take that back."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from wardrop.commands.admin_client import AdminError, admin_url, ask

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def set_(
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[SETTING=VALUE]…", help="none: print all")
    ] = None,
    roll_back: Annotated[
        bool, typer.Option("--roll-back", help="undo the youngest change that stands")
    ] = False,
    number: Annotated[int | None, typer.Option(help="with --roll-back: only this change")] = None,
    reason: Annotated[str, typer.Option(help="why; goes into the audit")] = "",
    url: Annotated[str | None, typer.Option(help="admin API [env: WARDROP_ADMIN_URL]")] = None,
) -> None:
    """Change settings of a running gateway, or take the youngest change back.

    For example: wardrop set kappa=20; wardrop set policy=toll objective.e2e=2;
    wardrop set queue=true kappa=5; wardrop set --roll-back.
    """
    address = admin_url(url)
    try:
        if roll_back:
            if changes:
                raise AdminError("got changes with --roll-back, expected one or the other")
            body: dict[str, Any] = {"reason": reason}
            if number is not None:
                body["number"] = number
            _tell(ask(address, "/v1/settings/roll-back", body))
        elif changes:
            pairs = dict(_pair(change) for change in changes)
            _tell(ask(address, "/v1/settings", {"changes": pairs, "reason": reason}))
        else:
            _list(ask(address, "/v1/settings"))
    except AdminError as error:
        typer.echo(f"wardrop set: {error}", err=True)
        raise typer.Exit(1) from None


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise AdminError(f"got {text!r}, expected SETTING=VALUE")
    if name == "policy":
        return name, value
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _tell(record: dict[str, Any]) -> None:
    typer.echo(
        f"{record['event']} {record['number']}: {record['setting']}: "
        f"{record['before']} → {record['after']}"
    )


def _list(answer: dict[str, Any]) -> None:
    for name, value in answer["settings"].items():
        bound = answer["bounds"].get(name)
        range_ = f"{bound['low']:g} to {bound['high']:g} {bound['unit']}" if bound else ""
        says = bound["says"] if bound else ""
        typer.echo(f"{name:<22}{value!s:<14}{range_:<24}{says}")
