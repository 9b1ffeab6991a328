"""`wardrop games plots`: redraw the pictures of the docs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wardrop.commands.games.report import exits_cleanly
from wardrop.games.errors import GameError


@exits_cleanly
def plots(
    out: Annotated[
        Path, typer.Option(envvar="WARDROP_PLOT_DIR", help="Folder to write to.")
    ] = Path("docs/explanation/games/img"),
    only: Annotated[
        str | None, typer.Option(envvar="WARDROP_PLOT_ONLY", help="One picture, by file name.")
    ] = None,
) -> None:
    """Redraw the pictures of docs/explanation/games (needs the `plot` extra; about a minute).

    Example: `wardrop games plots --out docs/explanation/games/img`
    """
    from wardrop.games.plots import PICTURES

    if only is not None and only not in PICTURES:
        raise GameError(f"got --only {only}; expected one of {', '.join(PICTURES)}")
    for name, draw in PICTURES.items():
        if only in (None, name):
            draw(out / name)
            typer.echo(str(out / name))
