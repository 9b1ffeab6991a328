"""`wardrop curves`: the latency curves that a running router has learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from wardrop.commands.admin_client import URL_HELP, admin_url, ask, exit_on_error
from wardrop.control import curves as learned

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def curves(
    as_json: Annotated[
        bool, typer.Option("--json", help="print all coefficients, with their units")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="draw the curves into a PNG file")] = None,
    save: Annotated[Path | None, typer.Option(help="write the curves to a file")] = None,
    restore: Annotated[
        Path | None, typer.Option(help="give the router the curves of a saved file")
    ] = None,
    url: Annotated[str | None, typer.Option(help=URL_HELP)] = None,
) -> None:
    """Print, draw, save or restore the learned latency curves of a running router."""
    with exit_on_error("curves"):
        address = admin_url(url)
        if restore is not None:
            workers = ask(address, "/v1/curves", learned.load(restore))["workers"]
            typer.echo(f"restored the curves of all pools in the file and of {workers} workers")
            return
        answer = ask(address, "/v1/curves")
        if save is not None:
            pools = [{key: p[key] for key in ("model", "role", "record")} for p in answer["pools"]]
            content = {"version": learned.VERSION, "units": learned.UNITS, "pools": pools}
            save.write_text(json.dumps(content))
        if plot is not None:
            learned.plot(answer["pools"], plot)
        typer.echo(json.dumps(answer, indent=1) if as_json else learned.table(answer["pools"]))
