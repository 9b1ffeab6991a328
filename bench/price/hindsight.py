"""How much there is to adapt to: the better of price and queue in each cell, known in advance."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from bench.price.cells import Cell, cells
from bench.price.goals import QUEUE
from bench.price.runs import METRICS, Runs

ALONE = "toll"


def both(runs: Runs, metric: str, seeds: int) -> Iterator[tuple[Cell, float, float]]:
    """Cells where both ran on all seeds, with the figures of price and queue."""
    for cell in cells():
        alone = runs.mean(cell, ALONE, metric, seeds)
        queue = runs.mean(cell, QUEUE, metric, seeds)
        if alone is not None and queue is not None:
            yield cell, alone, queue


def hindsight(runs: Runs, seeds: int) -> str:
    """Markdown: a choice per cell with hindsight, over the better setting for all cells."""
    lines = [
        "| metric | cells | queue ÷ price | best per cell ÷ best single | most in a cell |",
        "|---|---|---|---|---|",
    ]
    for metric, title in METRICS.items():
        figures = np.array([values for _, *values in both(runs, metric, seeds)])
        if len(figures) == 0:
            continue
        alone, queue = np.exp(np.log(figures).mean(axis=0))
        single = figures[:, int(queue < alone)]
        gains = figures.min(axis=1) / single
        lines.append(
            f"| {title} | {len(figures)} | {queue / alone:.3f} "
            f"| {np.exp(np.log(gains).mean()):.3f} | {gains.min():.2f} |"
        )
    return "\n".join([*lines, ""])
