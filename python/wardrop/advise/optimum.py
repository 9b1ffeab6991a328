"""How far policies are from the optimum on a trace, and what would bring it closer.

The price of anarchy of a policy is its cost over the least cost that any routing of the same
requests could have reached. The least cost lies between a proven lower bound and the cost of the
best candidate, so the price lies between two figures. docs/explanation/price-of-anarchy.md has the
proofs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from wardrop.advise.comparison import Ratio, of, ratio
from wardrop.advise.question import Question
from wardrop.replay.bound import lower_bound
from wardrop.replay.fleet import Fleet
from wardrop.replay.limits import relaxed
from wardrop.replay.run import Policy
from wardrop.replay.sweep import Cell
from wardrop.replay.workload import ReplayError

Simulate = Callable[[str, Fleet, Sequence[Policy]], list[Cell]]
"""Simulates policies on a fleet at load 1, one cell per policy and seed. The text is the stage."""


@dataclass(frozen=True)
class Price:
    """The price of anarchy of a policy at load 1: it lies between the two figures.

    Attributes:
        policy: label of the policy.
        low: cost over the least cost that a candidate reached, geometric mean over seeds.
        high: cost over the lower bound, geometric mean over seeds.
    """

    policy: str
    low: float
    high: float


@dataclass(frozen=True)
class Optimum:
    """What was found about the optimum.

    Attributes:
        figure: `ttft_mean_s` or `e2e_mean_s`. Other objectives have no bound; E2E stands for them.
        prices: one price per policy that completed every request.
        refusal: why there is no price; None where there are prices.
        savings: cost with one limit relaxed over the cost as it is, both under the best policy.
    """

    figure: str
    prices: tuple[Price, ...] = ()
    refusal: str | None = None
    savings: dict[str, Ratio] = field(default_factory=dict[str, Ratio])


def find_optimum(
    question: Question, cells: Sequence[Cell], best: Policy, simulate: Simulate
) -> Optimum:
    """Prices of the candidates, and what each limit of the fleet costs.

    Args:
        question: what is asked.
        cells: the candidates at load 1, one cell per policy and seed.
        best: the policy under which limits are relaxed.
        simulate: runs simulations.
    """
    figure = "ttft_mean_s" if question.figure.startswith("ttft") else "e2e_mean_s"
    prices, refusal = _prices(question, cells, figure)
    base = of(cells, best.label)
    savings: dict[str, Ratio] = {}
    if not question.fleet.faults:
        for limit, (fleet, policy) in relaxed(question.fleet, best).items():
            savings[limit] = ratio(simulate(limit, fleet, [policy]), base, figure)
    return Optimum(figure, prices, refusal, savings)


def _prices(
    question: Question, cells: Sequence[Cell], figure: str
) -> tuple[tuple[Price, ...], str | None]:
    lower_s: dict[int, float] = {}
    requests: dict[int, int] = {}
    weights = (1.0, 0.0) if figure == "ttft_mean_s" else (0.0, 1.0)
    for seed in range(question.seeds):
        workload = question.workload(seed)
        requests[seed] = len(workload)
        try:
            bound = lower_bound(workload, question.fleet)
        except (ValueError, ReplayError) as error:
            return (), str(error)
        lower_s[seed] = bound.all.weighted(*weights) / len(workload)
    # The cost of a run that lost requests is the cost of an easier problem.
    whole = [cell for cell in cells if cell.figures["completed"] == requests[cell.seed]]
    labels = [
        label
        for label in dict.fromkeys(cell.policy for cell in whole)
        if len(of(whole, label)) == question.seeds
    ]
    if not labels:
        return (), "no policy completed every request"
    costs = {
        label: np.array([cell.figures[figure] for cell in sorted(of(whole, label), key=_seed)])
        for label in labels
    }
    least = np.minimum.reduce(list(costs.values()))
    lower = np.array([lower_s[seed] for seed in range(question.seeds)])
    prices = [
        Price(label, _mean_ratio(cost, least), _mean_ratio(cost, lower))
        for label, cost in costs.items()
    ]
    return tuple(prices), None


def _seed(cell: Cell) -> int:
    return cell.seed


def _mean_ratio(cost: np.ndarray, base: np.ndarray) -> float:
    return float(np.exp(np.log(cost / base).mean()))
