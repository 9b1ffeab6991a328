"""`wardrop receipt`: why one request went where it went, and what came of it."""

from __future__ import annotations

import json
from typing import Annotated
from urllib.parse import quote

import typer

from wardrop.commands.admin_client import URL_HELP, admin_url, ask, exit_on_error

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def receipt(
    request_id: Annotated[str, typer.Argument(help="x-request-id of the answer")],
    as_json: Annotated[bool, typer.Option("--json", help="print the receipt as JSON")] = False,
    url: Annotated[str | None, typer.Option(help=URL_HELP)] = None,
) -> None:
    """Print the receipt of a request: candidates, the parts of each price, the wait, the outcome.

    The router keeps the receipts of the last 1,000 requests: wardrop dynamo --receipts N.
    """
    with exit_on_error("receipt"):
        found = ask(admin_url(url), f"/v1/receipts/{quote(request_id, safe='')}")
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    from rich.console import Console

    from wardrop.terminal.receipt import render_receipt

    Console(highlight=False, markup=False).print(render_receipt(found))
