"""The judgement: ours against the best static rule of the same cell, one metric at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from bench.price.cells import Cell, cells
from bench.price.rules import KNOWN, OURS
from bench.price.runs import METRICS, Runs

SHOWN = [*OURS, *KNOWN]


def bar(runs: Runs, cell: Cell, metric: str, seeds: int) -> float | None:
    """The best static rule here: of those that won on seed 0 and the well-known, on all seeds."""
    if not runs.is_tuned(cell):
        return None
    values = [runs.mean(cell, policy, metric, seeds) for policy in runs.contenders(cell)]
    kept = [value for value in values if value is not None]
    return min(kept) if len(kept) == len(values) else None


def ratios(
    runs: Runs, policy: str, metric: str, seeds: int, among: Callable[[Cell], bool]
) -> dict[Cell, float]:
    """Ours ÷ the bar, per cell; below 1 ours is better."""
    found: dict[Cell, float] = {}
    for cell in filter(among, judged(runs, seeds)):
        ours, best = runs.mean(cell, policy, metric, seeds), bar(runs, cell, metric, seeds)
        if ours is not None and best is not None:
            found[cell] = ours / best
    return found


def judged(runs: Runs, seeds: int) -> list[Cell]:
    """The cells where the bar and everybody of `OURS` that has run at all are known."""
    ran = {policy for _, policy, _ in runs.found}
    policies = [policy for policy in OURS if policy in ran]

    def known(cell: Cell) -> bool:
        ours = [runs.mean(cell, policy, "ttft", seeds) for policy in policies]
        return None not in ours and bar(runs, cell, "ttft", seeds) is not None

    return [cell for cell in cells() if known(cell)]


def row(runs: Runs, policy: str, seeds: int, among: Callable[[Cell], bool]) -> str:
    """Geometric mean and worst cell per metric."""
    parts = [f"| `{policy}` "]
    for metric in METRICS:
        values = list(ratios(runs, policy, metric, seeds, among).values())
        if not values:
            return ""
        parts.append(f"| {np.exp(np.mean(np.log(values))):.2f} ({max(values):.2f}) ")
    return "".join(parts) + "|"


GROUPS: dict[str, Callable[[Cell], bool]] = {
    "Knee and over": lambda cell: cell.place != "below",
    "Knee and over, 8 workers, aggregated": lambda cell: (
        cell.place != "below" and cell.family.workers == 8 and cell.family.shape == "aggregated"
    ),
    "Knee and over, 32 workers, aggregated": lambda cell: (
        cell.place != "below" and cell.family.workers == 32 and cell.family.shape == "aggregated"
    ),
    "Knee and over, split": lambda cell: cell.place != "below" and cell.family.shape == "split",
    "Knee and over, unequal": lambda cell: cell.place != "below" and cell.family.shape == "unequal",
    "Below the knee": lambda cell: cell.place == "below",
}


def tables(runs: Runs, seeds: int) -> str:
    """Markdown: per group of cells the geometric mean and the worst cell of every policy."""
    rule = "|---" * (len(METRICS) + 1) + "|"
    title = "| policy | " + " | ".join(METRICS.values()) + " |"
    lines: list[str] = []
    for name, among in GROUPS.items():
        count = len(ratios(runs, OURS[0], "ttft", seeds, among))
        if count == 0:
            continue
        times = "one seed" if seeds == 1 else f"{seeds} seeds"
        lines += [f"### {name}: {count} cells, {times}", "", title, rule]
        lines += [text for policy in SHOWN if (text := row(runs, policy, seeds, among))]
        lines.append("")
    missing = [cell.name for cell in cells() if cell not in judged(runs, seeds)]
    lines += [f"Not judged on {seeds} seeds: {', '.join(missing) or 'none'}.", ""]
    return "\n".join(lines)


def worst(runs: Runs, policy: str, seeds: int, count: int = 6) -> str:
    """The cells where a policy does worst, per metric."""
    lines: list[str] = []
    for metric in METRICS:
        found = ratios(runs, policy, metric, seeds, lambda _: True)
        top = sorted(found.items(), key=lambda item: -item[1])[:count]
        lines.append(f"{metric}: " + ", ".join(f"{cell.name} {value:.2f}" for cell, value in top))
    return "\n".join(lines)
