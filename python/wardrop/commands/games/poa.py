"""`wardrop games poa`: the price of anarchy over load, with its bound."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import typer

from wardrop.commands.games.report import Report, bar, exits_cleanly
from wardrop.games.routing.load_curve import load_curve


@exits_cleanly
def poa(
    family: Annotated[
        str,
        typer.Option(
            envvar="WARDROP_FAMILY", help="affine, quadratic, quartic, mm1 or saturating."
        ),
    ] = "mm1",
    points: Annotated[int, typer.Option(envvar="WARDROP_POINTS", help="Loads to compute.")] = 9,
    json: Annotated[
        bool, typer.Option("--json", envvar="WARDROP_JSON", help="Print one JSON object.")
    ] = False,
) -> None:
    """The price of anarchy over load, with the classical bound and with Pigou tolls.

    Two workers, one that congests and one that is slow but hardly does: the instance on which each
    family's bound was found. With M/M/1 the bound diverges as the load nears capacity; with tolls
    the price is 1 at every load.

    Example: `wardrop games poa --family mm1 --points 9`
    """
    curve = load_curve(family, points)
    values: dict[str, object] = {"family": family, "points": [point.__dict__ for point in curve]}
    report = Report(f"price of anarchy over load, {family}", values)
    top = max(point.anarchy for point in curve)
    report.table(
        ("requests/s", "anarchy", "bound", "with tolls", ""),
        [
            (
                f"{point.rate:.3f}",
                f"{point.anarchy:.4f}",
                "-" if np.isnan(point.bound) else f"{point.bound:.4f}",
                f"{point.tolled:.4f}",
                bar((point.anarchy - 1.0) / max(top - 1.0, 1e-12), 24).ljust(24),
            )
            for point in curve
        ],
    )
    report.assumptions = ("a continuum of requests (nonatomic); one class, no cache",)
    report.show(json)
