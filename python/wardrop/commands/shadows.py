"""`wardrop shadows`: estimates for policies that are not in force, from live traffic."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from wardrop.commands.admin_client import URL_HELP, admin_url, ask, exit_on_error
from wardrop.control import shadows as estimates

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def shadows(
    as_json: Annotated[bool, typer.Option("--json", help="print all figures as JSON")] = False,
    url: Annotated[str | None, typer.Option(help=URL_HELP)] = None,
) -> None:
    """Print the estimate for each shadow policy, beside the policy in force.

    The router must run with shadows: wardrop dynamo --shadows "dynamo;toll+queue(kappa=30)".
    """
    with exit_on_error("shadows"):
        models = ask(admin_url(url), "/v1/shadows")["models"]
    typer.echo(json.dumps(models, indent=1) if as_json else estimates.table(models))
