"""One style for all pictures of the paper's experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from bench.paper.settings import PICTURES

mpl.use("Agg")
from matplotlib import pyplot as plt

COLOURS = {
    "round_robin": "#888888",
    "dynamo": "#c44e52",
    "paper": "#dd8452",
    "sticky": "#8172b3",
    "toll": "#4c72b0",
    "toll+queue": "#55a868",
}


def colour(policy: str) -> str:
    """A policy's colour, regardless of its parameters."""
    name, _, rest = policy.partition("+")
    return COLOURS.get(name.partition("(")[0] + ("+queue" if rest else ""), "#333333")


def axes(rows: int, columns: int, width: float = 4.0, height: float = 3.1) -> tuple[Any, Any]:
    """A figure with a grid of axes, always two-dimensional."""
    return plt.subplots(
        rows, columns, figsize=(width * columns, height * rows), squeeze=False, layout="constrained"
    )


def save(figure: Any, name: str) -> Path:
    """Write docs/reports/paper/img/NAME.png."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    path = PICTURES / f"{name}.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
