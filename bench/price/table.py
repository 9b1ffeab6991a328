"""The comparison with the best static rule of the same cell, one metric at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from bench.price.cells import Cell, cells
from bench.price.rules import KIND_OURS, KNOWN, OURS
from bench.price.runs import METRICS, Runs

SHOWN = [*OURS, *KNOWN]


def bar(runs: Runs, cell: Cell, metric: str, seeds: int) -> float | None:
    """The best static rule of a cell on all seeds, among winners on seed 0 and `KNOWN`."""
    if not runs.is_tuned(cell):
        return None
    values = [runs.mean(cell, policy, metric, seeds) for policy in runs.contenders(cell)]
    kept = [value for value in values if value is not None]
    return min(kept) if len(kept) == len(values) else None


def ratios(
    runs: Runs, policy: str, metric: str, seeds: int, among: Callable[[Cell], bool]
) -> dict[Cell, float]:
    """Policy ÷ best static rule, per cell where both ran on all seeds; below 1 is better."""
    found: dict[Cell, float] = {}
    for cell in filter(among, cells()):
        ours, best = runs.mean(cell, policy, metric, seeds), bar(runs, cell, metric, seeds)
        if ours is not None and best is not None:
            found[cell] = ours / best
    return found


def missing(runs: Runs, seeds: int) -> dict[str, list[str]]:
    """By name of a group: the policies of `OURS` that lack a cell of the group."""
    found: dict[str, list[str]] = {}
    for name, among in GROUPS.items():
        here = list(filter(among, cells()))
        if not any(ratios(runs, policy, "ttft", seeds, among) for policy in OURS):
            continue
        ours = KIND_OURS if all(cell.family.is_kind for cell in here) else OURS
        lacking = [p for p in ours if len(ratios(runs, p, "ttft", seeds, among)) < len(here)]
        if lacking:
            found[name] = lacking
    return found


def row(runs: Runs, policy: str, seeds: int, among: Callable[[Cell], bool]) -> str:
    """A row: number of cells, then geometric mean and worst cell per metric."""
    found = {
        metric: list(ratios(runs, policy, metric, seeds, among).values()) for metric in METRICS
    }
    count = len(found["ttft"])
    if count == 0:
        return ""
    parts = [
        f"{np.exp(np.mean(np.log(values))):.2f} ({max(values):.2f})" for values in found.values()
    ]
    return f"| `{policy}` | {count} | {' | '.join(parts)} |"


def loaded(workers: int, *shapes: str) -> Callable[[Cell], bool]:
    """Cells at and over the knee, on fleets of one size and some shapes."""
    return lambda cell: (
        cell.place != "below"
        and cell.family.workers == workers
        and cell.family.shape in shapes
        and not cell.family.is_kind
    )


def calm(workers: int) -> Callable[[Cell], bool]:
    """Cells below the knee, on fleets of one size."""
    return lambda cell: (
        cell.place == "below" and cell.family.workers == workers and not cell.family.is_kind
    )


def kinds(places: tuple[str, ...], kind: str = "") -> Callable[[Cell], bool]:
    """Cells of generated traffic at some places, of one kind or of all."""
    return lambda cell: (
        cell.family.is_kind and cell.place in places and cell.family.trace.startswith(kind)
    )


LOADED = ("knee", "over")
GROUPS: dict[str, Callable[[Cell], bool]] = {
    "8 workers, knee and over": loaded(8, "aggregated", "unequal"),
    "Of these the unequal ones": loaded(8, "unequal"),
    "8 workers, below the knee": calm(8),
    "Splits of 4 prefill and 4 decode workers, knee and over": loaded(8, "split"),
    "32 workers, knee and over": loaded(32, "aggregated", "unequal"),
    "Splits of 16 prefill and 16 decode workers, knee and over": loaded(32, "split"),
    "32 workers, below the knee": calm(32),
    "Kinds of traffic on 8 workers, knee and over": kinds(LOADED),
    **{
        f"Of these `{kind}`": kinds(LOADED, kind)
        for kind in ("agent_loops", "support", "documents", "crowds", "tenants")
    },
    "Kinds of traffic on 8 workers, below the knee": kinds(("below",)),
}


def tables(runs: Runs, seeds: int) -> str:
    """Markdown: per group of cells the geometric mean and the worst cell of every policy."""
    rule = "|---" * (len(METRICS) + 2) + "|"
    title = "| policy | cells | " + " | ".join(METRICS.values()) + " |"
    lines: list[str] = []
    for name, among in GROUPS.items():
        rows = [text for policy in SHOWN if (text := row(runs, policy, seeds, among))]
        if rows:
            times = "one seed" if seeds == 1 else f"{seeds} seeds"
            lines += [f"### {name} ({times})", "", title, rule, *rows, ""]
    lines += [
        f"Not in all cells of “{name}”: {', '.join(lacking)}."
        for name, lacking in missing(runs, seeds).items()
    ]
    lines.append("")
    return "\n".join(lines)


def worst(runs: Runs, policy: str, seeds: int, count: int = 6) -> str:
    """The worst cells of a policy, per metric."""
    lines: list[str] = []
    for metric in METRICS:
        found = ratios(runs, policy, metric, seeds, lambda _: True)
        top = sorted(found.items(), key=lambda item: -item[1])[:count]
        lines.append(f"{metric}: " + ", ".join(f"{cell.name} {value:.2f}" for cell, value in top))
    return "\n".join(lines)
