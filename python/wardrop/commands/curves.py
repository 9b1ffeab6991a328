"""`wardrop curves`: the latency curves that a running gateway has learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from wardrop.commands.admin_client import AdminError, admin_url, ask
from wardrop.control import curves as learned

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def curves(
    as_json: Annotated[bool, typer.Option("--json", help="everything, with units")] = False,
    plot: Annotated[Path | None, typer.Option(help="draw them into this PNG")] = None,
    save: Annotated[Path | None, typer.Option(help="write them to a file for --restore")] = None,
    restore: Annotated[
        Path | None, typer.Option(help="have the gateway take over a saved file")
    ] = None,
    url: Annotated[str | None, typer.Option(help="admin API [env: WARDROP_ADMIN_URL]")] = None,
) -> None:
    """Print, draw, save or restore the learned latency curves of a running gateway."""
    address = admin_url(url)
    try:
        if restore is not None:
            taken = ask(address, "/v1/curves", learned.load(restore))["workers"]
            typer.echo(f"restored: the fleets' curves and those of {taken} workers")
            return
        answer = ask(address, "/v1/curves")
        if save is not None:
            kept = [{k: p[k] for k in ("model", "role", "record")} for p in answer["pools"]]
            content = {"version": learned.VERSION, "units": learned.UNITS, "pools": kept}
            save.write_text(json.dumps(content))
        if plot is not None:
            learned.plot(answer["pools"], plot)
        typer.echo(json.dumps(answer, indent=1) if as_json else learned.table(answer["pools"]))
    except (AdminError, ValueError, RuntimeError, OSError) as error:
        typer.echo(f"wardrop curves: {error}", err=True)
        raise typer.Exit(1) from None
