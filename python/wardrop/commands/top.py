"""`wardrop top`: the facts of the live page in a terminal, once a second."""

from __future__ import annotations

from typing import Annotated

import typer

from wardrop.commands.admin_client import URL_HELP, AdminError, admin_url, exit_on_error

_LINES_BESIDE_WORKERS = 16
"""Lines of the screen that no worker has: head, problems, figures and frames."""

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def top(
    once: Annotated[bool, typer.Option("--once", help="print one screen and end")] = False,
    url: Annotated[str | None, typer.Option(help=URL_HELP)] = None,
) -> None:
    """Show problems, latency, price of anarchy and workers of a running router, once a second.

    Ctrl-C ends it. The live page on the admin port shows the same, with charts.
    """
    from rich.console import Console
    from rich.live import Live

    from wardrop.terminal.live_reader import snapshots
    from wardrop.terminal.top import render_top

    console = Console(highlight=False)
    with exit_on_error("top"), snapshots(admin_url(url)) as arriving:
        most = max(4, console.height - _LINES_BESIDE_WORKERS)
        first = next(arriving, None)
        if first is None:
            raise AdminError("the router ended the stream without a snapshot")
        if once:
            console.print(render_top(first, most))
            return
        try:
            with Live(render_top(first, most), console=console, screen=True) as screen:
                for snapshot in arriving:
                    most = max(4, console.height - _LINES_BESIDE_WORKERS)
                    screen.update(render_top(snapshot, most))
        except KeyboardInterrupt:
            return
        raise AdminError("the router ended the stream")
