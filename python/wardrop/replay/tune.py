"""Tuning: the best parameters of a policy on one part of a trace, scored on another part.

The method is a cyclic coordinate search over a grid. Each parameter in turn tries its values while
the others are fixed, and keeps the value with the lowest cost. The search ends with a round that
changes nothing.
The cost is the geometric mean of a figure over loads and seeds, relative to the defaults of the
policy: below 1 is better. Only the score on the held-out part is unbiased.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wardrop.replay.run import Policy
from wardrop.replay.sweep import Cell, Plan, sweep
from wardrop.replay.workload import ReplayError, Workload

GRIDS: dict[str, dict[str, list[Any]]] = {
    "dynamo": {
        "prefill_load_scale": [0.5, 1.0, 2.0, 4.0, 8.0],
        "overlap_score_credit": [0.25, 0.5, 0.75, 1.0],
        "router_temperature": [0.0, 0.2, 0.5],
        "decode_active_request_weight": [0.0, 4.0, 16.0],
    },
    "two_tier": {"min_share": [0.1, 0.3, 0.5, 0.7, 0.9]},
    "sticky": {"keep_share": [0.5, 0.7, 0.8, 0.9], "min_share": [0.0, 0.1, 0.3, 0.5]},
    "chwbl": {"load_factor": [1.1, 1.25, 1.5, 2.0], "prefix_blocks": [1, 4, 16, 64]},
}
"""Values that `tune` tries by default, by policy and parameter."""

OBJECTIVES = {
    "ttft": "ttft_mean_s",
    "p99": "ttft_p99_s",
    "e2e": "e2e_mean_s",
    "goodput": "goodput_per_s",
    "itl": "itl_mean_ms",
}


@dataclass(frozen=True)
class Tuned:
    """The result of a search.

    Attributes:
        policy: the policy with the best parameters.
        searched: cost on the searched part, relative to the defaults.
        held_out: cost on the held-out part, relative to the defaults. Only this figure is unbiased.
        tried: number of parameter sets simulated.
        cells: cells of the held-out part, defaults first.
    """

    policy: Policy
    searched: float
    held_out: float
    tried: int
    cells: tuple[Cell, ...]


def relative_cost(cells: Sequence[Cell], base: Sequence[Cell], objective: str) -> float:
    """Geometric mean of the objective's ratio, paired by load and seed.

    The ratio of goodput is inverted, so that lower is better for every objective.
    """
    figure = OBJECTIVES[objective]
    ratios = np.asarray(
        [
            max(a.figures[figure], 1e-12) / max(b.figures[figure], 1e-12)
            for a, b in zip(cells, base, strict=True)
        ]
    )
    mean = float(np.exp(np.log(ratios).mean()))
    return 1 / mean if objective == "goodput" else mean


def tune(
    plan: Plan,
    *,
    objective: str = "ttft",
    split: float = 0.5,
    grid: dict[str, list[Any]] | None = None,
    rounds: int = 3,
    progress: Callable[[str], None] | None = None,
) -> Tuned:
    """Search a policy's parameters.

    Args:
        plan: a plan with exactly one policy, at whose parameters the search starts.
        objective: a key of `OBJECTIVES`.
        split: share of the trace for the search; the rest is held out.
        grid: values by parameter; by default the entry of `GRIDS`.
        rounds: most rounds of the coordinate search.
        progress: called with a line of text for each improvement.

    Raises:
        ReplayError: not exactly one policy, no grid for the policy, or an unknown objective.
    """
    if len(plan.policies) != 1:
        raise ReplayError(f"got {len(plan.policies)} policies to tune; expected one")
    if objective not in OBJECTIVES:
        raise ReplayError(f"got objective {objective!r}; expected one of {', '.join(OBJECTIVES)}")
    start = plan.policies[0]
    values = grid or GRIDS.get(start.name)
    if not values:
        raise ReplayError(
            f"got policy {start.name!r}, which has no grid; expected one of {', '.join(GRIDS)}"
        )

    def first(seed: int) -> Workload:
        return plan.workload(seed).part(0.0, split)

    def second(seed: int) -> Workload:
        return plan.workload(seed).part(split, 1.0)

    searched, held_out = replace(plan, workload=first), replace(plan, workload=second)
    base = sweep(replace(searched, policies=[start]))
    best, best_cost, tried = start, 1.0, 1
    for _ in range(rounds):
        before = best
        for name, options in values.items():
            rivals = [Policy(start.name, {**best.parameters, name: value}) for value in options]
            for rival in rivals:
                if rival == best:
                    continue
                cost = relative_cost(sweep(replace(searched, policies=[rival])), base, objective)
                tried += 1
                # A gain below half a percent counts as noise.
                if cost < best_cost * 0.995:
                    best, best_cost = rival, cost
                    if progress:
                        progress(
                            f"{best.label}: {best_cost:.3f} of the defaults after {tried} sets"
                        )
        if best == before:
            break
    rest = sweep(replace(held_out, policies=[start]))
    scored = sweep(replace(held_out, policies=[best]))
    return Tuned(best, best_cost, relative_cost(scored, rest, objective), tried, (*rest, *scored))
