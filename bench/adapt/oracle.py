"""The oracle: for each phase the setting that hindsight would choose, each schedule really run.

The search takes the better of two starts: the best static setting throughout, and the setting that
was best in each phase of the static runs. It then tries other settings, one pass over the phases,
and keeps a schedule that lowers the mean E2E. So it is an oracle that was found, not a bound: a
longer search may find a better schedule.
"""

from __future__ import annotations

import numpy as np
from bench.adapt.cells import Cell
from bench.adapt.runs import THEN, Runs
from bench.adapt.settings import STATIC

LOSS_FLOOR = 0.01
"""Shares of missed requests below this count as this: a ratio of two tiny shares says nothing."""

TRIED = 2
"""Settings tried per phase: those with the least E2E of that phase among static runs."""


def arm(schedule: list[str]) -> str:
    """A schedule as an arm; a constant one is a static setting."""
    return schedule[0] if len(set(schedule)) == 1 else THEN.join(schedule)


def score(runs: Runs, cell: Cell, name: str, seeds: int, metric: str = "e2e") -> float:
    """Log of the geometric mean of a figure over seeds."""
    floor = LOSS_FLOOR if metric == "lost" else 0.0
    return float(np.log(np.maximum(runs.values(cell, name, metric, seeds), floor)).mean())


def ranked(runs: Runs, cell: Cell, seeds: int) -> list[list[str]]:
    """Per phase the static settings, by the E2E of the requests that arrive in it."""

    def cost(setting: str, at: int) -> float:
        rows = [runs.found[cell.name, setting, seed]["segments"][at] for seed in range(seeds)]
        return float(np.log([total / count for count, total in rows]).mean())

    return [sorted(STATIC, key=lambda s: cost(s, at)) for at in range(len(cell.phases))]


def search(runs: Runs, cell: Cell, seeds: int) -> None:
    """Run the schedules of the search, once all static settings have run."""
    if len(cell.phases) == 1 or not set(STATIC) <= set(runs.arms(cell, seeds)):
        return

    def tried(schedule: list[str]) -> float:
        name = arm(schedule)
        ran = [runs.run(cell, name, seed) for seed in range(seeds)]
        return score(runs, cell, name, seeds) if all(ran) else float("inf")

    order = ranked(runs, cell, seeds)
    single = min(STATIC, key=lambda s: score(runs, cell, s, seeds))
    best = min(([single] * len(order), [first[0] for first in order]), key=tried)
    least = tried(best)
    for at, settings in enumerate(order):
        for setting in settings[:TRIED]:
            other = [*best[:at], setting, *best[at + 1 :]]
            found = tried(other)
            if found < least:
                best, least = other, found


def best_schedule(runs: Runs, cell: Cell, seeds: int) -> str:
    """The arm without a controller that has the least mean E2E over all seeds."""
    fixed = [a for a in runs.arms(cell, seeds) if set(a.split(THEN)) <= set(STATIC)]
    return min(fixed, key=lambda a: score(runs, cell, a, seeds))


def spliced(runs: Runs, cell: Cell, seeds: int) -> float:
    """Log of the geometric mean of E2E where every phase and seed takes its best static run.

    No run has these figures. Each static run has its own history, so this is no strict bound; it
    also gains from chance, since it takes the luckier run of every phase and seed.
    """
    means: list[float] = []
    for seed in range(seeds):
        rows = [runs.found[cell.name, setting, seed]["segments"] for setting in STATIC]
        least = [min(total / count for count, total in phase) for phase in zip(*rows, strict=True)]
        counts = [count for count, _ in rows[0]]
        means.append(float(np.average(least, weights=counts)))
    return float(np.log(means).mean())
