"""`wardrop shadows`: what other policies would have made of a running gateway's traffic."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from wardrop.commands.admin_client import AdminError, admin_url, ask
from wardrop.control import shadows as told

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def shadows(
    as_json: Annotated[bool, typer.Option("--json", help="everything that is known")] = False,
    url: Annotated[str | None, typer.Option(help="admin API [env: WARDROP_ADMIN_URL]")] = None,
) -> None:
    """Print what each shadow policy would have given, against the policy in force.

    The gateway must run with shadows: wardrop dynamo --shadows "dynamo;toll+queue(kappa=30)".
    """
    try:
        models = ask(admin_url(url), "/v1/shadows")["models"]
    except AdminError as error:
        typer.echo(f"wardrop shadows: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(json.dumps(models, indent=1) if as_json else told.table(models))
