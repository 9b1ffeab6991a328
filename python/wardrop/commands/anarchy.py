"""`wardrop anarchy`: the price of anarchy of recorded requests, against the lower bound."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from wardrop.commands import simulation
from wardrop.errors import InputError

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def anarchy(
    records: Annotated[Path, typer.Argument(help="Folder or file of decision records.")],
    model: simulation.Model = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """What recorded requests paid over what no routing could have gone below.

    The figures are computed from the records alone, and shown beside the figures of the router.
    """
    from wardrop.replay.recorded import Price, price_of_records

    try:
        found = price_of_records(records, model)
    except InputError as error:
        typer.echo(f"wardrop anarchy: {error}", err=True)
        raise typer.Exit(2) from error
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=1))
        return
    typer.echo(
        f"{found.model}: {found.windows} windows; {found.left_out} requests are in no window with "
        "a bound"
    )

    def line(name: str, price: Price | None) -> str:
        if price is None:
            return f"  {name}: no finished request"
        band = "" if price.interval is None else " ({:.3f} to {:.3f})".format(*price.interval)
        return (
            f"  {name}: price of anarchy at most {price.value:.3f}{band}, the router computed "
            f"{price.live:.3f}; {price.requests} requests"
        )

    typer.echo(line("TTFT", found.ttft))
    typer.echo(line("E2E", found.e2e))
