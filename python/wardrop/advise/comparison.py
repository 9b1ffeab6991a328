"""Comparisons of simulations that are paired by seed, and the choice among policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from wardrop.advise.question import DEFAULT, Question
from wardrop.replay.run import Policy
from wardrop.replay.sweep import Cell
from wardrop.replay.table import HIGHER_IS_BETTER

_LEVEL = 0.95
_MATTERS = 1.02
"""A figure that is 2 % worse, with its whole interval above 1, counts as a loss."""

FIGURES = (
    ("ttft_mean_s", "mean time to first token", "s"),
    ("ttft_p99_s", "99th percentile of the time to first token", "s"),
    ("itl_mean_ms", "mean time between tokens", "ms"),
    ("e2e_mean_s", "mean time to last token", "s"),
    ("goodput_per_s", "goodput", "requests/s"),
)
"""Figures that are compared: name, text and unit."""


@dataclass(frozen=True)
class Ratio:
    """A cost relative to another one, paired by seed. Below 1 is better.

    Attributes:
        mean: geometric mean over seeds.
        low: lower end of the 95 % confidence interval.
        high: upper end of the interval.
    """

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} ({self.low:.2f} to {self.high:.2f})"

    @property
    def is_worse(self) -> bool:
        """Whether the cost is higher beyond doubt, and by an amount that matters."""
        return self.mean > _MATTERS and self.low > 1.0

    @property
    def is_better(self) -> bool:
        """Whether the cost is lower beyond doubt, and by an amount that matters."""
        return self.mean < 1 / _MATTERS and self.high < 1.0


def ratio(cells: Sequence[Cell], base: Sequence[Cell], figure: str) -> Ratio:
    """Costs relative to other costs: Student's t interval of the logarithms, paired by seed.

    Args:
        cells: one cell per seed.
        base: the cells to compare with, of the same seeds.
        figure: name of the figure. Goodput counts inverted, so that below 1 is better.
    """
    by_seed = {cell.seed: cell for cell in base}
    logs = np.asarray(
        [
            np.log(max(cell.figures[figure], 1e-9) / max(by_seed[cell.seed].figures[figure], 1e-9))
            for cell in cells
        ]
    )
    if figure in HIGHER_IS_BETTER:
        logs = -logs
    mean = float(logs.mean())
    half = 0.0
    if logs.size > 1:
        error = float(logs.std(ddof=1)) / np.sqrt(logs.size)
        half = float(stats.t.ppf((1 + _LEVEL) / 2, logs.size - 1)) * error
    return Ratio(float(np.exp(mean)), float(np.exp(mean - half)), float(np.exp(mean + half)))


def of(cells: Sequence[Cell], policy: str, load: float = 1.0) -> list[Cell]:
    """The cells of a policy at a load."""
    return [cell for cell in cells if cell.policy == policy and cell.load == load]


def choose(question: Question, cells: Sequence[Cell]) -> str:
    """Label of the policy to run at load 1.

    The policy with the lowest mean cost wins, unless it is no better than a policy that is simpler
    to keep: first the policy in use, then the default.
    """
    labels = list(dict.fromkeys(cell.policy for cell in cells))
    running = question.running.label
    costs = {
        label: ratio(of(cells, label), of(cells, running), question.figure).mean for label in labels
    }
    best = min(labels, key=lambda label: costs[label])
    for simpler in (running, Policy.parse(DEFAULT).label):
        if not ratio(of(cells, best), of(cells, simpler), question.figure).is_better:
            return simpler
    return best
