"""The goals as a table: wanted, measured, met or missed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from bench.price.cells import Cell, cells
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
KIND_WANTED = {"ttft": 0.70, "p99": 0.75, "e2e": 0.90, "goodput": 0.85}
"""Geometric means on kinds of traffic at the knee and over; no cell is above `WORST`."""
KIND_BELOW = {"ttft": 1.01, "p99": 1.05}
QUEUE_OVER_PRICE = 1.02
"""Most that the queue may be worse than the price alone, in any cell."""


def loaded(cell: Cell) -> bool:
    """Cells at or over the knee on 8 aggregated workers, where every policy has run."""
    return cell.place != "below" and eight(cell)


def calm(cell: Cell) -> bool:
    """Cells below the knee on the fleets of `loaded`."""
    return cell.place == "below" and eight(cell)


def eight(cell: Cell) -> bool:
    """Cells on 8 aggregated workers, of equal or unequal speed."""
    return cell.family.workers == 8 and cell.family.shape != "split" and not cell.family.is_kind


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
    yield from kind_lines(runs, seeds)
    for metric, policy in ALONE.items():
        if values := found(policy, metric, loaded):
            yield line(f"`{policy}`, {metric}, geometric mean", ALONE_MEAN, middle(values))
            worst, where = top(values)
            yield line(f"`{policy}`, {metric}, worst cell ({where})", ALONE_WORST, worst)


def kind_lines(runs: Runs, seeds: int) -> Iterator[str]:
    """Every goal on kinds of traffic."""

    def rated(metric: str, *, below: bool) -> dict[Cell, float]:
        def among(cell: Cell) -> bool:
            return cell.family.is_kind and (cell.place == "below") == below

        return ratios(runs, QUEUE, metric, seeds, among)

    def worst(what: str, wanted: float, values: dict[Cell, float]) -> str:
        cell = max(values, key=lambda cell: values[cell])
        return line(f"{what}, worst cell ({cell.kind}, {cell.load:g})", wanted, values[cell])

    for metric, wanted in KIND_WANTED.items():
        if values := rated(metric, below=False):
            mean = float(np.exp(np.mean(np.log(list(values.values())))))
            yield line(f"`{QUEUE}`, kinds, {metric}, geometric mean", wanted, mean)
            yield worst(f"`{QUEUE}`, kinds, {metric}", WORST, values)
    for metric, wanted in KIND_BELOW.items():
        if values := rated(metric, below=True):
            yield worst(f"`{QUEUE}`, kinds below the knee, {metric}", wanted, values)
    for metric in KIND_WANTED:
        both = {
            cell: (runs.mean(cell, QUEUE, metric, seeds), runs.mean(cell, "toll", metric, seeds))
            for cell in cells()
            if cell.family.is_kind
        }
        values = {cell: queue / alone for cell, (queue, alone) in both.items() if queue and alone}
        if values:
            yield worst(f"`{QUEUE}` over `toll`, kinds, {metric}", QUEUE_OVER_PRICE, values)


def goals(runs: Runs, seeds: int) -> str:
    """The table as Markdown."""
    return "\n".join(["| goal | wanted | seen | |", "|---|---|---|---|", *lines(runs, seeds), ""])
