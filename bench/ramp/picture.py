"""The picture of the ramp: time to first token while the load rises and falls."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from bench.ramp.cells import FLEETS, KINDS, Cell
from bench.ramp.grid import DEFAULT
from bench.ramp.runs import CURVE_BIN_S, WARDROP_FRONT, Runs, dynamo

from wardrop.charts import new_figure
from wardrop.demo.picture import LIGHT
from wardrop.demo.ramp.settings import Setting

_COLOURS = ("#0072B2", "#56B4E9", "#D55E00")
_LABELS = ("Dynamo, default", "Dynamo, tuned for this traffic", "Wardrop, default")


def draw(runs: Runs, best: Mapping[Cell, Setting | None], seeds: int, path: Path) -> None:
    """Write the picture as PNG: one field per cell, with all judged seeds together.

    Raises:
        PlotMissingError: matplotlib is not installed.
    """
    figure: Any = new_figure(13, 6.6)
    grid: Any = figure.subplots(len(FLEETS), len(KINDS), sharex=True, squeeze=False)
    figure.suptitle(
        "Load from 0.4 to 1.4 of the knee and back, real Dynamo", fontsize=15, fontweight="bold"
    )
    seconds = 0.0
    for row, fleet in enumerate(FLEETS):
        for column, kind in enumerate(KINDS):
            axis = grid[row, column]
            cell = Cell(kind, fleet)
            chosen = best.get(cell)
            names = (dynamo(DEFAULT).name, dynamo(chosen or DEFAULT).name, WARDROP_FRONT.name)
            for name, label, colour in zip(names, _LABELS, _COLOURS, strict=True):
                found = [runs.find(cell, name, seed) for seed in range(seeds)]
                rows = [row for row in found if row is not None]
                if not rows:
                    continue
                seconds = max(seconds, *(r["seconds"] for r in rows))
                points = np.array([point for r in rows for point in r["curve"]])
                at = points[:, 0]
                bins = np.unique(at)
                means = [np.average(points[at == b, 2], weights=points[at == b, 1]) for b in bins]
                axis.plot((bins + 0.5) * CURVE_BIN_S, means, label=label, color=colour, lw=1.8)
            axis.set(yscale="log", title=f"{kind}, {fleet}")
            axis.yaxis.set_major_formatter(_milliseconds)
            axis.yaxis.set_minor_formatter(_milliseconds)
            axis.grid(visible=True, color=LIGHT.grid)
            axis.set_axisbelow(True)
    for axis in grid[:, 0]:
        axis.set_ylabel("time to first token, ms\n(mean of 2 s)")
    for axis in grid[-1, :]:
        axis.set_xlabel("time, s")
        axis.set_xlim(0, seconds)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=120)


def _milliseconds(value: float, _place: int | None) -> str:
    """The label of a tick; none at most of the ticks between two powers of ten."""
    text = f"{value:,.0f}"
    return text if text[0] in "1235" else ""
