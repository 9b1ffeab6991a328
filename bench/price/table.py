"""The judgement: ours against the best static rule of the same cell, one metric at a time."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from bench.price.cells import OURS, STATIC, Cell

METRICS = {
    "ttft": "mean TTFT",
    "p99": "p99 TTFT",
    "itl": "ITL",
    "e2e": "E2E",
    "goodput": "goodput loss",
    "long": "p99 of the longest 10 %",
}
_LOSS_FLOOR = 0.01
"""Shares of missed requests below this count as this: a ratio of two tiny shares says nothing."""

Runs = dict[tuple[Cell, str, int], dict[str, float]]


def _mean(runs: Runs) -> dict[Cell, dict[str, dict[str, float]]]:
    """Per cell and policy the mean over seeds; goodput as loss. Only cells that everybody ran."""
    sums: dict[Cell, dict[str, list[dict[str, float]]]] = defaultdict(lambda: defaultdict(list))
    for (cell, policy, _), figures in runs.items():
        sums[cell][policy].append(figures)
    out: dict[Cell, dict[str, dict[str, float]]] = {}
    for cell, policies in sums.items():
        if set(policies) < set(STATIC) | set(OURS):
            continue
        out[cell] = {
            policy: {metric: _value(metric, rows) for metric in METRICS}
            for policy, rows in policies.items()
        }
    return out


def _value(metric: str, rows: list[dict[str, float]]) -> float:
    value = float(np.mean([row[metric] for row in rows]))
    return max(1.0 - value, _LOSS_FLOOR) if metric == "goodput" else value


def ratios(runs: Runs, policy: str, metric: str, places: tuple[str, ...]) -> list[float]:
    """Ours ÷ the best static rule (defaults and grid), per cell; below 1 ours is better."""
    return [
        found[policy][metric] / min(found[name][metric] for name in STATIC)
        for cell, found in _mean(runs).items()
        if cell.place in places
    ]


def _row(runs: Runs, policy: str, places: tuple[str, ...]) -> str:
    parts = [f"| `{policy}` "]
    for metric in METRICS:
        values = ratios(runs, policy, metric, places)
        if not values:
            return ""
        parts.append(f"| {np.exp(np.mean(np.log(values))):.2f} ({max(values):.2f}) ")
    return "".join(parts) + "|"


def tables(runs: Runs) -> str:
    """Markdown: geometric mean (worst cell), for cells at the knee and over, then below it."""
    rule = "|---" * (len(METRICS) + 1) + "|"
    title = "| policy | " + " | ".join(METRICS.values()) + " |"
    lines: list[str] = []
    found = _mean(runs)
    seeds = 1 + max((seed for _, _, seed in runs), default=-1)
    for name, places in (("Knee and over", ("knee", "over")), ("Below the knee", ("below",))):
        count = sum(cell.place in places for cell in found)
        lines += [f"### {name}: {count} cells, up to {seeds} seeds", "", title, rule]
        shown = [*OURS, "dynamo", "sticky", "lmetric"]
        lines += [row for policy in shown if (row := _row(runs, policy, places))]
        lines.append("")
    return "\n".join(lines)
