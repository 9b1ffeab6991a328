"""The goals as a table: wanted, measured, met or missed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from bench.price.cells import Cell
from bench.price.runs import Runs
from bench.price.table import ratios

QUEUE = "toll+queue(kappa=10)"
WANTED = {"ttft": 0.70, "p99": 0.85, "itl": 1.01, "e2e": 0.90, "goodput": 0.90, "long": 1.25}
WORST = 1.10
BELOW = 1.01
ALONE = {
    "ttft": "toll",
    "itl": "toll(ttft=0,itl=1)",
    "e2e": "toll(ttft=0,e2e=1)",
    "goodput": "toll(ttft=0,goodput=1)",
}
ALONE_MEAN, ALONE_WORST = 1.00, 1.15


def loaded(cell: Cell) -> bool:
    """Cells at or over the knee on 8 aggregated workers, where every policy has run."""
    return cell.place != "below" and eight(cell)


def calm(cell: Cell) -> bool:
    """Cells below the knee on the fleets of `loaded`."""
    return cell.place == "below" and eight(cell)


def eight(cell: Cell) -> bool:
    """Cells on 8 aggregated workers, of equal or unequal speed."""
    return cell.family.workers == 8 and cell.family.shape != "split"


def line(what: str, wanted: float, seen: float) -> str:
    """A row of the table."""
    met = "met" if seen <= wanted else f"missed by {100 * (seen / wanted - 1):.0f} %"
    return f"| {what} | ≤ {wanted:.2f} | {seen:.2f} | {met} |"


def lines(runs: Runs, seeds: int) -> Iterator[str]:
    """Every goal with at least one measured cell."""

    def found(policy: str, metric: str, among: Callable[[Cell], bool]) -> dict[Cell, float]:
        return ratios(runs, policy, metric, seeds, among)

    def middle(values: dict[Cell, float]) -> float:
        return float(np.exp(np.mean(np.log(list(values.values())))))

    def top(values: dict[Cell, float]) -> tuple[float, str]:
        cell = max(values, key=lambda cell: values[cell])
        return values[cell], cell.name

    for metric, wanted in WANTED.items():
        if values := found(QUEUE, metric, loaded):
            yield line(f"`{QUEUE}`, {metric}, geometric mean", wanted, middle(values))
            if metric != "long":
                worst, where = top(values)
                yield line(f"`{QUEUE}`, {metric}, worst cell ({where})", WORST, worst)
        for policy in (QUEUE, "toll"):
            if values := found(policy, metric, calm):
                worst, where = top(values)
                yield line(f"`{policy}`, {metric}, below the knee ({where})", BELOW, worst)
    for metric, policy in ALONE.items():
        if values := found(policy, metric, loaded):
            yield line(f"`{policy}`, {metric}, geometric mean", ALONE_MEAN, middle(values))
            worst, where = top(values)
            yield line(f"`{policy}`, {metric}, worst cell ({where})", ALONE_WORST, worst)


def goals(runs: Runs, seeds: int) -> str:
    """The table as Markdown."""
    return "\n".join(["| goal | wanted | seen | |", "|---|---|---|---|", *lines(runs, seeds), ""])
