"""Tables of the report, as Markdown."""

from __future__ import annotations

from collections import Counter

import numpy as np
from bench.adapt.cells import Cell
from bench.adapt.oracle import best_schedule, ranked, score, spliced
from bench.adapt.runs import THEN, Runs
from bench.adapt.settings import CONTROLLER, DEFAULT, STATIC

METRICS = {"e2e": "E2E", "ttft": "mean TTFT", "p99": "p99 TTFT", "lost": "goodput loss"}
REGIMES = {"BELOW": "below", "TRANSITION": "transition", "SATURATED": "saturated"}
OF_CELL, SCHEDULE = "oracle: best setting of each cell", "oracle: best schedule of each cell"


def judged(runs: Runs, chosen: list[Cell], seeds: int) -> list[Cell]:
    """Cells where every setting and the controller ran on all seeds."""
    wanted = {*STATIC, CONTROLLER}
    return [cell for cell in chosen if wanted <= set(runs.arms(cell, seeds))]


def single(runs: Runs, here: list[Cell], seeds: int) -> str:
    """The static setting with the least geometric mean of E2E over all cells."""
    return min(STATIC, key=lambda s: sum(score(runs, cell, s, seeds) for cell in here))


def arms_of(runs: Runs, here: list[Cell], seeds: int) -> dict[str, dict[Cell, str]]:
    """By title of a row: the arm that it takes in each cell."""
    rows = {f"`{arm}`": dict.fromkeys(here, arm) for arm in (*STATIC, CONTROLLER)}
    rows[OF_CELL] = {
        cell: min(STATIC, key=lambda s, c=cell: score(runs, c, s, seeds)) for cell in here
    }
    rows[SCHEDULE] = {cell: best_schedule(runs, cell, seeds) for cell in here}
    return rows


def overall(runs: Runs, chosen: list[Cell], seeds: int) -> str:
    """Geometric mean over cells against the best single static setting, and the worst cell."""
    here = judged(runs, chosen, seeds)
    base = single(runs, here, seeds)
    lines = [
        f"{len(here)} cells, {seeds} seeds, over `{base}`: geometric mean (worst cell).",
        "",
        f"| | {' | '.join(METRICS.values())} |",
        "|---|" + "---|" * len(METRICS),
    ]
    for title, arm_of in arms_of(runs, here, seeds).items():
        parts: list[str] = []
        for metric in METRICS:
            gains = [
                score(runs, cell, arm_of[cell], seeds, metric)
                - score(runs, cell, base, seeds, metric)
                for cell in here
            ]
            parts.append(f"{np.exp(np.mean(gains)):.3f} ({np.exp(max(gains)):.2f})")
        lines.append(f"| {title} | {' | '.join(parts)} |")
    least = [spliced(runs, cell, seeds) - score(runs, cell, base, seeds) for cell in here]
    shown = f"{np.exp(np.mean(least)):.3f} ({np.exp(max(least)):.2f})"
    lines.append(f"| spliced: best static run of each phase and seed | {shown} | | | |")
    return "\n".join([*lines, ""])


def by_cell(runs: Runs, chosen: list[Cell], seeds: int) -> str:
    """Per cell: E2E of the best single setting in seconds, and the other arms against it."""
    here = judged(runs, chosen, seeds)
    base = single(runs, here, seeds)
    lines = [
        f"E2E of `{base}`, the others over it, and the controller over the default:",
        "",
        "| cell | E2E, s | default | controller | controller ÷ default | best setting | "
        "best schedule | spliced | kept, rolled back | regimes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    rows = arms_of(runs, here, seeds)
    for cell in here:
        zero = score(runs, cell, base, seeds)
        best, plan = rows[OF_CELL][cell], rows[SCHEDULE][cell]
        default, control, of_cell, schedule = (
            float(np.exp(score(runs, cell, name, seeds) - zero))
            for name in (DEFAULT, CONTROLLER, best, plan)
        )
        found = [runs.found[cell.name, CONTROLLER, seed] for seed in range(seeds)]
        events = Counter(move[1] for row in found for move in row["moves"])
        seen = {"BELOW", *(name for row in found for name in row["regimes"])}
        regimes = ", ".join(text for name, text in REGIMES.items() if name in seen)
        lines.append(
            f"| {cell.name} | {np.exp(zero):.2f} | {default:.3f} | {control:.3f} | "
            f"{control / default:.3f} | {of_cell:.3f} (`{best}`) | {schedule:.3f} | "
            f"{np.exp(spliced(runs, cell, seeds) - zero):.3f} | "
            f"{events['kept']}, {events['rolled_back']} | {regimes} |"
        )
    return "\n".join([*lines, ""])


def schedules(runs: Runs, chosen: list[Cell], seeds: int) -> str:
    """The best schedule of each cell, phase by phase, beside the best setting of each phase."""
    lines = ["| cell | best schedule found | best in each phase on its own |", "|---|---|---|"]
    for cell in judged(runs, chosen, seeds):
        if len(cell.phases) > 1:
            best = " → ".join(f"`{s}`" for s in best_schedule(runs, cell, seeds).split(THEN))
            alone = " → ".join(f"`{order[0]}`" for order in ranked(runs, cell, seeds))
            lines.append(f"| {cell.name} | {best} | {alone} |")
    return "\n".join([*lines, ""])
